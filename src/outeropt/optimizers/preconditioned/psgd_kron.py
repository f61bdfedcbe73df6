"""PSGD: a preconditioner, fitted by stochastic gradient descent, that makes gradients white."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from outeropt.optimizer import Params
from outeropt.optimizers.arithmetic import quotient, root, wide_type, widen
from outeropt.optimizers.preconditioned.sides import folded, product


class PSGDKronState(NamedTuple):
    """State of `psgd_kron`.

    Attributes:
      exp_avg: `M`, mean of the gradients.
      factors: `Q_L` and `Q_R` of each tensor, upper triangular matrices, or vectors for diagonal ones.
      key: source of the probes.
      count: steps so far.
    """

    exp_avg: Params
    factors: PyTree
    key: PRNGKeyArray
    count: Int[Array, ""]


def psgd_kron(
    learning_rate: float,
    b1: float = 0.9,
    weight_decay: float = 0.0,
    precondition_rate: float = 0.1,
    max_rms: float = 1.1,
    precondition_every: int = 1,
    max_size: int = 2048,
    key: int | PRNGKeyArray = 0,
) -> optax.GradientTransformationExtraArgs:
    """Mean gradients whitened by triangular matrices on both sides, themselves learned on the way.

    For each tensor as a matrix `W`, with `M` the mean gradient, corrected for its bias, and `N` normal noise:

        A = Q_L M Q_R^T                                       B = Q_L^-T N Q_R^-1
        Q_L <- Q_L - precondition_rate triu(A A^T - B B^T) Q_L / |A A^T + B B^T|
        Q_R <- Q_R - precondition_rate triu(A^T A - B^T B) Q_R / |A^T A + B^T B|
        P = Q_L^T Q_L M Q_R^T Q_R, scaled down to a root mean square of at most max_rms
        W <- W - learning_rate (P + weight_decay W)

    Li, "Preconditioned Stochastic Gradient Descent", 2015, arXiv 1512.04202, and for triangular Kronecker
    factors that whiten gradients Pooladzandi and Li, "Curvature-Informed SGD via General Purpose Lie-Group
    Preconditioners", 2024, arXiv 2402.04553. The norm is a lower bound of the spectral norm. The first
    factors are multiples of the identity that give the first step a size of about 1. Sides longer than
    `max_size`, and those of vectors and scalars, have diagonal factors. Tensors of more than two axes are
    folded to matrices, the last axis being the columns.

    Args:
      learning_rate: step size.
      b1: decay of the mean.
      weight_decay: decoupled, multiplied by the learning rate.
      precondition_rate: step size of the factors, in (0, 1).
      max_rms: largest root mean square of a tensor's step.
      precondition_every: steps between those of the factors.
      max_size: longest side that has a triangular factor.
      key: source of the probes, or an integer to make one of.
    """

    def init(params: Params) -> PSGDKronState:
        wide = wide_type(params)

        def factor(size, dense):
            return jnp.eye(size, dtype=wide) if dense else jnp.ones(size, wide)

        def factors(leaf):
            rows, columns = folded(leaf).shape
            if leaf.ndim == 1:
                return jnp.ones_like(leaf, dtype=wide), factor(columns, False)
            left = factor(rows, leaf.ndim > 1 and rows <= max_size)
            return left, factor(columns, leaf.ndim > 1 and columns <= max_size)

        source = jax.random.key(key) if isinstance(key, int) else key
        mean = optax.tree.zeros_like(params)
        return PSGDKronState(mean, jax.tree.map(factors, params), source, jnp.zeros((), jnp.int32))

    def update(updates, state, params=None, **extra_args):
        del extra_args
        grads, count = widen(updates), state.count + 1
        t = count.astype(wide_type(grads))
        mean = jax.tree.map(lambda m, g: b1 * m + (1.0 - b1) * g, widen(state.exp_avg), grads)
        corrected = jax.tree.map(lambda m: folded(m / (1.0 - b1**t)), mean)
        factors = jax.tree.map(
            lambda m, both: jax.tree.map(lambda q: jnp.where(count == 1, _first_scale(m) * q, q), both),
            *(corrected, state.factors),
        )
        source = jax.random.fold_in(state.key, count)
        leaves, structure = jax.tree.flatten(corrected)

        def fitted(factors):
            keys = (jax.random.fold_in(source, index) for index in range(len(leaves)))
            probes = [jax.random.normal(key, leaf.shape, leaf.dtype) for key, leaf in zip(keys, leaves)]
            return jax.tree.map(
                lambda m, probe, both: _fitted(both, m, probe, precondition_rate),
                *(corrected, jax.tree.unflatten(structure, probes), factors),
            )

        factors = jax.lax.cond(count % precondition_every == 0, fitted, lambda old: old, factors)

        def move(m, param, both):
            left, right = both
            step = _times(left, _times(left, m), transposed=True)
            step = _times(right, _times(right, step.T), transposed=True).T
            size = root(jnp.mean(jnp.square(step)))
            step = step * quotient(jnp.minimum(size, max_rms), size)
            return -learning_rate * (step.reshape(param.shape) + weight_decay * param)

        moves = jax.tree.map(move, corrected, widen(params), factors)
        return moves, PSGDKronState(mean, factors, state.key, count)

    return optax.GradientTransformationExtraArgs(init, update)


def _first_scale(matrix: Array) -> Float[Array, ""]:
    """What each of two factors is multiplied by for a first step of a size of about 1."""
    fourth = jnp.mean(jnp.square(jnp.square(matrix)))
    return jnp.where(fourth > 0, jnp.where(fourth > 0, fourth, 1.0) ** (-1 / 16), 1.0)


def _times(factor: Array, matrix: Array, transposed: bool = False) -> Array:
    """A factor, or its transpose, times a matrix."""
    if factor.ndim == 1:
        return factor[:, None] * matrix
    return product(factor.T if transposed else factor, matrix)


def _divided(factor: Array, matrix: Array) -> Array:
    """The inverse of the transpose of a factor times a matrix."""
    if factor.ndim == 1:
        return matrix / factor[:, None]
    return jax.scipy.linalg.solve_triangular(factor, matrix, trans=1, lower=False)


def _fitted(both: tuple[Array, Array], matrix: Array, probe: Array, rate: float) -> tuple[Array, Array]:
    """Both factors after one step."""
    left, right = both
    signal = _times(right, _times(left, matrix).T).T
    noise = _divided(right, _divided(left, probe).T).T
    return _stepped(left, signal, noise, rate), _stepped(right, signal.T, noise.T, rate)


def _stepped(factor: Array, signal: Array, noise: Array, rate: float) -> Array:
    """A factor after one step: its rows belong to those of the signal and of the noise."""
    if factor.ndim == 1:
        first, second = (jnp.sum(jnp.square(part), axis=1) for part in (signal, noise))
        return factor - rate * quotient(first - second, jnp.max(first + second)) * factor
    first, second = (product(part, part.T) for part in (signal, noise))
    step = jnp.triu(first - second) / _norm_bound(first + second)
    return factor - rate * product(step, factor)


def _norm_bound(matrix: Array) -> Float[Array, ""]:
    """A lower bound of the spectral norm: what the matrix makes of its longest row."""
    row = matrix[jnp.argmax(jnp.sum(jnp.square(matrix), axis=1))]
    return quotient(root(jnp.sum(jnp.square(product(matrix, row)))), root(jnp.sum(jnp.square(row))))
