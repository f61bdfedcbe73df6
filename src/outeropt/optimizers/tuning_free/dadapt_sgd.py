"""D-Adaptation for SGD with momentum."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from outeropt.optimizer import Params
from outeropt.optimizers.arithmetic import inner, quotient, root, squared_norm, wide_type, widen
from outeropt.optimizers.tuning_free.estimate import NO_LIMIT, raised


class DAdaptSGDState(NamedTuple):
    """State of `dadapt_sgd`.

    Attributes:
      start: the parameters before the first step.
      grad_sum: `s`, the sum of all scaled gradients.
      estim_lr: `d`, the estimate of the distance to the solution.
      numerator_weighted: the sum that `d` is estimated from.
      first_norm: norm of the first gradient.
      count: steps so far.
    """

    start: Params
    grad_sum: Params
    estim_lr: Float[Array, ""]
    numerator_weighted: Float[Array, ""]
    first_norm: Float[Array, ""]
    count: Int[Array, ""]


def dadapt_sgd(
    learning_rate: float = 1.0,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    estim_lr0: float = 1e-6,
    growth_rate: float = NO_LIMIT,
) -> optax.GradientTransformationExtraArgs:
    """SGD whose step size is a growing lower bound of the distance to the solution.

    With `g` the gradient plus `weight_decay * x`, and `l = d * learning_rate / |g_0|`:

        n <- n + l <g, s>        s <- s + l g        d <- max(d, min(2 n / |s|, d * growth_rate))
        x <- momentum * x + (1 - momentum) * (x_0 - s)

    Defazio and Mishchenko, "Learning-Rate-Free Learning by D-Adaptation", 2023, arXiv 2301.07733, algorithm 4
    (momentum by primal averaging), with the numerator as an inner product, as the authors' package has it.

    Args:
      learning_rate: factor on the estimated step size.
      momentum: in [0, 1).
      weight_decay: L2 penalty.
      estim_lr0: first estimate of the distance; too small is safe.
      growth_rate: the estimate grows by at most this factor a step.
    """

    def init(params: Params) -> DAdaptSGDState:
        zero = jnp.zeros((), wide_type(params))
        return DAdaptSGDState(
            start=jax.tree.map(jnp.array, params),
            grad_sum=optax.tree.zeros_like(params),
            estim_lr=zero + estim_lr0,
            numerator_weighted=zero,
            first_norm=zero,
            count=jnp.zeros((), jnp.int32),
        )

    def update(updates, state, params=None, **extra_args):
        del extra_args
        grads = jax.tree.map(lambda g, p: g + weight_decay * p, widen(updates), widen(params))
        first_norm = jnp.where(state.count == 0, root(squared_norm(grads)), state.first_norm)
        step = quotient(state.estim_lr * learning_rate, first_norm)
        numerator = state.numerator_weighted + step * inner(grads, state.grad_sum)
        grad_sum = jax.tree.map(lambda s, g: s + step * g, widen(state.grad_sum), grads)
        candidate = quotient(2.0 * numerator, root(squared_norm(grad_sum)))
        moves = jax.tree.map(
            lambda x0, x, s: (1.0 - momentum) * (x0 - x - s), widen(state.start), widen(params), grad_sum
        )
        return moves, DAdaptSGDState(
            start=state.start,
            grad_sum=grad_sum,
            estim_lr=raised(state.estim_lr, candidate, growth_rate),
            numerator_weighted=numerator,
            first_norm=first_norm,
            count=state.count + 1,
        )

    return optax.GradientTransformationExtraArgs(init, update)
