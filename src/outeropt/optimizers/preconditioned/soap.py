"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from outeropt.optimizer import Params
from outeropt.optimizers.arithmetic import root, unzip, wide_type, widen
from outeropt.optimizers.preconditioned.sides import Sides, folded, gathered, into, out_of, product, squares


TIE = 1e-4
"""Relative to the trace. Directions without gradients so far have no order: it gives or keeps them one."""


class SoapState(NamedTuple):
    """State of `soap`.

    Attributes:
      exp_avg: `M`, mean of the gradients.
      exp_avg_sq: `V`, mean of the squares of the gradients in the bases, each tensor as a matrix.
      moments: `L` and `R` of each tensor.
      bases: `Q_L` and `Q_R` of each tensor.
      count: steps so far.
    """

    exp_avg: Params
    exp_avg_sq: PyTree
    moments: PyTree
    bases: PyTree
    count: Int[Array, ""]


def soap(
    learning_rate: float,
    b1: float = 0.95,
    b2: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    precondition_every: int = 10,
    max_size: int = 2048,
) -> optax.GradientTransformationExtraArgs:
    """Adam in a slowly turning basis in which the gradients of each tensor are nearly uncorrelated.

    For each tensor as a matrix `W`, with gradient `G`:

        M <- b1 M + (1 - b1) G                             V <- b2 V + (1 - b2) (Q_L^T G Q_R)^2
        N = (Q_L^T M Q_R) / (1 - b1^t) / (sqrt(V / (1 - b2^t)) + eps)
        W <- W - learning_rate (Q_L N Q_R^T + weight_decay W)
        L <- b2 L + (1 - b2) G G^T                         R <- b2 R + (1 - b2) G^T G

    and every `precondition_every` steps `Q_L` becomes the orthonormal factor of `L Q_L`, its columns first
    put in the order of falling eigenvalues, and `V` with them; `Q_R` likewise. The first bases are the
    eigenvectors of the first gradient's `L` and `R`. Vyas et al., "SOAP: Improving and Stabilizing Shampoo
    using Adam", 2024, arXiv 2409.11321, algorithms 3 and 4, with Adam's bias correction. The authors' code
    takes no step with the first gradient; this does.

    Vectors and scalars, and sides longer than `max_size`, keep the basis they have: with `max_size = 0` this
    is AdamW. Tensors of more than two axes are folded to matrices, the last axis being the columns.
    Derivatives take the bases as given.

    Args:
      learning_rate: step size.
      b1: decay of the mean.
      b2: decay of the square, and of `L` and `R`.
      eps: added to the root of the square.
      weight_decay: decoupled, multiplied by the learning rate.
      precondition_every: steps between turns of the bases.
      max_size: longest side that has a basis.
    """

    def init(params: Params) -> SoapState:
        wide = wide_type(params)

        def moments():
            return jax.tree.map(lambda leaf: squares(leaf, max_size, wide), params)

        square = jax.tree.map(lambda leaf: jnp.zeros_like(folded(leaf), wide), params)
        zeros = optax.tree.zeros_like(params)
        return SoapState(zeros, square, moments(), moments(), jnp.zeros((), jnp.int32))

    def update(updates, state, params=None, **extra_args):
        del extra_args
        grads, count = widen(updates), state.count + 1
        decay = jax.lax.stop_gradient(jnp.asarray(b2, wide_type(grads)))
        t = count.astype(decay.dtype)
        constant = jax.tree.map(lambda g: jax.lax.stop_gradient(folded(g).astype(decay.dtype)), grads)
        moments = jax.tree.map(lambda g, old: gathered(old, g, decay), constant, state.moments)
        bases = jax.lax.cond(
            count == 1,
            lambda: jax.tree.map(lambda g, both: tuple(map(_eigenvectors, both)), constant, moments),
            lambda: state.bases,
        )

        def one(grad, param, mean, square, sides):
            mean = b1 * mean + (1.0 - b1) * grad
            square = b2 * square + (1.0 - b2) * jnp.square(into(sides, folded(grad)))
            size = root(square / (1.0 - b2**t)) + eps
            move = out_of(sides, into(sides, folded(mean)) / (1.0 - b1**t) / size)
            return -learning_rate * (move.reshape(grad.shape) + weight_decay * param), mean, square

        moves, mean, square = unzip(
            grads,
            jax.tree.map(one, grads, widen(params), widen(state.exp_avg), state.exp_avg_sq, bases),
        )
        square, bases = jax.lax.cond(
            (count > 1) & (count % precondition_every == 0),
            lambda: tuple(unzip(grads, jax.tree.map(_refined, grads, square, moments, bases)))[1:],
            lambda: (square, bases),
        )
        return moves, SoapState(mean, square, moments, bases, count)

    return optax.GradientTransformationExtraArgs(init, update)


def _eigenvectors(moment: Array | None) -> Array | None:
    """Those of the largest eigenvalues first."""
    if moment is None:
        return None
    slope = jnp.linspace(1.0, 0.0, len(moment), dtype=moment.dtype)
    return jnp.linalg.eigh(moment + jnp.diag(TIE * jnp.trace(moment) * slope))[1][:, ::-1]


def _refined(grad: Array, square: Array, moments: Sides, bases: Sides) -> tuple[Array, Array, Sides]:
    """One step of power iteration for each side, and the squares in the new order."""
    found = []
    for axis, (moment, basis) in enumerate(zip(moments, bases)):
        if moment is None or basis is None:
            found.append(None)
            continue
        ahead = product(moment, basis) + TIE * jnp.trace(moment) * basis
        order = jnp.argsort(-jnp.sum(basis * ahead, axis=0))
        square = jnp.take(square, order, axis=axis)
        found.append(jnp.linalg.qr(jnp.take(ahead, order, axis=1))[0])
    return grad, square, (found[0], found[1])
