"""D-Adaptation for AdaGrad."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from outeropt.optimizer import Params
from outeropt.optimizers.arithmetic import absolute_sum, quotient, wide_type, widen
from outeropt.optimizers.tuning_free.estimate import NO_LIMIT, raised


FIRST_SQUARE = 1e-6
"""What the sum of squared gradients starts at."""


class DAdaptAdaGradState(NamedTuple):
    """State of `dadapt_adagrad`.

    Attributes:
      start: the parameters before the first step.
      grad_sum: `s`, the sum of all scaled gradients.
      square_sum: `a`, the sum of all squared gradients.
      estim_lr: `d`, the estimate of the distance to the solution.
      grad_weighted: `q`, the sum of the scaled gradients' weighted squares.
    """

    start: Params
    grad_sum: Params
    square_sum: Params
    estim_lr: Float[Array, ""]
    grad_weighted: Float[Array, ""]


def dadapt_adagrad(
    learning_rate: float = 1.0,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    eps: float = 1e-6,
    estim_lr0: float = 1e-6,
    growth_rate: float = NO_LIMIT,
) -> optax.GradientTransformationExtraArgs:
    """AdaGrad, by dual averaging, whose step size is a growing lower bound of the distance to the solution.

    With `g` the gradient plus `weight_decay * x`, and `l = d * learning_rate`:

        a <- a + g^2                     w = 1 / (sqrt(a) + eps)
        s <- s + l g                     q <- q + l^2 sum(w g^2)
        d <- max(d, min((sum(w s^2) - q) / |s|_1, d * growth_rate))
        x <- momentum * x + (1 - momentum) * (x_0 - w s)

    Defazio and Mishchenko, "Learning-Rate-Free Learning by D-Adaptation", 2023, arXiv 2301.07733, algorithm
    3; `a` starts at 1e-6 as in the authors' package.

    Args:
      learning_rate: factor on the estimated step size.
      momentum: in [0, 1), by primal averaging.
      weight_decay: L2 penalty.
      eps: added to the root of the sum of squares.
      estim_lr0: first estimate of the distance; too small is safe.
      growth_rate: the estimate grows by at most this factor a step.
    """

    def init(params: Params) -> DAdaptAdaGradState:
        zero = jnp.zeros((), wide_type(params))
        return DAdaptAdaGradState(
            start=jax.tree.map(jnp.array, params),
            grad_sum=optax.tree.zeros_like(params),
            square_sum=jax.tree.map(lambda leaf: jnp.full_like(leaf, FIRST_SQUARE), params),
            estim_lr=zero + estim_lr0,
            grad_weighted=zero,
        )

    def update(updates, state, params=None, **extra_args):
        del extra_args
        grads = jax.tree.map(lambda g, p: g + weight_decay * p, widen(updates), widen(params))
        step = state.estim_lr * learning_rate
        square_sum = jax.tree.map(lambda a, g: a + jnp.square(g), widen(state.square_sum), grads)
        weights = jax.tree.map(lambda a: 1.0 / (jnp.sqrt(a) + eps), square_sum)
        grad_sum = jax.tree.map(lambda s, g: s + step * g, widen(state.grad_sum), grads)
        grad_weighted = state.grad_weighted + jnp.square(step) * _weighted_square(weights, grads)
        gain = _weighted_square(weights, grad_sum) - grad_weighted
        moves = jax.tree.map(
            lambda x0, x, s, w: (1.0 - momentum) * (x0 - x - w * s),
            *(widen(state.start), widen(params), grad_sum, weights),
        )
        return moves, DAdaptAdaGradState(
            start=state.start,
            grad_sum=grad_sum,
            square_sum=square_sum,
            estim_lr=raised(state.estim_lr, quotient(gain, absolute_sum(grad_sum)), growth_rate),
            grad_weighted=grad_weighted,
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _weighted_square(weights: Params, values: Params) -> Float[Array, ""]:
    return absolute_sum(jax.tree.map(lambda w, v: w * jnp.square(v), weights, values))
