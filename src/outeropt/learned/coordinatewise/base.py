"""What coordinatewise optimizers share: a warm-up of plain SGD, during which they only watch."""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from outeropt.errors import ConfigError
from outeropt.learned.base import LearnedOptimizer
from outeropt.optimizer import OptState, Params


class WarmUpState(NamedTuple):
    """State of a `Coordinatewise` optimizer that has a warm-up.

    Attributes:
      policy: its state without one.
      steps: how many gradients it has seen.
    """

    policy: OptState
    steps: Int[Array, ""]


class Coordinatewise(LearnedOptimizer):
    """A learned optimizer that may begin with steps of SGD.

    In the first `warmup_steps` steps `update = -warmup_rate * g`. Meanwhile averages of gradients, and
    counters of time, advance, and recurrent states stay as they are. Huang et al., "Optimizer amalgamation",
    2022, arXiv 2203.06474, meta-train and evaluate with 100 such steps.

    Attributes:
      warmup_steps: steps of SGD at the start of a run; with 0, the state has no counter of them.
      warmup_rate: their learning rate.
    """

    warmup_steps: eqx.AbstractVar[int]
    warmup_rate: eqx.AbstractVar[float]

    @abc.abstractmethod
    def start(
        self, params: Params, *, num_steps: int | Array | None = None, key: PRNGKeyArray | None = None
    ) -> OptState:
        """`init` without a warm-up."""

    @abc.abstractmethod
    def step(self, grads: Params, state: OptState, params: Params, **context: Any) -> tuple[Params, OptState]:
        """`update` without a warm-up."""

    @abc.abstractmethod
    def watch(self, grads: Params, state: OptState, params: Params, **context: Any) -> OptState:
        """`observe` without a warm-up."""

    def init(
        self, params: Params, *, num_steps: int | Array | None = None, key: PRNGKeyArray | None = None
    ) -> OptState:
        state = self.start(params, num_steps=num_steps, key=key)
        return WarmUpState(state, jnp.zeros((), jnp.int32)) if self.warmup_steps else state

    def update(
        self, grads: Params, state: OptState, params: Params, **context: Any
    ) -> tuple[Params, OptState]:
        if not self.warmup_steps:
            return self.step(grads, state, params, **context)

        def warm_up() -> tuple[Params, OptState]:
            updates = jax.tree.map(lambda grad, param: _scaled(-self.warmup_rate, grad, param), grads, params)
            return updates, self.watch(grads, state.policy, params, **context)

        def take_over() -> tuple[Params, OptState]:
            return self.step(grads, state.policy, params, **context)

        updates, policy = jax.lax.cond(state.steps < self.warmup_steps, warm_up, take_over)
        return updates, WarmUpState(policy, state.steps + 1)

    def observe(self, grads: Params, state: OptState, params: Params, **context: Any) -> OptState:
        if not self.warmup_steps:
            return self.watch(grads, state, params, **context)
        return WarmUpState(self.watch(grads, state.policy, params, **context), state.steps + 1)

    def policy_state(self, state: OptState) -> Any:
        """The part of a state that is there without a warm-up as well."""
        return state.policy if self.warmup_steps else state


def check_warm_up(steps: int, rate: float) -> tuple[int, float]:
    """The two settings of a warm-up.

    Raises:
      ConfigError: steps that are no count, or a rate that is negative or no number.
    """
    if steps < 0:
        raise ConfigError(f"warmup_steps must be at least 0, not {steps}.")
    if not 0 <= rate < float("inf"):
        raise ConfigError(f"warmup_rate must be a number from 0 on, not {rate}.")
    return steps, float(rate)


def _scaled(factor: float, grad: Array, param: Array) -> Array:
    return (factor * grad.astype(jnp.float32)).astype(param.dtype)
