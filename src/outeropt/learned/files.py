"""Learned optimizers by name or file: `load`, and what ships with the package."""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import equinox as eqx
import jax

from outeropt import checkpoint
from outeropt.errors import ConfigError, OuteroptError, unknown_name
from outeropt.learned.architectures import ARCHITECTURES
from outeropt.learned.base import LearnedOptimizer


# What meta-training leaves in its folder.
FILE = "optimizer.safetensors"


def build(architecture: str, settings: Mapping[str, Any], key=None) -> LearnedOptimizer:
    """A fresh optimizer of a named architecture.

    Args:
      architecture: a name in `ARCHITECTURES`, such as `"AdafacMLP"`.
      settings: the constructor's plain settings; lists count as tuples, as JSON and YAML have no tuples.
      key: randomness of the initial meta-parameters.

    Raises:
      UnknownName: no such architecture or setting.
    """
    if architecture not in ARCHITECTURES:
        raise unknown_name("architecture", architecture, ARCHITECTURES, see="outeropt list architectures")
    kind: Any = ARCHITECTURES[architecture]
    known = kind(key=key).settings
    for name in settings:
        if name not in known:
            raise unknown_name(f"setting of {architecture}", name, known, see=", ".join(known))
    return kind(key=key, **{name: _as_tuple(value) for name, value in settings.items()})


def load(name: str | Path) -> LearnedOptimizer:
    """A learned optimizer that ships with the package, or one from a file.

    Args:
      name: a name that `names` lists (`"small_fc"`), a file that `LearnedOptimizer.save` wrote, or a folder
        of `metatrain` or `amalgamate`.

    Raises:
      UnknownName: neither a name nor a file.
      OuteroptError: the file is damaged, or is no learned optimizer. Nothing in it is ever executed.

    Examples:
      >>> from outeropt import learned
      >>> small = learned.load("small_fc")
      >>> type(small).__name__, small.settings["schedule"]
      ('AdafacMLP', 'linear')
    """
    if str(name) in names():
        with resources.as_file(_shipped() / f"{name}.safetensors") as path:
            return _read(path)
    path = Path(name)
    if str(name) and path.is_dir():
        path = path / FILE
        if not path.exists():
            raise OuteroptError(
                f"{name} holds no {FILE}; metatrain writes it when it ends, amalgamate after a period."
            )
    if not str(name) or not path.exists():
        raise unknown_name("learned optimizer or file", str(name), names(), see="outeropt list weights")
    return _read(path)


def about(name: str | Path) -> dict[str, Any]:
    """How the weights of a learned optimizer were made, as `save` was told.

    Raises:
      UnknownName: neither a shipped name nor a file.
    """
    path = _shipped() / f"{name}.safetensors" if str(name) in names() else Path(name)
    with resources.as_file(path) as file:
        return checkpoint.metadata(file / FILE if file.is_dir() else file)["about"]


def names() -> list[str]:
    """Names of the weights that ship with the package, sorted."""
    return sorted(
        entry.name.removesuffix(".safetensors")
        for entry in _shipped().iterdir()
        if entry.name.endswith(".safetensors")
    )


def _shipped():
    return resources.files("outeropt.learned") / "weights"


def _read(path: Path) -> LearnedOptimizer:
    made = checkpoint.metadata(path)
    if "architecture" not in made:
        raise ConfigError(f"{path} is a checkpoint, but of no learned optimizer; give a file of `save`.")
    skeleton = eqx.filter_eval_shape(build, made["architecture"], made["settings"], jax.random.key(0))
    return checkpoint.load(path, skeleton)


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(item) for item in value) if isinstance(value, list | tuple) else value
