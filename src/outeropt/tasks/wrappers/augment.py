"""Tasks made from other tasks: other coordinates, smaller batches, other number formats, other labels."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from outeropt.data.arrays import as_float
from outeropt.errors import ConfigError
from outeropt.task import Batch, ModelState, Params, Split, Task


class Wrapped(Task):
    """A task around another one, which gives the initial values, the batches and the minimum.

    Attributes:
      task: the task inside.
    """

    task: eqx.AbstractVar[Task]

    def init(self, key: PRNGKeyArray) -> tuple[Params, ModelState]:
        """As the task inside."""
        return self.task.init(key)

    def batch(self, split: Split, key: PRNGKeyArray) -> Batch:
        """As the task inside."""
        return self.task.batch(split, key)

    def rewound(self, state: ModelState, steps: Int[Array, ""]) -> ModelState:
        """As the task inside."""
        return self.task.rewound(state, steps)

    @property
    def minimum(self) -> float | None:
        """As the task inside."""
        return self.task.minimum


class Reparametrised(Wrapped):
    """Parameters are q = p / scale and the loss is `L(scale q)`: gradients grow by `scale`, and so do steps.

    Attributes:
      task: the task inside.
      scale: positive factors: one number, one per tensor, or a tensor each (any prefix of the parameters).
    """

    name: str = eqx.field(static=True, init=False)
    task: Task
    scale: PyTree[Array]

    def __post_init__(self):
        self.name = f"{self.task.name}+reparametrised"

    def init(self, key: PRNGKeyArray) -> tuple[Params, ModelState]:
        """The same function as the task inside, in the new coordinates."""
        params, state = self.task.init(key)
        return self._scaled(params, lambda p, s: p / s), state

    def loss(self, params, state, batch, key):
        """The loss inside, at the old coordinates."""
        return self.task.loss(self._scaled(params, lambda p, s: p * s), state, batch, key)

    def _scaled(self, params: Params, combine: Callable[[Array, Array], Array]) -> Params:
        return jax.tree.map(lambda s, below: jax.tree.map(lambda p: combine(p, s), below), self.scale, params)


class ReducedBatch(Wrapped):
    """The first rows of every batch, for tasks whose batches are rows along the leading axis.

    Attributes:
      task: the task inside.
      fraction: share of the rows kept, in (0, 1]; at least one row stays.

    Raises:
      ConfigError: the fraction is outside (0, 1].
    """

    name: str = eqx.field(static=True, init=False)
    task: Task
    fraction: float = eqx.field(static=True)

    def __check_init__(self):
        if not 0 < self.fraction <= 1:
            raise ConfigError(
                f"fraction = {self.fraction:g} is not allowed; keep a share in (0, 1] of the rows."
            )

    def __post_init__(self):
        self.name = f"{self.task.name}+batch{self.fraction:g}"

    def loss(self, params, state, batch, key):
        """The loss inside."""
        return self.task.loss(params, state, batch, key)

    def batch(self, split: Split, key: PRNGKeyArray) -> Batch:
        """The first rows of the batch inside."""
        rows = self.task.batch(split, key)
        return jax.tree.map(lambda leaf: leaf[: max(1, int(leaf.shape[0] * self.fraction))], rows)


class CastDtype(Wrapped):
    """Computes in another number format; parameters, model state and loss stay float32.

    Attributes:
      task: the task inside.
      dtype: name of the floating format.
    """

    name: str = eqx.field(static=True, init=False)
    task: Task
    dtype: str = eqx.field(static=True, default="bfloat16")

    def __post_init__(self):
        self.name = f"{self.task.name}+{self.dtype}"

    def loss(self, params, state, batch, key):
        """The loss inside, computed in `dtype`."""

        def cast(leaf):
            leaf = as_float(leaf)  # bytes become fractions here: the task inside would make them float32
            return leaf.astype(self.dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

        def back(new, old):
            return new.astype(old.dtype)

        params, cast_state, batch = jax.tree.map(cast, (params, state, batch))
        # The task inside was written for float32: what it makes itself meets the other format by promotion.
        with jax.numpy_dtype_promotion("standard"):
            value, (new_state, metrics) = self.task.loss(params, cast_state, batch, key)
        metrics = jax.tree.map(lambda metric: metric.astype(jnp.float32), metrics)
        return value.astype(jnp.float32), (jax.tree.map(back, new_state, state), metrics)


class PermutedLabels(Wrapped):
    """Batches with a `label`, renamed: class c is called `permutation[c]`.

    Attributes:
      task: the task inside; its batches are dictionaries with `label`.
      permutation: new number of each class.
    """

    name: str = eqx.field(static=True, init=False)
    task: Task
    permutation: Array

    def __post_init__(self):
        self.name = f"{self.task.name}+permuted"

    def loss(self, params, state, batch, key):
        """The loss inside."""
        return self.task.loss(params, state, batch, key)

    def batch(self, split: Split, key: PRNGKeyArray) -> Batch:
        """The batch inside with its labels renamed."""
        rows = self.task.batch(split, key)
        return {**rows, "label": self.permutation.at[rows["label"]].get(mode="promise_in_bounds")}
