"""MoMo: Polyak-type step sizes for momentum and for Adam, from a lower bound of the loss."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from outeropt.optimizer import Params
from outeropt.optimizers.arithmetic import inner, quotient, root, squared_norm, wide_type, widen


class MomoState(NamedTuple):
    """State of `momo`.

    Attributes:
      exp_avg: `m`, mean of the gradients.
      value_avg: `f`, mean of the losses.
      product_avg: `c`, mean of the inner products of gradients and parameters.
      lower_bound: `b`, of the loss.
      count: steps so far.
    """

    exp_avg: Params
    value_avg: Float[Array, ""]
    product_avg: Float[Array, ""]
    lower_bound: Float[Array, ""]
    count: Int[Array, ""]


class MomoAdamState(NamedTuple):
    """State of `momo_adam`: that of `momo`, and `exp_avg_sq`, the mean of the squared gradients."""

    exp_avg: Params
    exp_avg_sq: Params
    value_avg: Float[Array, ""]
    product_avg: Float[Array, ""]
    lower_bound: Float[Array, ""]
    count: Int[Array, ""]


def momo(
    learning_rate: float = 1.0,
    beta: float = 0.9,
    lower_bound: float = 0.0,
    weight_decay: float = 0.0,
    adapt_lower_bound: bool = False,
    bias_correction: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """SGD with momentum and the step size at which a model of the loss reaches its lower bound.

    With `k = 1 + learning_rate * weight_decay` and `r = 1`, or `1 - beta^t` with bias correction:

        m <- beta m + (1 - beta) g,     f likewise of the loss,     c likewise of <g, x>
        h = k (f - r lower_bound - c) + <m, x>
        x <- (x - min(learning_rate / r, max(h, 0) / |m|^2) m) / k

    Schaipp et al., "MoMo: Momentum Models for Adaptive Learning Rates", 2023, arXiv 2305.07583, algorithm 1,
    and section 4 for the adapted lower bound. Without bias correction the means start at their first values.
    Weight decay divides the whole new point, as in the paper and in the authors' package;
    `optax.contrib.momo` divides `x` alone.

    Args:
      learning_rate: largest step size; large is safe.
      beta: decay of the means.
      lower_bound: of the loss; the first one, if it adapts.
      weight_decay: proximal.
      adapt_lower_bound: whether to estimate the bound on the way.
      bias_correction: whether to start the means at zero and correct for it.
    """

    def init(params: Params) -> MomoState:
        zero = jnp.zeros((), wide_type(params))
        return MomoState(
            optax.tree.zeros_like(params), zero, zero, zero + lower_bound, jnp.zeros((), jnp.int32)
        )

    def update(updates, state, params=None, *, value=None, **extra_args):
        del extra_args
        grads, points, count = widen(updates), widen(params), state.count + 1
        wide = state.value_avg.dtype
        kept = jnp.asarray(beta, wide)
        if bias_correction:
            size = 1.0 - kept ** count.astype(wide)
        else:
            size, kept = jnp.ones((), wide), jnp.where(count == 1, 0.0, kept)
        mean = jax.tree.map(lambda m, g: kept * m + (1.0 - kept) * g, widen(state.exp_avg), grads)
        value_avg = kept * state.value_avg + (1.0 - kept) * jnp.asarray(value, wide)
        product_avg = kept * state.product_avg + (1.0 - kept) * inner(grads, points)
        step, bound = _model(
            *(value_avg, product_avg, inner(mean, points), squared_norm(mean), size, state.lower_bound),
            *(learning_rate, weight_decay, lower_bound, adapt_lower_bound),
        )
        shrunk = 1.0 + learning_rate * weight_decay
        moves = jax.tree.map(lambda m, p: (p - step * m) / shrunk - p, mean, points)
        return moves, MomoState(mean, value_avg, product_avg, bound, count)

    return optax.GradientTransformationExtraArgs(init, update)


def momo_adam(
    learning_rate: float = 1e-2,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    lower_bound: float = 0.0,
    weight_decay: float = 0.0,
    adapt_lower_bound: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Adam with the step size at which a model of the loss reaches its lower bound.

    As `momo` with bias correction and `b1` for `beta`, in the metric `D = sqrt(v / (1 - b2^t)) + eps`:
    `|m|^2` becomes `<m, m / D>`, and the direction `m / D`. Schaipp et al., "MoMo: Momentum Models for
    Adaptive Learning Rates", 2023, arXiv 2305.07583, algorithm 2.

    Args:
      learning_rate: largest step size; larger than Adam's is safe.
      b1: decay of the means.
      b2: decay of the square.
      eps: added to the root of the square.
      lower_bound: of the loss; the first one, if it adapts.
      weight_decay: proximal.
      adapt_lower_bound: whether to estimate the bound on the way.
    """

    def init(params: Params) -> MomoAdamState:
        zero = jnp.zeros((), wide_type(params))
        return MomoAdamState(
            exp_avg=optax.tree.zeros_like(params),
            exp_avg_sq=optax.tree.zeros_like(params),
            value_avg=zero,
            product_avg=zero,
            lower_bound=zero + lower_bound,
            count=jnp.zeros((), jnp.int32),
        )

    def update(updates, state, params=None, *, value=None, **extra_args):
        del extra_args
        grads, points, count = widen(updates), widen(params), state.count + 1
        wide = state.value_avg.dtype
        t = count.astype(wide)
        mean = jax.tree.map(lambda m, g: b1 * m + (1.0 - b1) * g, widen(state.exp_avg), grads)
        square = jax.tree.map(
            lambda v, g: b2 * v + (1.0 - b2) * jnp.square(g), widen(state.exp_avg_sq), grads
        )
        value_avg = b1 * state.value_avg + (1.0 - b1) * jnp.asarray(value, wide)
        product_avg = b1 * state.product_avg + (1.0 - b1) * inner(grads, points)
        direction = jax.tree.map(lambda m, v: m / (root(v / (1.0 - b2**t)) + eps), mean, square)
        step, bound = _model(
            *(value_avg, product_avg, inner(mean, points), inner(mean, direction), 1.0 - b1**t),
            *(state.lower_bound, learning_rate, weight_decay, lower_bound, adapt_lower_bound),
        )
        shrunk = 1.0 + learning_rate * weight_decay
        moves = jax.tree.map(lambda u, p: (p - step * u) / shrunk - p, direction, points)
        return moves, MomoAdamState(mean, square, value_avg, product_avg, bound, count)

    return optax.GradientTransformationExtraArgs(init, update)


