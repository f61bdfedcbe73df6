"""Tasks that train on their validation rows as well, for methods that need no others.

Clarke, Oldewage and Hernandez-Lobato 2022 (arXiv 2110.10461) give methods without validation the same data as
those with it: they train on both. `get("<any task>_TrainValid")` is that form of a task.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from outeropt.data.arrays import ArrayData
from outeropt.errors import ConfigError
from outeropt.task import Task
from outeropt.tasks import regression
from outeropt.tasks.images import scaled_mlp
from outeropt.tasks.regression import WholeData
from outeropt.tasks.sequences.language import TokenData


SUFFIX = "_TrainValid"


def train_valid(task: Task) -> Task:
    """The task, its training rows being training and validation rows together.

    Validation rows stay as they are, so the validation loss is of rows that are trained on. Scaling and test
    rows are the same.

    Args:
      task: one whose `data` are rows (an `ArrayData` or a `WholeData`) or text (a `TokenData`).

    Raises:
      ConfigError: its data are neither.
    """
    data = getattr(task, "data", None)
    if not isinstance(data, ArrayData | WholeData | TokenData):
        raise ConfigError(
            f"Task {task.name!r} has no training and validation rows to put together; use it as it is."
        )
    # Concrete arrays even while a caller is being traced: they outlive the trace.
    with jax.ensure_compile_time_eval():
        axis = -1 if isinstance(data, WholeData) else 0
        joined = functools.partial(_joined, axis=axis)
        both = {**data.splits, "train": jax.tree.map(joined, data.splits["train"], data.splits["valid"])}
        data = dataclasses.replace(data, splits=both)
        return dataclasses.replace(task, name=f"{task.name}{SUFFIX}", data=data)  # pyright: ignore


def _joined(train: Array, valid: Array, axis: int) -> Array:
    return jnp.concatenate([train, valid], axis)


def build(inner: Callable[[], Task]) -> Task:
    """The form of the task that a builder gives."""
    return train_valid(inner())


# Those of the paper; any other name takes the suffix as well.
_LISTED = {
    regression: tuple(f"UCI_{name.capitalize()}" for name in regression.UCI),
    scaled_mlp: tuple(scaled_mlp.TASKS),
}

TASKS: dict[str, Callable[[], Task]] = {
    f"{name}{SUFFIX}": functools.partial(build, module.TASKS[name])
    for module, names in _LISTED.items()
    for name in names
}
