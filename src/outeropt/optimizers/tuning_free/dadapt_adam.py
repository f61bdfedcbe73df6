"""D-Adaptation for Adam, in the authors' own form."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from outeropt.optimizer import Params
from outeropt.optimizers.arithmetic import absolute_sum, inner, quotient, root, wide_type, widen
from outeropt.optimizers.tuning_free.estimate import NO_LIMIT, raised


class DAdaptAdamState(NamedTuple):
    """State of `dadapt_adam`.

    Attributes:
      exp_avg: `m`, mean of the scaled gradients.
      exp_avg_sq: `v`, mean of the squared gradients.
      grad_sum: `s`, a longer mean of the scaled gradients.
      estim_lr: `d`, the estimate of the distance to the solution.
      numerator_weighted: `n`, what `d` is estimated from.
      count: steps so far.
    """

    exp_avg: Params
    exp_avg_sq: Params
    grad_sum: Params
    estim_lr: Float[Array, ""]
    numerator_weighted: Float[Array, ""]
    count: Int[Array, ""]


def dadapt_adam(
    learning_rate: float = 1.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    estim_lr0: float = 1e-6,
    growth_rate: float = NO_LIMIT,
    decouple: bool = False,
    bias_correction: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Adam whose step size is a growing lower bound of the distance to the solution.

    With `c = sqrt(b2)`, `l = d * learning_rate`, times `sqrt(1 - b2^t) / (1 - b1^t)` with bias correction:

        n <- c n + (1 - c) l <g, s / (sqrt(v) + eps)>
        m <- b1 m + (1 - b1) l g         v <- b2 v + (1 - b2) g^2         s <- c s + (1 - c) l g
        d <- max(d, min(n / ((1 - c) |s|_1), d * growth_rate))
        x <- x - m / (sqrt(v) + eps)

    Defazio and Mishchenko, "Learning-Rate-Free Learning by D-Adaptation", 2023, arXiv 2301.07733, algorithm
    5. With bias correction and decoupled decay this is `dadapt_adamw`, optax's.

    Args:
      learning_rate: factor on the estimated step size.
      b1: decay of the mean.
      b2: decay of the square.
      eps: added to the root of the square.
      weight_decay: an L2 penalty or, decoupled, multiplied by `l`.
      estim_lr0: first estimate of the distance; too small is safe.
      growth_rate: the estimate grows by at most this factor a step.
      decouple: whether the weight decay stays out of the gradient, as in AdamW.
      bias_correction: whether to correct the means' bias, as Adam does.
    """
    coupled_decay, decoupled_decay = (0.0, weight_decay) if decouple else (weight_decay, 0.0)

    def init(params: Params) -> DAdaptAdamState:
        zero = jnp.zeros((), wide_type(params))
        return DAdaptAdamState(
            exp_avg=optax.tree.zeros_like(params),
            exp_avg_sq=optax.tree.zeros_like(params),
            grad_sum=optax.tree.zeros_like(params),
            estim_lr=zero + estim_lr0,
            numerator_weighted=zero,
            count=jnp.zeros((), jnp.int32),
        )

    def update(updates, state, params=None, **extra_args):
        del extra_args
        grads = jax.tree.map(lambda g, p: g + coupled_decay * p, widen(updates), widen(params))
        count = state.count + 1
        step = state.estim_lr * learning_rate
        if bias_correction:
            t = count.astype(step.dtype)
            step = step * jnp.sqrt(1.0 - b2**t) / (1.0 - b1**t)
        long = jnp.sqrt(b2)
        # Before the first step both are 0.
        direction = jax.tree.map(
            lambda s, v: s / (root(v) + eps), widen(state.grad_sum), widen(state.exp_avg_sq)
        )
        numerator = long * state.numerator_weighted + (1.0 - long) * step * inner(grads, direction)
        mean = jax.tree.map(lambda m, g: b1 * m + (1.0 - b1) * step * g, widen(state.exp_avg), grads)
        square = jax.tree.map(
            lambda v, g: b2 * v + (1.0 - b2) * jnp.square(g), widen(state.exp_avg_sq), grads
        )
        grad_sum = jax.tree.map(lambda s, g: long * s + (1.0 - long) * step * g, widen(state.grad_sum), grads)
        candidate = quotient(numerator, (1.0 - long) * absolute_sum(grad_sum))
        moves = jax.tree.map(
            lambda m, v, p: -decoupled_decay * step * p - m / (root(v) + eps), mean, square, widen(params)
        )
        estimate = raised(state.estim_lr, candidate, growth_rate)
        return moves, DAdaptAdamState(mean, square, grad_sum, estimate, numerator, count)

    return optax.GradientTransformationExtraArgs(init, update)
