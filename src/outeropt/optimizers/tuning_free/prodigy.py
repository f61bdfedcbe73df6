"""Prodigy, with all options of its authors."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from outeropt.optimizer import Params
from outeropt.optimizers.arithmetic import absolute_sum, inner, quotient, root, wide_type, widen
from outeropt.optimizers.tuning_free.estimate import NO_LIMIT


class ProdigyState(NamedTuple):
    """State of `prodigy`.

    Attributes:
      exp_avg: `m`, mean of the scaled gradients.
      exp_avg_sq: `v`, mean of their squares.
      grad_sum: `s`, longer mean of the scaled gradients, in every `slice_p`-th entry.
      params0: `x_0`, the parameters before the first step, in every `slice_p`-th entry.
      estim_lr: `d`, the estimate of the distance to the solution.
      estim_lr_max: the largest estimate before growth was limited.
      numerator_weighted: `n`, what `d` is estimated from.
      count: steps so far.
    """

    exp_avg: Params
    exp_avg_sq: Params
    grad_sum: Params
    params0: Params
    estim_lr: Float[Array, ""]
    estim_lr_max: Float[Array, ""]
    numerator_weighted: Float[Array, ""]
    count: Int[Array, ""]


def prodigy(
    learning_rate: float = 1.0,
    betas: tuple[float, float] = (0.9, 0.999),
    beta3: float | None = None,
    eps: float = 1e-8,
    estim_lr0: float = 1e-6,
    estim_lr_coef: float = 1.0,
    weight_decay: float = 0.0,
    safeguard_warmup: bool = False,
    growth_rate: float = NO_LIMIT,
    slice_p: int = 1,
    decouple: bool = True,
    bias_correction: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """Adam whose step size is a growing estimate of the distance to the solution.

    With `b1, b2 = betas`, `b3 = beta3`, `l = d * learning_rate`, times `sqrt(1 - b2^t) / (1 - b1^t)` with
    bias correction, and sums over every `slice_p`-th entry of each tensor:

        n <- b3 n + d / d_0 l <g, x_0 - x>                             s <- b3 s + d / d_0 l g
        m <- b1 m + (1 - b1) d g                                       v <- b2 v + (1 - b2) d^2 g^2
        d <- max(d, estim_lr_coef * n / |s|_1), growing by at most the factor growth_rate a step
        x <- x - l m / (sqrt(v) + d eps), with the old `l` and the new `d`

    Mishchenko and Defazio, "Prodigy: An Expeditiously Adaptive Parameter-Free Learner", 2023, arXiv
    2306.06101, algorithm 4. With the first eight arguments these are the updates of `optax.contrib.prodigy`.
    As in the authors' package, a first one of `betas` of 0 takes the new `d` for `m = d g` as well. That
    package corrects no bias by default: `bias_correction=False`.

    Args:
      learning_rate: factor on the estimated step size.
      betas: decays of mean and square.
      beta3: decay of the sums that the estimate is made from; None for the root of the second one of `betas`.
      eps: added, times `d`, to the root of the square.
      estim_lr0: `d_0`, first estimate of the distance; too small is safe.
      estim_lr_coef: factor on the estimate.
      weight_decay: multiplied by `l` or, coupled, an L2 penalty.
      safeguard_warmup: whether a learning rate that warms up stays out of `s`.
      growth_rate: the estimate grows by at most this factor a step, but for its first growth.
      slice_p: estimates from every `slice_p`-th entry, which saves memory; 11 is the authors' advice.
      decouple: whether the weight decay stays out of the gradient, as in AdamW.
      bias_correction: whether to correct the means' bias, as Adam does.
    """
    b1, b2 = betas
    coupled_decay, decoupled_decay = (0.0, weight_decay) if decouple else (weight_decay, 0.0)

    def sliced(values: Params) -> Params:
        return values if slice_p == 1 else jax.tree.map(lambda leaf: leaf.reshape(-1)[::slice_p], values)

    def init(params: Params) -> ProdigyState:
        zero = jnp.zeros((), wide_type(params))
        return ProdigyState(
            exp_avg=optax.tree.zeros_like(params),
            exp_avg_sq=optax.tree.zeros_like(params),
            grad_sum=optax.tree.zeros_like(sliced(params)),
            params0=jax.tree.map(jnp.array, sliced(params)),
            estim_lr=zero + estim_lr0,
            estim_lr_max=zero + estim_lr0,
            numerator_weighted=zero,
            count=jnp.zeros((), jnp.int32),
        )

    def update(updates, state, params=None, **extra_args):
        del extra_args
        points = widen(params)
        grads = jax.tree.map(lambda g, p: g + coupled_decay * p, widen(updates), points)
        count, d = state.count + 1, state.estim_lr
        step = d * learning_rate
        if bias_correction:
            t = count.astype(step.dtype)
            step = step * jnp.sqrt(1.0 - b2**t) / (1.0 - b1**t)
        long = jnp.sqrt(b2) if beta3 is None else beta3
        # The estimate is a ratio: dividing both by estim_lr0 keeps them in range.
        scale = d / estim_lr0
        some = sliced(grads)
        way = jax.tree.map(jnp.subtract, widen(state.params0), sliced(points))
        numerator = long * state.numerator_weighted + scale * step * inner(some, way)
        length = scale * (d if safeguard_warmup else step)
        grad_sum = jax.tree.map(lambda s, g: long * s + length * g, widen(state.grad_sum), some)
        mean = jax.tree.map(lambda m, g: b1 * m + (1.0 - b1) * d * g, widen(state.exp_avg), grads)
        square = jax.tree.map(
            lambda v, g: b2 * v + (1.0 - b2) * jnp.square(d * g), widen(state.exp_avg_sq), grads
        )
        candidate = estim_lr_coef * quotient(numerator, absolute_sum(grad_sum))
        grown = jnp.where(d <= estim_lr0, jnp.maximum(d, candidate), d)
        largest = jnp.maximum(state.estim_lr_max, candidate)
        estimate = jnp.minimum(largest, grown * growth_rate)
        # Without momentum the gradient itself is the direction, and is scaled by the new estimate.
        ahead = step * jnp.where(b1 == 0.0, estimate / d, 1.0)
        moves = jax.tree.map(
            lambda m, v, p: -decoupled_decay * step * p - ahead * m / (root(v) + estimate * eps),
            *(mean, square, points),
        )
        return moves, ProdigyState(mean, square, grad_sum, state.params0, estimate, largest, numerator, count)

    return optax.GradientTransformationExtraArgs(init, update)
