"""Tasks that train on their validation rows as well, for methods that need no others.

Clarke, Oldewage and Hernandez-Lobato 2022 (arXiv 2110.10461) give methods without validation the same data as
those with it: they train on both. `get("<any task>_TrainValid")` is that form of a task.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

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
from outeropt.tasks.sequences.stream import Streams


SUFFIX = "_TrainValid"


# Of training and validation rows; a stream's last training row is its first validation row.
_JOINED: dict[type, Callable[[Array, Array], Array]] = {
    ArrayData: lambda train, valid: jnp.concatenate([train, valid]),
    WholeData: lambda train, valid: jnp.concatenate([train, valid], axis=-1),
    TokenData: lambda train, valid: jnp.concatenate([train, valid]),
    Streams: lambda train, valid: jnp.concatenate([train, valid[1:]]),
}


def train_valid(task: Task) -> Task:
    """The task, its training rows being training and validation rows together.

    Validation rows stay as they are, so the validation loss is of rows that are trained on. Scaling and test
    rows are the same.

    Args:
      task: one whose `data` are rows (an `ArrayData` or a `WholeData`) or text (a `TokenData` or `Streams`,
        which are read to their ends).

    Raises:
      ConfigError: its data are neither.
    """
    data: Any = getattr(task, "data", None)
    if (joined := _JOINED.get(type(data))) is None:
        raise ConfigError(
            f"Task {task.name!r} has no training and validation rows to put together; use it as it is."
        )
    # Concrete arrays even while a caller is being traced: they outlive the trace.
    with jax.ensure_compile_time_eval():
        both = {**data.splits, "train": jax.tree.map(joined, data.splits["train"], data.splits["valid"])}
        data = dataclasses.replace(data, splits=both)
        return dataclasses.replace(task, name=f"{task.name}{SUFFIX}", data=data)


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
