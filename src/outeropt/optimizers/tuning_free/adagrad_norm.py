"""AdaGrad-Norm: one accumulated step size for all parameters."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from outeropt.optimizer import Params
from outeropt.optimizers.arithmetic import quotient, root, squared_norm, wide_type, widen


class AdaGradNormState(NamedTuple):
    """State of `adagrad_norm`.

    Attributes:
      square_sum: `b^2`, sum of the gradients' squared norms.
    """

    square_sum: Float[Array, ""]


def adagrad_norm(
    learning_rate: float, initial_accumulator_value: float = 1e-2
) -> optax.GradientTransformationExtraArgs:
    """SGD whose step size falls with the norms of all gradients so far.

        b^2 <- b^2 + |g|^2                     x <- x - learning_rate / b * g

    Ward, Wu and Bottou, "AdaGrad stepsizes: Sharp convergence over nonconvex landscapes", 2018, arXiv
    1806.01811, algorithm 1: it converges for every `learning_rate` and every first `b`, if not at the same
    speed.

    Args:
      learning_rate: step size, relative to `b`.
      initial_accumulator_value: first `b^2`.
    """

    def init(params: Params) -> AdaGradNormState:
        return AdaGradNormState(jnp.zeros((), wide_type(params)) + initial_accumulator_value)

    def update(updates, state, params=None, **extra_args):
        del params, extra_args
        square_sum = state.square_sum + squared_norm(updates)
        step = quotient(jnp.asarray(learning_rate, square_sum.dtype), root(square_sum))
        return jax.tree.map(lambda g: -step * g, widen(updates)), AdaGradNormState(square_sum)

    return optax.GradientTransformationExtraArgs(init, update)
