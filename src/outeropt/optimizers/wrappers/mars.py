"""MARS: gradients with their variance reduced by the one before."""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from outeropt.optimizer import Optimizer, OptState, Params
from outeropt.optimizers import spaces
from outeropt.optimizers.arithmetic import root, squared_norm, widen
from outeropt.optimizers.schedules import number
from outeropt.optimizers.wrappers.base import Wrapper
from outeropt.space import Space


class MarsState(NamedTuple):
    """State of `Mars`.

    Attributes:
      inner: the inner optimizer's state.
      last_grad: the gradient of the step before.
      count: steps so far.
    """

    inner: OptState
    last_grad: Params
    count: Int[Array, ""]


class Mars(Wrapper):
    """Gives the inner optimizer gradients corrected by their change, each tensor clipped to norm 1.

    `c_t = g_t + gamma * beta / (1 - beta) * (g_t - g_(t-1))`, the last term 0 at the first step, and `c_t /
    max(|c_t|, 1)`: Yuan et al., "MARS: Unleashing the Power of Variance Reduction for Training Large Models",
    2024, arXiv 2411.10438, algorithm 2, with the last minibatch's gradient (MARS-approx) and, as in the
    authors' code, one norm for each tensor. The context is passed on as it is: `grad` there stays the raw
    gradient.

    Attributes:
      inner: the optimizer inside; the paper's are AdamW, Lion and Shampoo.
      gamma: strength of the correction, at least 0.
      beta: the inner optimizer's decay of the mean, in [0, 1).
    """

    inner: Optimizer
    gamma: Float[Array, ""] = eqx.field(converter=number, default=0.025)
    beta: Float[Array, ""] = eqx.field(converter=number, default=0.95)

    own_spaces: ClassVar[dict[str, Space]] = {
        "gamma": Space.log(1e-3, 1.0, allowed=(0.0, 1e3)),
        "beta": spaces.MOMENTUM,
    }

    def init(
        self, params: Params, *, num_steps: int | Array | None = None, key: PRNGKeyArray | None = None
    ) -> OptState:
        inner = self.inner.init(params, num_steps=num_steps, key=key)
        return MarsState(inner, jax.tree.map(jnp.zeros_like, params), jnp.zeros((), jnp.int32))

    def update(
        self, grads: Params, state: OptState, params: Params, **context: Any
    ) -> tuple[Params, OptState]:
        strength = jnp.where(state.count == 0, 0.0, self.gamma * self.beta / (1.0 - self.beta))

        def correct(grad, last):
            wide = widen(grad)
            corrected = wide + strength.astype(wide.dtype) * (wide - last.astype(wide.dtype))
            return (corrected / jnp.maximum(root(squared_norm(corrected)), 1.0)).astype(grad.dtype)

        corrected = jax.tree.map(correct, grads, state.last_grad)
        updates, inner = self.inner.update(corrected, state.inner, params, **context)
        last = jax.tree.map(lambda grad, leaf: grad.astype(leaf.dtype), grads, state.last_grad)
        return updates, MarsState(inner, last, state.count + 1)

    def inner_state(self, state: OptState) -> OptState:
        return state.inner
