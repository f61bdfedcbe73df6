"""Schedule-free averaging around any optimizer."""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from outeropt.optimizer import Optimizer, OptState, Params
from outeropt.optimizers.arithmetic import quotient, wide_type, widen
from outeropt.optimizers.schedules import number
from outeropt.optimizers.tuning_free.schedule_free import averaging_move
from outeropt.optimizers.wrappers.base import Wrapper
from outeropt.space import Space


class ScheduleFreeState(NamedTuple):
    """State of `ScheduleFree`.

    Attributes:
      inner: the inner optimizer's state.
      z: the iterate.
      weight_sum: sum of the average's weights so far.
      count: steps so far.
    """

    inner: OptState
    z: Params
    weight_sum: Float[Array, ""]
    count: Int[Array, ""]


class ScheduleFree(Wrapper):
    """Trains between the inner optimizer's iterate and its average, and evaluates at the average.

    At step `t` (from 1), with `u` the inner update for the gradient at `y`:

        f = min(1, t / warmup_steps)                             z <- z + f u
        weight = t^r f^weight_power                              c = weight / sum of weights so far
        x <- (1 - c) x + c z                                     y <- b1 x + (1 - b1) z

    Defazio et al., "The Road Less Scheduled", 2024, arXiv 2405.15682, eq. 2 to 4 and algorithm 1. Around an
    optimizer with a constant learning rate this is their method (`schedule_free:sgd` is `schedule_free_sgd`,
    and `schedule_free:adamw` without `b1` of its own is `schedule_free_adamw`). Of a learning rate that the
    inner optimizer changes itself the weights know nothing. `b1` takes the place of the inner momentum, which
    should be 0.

    Attributes:
      inner: the optimizer inside.
      b1: how near to the average gradients are taken, in (0, 1].
      warmup_steps: over which the inner updates rise linearly to their full length.
      weight_power: power of that length in the average's weights.
      r: power of the step in the average's weights.
    """

    inner: Optimizer
    b1: Float[Array, ""] = eqx.field(converter=number, default=0.9)
    warmup_steps: Float[Array, ""] = eqx.field(converter=number, default=0.0)
    weight_power: Float[Array, ""] = eqx.field(converter=number, default=2.0)
    r: Float[Array, ""] = eqx.field(converter=number, default=0.0)

    own_spaces: ClassVar[dict[str, Space]] = {
        # The evaluation point divides by b1.
        "b1": Space.logit(0.5, 0.999, allowed=(1e-6, 1.0)),
        "warmup_steps": Space.log(1.0, 1e4, allowed=(0.0, 1e9)),
        "weight_power": Space.linear(0.0, 4.0, allowed=(-10.0, 10.0)),
        "r": Space.linear(0.0, 2.0, allowed=(-10.0, 10.0)),
    }

    def init(
        self, params: Params, *, num_steps: int | Array | None = None, key: PRNGKeyArray | None = None
    ) -> OptState:
        inner = self.inner.init(params, num_steps=num_steps, key=key)
        # A copy: a loop that donates its buffers may not donate one of them twice.
        z = jax.tree.map(jnp.array, params)
        return ScheduleFreeState(inner, z, jnp.zeros((), wide_type(params)), jnp.zeros((), jnp.int32))

    def update(
        self, grads: Params, state: OptState, params: Params, **context: Any
    ) -> tuple[Params, OptState]:
        moves, inner = self.inner.update(grads, state.inner, params, **context)
        wide = state.weight_sum.dtype
        b1, warmup, power, r = (
            leaf.astype(wide) for leaf in (self.b1, self.warmup_steps, self.weight_power, self.r)
        )
        count = (state.count + 1).astype(wide)
        factor = jnp.minimum(1.0, count / jnp.maximum(warmup, 1.0))
        weight = count**r * factor**power
        weight_sum = state.weight_sum + weight
        # All in one type: its numbers are of the widest.
        points, z, moves = (
            jax.tree.map(lambda leaf: leaf.astype(wide), part) for part in (params, state.z, moves)
        )
        moves = jax.tree.map(lambda leaf: factor * leaf, moves)
        updates = averaging_move(points, z, moves, quotient(weight, weight_sum), b1)
        new = jax.tree.map(lambda old, leaf, move: (leaf + move).astype(old.dtype), state.z, z, moves)
        updates = jax.tree.map(lambda leaf, param: leaf.astype(param.dtype), updates, params)
        return updates, ScheduleFreeState(inner, new, weight_sum, state.count + 1)

    def inner_state(self, state: OptState) -> OptState:
        return state.inner

    def eval_params(self, state: OptState, params: Params) -> Params:
        def average(y, z):
            b1 = self.b1.astype(np.promote_types(np.float32, y.dtype))
            return ((widen(y) - (1.0 - b1) * widen(z)) / b1).astype(y.dtype)

        return jax.tree.map(average, params, state.z)
