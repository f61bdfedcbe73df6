"""How long trajectories are: drawn for each trajectory when it begins, and following the outer step.

A trajectory is unrolled in truncations, and steps beyond its length do not count. Lengths that are multiples
of the truncation waste none: `multiple` rounds drawn lengths down to them.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PRNGKeyArray

from outeropt.errors import ConfigError
from outeropt.optimizers.schedules import Schedule, number


ENDLESS = np.iinfo(np.int32).max


class Lengths(eqx.Module):
    """A distribution of lengths. Its numbers are leaves, so that changing them compiles nothing anew."""

    @abc.abstractmethod
    def draw(self, key: PRNGKeyArray, outer_step: int | Int[Array, ""]) -> Int[Array, ""]:
        """The length, in inner steps and at least 1, of one trajectory that begins at an outer step."""


def _steps(value: Any) -> Array:
    if not isinstance(value, Tracer) and np.ndim(value) == 0 and not 1 <= np.asarray(value) <= ENDLESS:
        raise ConfigError(f"A trajectory of {value} steps is not possible; give at least 1.")
    return jnp.asarray(value, jnp.int32)


def _multiple(value: int) -> int:
    if value < 1:
        raise ConfigError(f"Lengths cannot be multiples of {value}; give at least 1.")
    return int(value)


def _number_or_schedule(name: str) -> Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        if not isinstance(value, Schedule):
            return number(_steps(value))
        if value.needs_num_steps:
            raise ConfigError(
                f"{name} is a {type(value).__name__} schedule, which needs the length of the run; here it "
                "is not known. Use Constant, Exponential, InverseSqrt, Step or PiecewiseLinear."
            )
        return value

    return convert


def _at(value: Schedule | Array, outer_step: int | Array) -> Float[Array, ""]:
    return value(outer_step) if isinstance(value, Schedule) else value


def _whole(value: Float[Array, ""], multiple: int) -> Int[Array, ""]:
    """Rounded down to a multiple of steps, and at least one of them."""
    # A hair more, for what the logarithm lost; 2**31 - 128 is the largest float32 that an int32 holds.
    steps = jnp.minimum(value * (1.0 + 1e-6), 2.0**31 - 128.0).astype(jnp.int32)
    return jnp.maximum(steps // multiple, 1) * multiple


class Constant(Lengths):
    """All trajectories have the same length.

    Attributes:
      length: in inner steps, at least 1.
    """

    length: Int[Array, ""] = eqx.field(converter=_steps)

    def draw(self, key: PRNGKeyArray, outer_step: int | Int[Array, ""]) -> Int[Array, ""]:
        del key, outer_step
        return self.length


class LogUniform(Lengths):
    """Lengths between two bounds, uniform in their logarithm: as many short ones as long ones.

    `floor(exp(u))` with `u ~ U(log low, log(high + 1))`, so that both bounds are reached. VeLO was
    meta-trained on lengths like these (Metz et al. 2022, arXiv 2211.09760).

    Attributes:
      low: shortest, in inner steps: a number, or a schedule of the outer step.
      high: longest, the same.
      multiple: rounds down to a multiple of this.
    """

    low: Float[Array, ""] | Schedule = eqx.field(converter=_number_or_schedule("low"))
    high: Float[Array, ""] | Schedule = eqx.field(converter=_number_or_schedule("high"))
    multiple: int = eqx.field(static=True, converter=_multiple, default=1)

    def __check_init__(self):
        bounds = [bound for bound in (self.low, self.high) if not isinstance(bound, Schedule)]
        # Bounds may be traced, or have an axis of settings.
        known = len(bounds) == 2 and not any(isinstance(bound, Tracer) or bound.ndim for bound in bounds)
        if known and np.asarray(bounds[0]) > np.asarray(bounds[1]):
            raise ConfigError(
                f"Lengths from {bounds[0]:g} to {bounds[1]:g} are not possible; the first is the shortest."
            )

    def draw(self, key: PRNGKeyArray, outer_step: int | Int[Array, ""]) -> Int[Array, ""]:
        low = jnp.maximum(_at(self.low, outer_step), 1.0)
        high = jnp.maximum(_at(self.high, outer_step), low)
        exponent = jax.random.uniform(key, minval=jnp.log(low), maxval=jnp.log(high + 1.0))
        return _whole(jnp.clip(jnp.exp(exponent), low, high), self.multiple)


class Scheduled(Lengths):
    """The length follows a schedule of the outer step: a curriculum.

    Attributes:
      schedule: the length of trajectories that begin at each outer step.
      multiple: rounds down to a multiple of this.
    """

    schedule: Schedule | Float[Array, ""] = eqx.field(converter=_number_or_schedule("schedule"))
    multiple: int = eqx.field(static=True, converter=_multiple, default=1)

    def draw(self, key: PRNGKeyArray, outer_step: int | Int[Array, ""]) -> Int[Array, ""]:
        del key
        return _whole(jnp.maximum(_at(self.schedule, outer_step), 1.0), self.multiple)


class Endless(Lengths):
    """Trajectories never end, for systems without an end or that start anew on their own."""

    def draw(self, key: PRNGKeyArray, outer_step: int | Int[Array, ""]) -> Int[Array, ""]:
        del key, outer_step
        return jnp.int32(ENDLESS)
