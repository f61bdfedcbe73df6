"""Gradients and their mean over a root mean square: what the optimizers of "Optimizer Amalgamation" read."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from outeropt.errors import ConfigError


class Averages(NamedTuple):
    """Moving averages from zero, of all coordinates in the order of `coordinates.flatten`.

    Attributes:
      mean: of the gradient.
      square: of its square.
    """

    mean: Float[Array, " coordinates"]
    square: Float[Array, " coordinates"]


def zeros(coordinates: int) -> Averages:
    """The averages before the first gradient."""
    return Averages(*(jnp.zeros((coordinates,), jnp.float32) for _ in range(2)))


def averaged(grad: Float[Array, " coordinates"], last: Averages, decays: tuple[float, float]) -> Averages:
    """The next averages, `b old + (1 - b) new` with `decays` b1 for the mean and b2 for the square."""
    b1, b2 = decays
    return Averages(b1 * last.mean + (1.0 - b1) * grad, b2 * last.square + (1.0 - b2) * jnp.square(grad))


def scaled(
    grad: Float[Array, " coordinates"], averages: Averages, decays: tuple[float, float], eps: float
) -> tuple[Float[Array, " coordinates"], Float[Array, " coordinates"]]:
    """Mean and gradient over the root mean square.

        m~ = m / (1 - b1) / r                g~ = g / r                r = sqrt(v / (1 - b2) + eps)

    Constants divide the averages at every step, as in `static_adam`. `eps` in the root keeps derivatives
    finite where all gradients were zero.
    """
    b1, b2 = decays
    over_root = jax.lax.rsqrt(averages.square / (1.0 - b2) + eps)
    return averages.mean / (1.0 - b1) * over_root, grad * over_root


def check_averages(decays: tuple[float, float], eps: float) -> tuple[tuple[float, float], float]:
    """The settings of averages.

    Raises:
      ConfigError: decays that are not two numbers in [0, 1), or an `eps` that is not positive.
    """
    given = tuple(float(decay) for decay in decays)
    if len(given) != 2 or not all(0 <= decay < 1 for decay in given):
        raise ConfigError(f"decays must be two numbers from 0 to below 1, not {decays}.")
    if not eps > 0:
        raise ConfigError(f"eps must be above 0, not {eps}.")
    return (given[0], given[1]), float(eps)
