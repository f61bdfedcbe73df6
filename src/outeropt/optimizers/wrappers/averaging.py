"""Averages of the parameters: an average to evaluate at, and Lookahead's slow weights to return to."""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from outeropt import tree
from outeropt.optimizer import Optimizer, OptState, Params
from outeropt.optimizers.schedules import number
from outeropt.optimizers.wrappers.base import Wrapper, add_scaled
from outeropt.space import Space


class AverageState(NamedTuple):
    """State of `Averaged` and `Lookahead`.

    Attributes:
      inner: the inner optimizer's state.
      average: the averaged parameters, or the slow weights.
      count: steps so far.
    """

    inner: OptState
    average: Params
    count: Int[Array, ""]


class Averaged(Wrapper):
    """Leaves training alone and evaluates at an average of the parameters.

    After step `t` (from 1), `average += max(1 - decay, 1 / t) * (params - average)`: the plain mean of the
    first `1 / (1 - decay)` iterates, then an exponential moving average; with `decay = 1` the plain mean
    throughout (Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992).

    Attributes:
      inner: the optimizer inside.
      decay: decay of the moving average, in [0, 1].
    """

    inner: Optimizer
    decay: Float[Array, ""] = eqx.field(converter=number, default=0.999)

    own_spaces: ClassVar[dict[str, Space]] = {"decay": Space.logit(0.9, 0.9999, allowed=(0.0, 1.0))}

    def init(
        self, params: Params, *, num_steps: int | Array | None = None, key: PRNGKeyArray | None = None
    ) -> OptState:
        return _start(self.inner.init(params, num_steps=num_steps, key=key), params)

    def update(
        self, grads: Params, state: OptState, params: Params, **context: Any
    ) -> tuple[Params, OptState]:
        updates, inner = self.inner.update(grads, state.inner, params, **context)
        new = self.inner.eval_params(inner, jax.tree.map(jnp.add, params, updates))
        count = state.count + 1
        rate = jnp.maximum(1.0 - self.decay, 1.0 / count.astype(jnp.float32))
        average = add_scaled(state.average, rate, jax.tree.map(jnp.subtract, new, state.average))
        return updates, AverageState(inner, average, count)

    def inner_state(self, state: OptState) -> OptState:
        return state.inner

    def eval_params(self, state: OptState, params: Params) -> Params:
        del params
        return state.average


class Lookahead(Wrapper):
    """Every `sync_period` steps moves slow weights towards the parameters, and the parameters back to them.

    `slow += slow_step_size * (fast - slow); fast = slow` (Zhang et al., "Lookahead Optimizer: k steps
    forward, 1 step back", 2019, arXiv 1907.08610, algorithm 1). The slow weights are evaluated.

    Attributes:
      inner: the optimizer inside, which takes the fast steps; its state is not reset.
      sync_period: steps between synchronisations, at least 1.
      slow_step_size: how far the slow weights go, in [0, 1].
    """

    inner: Optimizer
    sync_period: Float[Array, ""] = eqx.field(converter=number, default=6.0)
    slow_step_size: Float[Array, ""] = eqx.field(converter=number, default=0.5)

    own_spaces: ClassVar[dict[str, Space]] = {
        "sync_period": Space.log(1.0, 100.0, allowed=(1.0, 1e6)),
        "slow_step_size": Space.linear(0.1, 1.0, allowed=(0.0, 1.0)),
    }

    def init(
        self, params: Params, *, num_steps: int | Array | None = None, key: PRNGKeyArray | None = None
    ) -> OptState:
        return _start(self.inner.init(params, num_steps=num_steps, key=key), params)

    def update(
        self, grads: Params, state: OptState, params: Params, **context: Any
    ) -> tuple[Params, OptState]:
        updates, inner = self.inner.update(grads, state.inner, params, **context)
        count = state.count + 1
        sync = count.astype(jnp.float32) >= self.sync_period
        way = jax.tree.map(lambda p, u, s: p + u - s, params, updates, state.average)
        slow = add_scaled(state.average, self.slow_step_size, way)
        back = jax.tree.map(jnp.subtract, slow, params)
        return tree.where(sync, back, updates), AverageState(
            inner, tree.where(sync, slow, state.average), jnp.where(sync, 0, count)
        )

    def inner_state(self, state: OptState) -> OptState:
        return state.inner

    def eval_params(self, state: OptState, params: Params) -> Params:
        del params
        return state.average


def _start(inner: OptState, params: Params) -> AverageState:
    # A copy: a loop that donates its buffers may not donate one of them twice.
    return AverageState(inner, jax.tree.map(jnp.array, params), jnp.zeros((), jnp.int32))
