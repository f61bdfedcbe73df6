"""Tasks whose gradient hides what any one row of a batch contributed: clipped row by row, with noise."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from outeropt.errors import ConfigError
from outeropt.task import Batch, ModelState, Params, Task
from outeropt.tasks.wrappers.augment import Wrapped
from outeropt.tasks.wrappers.gradients import normal_like, with_gradient
from outeropt.tree import size


class PrivateGradient(Wrapped):
    """The task inside with the training gradient of differentially private SGD.

    With g_i the gradient of row i alone and C the clipping norm, the optimizer sees

        `1/B (sum_i g_i min(1, C / |g_i|) + N(0, (C sigma)^2 I))`

    (Abadi et al. 2016, arXiv 1607.00133, algorithm 1). The loss is that of the task inside, and so is all
    evaluation. This is the mechanism alone: no privacy budget is counted, and batches are drawn with
    replacement, which the published accounting does not assume. No guarantee is made for any data.

    Randomness inside the loss, such as dropout, is drawn for every row anew. A norm over the batch would see
    one row at a time and is refused.

    Attributes:
      task: the task inside; its batches are rows along the leading axis.
      clip_norm: the norm C, over all parameters together, that no row's gradient exceeds.
      noise_multiplier: sigma, the noise's standard deviation in units of C; 0 for none.
      chunk: rows whose gradients are held in memory at once.

    Raises:
      ConfigError: a chunk below 1, or a task with model state.
    """

    name: str = eqx.field(static=True, init=False)
    task: Task
    clip_norm: Float[Array, ""] = eqx.field(converter=jnp.float32, default=1.0)
    noise_multiplier: Float[Array, ""] = eqx.field(converter=jnp.float32, default=1.1)
    chunk: int = eqx.field(static=True, default=16)

    def __check_init__(self):
        if self.chunk < 1:
            raise ConfigError(f"chunk = {self.chunk} is not allowed; hold at least 1 row's gradient.")

    def __post_init__(self):
        self.name = f"{self.task.name}_dp"

    def loss(
        self, params: Params, state: ModelState, batch: Batch, key: PRNGKeyArray | None
    ) -> tuple[Float[Array, ""], tuple[ModelState, dict[str, Array]]]:
        """The loss inside, whose gradient is clipped row by row and noisy."""
        value, aux = self.task.loss(params, state, batch, key)
        if key is None:
            return value, aux
        if jax.tree.leaves(state):
            raise ConfigError(
                f"{self.name} cannot take gradients row by row: {self.task.name} has a state that its rows "
                "share, such as batch norm's; use a task without one."
            )
        row_key, noise_key = jax.random.split(key)
        total = self._clipped(params, batch, row_key)
        std, rows = self.clip_norm * self.noise_multiplier, size(batch)
        noise = normal_like(params, noise_key)
        gradient = jax.tree.map(lambda g, n: (g + std * n) / rows, total, noise)
        return with_gradient(value, params, gradient), aux

    def _clipped(self, params: Params, batch: Batch, key: PRNGKeyArray) -> Params:
        """The sum over rows of their clipped gradients."""
        rows = size(batch)
        chunk = max(d for d in range(1, min(self.chunk, rows) + 1) if rows % d == 0)

        def of_row(row, row_key):
            alone = jax.tree.map(lambda leaf: leaf[None], row)
            gradient = jax.grad(lambda p: self.task.loss(p, None, alone, row_key)[0])(params)
            square = sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(gradient))
            factor = jnp.minimum(1.0, self.clip_norm * jax.lax.rsqrt(square + 1e-20))
            return jax.tree.map(lambda g: factor * g, gradient)

        def of_chunk(total, some):
            gradients = jax.vmap(of_row)(*some)
            return jax.tree.map(lambda t, g: t + g.sum(axis=0), total, gradients), None

        keys = jax.random.split(key, rows)
        chunks = jax.tree.map(lambda leaf: leaf.reshape(rows // chunk, chunk, *leaf.shape[1:]), (batch, keys))
        zeros = jax.tree.map(jnp.zeros_like, params)
        return jax.lax.scan(of_chunk, zeros, chunks)[0]
