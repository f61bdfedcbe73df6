"""Shampoo: gradients between inverse roots of their own second moments."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from outeropt.errors import unknown_name
from outeropt.optimizer import Params
from outeropt.optimizers.arithmetic import quotient, root, squared_norm, unzip, wide_type, widen
from outeropt.optimizers.preconditioned.sides import Sides, between, folded, gathered, product, squares


GRAFTS = ("adam", "sgd", "none")


class ShampooState(NamedTuple):
    """State of `shampoo`.

    Attributes:
      exp_avg: `M`, mean of the gradients.
      exp_avg_sq: `V`, mean of their squares, for grafting and for tensors without matrices.
      moments: `L` and `R` of each tensor.
      roots: their inverse roots.
      count: steps so far.
    """

    exp_avg: Params
    exp_avg_sq: Params
    moments: PyTree
    roots: PyTree
    count: Int[Array, ""]


def shampoo(
    learning_rate: float,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    adam_eps: float = 1e-8,
    weight_decay: float = 0.0,
    graft: str = "adam",
    precondition_every: int = 10,
    max_size: int = 2048,
) -> optax.GradientTransformationExtraArgs:
    """Mean gradients between inverse roots of the second moments of rows and of columns.

    For each tensor as a matrix `W`, with gradient `G`, all means corrected for their bias:

        L <- b2 L + (1 - b2) G G^T         R <- b2 R + (1 - b2) G^T G         M <- b1 M + (1 - b1) G
        P = (L + eps |L| I)^(-1/4) M (R + eps |R| I)^(-1/4)
        W <- W - learning_rate (P + weight_decay W)

    with the spectral norm, and the roots taken at the first step and then every `precondition_every` steps. A
    tensor with one side longer than `max_size` has the other's root alone, to the power -1/2. Vectors,
    scalars and tensors with both sides longer take Adam's step. `graft` gives `P` the norm of another step.

    Gupta, Koren and Singer, "Shampoo: Preconditioned Stochastic Tensor Optimization", 2018, arXiv 1802.09568,
    algorithm 1, with decayed means instead of sums, and grafting, limited sizes and a relative `eps` as in
    Anil et al., "Scalable Second Order Optimization for Deep Learning", 2020, arXiv 2002.09018. Tensors of
    more than two axes are folded to matrices, the last axis being the columns. Derivatives take the roots as
    given.

    Args:
      learning_rate: step size.
      b1: decay of the mean.
      b2: decay of the second moments.
      eps: added to the eigenvalues, relative to the largest.
      adam_eps: added to the root of the square in Adam's step.
      weight_decay: decoupled, multiplied by the learning rate.
      graft: whose norm each tensor's step has: that of `"adam"`, `"sgd"` (the mean gradient), or `"none"`.
      precondition_every: steps between inverse roots.
      max_size: longest side that has a matrix.

    Raises:
      UnknownName: `graft` is none of these.
    """
    if graft not in GRAFTS:
        raise unknown_name("graft", graft, GRAFTS)

    def init(params: Params) -> ShampooState:
        wide = wide_type(params)

        def moments():
            return jax.tree.map(lambda leaf: squares(leaf, max_size, wide), params)

        mean, square = optax.tree.zeros_like(params), optax.tree.zeros_like(params)
        return ShampooState(mean, square, moments(), moments(), jnp.zeros((), jnp.int32))

    def update(updates, state, params=None, **extra_args):
        del extra_args
        grads, count = widen(updates), state.count + 1
        decay, ridge = (jax.lax.stop_gradient(jnp.asarray(x, wide_type(grads))) for x in (b2, eps))
        t = count.astype(decay.dtype)
        constant = jax.tree.map(lambda g: jax.lax.stop_gradient(folded(g).astype(decay.dtype)), grads)
        moments = jax.tree.map(lambda g, old: gathered(old, g, decay), constant, state.moments)
        roots = jax.lax.cond(
            (count == 1) | (count % precondition_every == 0),
            lambda: jax.tree.map(
                lambda g, both: _inverse_roots(both, 1.0 - decay**t, ridge), constant, moments
            ),
            lambda: state.roots,
        )

        def one(grad, param, mean, square, sides):
            mean = b1 * mean + (1.0 - b1) * grad
            square = b2 * square + (1.0 - b2) * jnp.square(grad)
            corrected = mean / (1.0 - b1**t)
            adam = corrected / (root(square / (1.0 - b2**t)) + adam_eps)
            left, right = sides
            if left is None and right is None:
                move = adam
            else:
                move = between(left, folded(corrected), right).reshape(grad.shape)
                if graft != "none":
                    length = squared_norm(adam if graft == "adam" else corrected)
                    move = move * quotient(root(length), root(squared_norm(move)))
            return -learning_rate * (move + weight_decay * param), mean, square

        found = jax.tree.map(one, grads, widen(params), widen(state.exp_avg), widen(state.exp_avg_sq), roots)
        moves, mean, square = unzip(grads, found)
        return moves, ShampooState(mean, square, moments, roots, count)

    return optax.GradientTransformationExtraArgs(init, update)


def _inverse_roots(moments: Sides, weight: Float[Array, ""], ridge: Float[Array, ""]) -> Sides:
    """To the power -1/4, or -1/2 where there is one side only; `weight` is the sum of the mean's weights."""
    power = -0.5 / max(1, sum(moment is not None for moment in moments))

    def one(moment):
        if moment is None:
            return None
        values, vectors = jnp.linalg.eigh(moment / weight)
        largest = values[-1]
        values = jnp.where(largest > 0, jnp.maximum(values, 0.0) + ridge * largest, 1.0)
        return product(vectors * values**power, vectors.T)

    left, right = moments
    return one(left), one(right)
