"""Layer-wise distance over gradients."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from outeropt.optimizer import Params
from outeropt.optimizers.arithmetic import quotient, root, squared_norm, wide_type, widen


class LDoGState(NamedTuple):
    """State of `ldog`; vectors have an entry for each tensor of the parameters.

    Attributes:
      start: the parameters before the first step.
      distance: `r`, largest distance from there so far.
      square_sum: `G`, sum of the gradients' squared norms.
      count: steps so far.
    """

    start: Params
    distance: Float[Array, "tensors"]
    square_sum: Float[Array, "tensors"]
    count: Int[Array, ""]


def ldog(
    learning_rate: float = 1.0, reps_rel: float = 1e-6, weight_decay: float = 0.0, eps: float = 1e-8
) -> optax.GradientTransformationExtraArgs:
    """SGD with a step size for each tensor: distance from the start over the root of the sum of squares.

    For each tensor, with `g` the gradient plus `weight_decay * x`:

        r <- max(r, |x - x_0|), at first reps_rel * (1 + |x_0|)         G <- G + |g|^2, at first with eps
        x <- x - learning_rate * r / sqrt(G) * g

    Ivgi, Hinder and Carmon, "DoG is SGD's Best Friend: A Parameter-Free Dynamic Step Size Schedule", 2023,
    arXiv 2302.12022, section 3.3 (L-DoG); the authors advise to average its iterates (`averaged:ldog`). `dog`
    has one step size for all tensors.

    Args:
      learning_rate: factor on the step size.
      reps_rel: first distance, relative to one plus the parameters' norm.
      weight_decay: L2 penalty.
      eps: first term of the sum of squares.
    """

    def init(params: Params) -> LDoGState:
        zeros = jnp.zeros(len(jax.tree.leaves(params)), wide_type(params))
        return LDoGState(jax.tree.map(jnp.array, params), zeros, zeros + eps, jnp.zeros((), jnp.int32))

    def update(updates, state, params=None, **extra_args):
        del extra_args
        points = widen(params)
        grads = jax.tree.map(lambda g, p: g + weight_decay * p, widen(updates), points)
        way = jax.tree.map(jnp.subtract, points, widen(state.start))
        first = reps_rel * (1.0 + _norms(points))
        distance = jnp.where(state.count == 0, first, jnp.maximum(state.distance, _norms(way)))
        square_sum = state.square_sum + _squares(grads)
        steps = learning_rate * quotient(distance, root(square_sum))
        leaves, structure = jax.tree.flatten(grads)
        moves = jax.tree.unflatten(structure, [-step * leaf for step, leaf in zip(steps, leaves)])
        return moves, LDoGState(state.start, distance, square_sum, state.count + 1)

    return optax.GradientTransformationExtraArgs(init, update)


def _squares(values: Params) -> Float[Array, "tensors"]:
    return jnp.stack([squared_norm(leaf) for leaf in jax.tree.leaves(values)])


def _norms(values: Params) -> Float[Array, "tensors"]:
    return root(_squares(values))
