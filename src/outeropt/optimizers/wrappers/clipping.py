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


class ClipAdaptive(Wrapper):
    """Gives the inner optimizer gradients that are short beside their tensors.

    Each tensor's gradient becomes `g * min(1, max_ratio * max(|W|, 1e-3) / |g|)`, with the Euclidean norms of
    the whole tensor and of its gradient. Brock, De, Smith and Simonyan, "High-performance large-scale image
    recognition without normalization", 2021, arXiv 2102.06171, equation 3 with the norms of whole tensors
    instead of rows, as Huang et al., "Optimizer amalgamation", 2022, arXiv 2203.06474, meta-train. The
    context is passed on as it is: `grad` there stays the raw gradient.

    Attributes:
      inner: the optimizer inside.
      max_ratio: longest gradient relative to its tensor, at least 0.
    """

    inner: Optimizer
    max_ratio: Float[Array, ""] = eqx.field(converter=number, default=0.1)

    own_spaces: ClassVar[dict[str, Space]] = {"max_ratio": Space.log(1e-3, 1.0, allowed=(0.0, 1e30))}

    def init(
        self, params: Params, *, num_steps: int | Array | None = None, key: PRNGKeyArray | None = None
    ) -> OptState:
        return self.inner.init(params, num_steps=num_steps, key=key)

    def update(
        self, grads: Params, state: OptState, params: Params, **context: Any
    ) -> tuple[Params, OptState]:
        def clip(grad, param):
            size, limit = norm(grad), self.max_ratio * jnp.maximum(norm(param), 1e-3)
            return scale(jnp.where(size > limit, ratio(limit, size), 1.0), grad)

        return self.inner.update(jax.tree.map(clip, grads, params), state, params, **context)
