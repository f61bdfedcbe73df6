"""Gradient clipping."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from outeropt.optimizer import Optimizer, OptState, Params
from outeropt.optimizers.schedules import number
from outeropt.optimizers.wrappers.base import Wrapper, norm, ratio, scale
from outeropt.space import Space


_LIMIT = Space.log(1e-3, 1e3, allowed=(0.0, 1e30))


class ClipByValue(Wrapper):
    """Gives the inner optimizer gradients clipped entry by entry to `[-max_value, max_value]`.

    The context is passed on as it is: `grad` there stays the raw gradient.

    Attributes:
      inner: the optimizer inside.
      max_value: largest magnitude of an entry, at least 0.
    """

    inner: Optimizer
    max_value: Float[Array, ""] = eqx.field(converter=number, default=3.0)

    own_spaces: ClassVar[dict[str, Space]] = {"max_value": _LIMIT}

    def init(
        self, params: Params, *, num_steps: int | Array | None = None, key: PRNGKeyArray | None = None
    ) -> OptState:
        return self.inner.init(params, num_steps=num_steps, key=key)

    def update(
        self, grads: Params, state: OptState, params: Params, **context: Any
    ) -> tuple[Params, OptState]:
        def clip(grad):
            limit = self.max_value.astype(grad.dtype)
            return jnp.clip(grad, -limit, limit)

        return self.inner.update(jax.tree.map(clip, grads), state, params, **context)


class ClipByGlobalNorm(Wrapper):
    """Gives the inner optimizer gradients scaled down to a norm of at most `max_norm`, all leaves together.

    Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks", 2012, arXiv
    1211.5063, algorithm 1. The context is passed on as it is: `grad` there stays the raw gradient.

    Attributes:
      inner: the optimizer inside.
      max_norm: largest norm, at least 0.
    """

    inner: Optimizer
    max_norm: Float[Array, ""] = eqx.field(converter=number, default=1.0)

    own_spaces: ClassVar[dict[str, Space]] = {"max_norm": _LIMIT}

    def init(
        self, params: Params, *, num_steps: int | Array | None = None, key: PRNGKeyArray | None = None
    ) -> OptState:
        return self.inner.init(params, num_steps=num_steps, key=key)

    def update(
        self, grads: Params, state: OptState, params: Params, **context: Any
    ) -> tuple[Params, OptState]:
        size = norm(grads)
        factor = jnp.where(size > self.max_norm, ratio(self.max_norm, size), 1.0)
        return self.inner.update(scale(factor, grads), state, params, **context)
