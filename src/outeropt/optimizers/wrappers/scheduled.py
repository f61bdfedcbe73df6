"""A schedule on the learning rate of any optimizer."""

from typing import Any, NamedTuple

import equinox as eqx
from jaxtyping import Array, Int, PRNGKeyArray

from outeropt import tree
from outeropt.optimizer import Optimizer, OptState, Params, resolve
from outeropt.optimizers import schedules
from outeropt.optimizers.schedules import Schedule
from outeropt.optimizers.wrappers.base import Wrapper
from outeropt.space import Space


class ScheduledLearningRateState(NamedTuple):
    """State of `Scheduled`.

    Attributes:
      inner: the inner optimizer's state.
      clock: the step and the length of the run; see `schedules.clock`.
    """

    inner: OptState
    clock: Int[Array, "2"]


class Scheduled(Wrapper):
    """Multiplies a leaf of the inner optimizer by a schedule, at each step.

    With a schedule of height 1 (`Cosine(warmup_fraction=0.05)`) the leaf keeps its meaning: it is the peak.

    Attributes:
      inner: the optimizer inside.
      schedule: the factor by step.
      name: which leaf; the last part of its dotted name is enough when it is unique.

    Raises:
      UnknownName: the inner optimizer has no such leaf.
    """

    inner: Optimizer
    schedule: Schedule
    name: str = eqx.field(static=True, default="learning_rate")

    def __check_init__(self):
        resolve(self.name, self.inner.hyperparameters)

    def init(
        self, params: Params, *, num_steps: int | Array | None = None, key: PRNGKeyArray | None = None
    ) -> OptState:
        now = schedules.clock([self.schedule], num_steps)
        return ScheduledLearningRateState(self._now(now).init(params, num_steps=num_steps, key=key), now)

    def update(
        self, grads: Params, state: OptState, params: Params, **context: Any
    ) -> tuple[Params, OptState]:
        updates, inner = self._now(state.clock).update(grads, state.inner, params, **context)
        return updates, ScheduledLearningRateState(inner, schedules.tick(state.clock))

    def inner_state(self, state: OptState) -> OptState:
        return state.inner

    @property
    def spaces(self) -> dict[str, Space]:
        own = {f"schedule.{name}": space for name, space in self.schedule.spaces(None).items()}
        return {**own, **super().spaces}

    def _now(self, now: Int[Array, "2"]) -> Optimizer:
        leaves = self.inner.hyperparameters
        full = resolve(self.name, leaves)
        # Unchecked: a schedule may leave the leaf's space on its way.
        return tree.with_leaves(self.inner, {full: leaves[full] * schedules.value_at(self.schedule, now)})
