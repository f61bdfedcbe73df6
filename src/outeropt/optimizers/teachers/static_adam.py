"""Adam whose averages are divided by constants instead of corrected step by step."""

from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from outeropt.optimizer import Optimizer, Params
from outeropt.optimizers import spaces
from outeropt.optimizers.schedules import number
from outeropt.optimizers.teachers import averages
from outeropt.optimizers.teachers.averages import MomentsState
from outeropt.space import Space


class StaticAdam(Optimizer):
    """Adam with the bias correction of the first step at every step.

        m = b1 m + (1 - b1) g                          v = b2 v + (1 - b2) g^2
        update = -learning_rate * m / (1 - b1) / sqrt(v / (1 - b2) + eps)

    Kingma and Ba, "Adam: A method for stochastic optimization", 2014, arXiv 1412.6980, in the form in which
    Huang et al., "Optimizer amalgamation", 2022, arXiv 2203.06474, use it as a teacher. At the first step
    this is Adam; once the averages are full, its steps are `sqrt(1 - b2) / (1 - b1)` times Adam's, 0.32 times
    with the decays below. `eps` stands inside the root, so that derivatives at zero gradients are finite.

    Attributes:
      learning_rate: step size.
      b1: decay of the mean, in [0, 1).
      b2: decay of the square, in [0, 1).
      eps: added to the square, above 0.
    """

    learning_rate: Float[Array, ""] = eqx.field(converter=number, default=5e-3)
    b1: Float[Array, ""] = eqx.field(converter=number, default=0.9)
    b2: Float[Array, ""] = eqx.field(converter=number, default=0.999)
    eps: Float[Array, ""] = eqx.field(converter=number, default=1e-10)

    def init(
        self, params: Params, *, num_steps: int | Array | None = None, key: PRNGKeyArray | None = None
    ) -> MomentsState:
        del num_steps, key
        return averages.zeros(params)

    def update(
        self, grads: Params, state: MomentsState, params: Params, **context: Any
    ) -> tuple[Params, MomentsState]:
        del context
        numbers = (self.learning_rate, self.b1, self.b2, self.eps)
        return averages.moved(_move, numbers, grads, state, params)

    @property
    def spaces(self) -> dict[str, Space]:
        return {name: spaces.BY_NAME[name] for name in ("learning_rate", "b1", "b2", "eps")}


def _move(g: Array, m: Array, v: Array, b1: Array, b2: Array, eps: Array) -> Array:
    del g
    return m / (1.0 - b1) * jax.lax.rsqrt(v / (1.0 - b2) + eps)
