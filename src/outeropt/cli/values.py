"""Values as files and command lines spell them: what they can be, and of which type they must be."""

import contextlib
import types
import typing
from pathlib import Path
from typing import Any, Literal

from outeropt.errors import ConfigError


# What a hyperparameter can be on the command line and in YAML.
Plain = int | float | bool | str
# What a task trains on.
Rows = Literal["train", "train+valid"]
# What a setting can be: lists are written as such in YAML, and with commas on the command line.
Setting = Plain | tuple[int | float | str, ...]


def plain(text: str) -> Plain:
    """A word as the plain value that it spells."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return {"true": True, "false": False}.get(text.lower(), text)


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
        Setting: "a number, a list, true or false, or text",
        tuple: "a list",
        dict: "a mapping",
    }
    if kind not in words and typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join(map(type_name, typing.get_args(kind)))
    return words.get(typing.get_origin(kind), words.get(kind, str(kind)))
