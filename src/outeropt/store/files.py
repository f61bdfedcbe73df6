"""Archives as files to publish: one `.npz` and one Parquet file for each task and set."""

import contextlib
import importlib.util
import json
import os
import tempfile
import urllib.parse
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from outeropt.errors import StoreError
from outeropt.store import trial
from outeropt.store.archive import Archive


VERSION = 1
AXES = ("setting", "seed", "step")
_PARQUET_KEY = b"outeropt"


def export(archives: Iterable[Archive], folder: str | Path) -> list[Path] | list[str]:
    """Writes `folder/<task>/<set>.npz` and `.parquet` for each archive.

    The `.npz` holds plain arrays (no pickles). The Parquet file has one row for each setting, seed and step,
    with the names, the hyperparameters and the curves as columns, compressed with zstd. Either holds the
    whole archive, and replaces an older file at once. Without pyarrow the Parquet files are left out, with a
    warning.

    Args:
      archives: what to write.
      folder: where; created if it does not exist. Also an address that fsspec knows, such as
        `"s3://bucket/archive"`.

    Returns:
      The files written, or their addresses.

    Raises:
      StoreError: a file cannot be written, or fsspec, or what it needs for the address, is not installed.
    """
    if "://" in str(folder):
        return _upload(archives, str(folder))
    writers: dict[str, Callable[[Archive, Path], None]] = {".npz": _write_npz, ".parquet": _write_parquet}
    if importlib.util.find_spec("pyarrow") is None:
        del writers[".parquet"]
        warnings.warn(
            "Only .npz files are written: Parquet needs pyarrow, pip install outeropt[query]", stacklevel=2
        )
    written = []
    for archive in archives:
        for ending, write in writers.items():
            path = Path(folder) / _file_name(archive.task) / f"{_file_name(archive.set)}{ending}"
            partial = path.with_name(f".{path.name}.partial")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                write(archive, partial)
                os.replace(partial, path)
            except OSError as error:
                with contextlib.suppress(OSError):
                    partial.unlink(missing_ok=True)
                raise StoreError(
                    f"{path} cannot be written: {error.strerror or error}; give another folder or free space."
                ) from error
            written.append(path)
    return written


def _upload(archives: Iterable[Archive], address: str) -> list[str]:
    """Writes archives to a place that fsspec knows, one after the other: only one is on this disk."""
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise StoreError(f"{address} needs fsspec: pip install fsspec, and what it needs there.") from None
    written = []
    try:
        system, root = url_to_fs(address)
        for archive in archives:
            with tempfile.TemporaryDirectory() as folder:
                for path in map(Path, export([archive], folder)):
                    part = path.relative_to(folder).as_posix()
                    system.makedirs(f"{root}/{part.rpartition('/')[0]}", exist_ok=True)
                    system.put_file(str(path), f"{root}/{part}")
                    written.append(f"{address.rstrip('/')}/{part}")
    except (OSError, ImportError, ValueError) as error:
        raise StoreError(
            f"{address} cannot be written: {error}; give another address, or install what it needs."
        ) from error
    return written


