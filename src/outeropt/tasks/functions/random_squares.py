"""Sums of squares with random coefficients, with and without ripples: another function for every seed."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from outeropt.task import Split, Task


class RandomSquares(Task):
    """`|A x - b|^2 + ripple (n - sum_i c_i cos(2 pi x_i))` from x = 0, with standard normal A, b and c.

    The key of a run draws the coefficients, so every seed has its own function and equal seeds have equal
    ones; they are the model state. There are no data. A variant of Rastrigin's function (Huang et al. 2022,
    arXiv 2203.06474); without ripples a quadratic whose Hessian is 2 A^T A.

    Attributes:
      dim: number of parameters n.
      ripple: height of the ripples.
    """

    name: str = eqx.field(static=True)
    dim: int = eqx.field(static=True)
    ripple: float = eqx.field(static=True, default=0.0)

    def init(self, key: PRNGKeyArray) -> tuple[Float[Array, " dim"], dict[str, Array]]:
        """Zero, and the coefficients `matrix` (A), `target` (b) and, where there are ripples, `waves` (c)."""
        keys = jax.random.split(key, 3)
        state = {
            "matrix": jax.random.normal(keys[0], (self.dim, self.dim)),
            "target": jax.random.normal(keys[1], (self.dim,)),
        }
        if self.ripple:
            state["waves"] = jax.random.normal(keys[2], (self.dim,))
        return jnp.zeros(self.dim, jnp.float32), state

    def loss(self, params, state, batch, key):
        """The function's value; no metrics."""
        value = jnp.sum(jnp.square(state["matrix"] @ params - state["target"]))
        if self.ripple:
            value += self.ripple * (self.dim - jnp.sum(state["waves"] * jnp.cos(2 * jnp.pi * params)))
        return value, (state, {})

    def batch(self, split: Split, key: PRNGKeyArray) -> None:
        """None: the function is known exactly."""

    @property
    def minimum(self) -> float | None:
        """0 without ripples; otherwise nobody knows it."""
        return None if self.ripple else 0.0
