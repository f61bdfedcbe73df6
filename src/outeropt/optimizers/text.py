"""An optimizer from one line of text, for configuration files and command lines."""

from typing import Any

from outeropt.errors import ConfigError
from outeropt.optimizer import Optimizer
from outeropt.optimizers.registry import get, settings


def from_text(text: str) -> Optimizer:
    """The optimizer that a text describes: a name, and numbers that differ from the defaults.

    Args:
      text: any name that `get` takes, and `hyperparameter=value` for each that differs, separated by commas:
        `"sgd,learning_rate=0.2"`, `"clip:adam,max_value=0.5,b1=0.95"`. A value is a number, `true`, `false`,
        `none`, or a word where a setting wants one. Spaces around names and values do not count. Names with a
        comma or an equals sign in them (of files) cannot be written so.

    Returns:
      What `get(name, **hyperparameters)` returns.

    Raises:
      UnknownName: there is no such optimizer, wrapper or hyperparameter.
      OutOfSpace: a value lies outside its space.
      ConfigError: the text cannot be read: a part without `=`, a hyperparameter given twice, or a word where
        a number belongs.

    Examples:
      >>> from outeropt import optimizers
      >>> clipped = optimizers.from_text("clip:adam, max_value=0.5")
      >>> float(clipped.hyperparameters["max_value"])
      0.5
    """
    name, *parts = (part.strip() for part in text.split(","))
    defaults = settings(name)
    given: dict[str, Any] = {}
    for part in parts:
        key, equals, word = (piece.strip() for piece in part.partition("="))
        if not (key and equals and word):
            raise ConfigError(
                f"{part!r} in {text!r} is no setting; write NAME,hyperparameter=value, such as "
                "sgd,learning_rate=0.2."
            )
        if key in given:
            raise ConfigError(f"{key} is given twice in {text!r}.")
        given[key] = _value(word, defaults.get(key.rpartition(".")[2], 0.0), f"{key} of {name}")
    return get(name, **given)


def _value(word: str, default: bool | int | float | str, what: str) -> bool | int | float | str | None:
    """The value that a word stands for where the default is `default`."""
    if isinstance(default, str):
        return word
    if word.lower() == "none":
        return None
    if isinstance(default, bool):
        if word.lower() in ("true", "false"):
            return word.lower() == "true"
        raise ConfigError(f"{what} must be true or false, not {word!r}.")
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            pass
    raise ConfigError(f"{what} must be a number, not {word!r}.")
