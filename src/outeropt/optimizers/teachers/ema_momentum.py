"""Momentum as a moving average of the gradient."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from outeropt.optimizer import Optimizer, Params
from outeropt.optimizers import spaces
from outeropt.optimizers.arithmetic import unzip
from outeropt.optimizers.schedules import number
from outeropt.optimizers.teachers.averages import averaged
from outeropt.space import Space


class EMAMomentumState(NamedTuple):
    """State of `EMAMomentum`.

    Attributes:
      mean: moving average of the gradients, from zero.
    """

    mean: Params


class EMAMomentum(Optimizer):
    """SGD along a moving average of the gradient.

        m = beta m + (1 - beta) g                      update = -learning_rate * m

    The updates are those of `momentum` with the learning rate `(1 - beta) learning_rate`, so that `beta`
    changes how long gradients are remembered and leaves the length of the steps as it is. A teacher of Huang
    et al., "Optimizer amalgamation", 2022, arXiv 2203.06474.

    Attributes:
      learning_rate: step size.
      beta: decay of the average, in [0, 1).
    """

    learning_rate: Float[Array, ""] = eqx.field(converter=number, default=0.5)
    beta: Float[Array, ""] = eqx.field(converter=number, default=0.9)

    def init(
        self, params: Params, *, num_steps: int | Array | None = None, key: PRNGKeyArray | None = None
    ) -> EMAMomentumState:
        del num_steps, key
        return EMAMomentumState(jax.tree.map(jnp.zeros_like, params))

    def update(
        self, grads: Params, state: EMAMomentumState, params: Params, **context: Any
    ) -> tuple[Params, EMAMomentumState]:
        del context

        def one(grad: Array, param: Array, mean: Array) -> tuple[Array, Array]:
            wide = np.promote_types(np.float32, param.dtype)
            rate, beta = self.learning_rate.astype(wide), self.beta.astype(wide)
            m = averaged(beta, mean.astype(wide), grad.astype(wide))
            return (-rate * m).astype(param.dtype), m.astype(mean.dtype)

        updates, mean = unzip(grads, jax.tree.map(one, grads, params, state.mean))
        return updates, EMAMomentumState(mean)

    @property
    def spaces(self) -> dict[str, Space]:
        return {name: spaces.BY_NAME[name] for name in ("learning_rate", "beta")}
