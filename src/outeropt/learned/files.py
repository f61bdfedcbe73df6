"""Learned optimizers by name or file: `load`, and what ships with the package."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax

from outeropt import checkpoint
from outeropt.errors import ConfigError, unknown_name
from outeropt.learned.architectures import ARCHITECTURES
from outeropt.learned.base import LearnedOptimizer
from outeropt.weight_files import located


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
    with located(name) as path:
        return _read(path)


def about(name: str | Path) -> dict[str, Any]:
    """How the weights of a learned optimizer were made, as `save` was told.

    Raises:
      UnknownName: neither a shipped name nor a file.
    """
    with located(name) as path:
        return checkpoint.metadata(path)["about"]


def _read(path: Path) -> LearnedOptimizer:
    made = checkpoint.metadata(path)
    if "architecture" not in made:
        raise ConfigError(f"{path} is a checkpoint, but of no learned optimizer; give a file of `save`.")
    skeleton = eqx.filter_eval_shape(build, made["architecture"], made["settings"], jax.random.key(0))
    return checkpoint.load(path, skeleton)


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(item) for item in value) if isinstance(value, list | tuple) else value
