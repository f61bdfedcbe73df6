"""The loop over tensors, for learned optimizers that treat each tensor of the parameters by itself."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from outeropt.optimizer import Params


class State(eqx.Module):
    """What such an optimizer keeps.

    Attributes:
      step: steps taken.
      moments: accumulators of each tensor, in the order of the leaves.
    """

    step: Int[Array, ""]
    moments: list[PyTree]


Move = Callable[[Array, Array, PyTree], tuple[Array, PyTree]]


def start(zeros: Callable[[tuple[int, ...]], PyTree], params: Params) -> State:
    """The state before the first step.

    Args:
      zeros: the accumulators of a tensor of a given shape, of rank 1 or more.
      params: parameters to be optimized.
    """
    return State(jnp.int32(0), [zeros(jnp.atleast_1d(p).shape) for p in jax.tree.leaves(params)])


def advance(move: Move, grads: Params, state: State, params: Params) -> tuple[Params, State]:
    """Moves each tensor by itself.

    Args:
      move: takes a tensor's gradient, its parameters and its accumulators, and returns the update to be added
        and the next accumulators. It sees float32 arrays of rank 1 or more: a scalar is a vector of length 1.
      grads: gradients, same structure as `params`.
      state: the last state.
      params: current parameters.

    Returns:
      Updates with the shapes and dtypes of the parameters, and the next state.
    """
    leaves, structure = jax.tree.flatten(params)
    updates, moments = [], []
    for grad, param, old in zip(structure.flatten_up_to(grads), leaves, state.moments):
        g, p = (jnp.atleast_1d(x).astype(jnp.float32) for x in (grad, param))
        update, new = move(g, p, old)
        updates.append(update.reshape(param.shape).astype(param.dtype))
        moments.append(new)
    return structure.unflatten(updates), State(state.step + 1, moments)
