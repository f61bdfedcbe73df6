"""PowerSign and AddSign: gradients that are scaled up where they agree with their average."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from outeropt.optimizer import Optimizer, Params
from outeropt.optimizers import spaces
from outeropt.optimizers.schedules import number
from outeropt.optimizers.teachers import averages
from outeropt.optimizers.teachers.averages import MomentsState
from outeropt.space import Space


class SignAgreement(Optimizer):
    """What the four have in common: the averages, and the agreement of gradient and mean.

        m = b1 m + (1 - b1) g                          v = b2 v + (1 - b2) g^2
        r = sqrt(v + eps)                              q = tanh(g / r) tanh(m / r)

    Bello, Zoph, Vasudevan and Le, "Neural optimizer search with reinforcement learning", 2017, arXiv
    1709.07417, multiply the signs of g and m. The hyperbolic tangents, which have derivatives, are of Huang
    et al., "Optimizer amalgamation", 2022, arXiv 2203.06474.

    Attributes:
      learning_rate: step size.
      b1: decay of the mean, in [0, 1).
      b2: decay of the square, in [0, 1).
      eps: added to the square, above 0.
    """

    learning_rate: eqx.AbstractVar[Float[Array, ""]]
    b1: eqx.AbstractVar[Float[Array, ""]]
    b2: eqx.AbstractVar[Float[Array, ""]]
    eps: eqx.AbstractVar[Float[Array, ""]]

    @abc.abstractmethod
    def move(
        self, grad: Float[Array, "..."], scaled: Float[Array, "..."], agreement: Float[Array, "..."]
    ) -> Float[Array, "..."]:
        """The step for a learning rate of 1, from g, g / r and q; it is subtracted."""

    def init(
        self, params: Params, *, num_steps: int | Array | None = None, key: PRNGKeyArray | None = None
    ) -> MomentsState:
        del num_steps, key
        return averages.zeros(params)

    def update(
        self, grads: Params, state: MomentsState, params: Params, **context: Any
    ) -> tuple[Params, MomentsState]:
        del context

        def move(g: Array, m: Array, v: Array, b1: Array, b2: Array, eps: Array) -> Array:
            del b1, b2
            over_root = jax.lax.rsqrt(v + eps)
            scaled = g * over_root
            return self.move(g, scaled, jnp.tanh(scaled) * jnp.tanh(m * over_root))

        numbers = (self.learning_rate, self.b1, self.b2, self.eps)
        return averages.moved(move, numbers, grads, state, params)

    @property
    def spaces(self) -> dict[str, Space]:
        return {name: spaces.BY_NAME[name] for name in ("learning_rate", "b1", "b2", "eps")}


class PowerSign(SignAgreement):
    """Gradients times a power of their agreement with the mean: `update = -learning_rate * exp(q) * g`.

    See `SignAgreement` for q and the source.
    """

    learning_rate: Float[Array, ""] = eqx.field(converter=number, default=0.1)
    b1: Float[Array, ""] = eqx.field(converter=number, default=0.9)
    b2: Float[Array, ""] = eqx.field(converter=number, default=0.999)
    eps: Float[Array, ""] = eqx.field(converter=number, default=1e-10)

    def move(
        self, grad: Float[Array, "..."], scaled: Float[Array, "..."], agreement: Float[Array, "..."]
    ) -> Float[Array, "..."]:
        del scaled
        return jnp.exp(agreement) * grad


class AddSign(SignAgreement):
    """Gradients and their agreement with the mean: `update = -learning_rate * (1 + q) * g`.

    See `SignAgreement` for q and the source.
    """

    learning_rate: Float[Array, ""] = eqx.field(converter=number, default=0.1)
    b1: Float[Array, ""] = eqx.field(converter=number, default=0.9)
    b2: Float[Array, ""] = eqx.field(converter=number, default=0.999)
    eps: Float[Array, ""] = eqx.field(converter=number, default=1e-10)

    def move(
        self, grad: Float[Array, "..."], scaled: Float[Array, "..."], agreement: Float[Array, "..."]
    ) -> Float[Array, "..."]:
        del scaled
        return (1.0 + agreement) * grad


class AdaptivePowerSign(SignAgreement):
    """PowerSign of the gradient over its root mean square: `update = -learning_rate * exp(q) * g / r`.

    See `SignAgreement` for q, r and the source. r starts near zero, so that the first steps are up to
    `sqrt(1 / (1 - b2))`, about 30, times as long as later ones; the default learning rate is ours.
    """

    learning_rate: Float[Array, ""] = eqx.field(converter=number, default=1e-3)
    b1: Float[Array, ""] = eqx.field(converter=number, default=0.9)
    b2: Float[Array, ""] = eqx.field(converter=number, default=0.999)
    eps: Float[Array, ""] = eqx.field(converter=number, default=1e-10)

    def move(
        self, grad: Float[Array, "..."], scaled: Float[Array, "..."], agreement: Float[Array, "..."]
    ) -> Float[Array, "..."]:
        del grad
        return jnp.exp(agreement) * scaled


class AdaptiveAddSign(SignAgreement):
    """AddSign of the gradient over its root mean square: `update = -learning_rate * (1 + q) * g / r`.

    See `SignAgreement` for q, r and the source, and `AdaptivePowerSign` for the first steps.
    """

    learning_rate: Float[Array, ""] = eqx.field(converter=number, default=1e-3)
    b1: Float[Array, ""] = eqx.field(converter=number, default=0.9)
    b2: Float[Array, ""] = eqx.field(converter=number, default=0.999)
    eps: Float[Array, ""] = eqx.field(converter=number, default=1e-10)

    def move(
        self, grad: Float[Array, "..."], scaled: Float[Array, "..."], agreement: Float[Array, "..."]
    ) -> Float[Array, "..."]:
        del grad
        return (1.0 + agreement) * scaled
