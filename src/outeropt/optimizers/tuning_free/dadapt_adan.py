"""D-Adaptation for Adan."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from outeropt.optimizer import Params
from outeropt.optimizers.arithmetic import absolute_sum, quotient, root, wide_type, widen
from outeropt.optimizers.tuning_free.estimate import NO_LIMIT, raised


class DAdaptAdanState(NamedTuple):
    """State of `dadapt_adan`.

    Attributes:
      exp_avg: `m`, mean of the scaled gradients.
      exp_avg_diff: `h`, mean of their scaled differences.
      exp_avg_sq: `v`, mean of the squares.
      grad_sum: `s`, a longer mean of the scaled gradients.
      last_grad: the gradient of the step before.
      estim_lr: `d`, the estimate of the distance to the solution.
      grad_weighted: `q`, mean of the scaled gradients' weighted squares.
      count: steps so far.
    """

    exp_avg: Params
    exp_avg_diff: Params
    exp_avg_sq: Params
    grad_sum: Params
    last_grad: Params
    estim_lr: Float[Array, ""]
    grad_weighted: Float[Array, ""]
    count: Int[Array, ""]


def dadapt_adan(
    learning_rate: float = 1.0,
    b1: float = 0.98,
    b2: float = 0.92,
    b3: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.02,
    estim_lr0: float = 1e-6,
    growth_rate: float = NO_LIMIT,
) -> optax.GradientTransformationExtraArgs:
    """Adan whose step size is a growing lower bound of the distance to the solution.

    With `l = d * learning_rate`, and `e` the gradient minus the last one (0 at the first step):

        m <- b1 m + (1 - b1) l g         h <- b2 h + (1 - b2) l e         v <- b3 v + (1 - b3) (g + b2 e)^2
        s <- b3 s + (1 - b3) l g         w = 1 / (sqrt(v) + eps)          q <- b3 q + (1 - b3) l^2 sum(w g^2)
        d <- max(d, min((sum(w s^2) / (1 - b3) - q) / |s|_1, d * growth_rate))
        x <- (x - w (m + b2 h)) / (1 + l * weight_decay)

    The authors' combination of Defazio and Mishchenko, "Learning-Rate-Free Learning by D-Adaptation", 2023,
    arXiv 2301.07733, and Xie et al., "Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep
    Models", 2022, arXiv 2208.06677; they call it experimental.

    Args:
      learning_rate: factor on the estimated step size.
      b1: decay of the mean.
      b2: decay of the mean difference.
      b3: decay of the square.
      eps: added to the root of the square.
      weight_decay: proximal, multiplied by `l`.
      estim_lr0: first estimate of the distance; too small is safe.
      growth_rate: the estimate grows by at most this factor a step.
    """

    def init(params: Params) -> DAdaptAdanState:
        zero = jnp.zeros((), wide_type(params))
        return DAdaptAdanState(
            exp_avg=optax.tree.zeros_like(params),
            exp_avg_diff=optax.tree.zeros_like(params),
            exp_avg_sq=optax.tree.zeros_like(params),
            grad_sum=optax.tree.zeros_like(params),
            last_grad=optax.tree.zeros_like(params),
            estim_lr=zero + estim_lr0,
            grad_weighted=zero,
            count=jnp.zeros((), jnp.int32),
        )

    def update(updates, state, params=None, **extra_args):
        del extra_args
        grads, step = widen(updates), state.estim_lr * learning_rate
        change = jax.tree.map(
            lambda g, last: jnp.where(state.count == 0, 0.0, g - last), grads, widen(state.last_grad)
        )
        mean = jax.tree.map(lambda m, g: b1 * m + (1.0 - b1) * step * g, widen(state.exp_avg), grads)
        slope = jax.tree.map(lambda h, e: b2 * h + (1.0 - b2) * step * e, widen(state.exp_avg_diff), change)
        square = jax.tree.map(
            lambda v, g, e: b3 * v + (1.0 - b3) * jnp.square(g + b2 * e),
            *(widen(state.exp_avg_sq), grads, change),
        )
        grad_sum = jax.tree.map(lambda s, g: b3 * s + (1.0 - b3) * step * g, widen(state.grad_sum), grads)
        size = jax.tree.map(lambda v: root(v) + eps, square)
        grad_weighted = b3 * state.grad_weighted + (1.0 - b3) * jnp.square(step) * _weighted(grads, size)
        gain = _weighted(grad_sum, size) / (1.0 - b3) - grad_weighted

        def move(p, m, h, w):
            return (p - (m + b2 * h) / w) / (1.0 + step * weight_decay) - p

        return jax.tree.map(move, widen(params), mean, slope, size), DAdaptAdanState(
            exp_avg=mean,
            exp_avg_diff=slope,
            exp_avg_sq=square,
            grad_sum=grad_sum,
            last_grad=grads,
            estim_lr=raised(state.estim_lr, quotient(gain, absolute_sum(grad_sum)), growth_rate),
            grad_weighted=grad_weighted,
            count=state.count + 1,
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _weighted(values: Params, size: Params) -> Float[Array, ""]:
    return absolute_sum(jax.tree.map(lambda a, w: jnp.square(a) / w, values, size))
