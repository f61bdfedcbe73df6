"""Prodigy's estimate of the step size in a schedule-free method."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float
from optax.contrib import ScheduleFreeState

from outeropt.optimizer import Params
from outeropt.optimizers.arithmetic import absolute_sum, inner, quotient, root, wide_type, widen
from outeropt.optimizers.tuning_free.schedule_free import averaging_move


class EstimateState(NamedTuple):
    """Prodigy's part of the state of `prodigy_schedule_free`.

    Attributes:
      exp_avg_sq: `v`, mean of the scaled gradients' squares.
      grad_sum: `s`, longer mean of the scaled gradients.
      params0: `x_0`, the parameters before the first step.
      estim_lr: `d`, the estimate of the distance to the solution.
      numerator_weighted: `n`, what `d` is estimated from.
    """

    exp_avg_sq: Params
    grad_sum: Params
    params0: Params
    estim_lr: Float[Array, ""]
    numerator_weighted: Float[Array, ""]


def prodigy_schedule_free(
    learning_rate: float = 1.0,
    b1: float = 0.9,
    b2: float = 0.9955,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    estim_lr0: float = 1e-6,
    estim_lr_coef: float = 1.0,
    r: float = 0.75,
) -> optax.GradientTransformationExtraArgs:
    """Schedule-free Adam with the step size that Prodigy estimates.

    At step `t` (from 1), with `g` the gradient at `y`, `l = d * learning_rate` and `b3 = sqrt(b2)`:

        n <- b3 n + d l <g, x_0 - z>           s <- b3 s + d l g           v <- b2 v + (1 - b2) d^2 g^2
        d <- max(d, estim_lr_coef * n / |s|_1)
        z <- z - l (d g / (sqrt(v) + d eps) + weight_decay x), with the old `l` and the new `d`
        c = t^r / (1^r + ... + t^r)            x <- (1 - c) x + c z        y <- b1 x + (1 - b1) z

    Mishchenko and Defazio, "Prodigy: An Expeditiously Adaptive Parameter-Free Learner", 2023, arXiv
    2306.06101, in Defazio et al., "The Road Less Scheduled", 2024, arXiv 2405.15682, in the way and with the
    defaults of the latter's entry to AlgoPerf. `eval_params` gives `x`.

    Args:
      learning_rate: factor on the estimated step size.
      b1: how near to the average gradients are taken, in (0, 1).
      b2: decay of the square.
      eps: added, times `d`, to the root of the square.
      weight_decay: decoupled, at `x`, multiplied by `l`.
      estim_lr0: first estimate of the distance; too small is safe.
      estim_lr_coef: factor on the estimate.
      r: power of the step in the average's weights.
    """

    def init(params: Params) -> ScheduleFreeState:
        zero = jnp.zeros((), wide_type(params))
        estimate = EstimateState(
            exp_avg_sq=optax.tree.zeros_like(params),
            grad_sum=optax.tree.zeros_like(params),
            params0=jax.tree.map(jnp.array, params),
            estim_lr=zero + estim_lr0,
            numerator_weighted=zero,
        )
        z = jax.tree.map(jnp.array, params)
        return ScheduleFreeState(zero + b1, zero, jnp.zeros((), jnp.int32), zero, estimate, z)

    def update(updates, state, params=None, **extra_args):
        del extra_args
        before: EstimateState = state.base_optimizer_state
        grads, points, z = widen(updates), widen(params), widen(state.z)
        step_count, d, long = state.step_count + 1, before.estim_lr, jnp.sqrt(b2)
        step = d * learning_rate
        # The estimate is a ratio: dividing both by estim_lr0 keeps them in range.
        length = d / estim_lr0 * step
        way = jax.tree.map(jnp.subtract, widen(before.params0), z)
        numerator = long * before.numerator_weighted + length * inner(grads, way)
        grad_sum = jax.tree.map(lambda s, g: long * s + length * g, widen(before.grad_sum), grads)
        square = jax.tree.map(
            lambda v, g: b2 * v + (1.0 - b2) * jnp.square(d * g), widen(before.exp_avg_sq), grads
        )
        estimate = jnp.maximum(d, estim_lr_coef * quotient(numerator, absolute_sum(grad_sum)))

        def move(g, v, y, z):
            average = (y - (1.0 - b1) * z) / b1
            return -step * (estimate * g / (root(v) + estimate * eps) + weight_decay * average)

        moves = jax.tree.map(move, grads, square, points, z)
        weight = step_count.astype(d.dtype) ** r
        weight_sum = state.weight_sum + weight
        return averaging_move(points, z, moves, quotient(weight, weight_sum), b1), ScheduleFreeState(
            b1=jnp.asarray(b1, d.dtype),
            weight_sum=weight_sum,
            step_count=step_count,
            max_lr=jnp.maximum(state.max_lr, step),
            base_optimizer_state=EstimateState(square, grad_sum, before.params0, estimate, numerator),
            z=jax.tree.map(jnp.add, z, moves),
        )

    return optax.GradientTransformationExtraArgs(init, update)
