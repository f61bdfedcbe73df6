"""A learning rate that is multiplied every few steps, the rival that follows no gradient."""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from outeropt import tree
from outeropt.errors import OuteroptError
from outeropt.optimizer import Optimizer, OptState, Params, resolve
from outeropt.optimizers.schedules import number
from outeropt.optimizers.wrappers.base import Wrapper
from outeropt.space import Space


class SteppedState(NamedTuple):
    """State of `Stepped`.

    Attributes:
      inner: the inner optimizer's state.
      count: steps so far.
    """

    inner: OptState
    count: Int[Array, ""]


class Stepped(Wrapper):
    """Multiplies the learning rate by `factor` after every `every` steps, and keeps it in [1e-10, 1].

    Random (x LR) of Clarke, Oldewage and Hernandez-Lobato 2022 (arXiv 2110.10461) draws the factor too.

    Attributes:
      inner: the optimizer inside, with a leaf called `learning_rate`.
      factor: positive.
      every: inner steps between multiplications.

    Raises:
      UnknownName: the inner optimizer has no learning rate.
    """

    inner: Optimizer
    factor: Float[Array, ""] = eqx.field(converter=number, default=0.99)
    every: int = eqx.field(static=True, default=10)

    own_spaces: ClassVar[dict[str, Space]] = {"factor": Space.linear(0.95, 1.01, allowed=(1e-3, 1e3))}

    def __check_init__(self):
        if self.every < 1:
            raise OuteroptError(f"every = {self.every} is not allowed; multiply at least every 1 step.")
        self._name()

    def init(
        self, params: Params, *, num_steps: int | Array | None = None, key: PRNGKeyArray | None = None
    ) -> OptState:
        count = jnp.zeros((), jnp.int32)
        return SteppedState(self._now(count).init(params, num_steps=num_steps, key=key), count)

    def update(
        self, grads: Params, state: OptState, params: Params, **context: Any
    ) -> tuple[Params, OptState]:
        updates, inner = self._now(state.count).update(grads, state.inner, params, **context)
        return updates, SteppedState(inner, state.count + 1)

    def inner_state(self, state: OptState) -> OptState:
        return state.inner

    def diagnostics(self, state: OptState) -> dict[str, Array]:
        """The learning rate, and what the inner optimizer says."""
        inner = self._now(state.count)
        rate = inner.hyperparameters[self._name()]
        return {**self.inner.diagnostics(state.inner), "learning_rate": rate}

    def _name(self) -> str:
        return resolve("learning_rate", self.inner.hyperparameters)

    def _now(self, count: Int[Array, ""]) -> Optimizer:
        rate = self.inner.hyperparameters[self._name()]
        times = (count // self.every).astype(rate.dtype)
        # The factor never changes, so that to keep the end in range is to keep every step there.
        return tree.with_leaves(self.inner, {self._name(): jnp.clip(rate * self.factor**times, 1e-10, 1.0)})
