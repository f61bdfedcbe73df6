"""Configuration files as pieces that add up: a piece for the data, one for the algorithm.

What two files set to different values is an error. Where the later one silently wins, a piece for the data
can undo what a piece for the algorithm stands for, and nobody sees that a comparison is not the one that was
meant.
"""

import dataclasses
import typing
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from outeropt.cli.values import coerce
from outeropt.errors import ConfigError, near_misses


# The key under which a file lists those of its keys that may win over an earlier file's.
_OVERRIDE = "override"


def read(
    files: Sequence[Path], config_class: type, decided: Collection[str], presets: Sequence[Path] = ()
) -> dict[str, Any]:
    """What the files set, together.

    Args:
      files: YAML files.
      config_class: the configuration, a dataclass.
      decided: keys that flags set, entries of mappings as `hyperparameters.momentum`: files may disagree.
      presets: files that come with the program; they win over the others, and must not disagree either.

    Raises:
      ConfigError: a file that cannot be read, an unknown key, a wrong type, or files that disagree.
    """
    given: dict[str, Any] = {}
    where: dict[str, Path] = {}
    for file in (*files, *presets):
        content = _read_yaml(file, config_class)
        override = _override(file, content)
        before = dict(_entries(given))
        for key, value in _entries(content):
            wins = file in presets and where.get(key) not in presets
            if key in before and before[key] != value and not wins and key not in {*override, *decided}:
                mend = f"Keep one of them, list {key} under `override:` in {file}"
                mend = "Leave one of these presets out" if file in presets else mend
                raise ConfigError(
                    f"{key} is {before[key]} in {where[key]} and {value} in {file}. {mend}, or decide with "
                    f"{_flag(key, config_class)}."
                )
            where[key] = file
        for key, value in content.items():
            given[key] = {**given.get(key, {}), **value} if isinstance(value, dict) else value
    return given


def _entries(content: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Keys and values; of a mapping each entry, as `hyperparameters.momentum`."""
    found = []
    for key, value in content.items():
        inner = value.items() if isinstance(value, dict) else ()
        found += [(f"{key}.{name}", each) for name, each in inner] if inner else [(key, value)]
    return found


def _override(path: Path, content: dict[str, Any]) -> list[str]:
    """Takes the keys under `override` out of a file's content."""
    listed = content.pop(_OVERRIDE, [])
    listed = coerce(listed, tuple[str, ...], f"override in {path}")
    known = [key for key, _ in _entries(content)]
    for key in listed:
        if key not in known:
            raise ConfigError(
                f"override in {path} lists {key!r}, which the file does not set; "
                f"it sets {', '.join(known) or 'nothing'}."
            )
    return list(listed)


def _flag(key: str, config_class: type) -> str:
    """The option that sets a key: `--optimizer.momentum` for `hyperparameters.momentum`."""
    field, _, name = key.partition(".")
    heads = {each: head for head, each in getattr(config_class, "DOTTED", {}).items()}
    return f"--{heads.get(field, field)}{'.' if name else ''}{name}".replace("_", "-")


def _read_yaml(path: Path, config_class: type) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"Configuration file {path} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"Configuration file {path} is not YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(
            f"Configuration file {path} must hold keys and values, not a {type(content).__name__}."
        )
    fields = _fields(config_class)
    for key, value in content.items():
        if key == _OVERRIDE:
            continue
        if key not in fields:
            close = near_misses(str(key), fields)
            hint = f"did you mean {' or '.join(close)}?" if close else f"allowed: {', '.join(fields)}."
            raise ConfigError(f"Unknown key {key!r} in {path}; {hint}")
        content[key] = coerce(value, fields[key], f"{key} in {path}")
    return content


def _fields(config_class: type) -> dict[str, Any]:
    hints = typing.get_type_hints(config_class)
    return {field.name: hints[field.name] for field in dataclasses.fields(config_class)}
