"""Which fields of a batch a model reads, and which its loss compares with."""

from collections.abc import Callable, Mapping
from typing import Any

from outeropt.errors import ConfigError


# What the batches of outeropt.data call them: images, tables, tokens.
INPUTS = ("image", "x", "obs")
LABELS = ("label", "target")
VALUES = ("y", "target")

Inputs = str | Callable[[Any], Any] | None
Loss = str | Callable[..., Any]


def inputs_of(batch: Any, inputs: Inputs, as_float: Callable[[Any], Any]) -> tuple[Any, ...]:
    """The model's positional arguments.

    Args:
      batch: a batch.
      inputs: a field's name; None for the first of `INPUTS` that there is; or a function of the batch.
      as_float: makes fractions of 255 of the bytes of a field that is read by name.

    Raises:
      ConfigError: there is no such field.
    """
    if callable(inputs):
        given = inputs(batch)
        return given if isinstance(given, tuple) else (given,)
    return (as_float(field(batch, INPUTS if inputs is None else (inputs,), "the model reads", "inputs")),)


def field(batch: Any, names: tuple[str, ...], who: str, setting: str) -> Any:
    """The first field of these names.

    Args:
      batch: a batch.
      names: the fields to look for, in this order.
      who: what reads it, for the message.
      setting: the argument that says it otherwise, for the message.

    Raises:
      ConfigError: there is none.
    """
    if not isinstance(batch, Mapping):
        raise ConfigError(
            f"A batch is {type(batch).__name__}, no dictionary in which {who} {' or '.join(names)}; "
            f"give {setting} as a function."
        )
    for name in names:
        if name in batch:
            return batch[name]
    raise ConfigError(
        f"A batch has the fields {', '.join(map(str, batch))}, and {who} {' or '.join(names)}; "
        f"say otherwise with {setting}=."
    )


def value_and_metrics(value: Any, loss: Any) -> tuple[Any, dict[str, Any]]:
    """Loss and metrics of what a loss returned.

    Raises:
      ConfigError: it is neither a scalar nor a scalar and a dictionary.
    """
    if isinstance(value, tuple):
        if len(value) != 2 or not isinstance(value[1], Mapping):
            raise ConfigError(
                f"The loss {_name(loss)} gave {len(value)} values; it must give a scalar, or a scalar and a "
                "dictionary of metrics."
            )
        return value[0], dict(value[1])
    return value, {}


def _name(loss: Any) -> str:
    return getattr(loss, "__name__", str(loss))
