"""Running averages of losses and gradients that some learned optimizers keep.

An average starts from zero and keeps its weight, the share `1 - decay^t` that t observations have in it, as
one more moving average, of ones. Divided by the weight it is unbiased, and nothing is 0 / 0 before the first
observation.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class LossTracker(eqx.Module):
    """Moving mean and variance of a loss, to express losses of any task in one unit.

    For a loss L: `m <- d m + (1 - d) L`, then `v <- d v + (1 - d) (m - L)^2` with the new m.

    Attributes:
      decay: d, in (0, 1).
      moments: m, v and their weight.
    """

    decay: float = eqx.field(static=True)
    moments: Float[Array, "3"] = eqx.field(default_factory=lambda: jnp.zeros((3,), jnp.float32))

    def updated(self, loss: Float[Array, ""]) -> "LossTracker":
        """With one more loss."""
        rest = 1.0 - self.decay
        mean = self.decay * self.moments[0] + rest * loss
        new = jnp.stack([loss, jnp.square(mean - loss), jnp.ones_like(loss)])
        return LossTracker(self.decay, self.decay * self.moments + rest * new)

    @property
    def mean(self) -> Float[Array, ""]:
        """The average loss; 0 before the first one."""
        return self._unbiased[0]

    def standardized(self, loss: Float[Array, ""]) -> Float[Array, ""]:
        """How many standard deviations a loss is above the average, clipped to [-5, 5]."""
        mean, variance = self._unbiased
        return jnp.clip((loss - mean) * jax.lax.rsqrt(variance + 1e-8), -5.0, 5.0)

    @property
    def _unbiased(self) -> Float[Array, "2"]:
        return self.moments[:2] / (self.moments[2] + 1e-8)


class GradientRange(eqx.Module):
    """How large gradients usually are, to clip them where one is far larger.

    Attributes:
      moments: moving average (decay 0.99) of the gradients' root mean square, and its weight. It starts as if
        one gradient of size 1 had been seen.
    """

    moments: Float[Array, "2"] = eqx.field(default_factory=lambda: jnp.full((2,), 0.01, jnp.float32))

    @property
    def limit(self) -> Float[Array, ""]:
        """Ten times the average."""
        return 10.0 * self.moments[0] / self.moments[1]

    def updated(self, mean_square: Float[Array, ""]) -> "GradientRange":
        """With one more gradient, after clipping.

        Args:
          mean_square: its mean square over each tensor, averaged over tensors.
        """
        size = jnp.sqrt(1e-8 + mean_square)
        return GradientRange(0.99 * self.moments + 0.01 * jnp.stack([size, jnp.ones_like(size)]))