def load(path: str | Path) -> Archive:
    """Reads one file that `export` wrote; the archive is exactly the one that was written.

    Raises:
      StoreError: there is no such file, it is damaged, or something else wrote it.
    """
    path = Path(path)
    readers = {".npz": _read_npz, ".parquet": _read_parquet}
    if path.suffix not in readers:
        raise StoreError(f"{path} is no archive file; archives end in .npz or .parquet.")
    if not path.is_file():
        raise StoreError(f"There is no archive at {path}.")
    try:
        return readers[path.suffix](path)
    except (OSError, ValueError, KeyError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise StoreError(
            f"{path} is damaged or was not written by outeropt ({error}); fetch or export it again."
        ) from error


def load_folder(folder: str | Path) -> list[Archive]:
    """Reads every archive below a folder, ordered by path; the `.npz` where both files are there.

    Raises:
      StoreError: there is none, or one cannot be read.
    """
    # The .npz comes second, so it takes the place of the Parquet file of the same name.
    files = {path.with_suffix(""): path for ending in ("parquet", "npz") for path in _below(folder, ending)}
    if not files:
        raise StoreError(f"There are no archives (.npz or .parquet) below {folder}.")
    return [load(path) for _, path in sorted(files.items())]


def _below(folder: str | Path, ending: str) -> list[Path]:
    return [path for path in Path(folder).rglob(f"*.{ending}") if not path.name.startswith(".")]


def _file_name(name: str) -> str:
    """A name as one path component on every system; names stay readable, odd characters become %XX."""
    quoted = urllib.parse.quote(name, safe=" +=,@()[]")
    return "%2E" + quoted[1:] if quoted.startswith(".") else quoted


def _header(archive: Archive) -> dict[str, Any]:
    """Everything but the numbers of the trials."""
    header = {
        "version": VERSION,
        "axes": list(AXES),
        "task": archive.task,
        "set": archive.set,
        "optimizer": archive.optimizer,
        "settings": [trial.setting_json(setting) for setting in archive.settings],
        "seeds": [int(seed) for seed in archive.seeds],
        "steps": np.asarray(archive.steps).tolist(),
        "eval_every": archive.eval_every,
        "eval_batches": archive.eval_batches,
        "last_eval_batches": archive.last_eval_batches,
        "details": trial.details_json(archive.details),
        "curves": list(archive.curves),
    }
    return header if archive.ids is None else {**header, "ids": archive.ids.tolist()}


def _assemble(
    header: Mapping[str, Any], curves: dict[str, np.ndarray], diverged_at: np.ndarray, seconds: np.ndarray
) -> Archive:
    if int(header["version"]) > VERSION:
        raise ValueError(f"format {int(header['version'])} is newer than {VERSION}: upgrade outeropt")
    return Archive(
        task=str(header["task"]),
        set=str(header["set"]),
        optimizer=str(header["optimizer"]),
        settings=tuple(trial.read_setting(str(text)) for text in header["settings"]),
        seeds=tuple(int(seed) for seed in header["seeds"]),
        steps=np.asarray(header["steps"], np.int32),
        curves=curves,
        diverged_at=diverged_at,
        seconds=seconds,
        eval_every=int(header["eval_every"]),
        eval_batches=int(header["eval_batches"]),
        last_eval_batches=int(header["last_eval_batches"]),
        details=json.loads(str(header["details"])),
        ids=np.asarray(header["ids"], str) if "ids" in header else None,
    )


def _write_npz(archive: Archive, path: Path) -> None:
    arrays = {name: np.asarray(value) for name, value in _header(archive).items()}
    arrays["diverged_at"] = np.asarray(archive.diverged_at, np.int32)
    arrays["seconds"] = np.asarray(archive.seconds, np.float32)
    arrays |= {f"curves/{name}": curve for name, curve in archive.curves.items()}
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]


def _read_npz(path: Path) -> Archive:
    with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
        if "eval/xs" in file.files:
            raise StoreError(f"{path} has the layout of learned_optimization; read it with load_published.")
        arrays = {name: file[name] for name in file.files}
    curves = {str(name): arrays[f"curves/{name}"] for name in arrays["curves"]}
    return _assemble(arrays, curves, arrays["diverged_at"], arrays["seconds"])


def _write_parquet(archive: Archive, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    shape = (len(archive.settings), len(archive.seeds), len(archive.steps))
    rows = int(np.prod(shape))

    def spread(values: Any, axes: tuple[int, ...]) -> np.ndarray:
        """Values along some of the axes, repeated along the others, one for each row."""
        placed = np.expand_dims(np.asarray(values), tuple(set(range(3)) - set(axes)))
        return np.broadcast_to(placed, shape).reshape(-1)

    columns: dict[str, Any] = {
        name: pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), pa.array([text]))
        for name, text in (("task", archive.task), ("set", archive.set), ("optimizer", archive.optimizer))
    }
    columns["setting"] = spread(np.arange(shape[0], dtype=np.int32), (0,))
    columns["seed"] = spread(np.asarray(archive.seeds, np.int64), (1,))
    columns["step"] = spread(np.asarray(archive.steps, np.int32), (2,))
    columns["diverged_at"] = spread(np.asarray(archive.diverged_at, np.int32), (0, 1))
    columns["seconds"] = spread(np.asarray(archive.seconds, np.float32), (0, 1))
    columns |= {name: curve.reshape(-1) for name, curve in archive.curves.items()}
    index = pa.array(columns["setting"])
    names = dict.fromkeys(name for setting in archive.settings for name in setting)
    for name in names:
        values = pa.array([setting.get(name) for setting in archive.settings])
        # A hyperparameter that is called like another column keeps its value under a longer name.
        columns[f"hyperparameter.{name}" if name in columns else name] = values.take(index)
    table = pa.table(columns).replace_schema_metadata({_PARQUET_KEY: json.dumps(_header(archive)).encode()})
    pq.write_table(table, path, compression="zstd")


def _read_parquet(path: Path) -> Archive:
    if importlib.util.find_spec("pyarrow") is None:
        raise StoreError(
            f"{path} needs pyarrow: pip install outeropt[query], or load the .npz file beside it."
        )
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    if _PARQUET_KEY not in (table.schema.metadata or {}):
        raise StoreError(f"{path} carries no outeropt header; load the file that export wrote.")
    header = json.loads(table.schema.metadata[_PARQUET_KEY])
    shape = (len(header["settings"]), len(header["seeds"]), len(header["steps"]))

    def column(name: str) -> np.ndarray:
        return table.column(name).to_numpy().reshape(shape)

    curves = {name: column(name) for name in header["curves"]}
    return _assemble(header, curves, column("diverged_at")[:, :, 0], column("seconds")[:, :, 0])
