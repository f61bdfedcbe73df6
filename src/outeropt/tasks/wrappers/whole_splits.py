"""Tasks that are evaluated on whole splits, so that evaluations differ by nothing but the parameters."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from outeropt.data.arrays import ArrayData
from outeropt.errors import ConfigError
from outeropt.task import Batch, ModelState, Params, Split, Task
from outeropt.tasks.wrappers.augment import Wrapped
from outeropt.tasks.wrappers.private import PrivateGradient
from outeropt.tree import size


# `get("<any task>_WholeSplits")` is that task, evaluated on whole splits.
SUFFIX = "_WholeSplits"


class WholeSplits(Wrapped):
    """The task inside, whose validation and test batches are all rows of the split.

    Rows that do not fill a last batch are left out. Losses of so many rows are means over batches of the
    usual size, one after the other, so no more memory is needed. Training batches are as they were, and so
    is the training split's evaluation. For evaluations that are few, once an epoch: one costs a third of an
    epoch, and so does every use that an optimizer makes of validation rows.

    Attributes:
      task: the task inside, with rows of its own or those of a task with another gradient.

    Raises:
      ConfigError: the task has no rows, or a split too few to fill a batch.
    """

    name: str = eqx.field(static=True, init=False)
    task: Task

    def __post_init__(self):
        self.name = f"{self.task.name}{SUFFIX}"

    def __check_init__(self):
        data = rows_of(self.task)
        for split in ("valid", "test"):
            if size(data.splits[split]) < data.batch_size:
                raise ConfigError(
                    f"Task {self.task.name!r}: {size(data.splits[split])} {split} rows fill no batch of "
                    f"{data.batch_size}; use it as it is."
                )

    def batch(self, split: Split, key: PRNGKeyArray) -> Batch:
        """All rows that fill batches, in order; for training a batch of the task inside."""
        if split == "train":
            return self.task.batch(split, key)
        data = rows_of(self.task)
        rows = data.splits[split]
        count = size(rows) // data.batch_size * data.batch_size
        return jax.tree.map(lambda leaf: leaf[:count], rows)

    def loss(
        self, params: Params, state: ModelState, batch: Batch, key: PRNGKeyArray | None
    ) -> tuple[Float[Array, ""], tuple[ModelState, dict[str, Array]]]:
        """The loss inside; at evaluation, of rows for many batches, its mean over these."""
        rows = rows_of(self.task).batch_size
        if key is not None or size(batch) == rows:
            return self.task.loss(params, state, batch, key)

        def one(part):
            value, (_, metrics) = self.task.loss(params, state, part, None)
            return value, metrics

        parts = jax.tree.map(lambda leaf: leaf.reshape(-1, rows, *leaf.shape[1:]), batch)
        value, metrics = jax.tree.map(lambda values: jnp.mean(values, axis=0), jax.lax.map(one, parts))
        return value, (state, metrics)


def rows_of(task: Task) -> ArrayData:
    """The rows that a task draws its batches from.

    Raises:
      ConfigError: it has none.
    """
    while isinstance(task, PrivateGradient | WholeSplits):
        task = task.task
    data = getattr(task, "data", None)
    if not isinstance(data, ArrayData):
        raise ConfigError(
            f"Task {task.name!r} has no rows to go through, and so no epochs; say how long in --steps."
        )
    return data


def steps_per_epoch(task: Task) -> int:
    """Inner steps that take as many rows as there are for training; what fills no batch is left out.

    Raises:
      ConfigError: the task has no rows, or fewer than a batch.
    """
    data = rows_of(task)
    steps = size(data.splits["train"]) // data.batch_size
    if not steps:
        raise ConfigError(
            f"Task {task.name!r} has fewer training rows than a batch; say how long in --steps."
        )
    return steps


def build(inner: Callable[[], Task]) -> WholeSplits:
    """The form of the task that a builder gives."""
    return WholeSplits(inner())
