"""Gradient accumulation: one update from several minibatches."""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from outeropt import tree
from outeropt.optimizer import Optimizer, OptState, Params
from outeropt.optimizers.schedules import number
from outeropt.optimizers.wrappers.base import Wrapper
from outeropt.space import Space


class AccumulateState(NamedTuple):
    """State of `Accumulate`.

    Attributes:
      inner: the inner optimizer's state.
      total: sum of the gradients since the last update.
      count: how many they are.
    """

    inner: OptState
    total: Params
    count: Int[Array, ""]


class Accumulate(Wrapper):
    """Lets the inner optimizer step at every `every`-th step only, with the mean gradient since its last.

    Between its steps the updates are zero and its state does not change. Of the context it sees what belongs
    to the step at hand, not a mean.

    Attributes:
      inner: the optimizer inside; its `num_steps` is divided by `every`.
      every: steps between its updates, at least 1; a leaf, so that values share one compiled program.
    """

    inner: Optimizer
    every: Float[Array, ""] = eqx.field(converter=number, default=4.0)

    own_spaces: ClassVar[dict[str, Space]] = {"every": Space.log(1.0, 64.0, allowed=(1.0, 1e6))}

    def init(
        self, params: Params, *, num_steps: int | Array | None = None, key: PRNGKeyArray | None = None
    ) -> OptState:
        if num_steps is not None:
            num_steps = jnp.ceil(jnp.asarray(num_steps).astype(jnp.float32) / self.every).astype(jnp.int32)
        inner = self.inner.init(params, num_steps=num_steps, key=key)
        return AccumulateState(inner, jax.tree.map(jnp.zeros_like, params), jnp.zeros((), jnp.int32))

    def update(
        self, grads: Params, state: OptState, params: Params, **context: Any
    ) -> tuple[Params, OptState]:
        total = jax.tree.map(lambda a, b: a + b.astype(a.dtype), state.total, grads)
        count = state.count + 1
        ready = count.astype(jnp.float32) >= self.every
        mean = jax.tree.map(lambda leaf: leaf / count.astype(leaf.dtype), total)
        updates, inner = self.inner.update(mean, state.inner, params, **context)
        zeros = jax.tree.map(jnp.zeros_like, updates)
        return tree.where(ready, updates, zeros), AccumulateState(
            tree.where(ready, inner, state.inner),
            jax.tree.map(lambda leaf: jnp.where(ready, jnp.zeros_like(leaf), leaf), total),
            jnp.where(ready, 0, count),
        )

    def inner_state(self, state: OptState) -> OptState:
        return state.inner
