"""Hypergradient descent on the learning rate as it was compared with one-pass tuning."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from outeropt.optimizer import Optimizer, OptState, Params
from outeropt.optimizers.arithmetic import inner as product
from outeropt.optimizers.schedules import number
from outeropt.optimizers.wrappers.base import Wrapper
from outeropt.selftuning import sensitivity
from outeropt.selftuning.onepass.point import Ranges, ranges_of
from outeropt.selftuning.sensitivity import Chart


class BaydinState(NamedTuple):
    """State of `Baydin`.

    Attributes:
      inner: the inner optimizer's state.
      coordinate: log10 of the learning rate.
      last: the gradient before.
      count: steps so far.
    """

    inner: OptState
    coordinate: Float[Array, " 1"]
    last: Params
    count: Array


class Baydin(Wrapper):
    """Moves the logarithm of the learning rate by products of successive gradients.

        log10(lr) <- log10(lr) + step_size * <g_t, g_(t-1)>

    This is the rival of Clarke, Oldewage and Hernandez-Lobato 2022 (arXiv 2110.10461), named by them after
    Baydin et al. 2017 (arXiv 1703.04782). It leaves out the chain rule through the logarithm, and momentum
    and weight decay. `HypergradientDescent` with `signal="gradient"` has all of them.

    Attributes:
      inner: the optimizer inside, with a leaf called `learning_rate`.
      step_size: of the rule, at least 0.
      ranges: as in `OnePass`.
    """

    inner: Optimizer
    step_size: Float[Array, ""] = eqx.field(converter=number, default=0.001)
    ranges: Ranges = eqx.field(static=True, default=(), converter=ranges_of)

    def __check_init__(self):
        self._chart()

    def init(
        self, params: Params, *, num_steps: int | Array | None = None, key: PRNGKeyArray | None = None
    ) -> OptState:
        coordinate = self._chart().read(self.inner)
        inner = self._at(coordinate).init(params, num_steps=num_steps, key=key)
        zeros = jax.tree.map(jnp.zeros_like, params)
        return BaydinState(inner, coordinate, zeros, jnp.zeros((), jnp.int32))

    def update(
        self, grads: Params, state: OptState, params: Params, **context: Any
    ) -> tuple[Params, OptState]:
        moved = state.coordinate + self.step_size * product(grads, state.last).astype(state.coordinate.dtype)
        moved = self._chart().clip(moved)
        coordinate = jnp.where(jnp.isfinite(moved), moved, state.coordinate)
        updates, inner = self._at(coordinate).update(grads, state.inner, params, **context)
        return updates, BaydinState(inner, coordinate, grads, state.count + 1)

    def inner_state(self, state: OptState) -> OptState:
        return state.inner

    def diagnostics(self, state: OptState) -> dict[str, Array]:
        """The learning rate, and what the inner optimizer says."""
        (rate,) = self._chart().values(state.coordinate).values()
        return {**self.inner.diagnostics(state.inner), "learning_rate": rate}

    def _at(self, coordinate: Float[Array, " 1"]) -> Optimizer:
        return self._chart().write(self.inner, coordinate)

    def _chart(self) -> Chart:
        return sensitivity.chart(self.inner, ("learning_rate",), "decades", ranges=dict(self.ranges))
