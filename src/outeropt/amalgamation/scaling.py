"""Random scaling of coordinates, so that a student meets gradients of all magnitudes."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from outeropt.task import Batch, ModelState, Params, Split, Task


class ScaledTask(Task):
    """A task whose parameters are held as `theta / scale`, coordinate by coordinate.

    The loss at `held` is that of the task inside at `held * scale`, so that gradients are `scale` times as
    large. Lv, Jiang and Li, "Learning Gradient Descent: Better Generalization and Longer Horizons", 2017,
    arXiv 1703.03633, section 4.1.

    Attributes:
      task: the task inside.
      scale: positive factors, shaped like the task's parameters.
    """

    name: str = eqx.field(static=True, init=False)
    task: Task
    scale: PyTree

    def __post_init__(self):
        self.name = self.task.name

    def init(self, key: PRNGKeyArray) -> tuple[Params, ModelState]:
        params, model = self.task.init(key)
        return self.held(params), model

    def loss(self, params: Params, state: ModelState, batch: Batch, key: PRNGKeyArray | None):
        return self.task.loss(self.unscaled(params), state, batch, key)

    def batch(self, split: Split, key: PRNGKeyArray) -> Batch:
        return self.task.batch(split, key)

    def rewound(self, state: ModelState, steps: Int[Array, ""]) -> ModelState:
        return self.task.rewound(state, steps)

    def held(self, params: Params) -> Params:
        """Parameters of the task inside as they are held here."""
        return jax.tree.map(jnp.divide, params, self.scale)

    def unscaled(self, held: Params) -> Params:
        """Held parameters as those of the task inside."""
        return jax.tree.map(jnp.multiply, held, self.scale)


def draw_scale(params: PyTree, spread: Float[Array, ""] | float, key: PRNGKeyArray) -> PyTree:
    """Factors `exp(u)`, `u ~ U(-spread, spread)` for each coordinate by itself.

    Args:
      params: what they are for.
      spread: 0 gives ones.
      key: randomness.
    """
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    return structure.unflatten(
        [
            jnp.exp(spread * jax.random.uniform(k, leaf.shape, leaf.dtype, -1.0, 1.0))
            for k, leaf in zip(keys, leaves)
        ]
    )