def _model(
    value_avg: Float[Array, ""],
    product_avg: Float[Array, ""],
    product: Float[Array, ""],
    square: Float[Array, ""],
    size: Float[Array, ""],
    bound: Float[Array, ""],
    learning_rate: float,
    weight_decay: float,
    lowest: float,
    adapt: bool,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The step size and the next lower bound.

    Args:
      value_avg: mean loss.
      product_avg: mean inner product of gradients and parameters.
      product: inner product of the mean gradient and the parameters.
      square: squared norm of the mean gradient, in the metric.
      size: sum of the means' weights.
      bound: lower bound of the loss.
      learning_rate: largest step size.
      weight_decay: proximal.
      lowest: below which the bound never falls.
      adapt: whether the bound adapts.
    """
    shrunk = 1.0 + learning_rate * weight_decay
    if adapt:
        cap = shrunk * (value_avg - product_avg) + product
        reset = jnp.maximum(cap / (2.0 * shrunk * size), lowest)
        bound = jnp.where(cap < shrunk * size * bound, reset, bound)
    gap = shrunk * (value_avg - size * bound - product_avg) + product
    step = jnp.minimum(learning_rate / size, quotient(jnp.maximum(gap, 0.0), square))
    if adapt:
        bound = jnp.maximum((value_avg + product - product_avg - 0.5 * step * square) / size, lowest)
    return step, bound
