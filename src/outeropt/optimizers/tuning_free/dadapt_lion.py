"""D-Adaptation for Lion."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from outeropt.optimizer import Params
from outeropt.optimizers.arithmetic import absolute_sum, inner, quotient, wide_type, widen


class DAdaptLionState(NamedTuple):
    """State of `dadapt_lion`.

    Attributes:
      exp_avg: `m`, mean of the scaled gradients.
      sign_sum: `s`, mean of the scaled signs.
      estim_lr: `d`, the estimate of the distance to the solution.
      numerator_weighted: `n`, what `d` is estimated from.
    """

    exp_avg: Params
    sign_sum: Params
    estim_lr: Float[Array, ""]
    numerator_weighted: Float[Array, ""]


def dadapt_lion(
    learning_rate: float = 1.0,
    b1: float = 0.9,
    b2: float = 0.99,
    weight_decay: float = 0.0,
    estim_lr0: float = 1e-6,
) -> optax.GradientTransformationExtraArgs:
    """Lion whose step size is a growing lower bound of the distance to the solution.

    With `c = sqrt(b2)` and `l = d * learning_rate`:

        u = sign(b1 m + (1 - b1) g)                  x <- (1 - l * weight_decay) x - l u
        m <- b2 m + (1 - b2) l g                     n <- c n + (1 - c) l <u, s>
        s <- c s + (1 - c) l u                       d <- max(d, n / ((1 - c) |s|_1))

    The authors' combination of Defazio and Mishchenko, "Learning-Rate-Free Learning by D-Adaptation", 2023,
    arXiv 2301.07733, and Chen et al., "Symbolic Discovery of Optimization Algorithms", 2023, arXiv
    2302.06675; they call it experimental.

    Args:
      learning_rate: factor on the estimated step size.
      b1: decay in the sign.
      b2: decay of the mean.
      weight_decay: decoupled, multiplied by `l`.
      estim_lr0: first estimate of the distance; too small is safe.
    """

    def init(params: Params) -> DAdaptLionState:
        zero = jnp.zeros((), wide_type(params))
        return DAdaptLionState(
            exp_avg=optax.tree.zeros_like(params),
            sign_sum=optax.tree.zeros_like(params),
            estim_lr=zero + estim_lr0,
            numerator_weighted=zero,
        )

    def update(updates, state, params=None, **extra_args):
        del extra_args
        grads, mean, long = widen(updates), widen(state.exp_avg), jnp.sqrt(b2)
        step = state.estim_lr * learning_rate
        signs = jax.tree.map(lambda m, g: jnp.sign(b1 * m + (1.0 - b1) * g), mean, grads)
        numerator = long * state.numerator_weighted + (1.0 - long) * step * inner(signs, state.sign_sum)
        sign_sum = jax.tree.map(lambda s, u: long * s + (1.0 - long) * step * u, widen(state.sign_sum), signs)
        candidate = quotient(numerator, (1.0 - long) * absolute_sum(sign_sum))
        return jax.tree.map(
            lambda u, p: -step * (u + weight_decay * p), signs, widen(params)
        ), DAdaptLionState(
            exp_avg=jax.tree.map(lambda m, g: b2 * m + (1.0 - b2) * step * g, mean, grads),
            sign_sum=sign_sum,
            estim_lr=jnp.maximum(state.estim_lr, candidate),
            numerator_weighted=numerator,
        )

    return optax.GradientTransformationExtraArgs(init, update)
