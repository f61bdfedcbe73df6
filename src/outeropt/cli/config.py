"""From words to a frozen dataclass: YAML pieces, overrides, and messages of one line."""

import contextlib
import dataclasses
import io
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro
import yaml

from outeropt.errors import ConfigError, near_misses


C = TypeVar("C")

# What a hyperparameter can be on the command line and in YAML.
Plain = int | float | bool | str
# What a setting can be: lists are written as such in YAML, and with commas on the command line.
Setting = Plain | tuple[int | float, ...]


def parse(verb: str, config_class: type[C], words: Sequence[str]) -> C:
    """Reads the words after a verb into its configuration.

    `-c a.yaml b.yaml` fills it first (the later file wins) and flags override. A configuration's `DOTTED`
    says which mappings take options of their own: with `{"optimizer": "hyperparameters"}`,
    `--optimizer.NAME VALUE` sets one entry of `hyperparameters`.

    Raises:
      ConfigError: an unknown key, a wrong type, a missing value or an unreadable file.
      SystemExit: help was asked for, and printed.
    """
    files, words = _take_files(verb, words)
    entries, words = _take_dotted(verb, words, getattr(config_class, "DOTTED", {}))
    given: dict[str, Any] = {}
    for file in files:
        given |= _read_yaml(file, config_class, given)
    for field, values in entries.items():
        given[field] = {**given.get(field, {}), **values}
    # tyro would add to the list of a file; a flag replaces it.
    flags = {word.partition("=")[0].lstrip("-").replace("-", "_") for word in words if word.startswith("--")}
    given = {name: value for name, value in given.items() if not (isinstance(value, tuple) and name in flags)}
    default = _default(config_class, given)
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            return tyro.cli(config_class, prog=f"outeropt {verb}", args=words, default=default)
    except SystemExit as stop:
        if stop.code:
            raise ConfigError(_one_line(err.getvalue() or out.getvalue(), verb)) from None
        print(out.getvalue(), end="")
        raise


def _take_files(verb: str, words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Pulls `-c`/`--config` and the paths that follow it out of the words."""
    files, rest = [], []
    words = list(words)
    while words:
        word = words.pop(0)
        if word not in ("-c", "--config"):
            rest.append(word)
            continue
        if not words or words[0].startswith("-"):
            raise ConfigError(f"{word} needs a YAML file, as in outeropt {verb} {word} a.yaml b.yaml.")
        while words and not words[0].startswith("-"):
            files.append(Path(words.pop(0)))
    return files, rest


def _take_dotted(
    verb: str, words: list[str], dotted: Mapping[str, str]
) -> tuple[dict[str, dict[str, Plain]], list[str]]:
    """Pulls `--HEAD.NAME VALUE` and `--HEAD.NAME=VALUE` out of the words: entries by field."""
    found: dict[str, dict[str, Plain]] = {}
    rest, words = [], list(words)
    while words:
        word = words.pop(0)
        option, equals, value = word.partition("=")
        head, dot, name = option.removeprefix("--").partition(".")
        if not word.startswith("--") or not dot or not name:
            rest.append(word)
            continue
        if head not in dotted:
            allowed = f"it takes {', '.join(f'--{known}.*' for known in dotted)}" if dotted else "it has none"
            raise ConfigError(f"outeropt {verb} takes no --{head}.* options; {allowed}.")
        if not equals:
            if not words:
                raise ConfigError(f"{word} needs a value, as in {word} 1e-3.")
            value = words.pop(0)
        found.setdefault(dotted[head], {})[name.replace("-", "_")] = plain(value)
    return found, rest


def plain(text: str) -> Plain:
    """A word as the plain value that it spells."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return {"true": True, "false": False}.get(text.lower(), text)


def _read_yaml(path: Path, config_class: type, before: Mapping[str, Any]) -> dict[str, Any]:
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
        if key not in fields:
            close = near_misses(str(key), fields)
            hint = f"did you mean {' or '.join(close)}?" if close else f"allowed: {', '.join(fields)}."
            raise ConfigError(f"Unknown key {key!r} in {path}; {hint}")
        content[key] = coerce(value, fields[key], f"{key} in {path}")
        if isinstance(content[key], dict):
            content[key] = {**before.get(key, {}), **content[key]}
    return content


def _fields(config_class: type) -> dict[str, Any]:
    hints = typing.get_type_hints(config_class)
    return {field.name: hints[field.name] for field in dataclasses.fields(config_class)}


def coerce(value: Any, kind: Any, where: str) -> Any:
    """A value from YAML or the command line as the type of what it is for.

    Args:
      value: the value.
      kind: the type, as an annotation says it.
      where: what it is for, in the message's words.

    Raises:
      ConfigError: it is of another type.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        errors = []
        for option in (a for a in arguments if a is not type(None)):
            try:
                return coerce(value, option, where)
            except ConfigError as error:
                errors.append(error)
        if len(errors) == 1:
            raise errors[0]
    if kind is float and isinstance(value, str):  # 1e-3 without a point is text in YAML 1.1
        with contextlib.suppress(ValueError):
            return float(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(coerce(item, arguments[0], where) for item in value)
    if origin is dict and isinstance(value, dict):
        return {str(name): coerce(item, arguments[1], f"{name} of {where}") for name, item in value.items()}
    if origin is typing.Literal and value in arguments:
        return value
    simple = kind if isinstance(kind, type) and origin is None else ()
    if kind is Any or (isinstance(value, simple) and not (simple is int and isinstance(value, bool))):
        return value
    raise ConfigError(f"{where} must be {type_name(kind)}, not {value!r}.")


def type_name(kind: Any) -> str:
    """A type in words, for messages."""
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(map(str, typing.get_args(kind)))
    words = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        Path: "a path",
        Plain: "a number, true or false, or text",
        Setting: "a number, a list of numbers, true or false, or text",
        tuple: "a list",
        dict: "a mapping",
    }
    if kind not in words and typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join(map(type_name, typing.get_args(kind)))
    return words.get(typing.get_origin(kind), words.get(kind, str(kind)))


def _default(config_class: type[C], given: Mapping[str, Any]) -> C:
    """A configuration whose missing required fields tyro will ask for."""
    values = {}
    for field in dataclasses.fields(config_class):  # pyright: ignore[reportArgumentType]
        if field.name in given:
            values[field.name] = given[field.name]
        elif field.default is not dataclasses.MISSING:
            values[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            values[field.name] = field.default_factory()
        else:
            values[field.name] = tyro.MISSING
    return config_class(**values)


def _one_line(box: str, verb: str) -> str:
    """What tyro says in a box, as one line; the box and its rules are ASCII where the locale is."""
    lines = [line.strip(" │|") for line in box.splitlines() if not line.startswith(("╭", "╰", "+"))]
    parts: list[list[str]] = [[]]
    for line in filter(None, lines):
        if re.fullmatch("[─-]+", line):
            parts.append([])
        else:
            parts[-1].append(line)
    if len(parts) > 1 and ":" not in " ".join(parts[0]):  # the box's title
        parts.pop(0)
    message = " ".join(parts[0]).replace("(required)", "").strip().rstrip(".")
    message = re.sub(
        r"^Error parsing (\S+): .*invalid literal for int\(\) with base 10: (.*)$",
        r"\1 must be a whole number, not \2",
        message,
    )
    for part in parts[1:]:
        if part and part[0].startswith("Perhaps you meant"):
            message += f". Did you mean {part[1]}?"
        elif part and part[0].startswith("Unrecognized"):
            message += f". {' '.join(part)}"
    return f"{message.rstrip('.')}. See outeropt {verb} --help".replace("?.", "?")
