"""Folders of logs: one for each run, named by its time, with its curves and its configuration."""

import dataclasses
import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from outeropt.errors import ConfigError


if TYPE_CHECKING:
    from outeropt.store import Archive


def run_folder(root: Path | None, group: str, name: str | None) -> Path | None:
    """Makes the folder `ROOT/GROUP/TIME NAME` of a run; None without a root.

    Raises:
      ConfigError: a group or a name without a root, or one that is no name of a folder.
    """
    for option, text in (("--group", group), ("--name", name or "")):
        if "/" in text or "\\" in text or text.startswith("."):
            raise ConfigError(f"{option} {text} must be a folder's name, without slashes and leading dots.")
    if root is None:
        if name is not None or group:
            given = "--name" if name is not None else "--group"
            raise ConfigError(f"{given} names a folder of logs; say where with --log-dir LOGS.")
        return None
    # No colons, which some file systems refuse.
    time = datetime.datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
    for again in ("", *(f"-{i}" for i in range(2, 1000))):
        folder = root / group / f"{time}{again} {name or ''}".rstrip()
        try:
            folder.mkdir(parents=True)
        except FileExistsError:  # another run began in the same second
            continue
        return folder
    raise ConfigError(f"{root / group} holds a thousand runs of this second; choose another --group.")


def write_curves(archive: "Archive", folder: Path) -> None:
    """Writes the curves of a single trial as TensorBoard scalars."""
    from outeropt.progress import scalars

    with scalars(folder) as writer:
        for i, step in enumerate(archive.steps):
            values = {name: curve[0, 0, i] for name, curve in archive.curves.items()}
            if step == 0:
                values.pop("inner/loss")  # of the steps since the last evaluation: there are none
            writer.log(int(step), values)


def write_config(config: Any, folder: Path) -> None:
    """Writes what a run was configured with, as a file that `-c` takes."""
    given = {
        field.name: value
        for field in dataclasses.fields(config)
        if (value := getattr(config, field.name)) not in (None, {})
    }
    text = yaml.safe_dump({key: _plain(value) for key, value in given.items()}, sort_keys=False)
    (folder / "config.yaml").write_text(text, "utf-8")


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
