"""Averages of the gradient that start at zero and are never corrected for it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from outeropt.optimizer import Params
from outeropt.optimizers.arithmetic import unzip


class MomentsState(NamedTuple):
    """Moving averages from zero.

    Attributes:
      mean: of the gradients.
      square: of their squares.
    """

    mean: Params
    square: Params


def zeros(params: Params) -> MomentsState:
    """The averages before the first gradient."""
    mean, square = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))
    return MomentsState(mean, square)


def averaged(decay: Float[Array, ""], old: Float[Array, "..."], new: Float[Array, "..."]) -> Array:
    """The average `decay * old + (1 - decay) * new`."""
    return decay * old + (1.0 - decay) * new


def moved(
    move: Callable[..., Array], numbers: tuple[Array, ...], grads: Params, state: MomentsState, params: Params
) -> tuple[Params, MomentsState]:
    """Updates `-learning_rate * move(...)` from the next averages, coordinate by coordinate.

    Args:
      move: of the gradient, the next mean, the next square and the numbers from `b1` on.
      numbers: `learning_rate`, `b1`, `b2`, and those that only `move` reads.
      grads: the gradient.
      state: the averages so far.
      params: whose types the updates get.

    Returns:
      The updates and the next averages.
    """

    def one(grad: Array, param: Array, mean: Array, square: Array) -> tuple[Array, Array, Array]:
        # Narrow types hold neither 1 - b2 nor the square well: compute wide, store as the parameters are.
        wide: Any = np.promote_types(np.float32, param.dtype)
        rate, b1, b2, *rest = (value.astype(wide) for value in numbers)
        g = grad.astype(wide)
        m = averaged(b1, mean.astype(wide), g)
        v = averaged(b2, square.astype(wide), jnp.square(g))
        update = -rate * move(g, m, v, b1, b2, *rest)
        return update.astype(param.dtype), m.astype(mean.dtype), v.astype(square.dtype)

    found = jax.tree.map(one, grads, params, state.mean, state.square)
    updates, mean, square = unzip(grads, found)
    return updates, MomentsState(mean, square)
