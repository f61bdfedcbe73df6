"""NAdamW: Nesterov Adam with both kinds of weight decay, the family that tuned lists draw from."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from outeropt.optimizer import Optimizer, OptState, Params
from outeropt.optimizers import schedules, spaces
from outeropt.optimizers.schedules import Schedule, number
from outeropt.space import Space


class NAdamWState(NamedTuple):
    """State of `NAdamW`.

    Attributes:
      mean: moving average of the gradients.
      square: moving average of their squares.
      clock: the step and the length of the run; see `schedules.clock`.
    """

    mean: Params
    square: Params
    clock: Int[Array, "2"]


def _number_or_schedule(value: Any) -> Schedule | Array:
    return value if isinstance(value, Schedule) else number(value)


class NAdamW(Optimizer):
    """Nesterov Adam with decoupled and L2 weight decay.

    At step `t` (from 1), with `g` the gradient plus `l2_weight_decay * params`:

        m = b1 m + (1 - b1) g                          v = b2 v + (1 - b2) g^2
        n = b1 m + (1 - b1) g   (or m, without Nesterov)
        a = learning_rate * sqrt(1 - b2^t) / (1 - b1^t)
        update = -a * (n / (sqrt(v) + eps) + weight_decay * params)

    Dozat, "Incorporating Nesterov Momentum into Adam", 2016, and, for this form and its place in tuned lists,
    Metz et al., "Using a thousand optimization tasks to learn hyperparameter search strategies", 2020, arXiv
    2002.11887. `eps` is added to the uncorrected root and the weight decay is multiplied by the
    bias-corrected step size `a`: both differ from `optax.nadamw`.

    Attributes:
      learning_rate: step size, a number or a `Schedule`.
      b1: decay of the mean, in [0, 1).
      b2: decay of the square, in [0, 1).
      eps: added to the root of the square, at least 0.
      weight_decay: decoupled decay, at least 0.
      l2_weight_decay: L2 decay, at least 0 to shrink the parameters.
      nesterov: whether to look one step of the momentum ahead.
    """

    learning_rate: Float[Array, ""] | Schedule = eqx.field(converter=_number_or_schedule, default=1e-3)
    b1: Float[Array, ""] = eqx.field(converter=number, default=0.9)
    b2: Float[Array, ""] = eqx.field(converter=number, default=0.999)
    eps: Float[Array, ""] = eqx.field(converter=number, default=1e-8)
    weight_decay: Float[Array, ""] = eqx.field(converter=number, default=0.0)
    l2_weight_decay: Float[Array, ""] = eqx.field(converter=number, default=0.0)
    nesterov: bool = eqx.field(static=True, default=True)

    def init(
        self, params: Params, *, num_steps: int | Array | None = None, key: PRNGKeyArray | None = None
    ) -> OptState:
        del key
        scheduled = [self.learning_rate] if isinstance(self.learning_rate, Schedule) else []
        mean, square = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))
        return NAdamWState(mean, square, schedules.clock(scheduled, num_steps))

    def update(
        self, grads: Params, state: OptState, params: Params, **context: Any
    ) -> tuple[Params, OptState]:
        del context
        t = (state.clock[0] + 1).astype(jnp.float32)
        learning_rate = schedules.value_at(self.learning_rate, state.clock)
        step_size = learning_rate * jnp.sqrt(1.0 - self.b2**t) / (1.0 - self.b1**t)

        def one(grad, param, mean, square):
            # Narrow types hold neither 1 - b2 nor the square well: compute wide, store as the parameters are.
            wide = np.promote_types(np.float32, param.dtype)
            g, p, m, v = (leaf.astype(wide) for leaf in (grad, param, mean, square))
            b1, b2 = self.b1.astype(wide), self.b2.astype(wide)
            g = g + self.l2_weight_decay.astype(wide) * p
            m = b1 * m + (1.0 - b1) * g
            v = b2 * v + (1.0 - b2) * jnp.square(g)
            ahead = b1 * m + (1.0 - b1) * g if self.nesterov else m
            move = ahead / (jnp.sqrt(v) + self.eps.astype(wide)) + self.weight_decay.astype(wide) * p
            update = -step_size.astype(wide) * move
            return update.astype(param.dtype), m.astype(mean.dtype), v.astype(square.dtype)

        triples = jax.tree.map(one, grads, params, state.mean, state.square)
        updates, mean, square = jax.tree.transpose(
            jax.tree.structure(grads), jax.tree.structure((0, 0, 0)), triples
        )
        return updates, NAdamWState(mean, square, schedules.tick(state.clock))

    @property
    def spaces(self) -> dict[str, Space]:
        own = {
            "b1": spaces.MOMENTUM,
            "b2": spaces.SECOND_MOMENT,
            "eps": spaces.EPSILON,
            "weight_decay": spaces.WEIGHT_DECAY,
            "l2_weight_decay": spaces.WEIGHT_DECAY,
        }
        if isinstance(self.learning_rate, Schedule):
            inner = self.learning_rate.spaces(spaces.LEARNING_RATE)
            return {**{f"learning_rate.{name}": space for name, space in inner.items()}, **own}
        return {"learning_rate": spaces.LEARNING_RATE, **own}
