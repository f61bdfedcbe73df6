"""What learned optimizers look at: accumulators of the gradient, their normalisation, and the time.

Shared by all architectures. Accumulators put their decays first, `[decays, *shape]`, start from zero and have
no bias correction. Equations: Metz et al. 2022, "Practical tradeoffs between memory, compute, and performance
in learned optimizers" (arXiv 2203.11860), with the constants of the authors' code.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from outeropt import tree


TIME_SCALES = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000)


def tanh_embedding(step: Int[Array, ""] | int) -> Float[Array, " scales"]:
    """`tanh(step / s - 1)` for each of the eleven `TIME_SCALES` s."""
    return jnp.tanh(jnp.asarray(step, jnp.float32) / jnp.asarray(TIME_SCALES, jnp.float32) - 1.0)


def inverse_rms(x: Float[Array, "..."]) -> Float[Array, ""]:
    """`1 / sqrt(1e-5 + mean(x^2))` over the whole array: what makes a feature free of its unit."""
    return jax.lax.rsqrt(1e-5 + jnp.mean(jnp.square(x)))


def normalize(x: Float[Array, "features *shape"]) -> Float[Array, "features *shape"]:
    """Each feature times its `inverse_rms`."""
    scales = jax.vmap(inverse_rms)(x)
    return x * _as_lead(scales, x.ndim - 1)


def accumulate(
    decays: Float[Array, " decays"], old: Float[Array, "decays *shape"], new: Float[Array, "*shape"]
) -> Float[Array, "decays *shape"]:
    """Moving averages `d old + (1 - d) new`, one for each decay d (clipped to [0, 1])."""
    return average(as_channels(decays, new.ndim), old, new[None])


def as_channels(decays: Float[Array, " decays"], rank: int) -> Float[Array, "decays ..."]:
    """Decays for `average` over tensors of a rank, clipped to [0, 1]."""
    return _as_lead(jnp.clip(decays, 0.0, 1.0), rank)


def average(decays: Any, old: Any, new: Any) -> Any:
    """`d old + (1 - d) new`, of arrays `[channels, *shape]` or of tuples of channels."""
    return channelwise(lambda d, old, new: d * old + (1.0 - d) * new, decays, old, new)


def learned_decays(initial: tuple[float, ...], theta: Float[Array, " decays"]) -> Float[Array, " decays"]:
    """Decays `1 - (1 - initial) exp(10 theta)` in [0, 1]; theta = 0 gives the initial ones."""
    start = jnp.log(1.0 - jnp.asarray(initial, jnp.float32)) / 10.0
    return jnp.clip(1.0 - jnp.exp(10.0 * (start + theta)), 0.0, 1.0)


def channelwise(function: Callable[..., Any], *given: Any) -> Any:
    """A function of arrays `[channels, *shape]`, or of tuples of channels; a single channel goes with all."""
    if not isinstance(given[0], tuple):
        return function(*given)
    count = max(len(channels) for channels in given)
    return tuple(function(*(channels[i % len(channels)] for channels in given)) for i in range(count))


def product(*factors: Any) -> Any:
    """The product, `channelwise`."""
    return channelwise(lambda *single: functools.reduce(operator.mul, single), *factors)


def factored_axes(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """The axes (d1, d0) of the second largest and the largest dimension; None below rank 2."""
    if len(shape) < 2:
        return None
    order = np.argsort(shape)
    return int(order[-2]), int(order[-1])


class Factored(eqx.Module):
    """Second moments of a tensor as averages over each of its two largest axes (Adafactor, arXiv 1804.04235).

    Attributes:
      row: averages over axis d0, `[decays, *shape without d0]`; below rank 2 the full `[decays, *shape]`.
      col: averages over axis d1, `[decays, *shape without d1]`; None below rank 2.
    """

    row: Float[Array, "decays ..."]
    col: Float[Array, "decays ..."] | None

    @classmethod
    def zeros(cls, decays: int, param: Float[Array, "*shape"]) -> "Factored":
        """Those of a tensor before the first gradient."""
        axes = factored_axes(param.shape)
        if axes is None:
            return cls(tree.zeros_beside(param, decays, dtype=jnp.float32), None)
        d1, d0 = axes
        without = [tuple(n for axis, n in enumerate(param.shape) if axis != gone) for gone in (d0, d1)]
        return cls(*(jnp.zeros((decays, *rest), jnp.float32) for rest in without))

    def updated(self, decays: Float[Array, " decays"], grad: Float[Array, "*shape"]) -> "Factored":
        """With one more gradient: averages of `g^2 + 1e-30`."""
        axes = factored_axes(grad.shape)
        square = jnp.square(grad) + 1e-30
        if axes is None or self.col is None:
            return Factored(accumulate(decays, self.row, square), None)
        d1, d0 = axes
        row = accumulate(decays, self.row, jnp.mean(square, axis=d0))
        return Factored(row, accumulate(decays, self.col, jnp.mean(square, axis=d1)))

    def factors(
        self, shape: tuple[int, ...]
    ) -> tuple[Float[Array, "decays ..."], Float[Array, "decays ..."]]:
        """What the gradient is multiplied with, as two arrays that broadcast against `[decays, *shape]`.

        `rsqrt(max(row / (mean_d1(row) + 1e-9), 1e-9))` along the rows and `rsqrt(max(col, 1e-9))` along the
        columns; below rank 2 `rsqrt(v + 1e-9)` and 1.
        """
        axes = factored_axes(shape)
        if axes is None or self.col is None:
            return jax.lax.rsqrt(self.row + 1e-9), jnp.ones((1,) * (len(shape) + 1), jnp.float32)
        d1, d0 = axes
        lost = d1 - 1 if d1 > d0 else d1
        mean = jnp.mean(self.row, axis=1 + lost, keepdims=True) + 1e-9
        row = jax.lax.rsqrt(jnp.maximum(self.row / mean, 1e-9))
        col = jax.lax.rsqrt(jnp.maximum(self.col, 1e-9))
        return jnp.expand_dims(row, 1 + d0), jnp.expand_dims(col, 1 + d1)

    def spread(self, shape: tuple[int, ...]) -> tuple[Array, Array]:
        """Rows and columns with an axis of length 1 where they were averaged; below rank 2 the rows twice."""
        axes = factored_axes(shape)
        if axes is None or self.col is None:
            return self.row, self.row
        d1, d0 = axes
        return jnp.expand_dims(self.row, 1 + d0), jnp.expand_dims(self.col, 1 + d1)


def _as_lead(values: Float[Array, " n"], rank: int) -> Float[Array, "n ..."]:
    """A vector as the first axis of an array with `rank` more."""
    return values.reshape(values.shape[0], *(1,) * rank)
