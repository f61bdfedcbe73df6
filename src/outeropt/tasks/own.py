"""A task from a user's own functions."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from outeropt import data
from outeropt.errors import ConfigError
from outeropt.task import SPLITS, Batch, ModelState, Params, Split, Task


class OwnTask(Task):
    """A task whose functions came from outside; made by `from_functions` and `from_stateful_functions`.

    Attributes:
      data: an object with `batch(split, key)`; None if there are no data.
      start: `key -> (params, state)`.
      evaluate: `(params, state, batch, key) -> (loss, (state, metrics))`.
    """

    name: str = eqx.field(static=True)
    data: Any
    start: Callable[..., Any] = eqx.field(static=True)
    evaluate: Callable[..., Any] = eqx.field(static=True)

    def init(self, key: PRNGKeyArray) -> tuple[Params, ModelState]:
        """What the given `init` gives."""
        return self.start(key)

    def loss(self, params, state, batch, key):
        """What the given `loss` gives."""
        return self.evaluate(params, state, batch, key)

    def batch(self, split: Split, key: PRNGKeyArray) -> Batch:
        """A batch of the given data; None without data."""
        return None if self.data is None else self.data.batch(split, key)


def from_functions(
    *,
    init: Callable[[PRNGKeyArray], Params],
    loss: Callable[..., Any],
    data: Any = None,
    name: str = "own",
    batch_size: int = 128,
) -> OwnTask:
    """A task from an `init` and a `loss`.

    Args:
      init: `key -> params`, any pytree of floating arrays.
      loss: `(params, batch) -> loss` or `(params, batch, key) -> loss`, and without data `params -> loss` or
        `(params, key) -> loss`. It returns a scalar, or `(scalar, metrics)` with a dictionary of scalars.
        `key` is None at evaluation.
      data: an object with `batch(split, key)`, such as `outeropt.data.from_npz` gives; or rows, any pytree of
        arrays of equal length; or rows by split, `{"train": rows, "valid": rows, "test": rows}`; or None.
        Splits that are not given are cut from the training rows; see `outeropt.data.from_arrays`.
      name: the task's name in stores and reports.
      batch_size: rows in a batch, if `data` are rows.

    Raises:
      ConfigError: the loss takes another number of arguments, or a split has another name.
      OuteroptError: the data are no such rows.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from outeropt import tasks
      >>> task = tasks.from_functions(
      ...     init=lambda key: {"w": jnp.zeros(3)},
      ...     loss=lambda params, batch: jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 2),
      ...     data={"x": jnp.ones((64, 3)), "y": jnp.ones(64)},
      ...     batch_size=8,
      ... )
      >>> params, state = task.init(jax.random.key(0))
      >>> loss, _ = task.loss(params, state, task.batch("train", jax.random.key(1)), None)
      >>> float(loss)
      1.0
    """
    given = batches(data, batch_size)
    return OwnTask(name, given, _Start(init), _Loss(loss, _arguments(loss, given is not None)))


def from_stateful_functions(
    *,
    init: Callable[[PRNGKeyArray], tuple[Params, ModelState]],
    loss: Callable[..., Any],
    data: Any = None,
    name: str = "own",
    batch_size: int = 128,
) -> OwnTask:
    """A task from functions that carry a model state, such as running statistics.

    Args:
      init: `key -> (params, state)`.
      loss: `(params, state, batch, key) -> (loss, state)` or `-> (loss, state, metrics)`. `batch` is None
        without data, `key` is None at evaluation.
      data, name, batch_size: as for `from_functions`.

    Raises:
      ConfigError: a split has another name.
      OuteroptError: the data are no such rows.
    """
    return OwnTask(name, batches(data, batch_size), init, _StatefulLoss(loss))


@dataclasses.dataclass(frozen=True)
class _Start:
    init: Callable[..., Any]

    def __call__(self, key):
        return self.init(key), None


@dataclasses.dataclass(frozen=True)
class _Loss:
    loss: Callable[..., Any]
    arguments: tuple[str, ...]

    def __call__(self, params, state, batch, key):
        offered = {"batch": batch, "key": key}
        result = self.loss(params, *(offered[argument] for argument in self.arguments))
        value, metrics = result if isinstance(result, tuple) and len(result) == 2 else (result, {})
        return jnp.asarray(value), (state, jax.tree.map(jnp.asarray, metrics))


@dataclasses.dataclass(frozen=True)
class _StatefulLoss:
    loss: Callable[..., Any]

    def __call__(self, params, state, batch, key):
        value, state, *metrics = self.loss(params, state, batch, key)
        return jnp.asarray(value), (state, jax.tree.map(jnp.asarray, metrics[0] if metrics else {}))


def _arguments(loss: Callable[..., Any], has_data: bool) -> tuple[str, ...]:
    """What the loss takes after the parameters."""
    forms = (("batch",), ("batch", "key")) if has_data else ((), ("key",))
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = [p for p in inspect.signature(loss).parameters.values() if p.kind in kinds]
    needed = sum(p.default is inspect.Parameter.empty for p in parameters)
    for form in forms:
        if needed <= 1 + len(form) <= len(parameters):
            return form
    allowed = " or ".join(f"({', '.join(('params', *form))})" for form in forms)
    raise ConfigError(
        f"The loss takes {needed} arguments; {'with' if has_data else 'without'} data it must take {allowed}."
    )


def batches(given: Any, batch_size: int) -> Any:
    """The object with `batch(split, key)` that a user's data are or become; None stays None.

    Args:
      given: such an object, rows, rows by split, or None.
      batch_size: rows in a batch, if these are rows.

    Raises:
      ConfigError: a split has another name.
      OuteroptError: the data are no such rows.
    """
    if given is None or hasattr(given, "batch"):
        return given
    if not (isinstance(given, Mapping) and "train" in given):
        return data.from_arrays(given, batch_size=batch_size)
    unknown = [split for split in given if split not in SPLITS]
    if unknown:
        raise ConfigError(f"data have a split {unknown[0]!r}; splits are called train, valid and test.")
    return data.from_arrays(**given, batch_size=batch_size)
