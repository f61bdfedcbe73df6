"""Cautious updates: only where they agree with the gradient."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from outeropt.optimizer import Optimizer, OptState, Params
from outeropt.optimizers.wrappers.base import Wrapper


SMALLEST_SHARE = 1e-3
"""Below this share of entries that agree, the others are not scaled up any further."""


class Cautious(Wrapper):
    """Drops the entries of the update that would raise the loss to first order, and scales up the others.

    For each tensor, `u <- u * [u g < 0] / max(mean([u g < 0]), 1e-3)`, the update `u` being added: Liang et
    al., "Cautious Optimizers: Improving Training with One Line of Code", 2024, arXiv 2411.16085, algorithm 1,
    scaled by the mean as in the authors' code (the paper adds 1 to the number of entries that agree). All of
    the update is masked, also its weight decay: for that of the authors put `decoupled_weight_decay:` in
    front.

    Attributes:
      inner: the optimizer inside.
    """

    inner: Optimizer

    def init(
        self, params: Params, *, num_steps: int | Array | None = None, key: PRNGKeyArray | None = None
    ) -> OptState:
        return self.inner.init(params, num_steps=num_steps, key=key)

    def update(
        self, grads: Params, state: OptState, params: Params, **context: Any
    ) -> tuple[Params, OptState]:
        updates, state = self.inner.update(grads, state, params, **context)

        def mask(update, grad):
            # Signs, because products of small numbers are zero.
            agrees = jnp.sign(update) * jnp.sign(grad).astype(update.dtype) < 0
            share = jnp.maximum(jnp.mean(agrees.astype(jnp.float32)), SMALLEST_SHARE)
            return jnp.where(agrees, update / share.astype(update.dtype), jnp.zeros_like(update))

        return jax.tree.map(mask, updates, grads), state
