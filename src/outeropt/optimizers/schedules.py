"""Schedules: numbers that follow the inner step, as pytrees of their own numbers.

A schedule may stand wherever `from_optax` or `NAdamW` takes a hyperparameter, or scale the learning rate of
any optimizer through `Scheduled`. Its numbers are leaves, so that they can be swept, tuned and
differentiated.
"""

import abc
from collections.abc import Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from outeropt.errors import OuteroptError
from outeropt.optimizers import spaces
from outeropt.space import Space


Number = float | Float[Array, ""]


def number(value: Any) -> Array:
    """A float32 array."""
    return jnp.asarray(value, jnp.float32)


def _optional(value: Any) -> Array | None:
    return None if value is None else number(value)


class Schedule(eqx.Module):
    """A number for each inner step: `schedule(step, num_steps)`."""

    needs_num_steps: ClassVar[bool] = False
    """Whether the length of the run must be known."""

    @abc.abstractmethod
    def __call__(self, step: int | Array, num_steps: int | Array | None = None) -> Float[Array, ""]:
        """The value at `step` (from 0, the value for the first update) of a run of `num_steps` steps."""

    def spaces(self, height: Space | None) -> dict[str, Space]:
        """Spaces of the schedule's own numbers, by field; `height` is the space of what it schedules."""
        del height
        return {}


class Constant(Schedule):
    """The same value at every step."""

    value: Float[Array, ""] = eqx.field(converter=number)

    def __call__(self, step: int | Array, num_steps: int | Array | None = None) -> Float[Array, ""]:
        del step, num_steps
        return self.value

    def spaces(self, height: Space | None) -> dict[str, Space]:
        return _height(height, "value")


class Cosine(Schedule):
    """Linear warm-up, a constant phase, then half a cosine down to `end_fraction * peak`.

    With `t = step / num_steps`: `peak * t / w` while `t < w` (the warm-up fraction), `peak` until
    `s = max(w, c)` (the constant fraction, which counts from the start of the run), then
    `peak * (e + (1 - e) * (1 + cos(pi * (t - s) / (1 - s))) / 2)` (Loshchilov and Hutter, "SGDR", 2017,
    arXiv 1608.03983, eq. 5). Beyond the last step it stays at its end.

    Attributes:
      peak: highest value; None for a shape of height 1.
      end_fraction: last value as a fraction of the peak, in [0, 1].
      warmup_fraction: part of the run spent warming up from 0, in [0, 1].
      constant_fraction: part of the run after which the decay starts, warm-up included, in [0, 1].

    Examples:
      >>> from outeropt.optimizers import Cosine
      >>> schedule = Cosine(peak=2.0, warmup_fraction=0.5)
      >>> [round(float(schedule(step, 100)), 3) for step in (0, 25, 50, 75, 100)]
      [0.0, 1.0, 2.0, 1.0, 0.0]
    """

    needs_num_steps: ClassVar[bool] = True

    peak: Float[Array, ""] | None = eqx.field(converter=_optional, default=None)
    end_fraction: Float[Array, ""] = eqx.field(converter=number, default=0.0)
    warmup_fraction: Float[Array, ""] = eqx.field(converter=number, default=0.0)
    constant_fraction: Float[Array, ""] = eqx.field(converter=number, default=0.0)

    def __call__(self, step: int | Array, num_steps: int | Array | None = None) -> Float[Array, ""]:
        ramp, progress = _phases(self, step, num_steps)
        shape = 0.5 * (1.0 + jnp.cos(jnp.float32(np.pi) * progress))
        return _scaled(self.peak, ramp * (self.end_fraction + (1.0 - self.end_fraction) * shape))

    def spaces(self, height: Space | None) -> dict[str, Space]:
        return {**_height(height, "peak"), **_FRACTIONS}


class Linear(Schedule):
    """Linear warm-up, a constant phase, then a straight line down to `end_fraction * peak`.

    Attributes are those of `Cosine`.
    """

    needs_num_steps: ClassVar[bool] = True

    peak: Float[Array, ""] | None = eqx.field(converter=_optional, default=None)
    end_fraction: Float[Array, ""] = eqx.field(converter=number, default=0.0)
    warmup_fraction: Float[Array, ""] = eqx.field(converter=number, default=0.0)
    constant_fraction: Float[Array, ""] = eqx.field(converter=number, default=0.0)

    def __call__(self, step: int | Array, num_steps: int | Array | None = None) -> Float[Array, ""]:
        ramp, progress = _phases(self, step, num_steps)
        return _scaled(self.peak, ramp * (1.0 - (1.0 - self.end_fraction) * progress))

    def spaces(self, height: Space | None) -> dict[str, Space]:
        return {**_height(height, "peak"), **_FRACTIONS}


class Tail(Schedule):
    """Constant, then a straight line to zero over the last `tail_fraction` of the run.

    Where the length of the run is not known it stays constant. A method that finds its step size itself still
    gains from a decay at the end: it averages out the noise of the minibatches.

    Attributes:
      peak: value of the constant part; None for a shape of height 1.
      tail_fraction: part of the run that decays, in [0, 1].
    """

    peak: Float[Array, ""] | None = eqx.field(converter=_optional, default=None)
    tail_fraction: Float[Array, ""] = eqx.field(converter=number, default=0.3)

    def __call__(self, step: int | Array, num_steps: int | Array | None = None) -> Float[Array, ""]:
        if num_steps is None:
            return _scaled(self.peak, jnp.ones((), jnp.float32))
        total = _float(num_steps)
        tail = jnp.maximum(self.tail_fraction * total, 1e-6)
        shape = jnp.clip((total - _float(step)) / tail, 0.0, 1.0)
        return _scaled(self.peak, jnp.where(total < 0, 1.0, shape))

    def spaces(self, height: Space | None) -> dict[str, Space]:
        return {**_height(height, "peak"), "tail_fraction": spaces.FRACTION}


class Exponential(Schedule):
    """`peak * (1 - decay) ** step`.

    Attributes:
      peak: value at step 0; None for a shape of height 1.
      decay: part lost at each step, in [0, 1).
    """

    peak: Float[Array, ""] | None = eqx.field(converter=_optional, default=None)
    decay: Float[Array, ""] = eqx.field(converter=number, default=1e-3)

    def __call__(self, step: int | Array, num_steps: int | Array | None = None) -> Float[Array, ""]:
        del num_steps
        # Through log1p: a power of the rounded 1 - decay is 1e-3 off after 20000 steps.
        return _scaled(self.peak, jnp.exp(_float(step) * jnp.log1p(-self.decay)))

    def spaces(self, height: Space | None) -> dict[str, Space]:
        return {**_height(height, "peak"), "decay": Space.log(1e-7, 1e-1, allowed=(0.0, 0.999999))}


class InverseSqrt(Schedule):
    """`peak * min(t / w, sqrt(w / t))` with `t = max(step, 1)` and `w` warm-up steps.

    The ramp and decay of Vaswani et al., "Attention Is All You Need", 2017, arXiv 1706.03762, eq. 3, scaled
    to reach `peak` at step `w`.

    Attributes:
      peak: highest value; None for a shape of height 1.
      warmup_steps: steps of the linear ramp, at least 1.
    """

    peak: Float[Array, ""] | None = eqx.field(converter=_optional, default=None)
    warmup_steps: Float[Array, ""] = eqx.field(converter=number, default=1000.0)

    def __call__(self, step: int | Array, num_steps: int | Array | None = None) -> Float[Array, ""]:
        del num_steps
        now = jnp.maximum(_float(step), 1.0)
        return _scaled(self.peak, jnp.minimum(now / self.warmup_steps, jnp.sqrt(self.warmup_steps / now)))

    def spaces(self, height: Space | None) -> dict[str, Space]:
        return {**_height(height, "peak"), "warmup_steps": Space.log(1.0, 1e5, allowed=(1.0, 1e8))}


class Step(Schedule):
    """Piecewise constant: `values[i]` from step `boundaries[i - 1]` on, `values[0]` before all of them.

    Attributes:
      boundaries: increasing steps, shape (n,).
      values: shape (n + 1,).

    Raises:
      OuteroptError: the lengths do not fit, or the boundaries do not increase.
    """

    boundaries: Float[Array, " n"]
    values: Float[Array, " n+1"]

    def __init__(self, boundaries: Sequence[float], values: Sequence[float]):
        if len(values) != len(boundaries) + 1:
            raise OuteroptError(
                f"A step schedule with {len(boundaries)} boundaries needs {len(boundaries) + 1} values, "
                f"not {len(values)}."
            )
        _check_increasing("boundaries", boundaries)
        self.boundaries, self.values = number(boundaries), number(values)

    def __call__(self, step: int | Array, num_steps: int | Array | None = None) -> Float[Array, ""]:
        del num_steps
        return self.values[jnp.sum(_float(step) >= self.boundaries)]


class PiecewiseLinear(Schedule):
    """Straight lines through the points `(times[i], values[i])`, constant before and after them.

    Attributes:
      times: increasing steps, shape (n,).
      values: shape (n,).

    Raises:
      OuteroptError: the lengths do not fit, or the times do not increase.

    Examples:
      >>> from outeropt.optimizers import PiecewiseLinear
      >>> schedule = PiecewiseLinear(times=[0.0, 10.0, 20.0], values=[0.0, 1.0, 0.5])
      >>> [float(schedule(step)) for step in (5, 10, 15, 100)]
      [0.5, 1.0, 0.75, 0.5]
    """

    times: Float[Array, " n"]
    values: Float[Array, " n"]

    def __init__(self, times: Sequence[float], values: Sequence[float]):
        if len(values) != len(times) or not len(times):
            raise OuteroptError(
                f"A piecewise linear schedule needs as many values as times: {len(values)}, {len(times)}."
            )
        _check_increasing("times", times)
        self.times, self.values = number(times), number(values)

    def __call__(self, step: int | Array, num_steps: int | Array | None = None) -> Float[Array, ""]:
        del num_steps
        return jnp.interp(_float(step), self.times, self.values)


def clock(schedules: Sequence[Schedule], num_steps: int | Array | None) -> Int[Array, "2"]:
    """What an optimizer with schedules carries in its state: the step, and the run's length (-1: unknown).

    Raises:
      OuteroptError: the length is unknown and a schedule needs it.
    """
    if num_steps is None:
        for schedule in schedules:
            if schedule.needs_num_steps:
                raise OuteroptError(
                    f"The {type(schedule).__name__} schedule spans the run, whose length is not known; "
                    "give it: init(params, num_steps=...) or as_optax(num_steps=...)."
                )
        num_steps = -1
    return jnp.stack([jnp.zeros((), jnp.int32), jnp.asarray(num_steps, jnp.int32)])


def tick(now: Int[Array, "2"]) -> Int[Array, "2"]:
    """The clock one step later."""
    return now + jnp.array([1, 0], jnp.int32)


def value_at(value: Schedule | Array, now: Int[Array, "2"] | None) -> Array:
    """The number that a schedule gives now; anything else as it is."""
    return value(now[0], now[1]) if isinstance(value, Schedule) and now is not None else value  # pyright: ignore[reportReturnType]


def _phases(schedule: Any, step: int | Array, num_steps: int | Array | None) -> tuple[Array, Array]:
    """Height of the warm-up ramp and progress of the decay, both in [0, 1]."""
    if num_steps is None:
        raise OuteroptError(f"The {type(schedule).__name__} schedule needs num_steps, the length of the run.")
    total = _float(num_steps)
    now = jnp.minimum(_float(step), total)
    warmup = schedule.warmup_fraction * total
    start = jnp.maximum(warmup, schedule.constant_fraction * total)
    ramp = jnp.where(now < warmup, now / jnp.where(warmup > 0, warmup, 1.0), 1.0)
    rest = total - start
    progress = jnp.where(rest > 0, jnp.maximum(now - start, 0.0) / jnp.where(rest > 0, rest, 1.0), 0.0)
    return ramp, progress


def _float(value: int | Array) -> Float[Array, ""]:
    return jnp.asarray(value).astype(jnp.float32)


def _scaled(peak: Array | None, shape: Array) -> Array:
    return shape if peak is None else peak * shape


def _height(height: Space | None, field: str) -> dict[str, Space]:
    return {} if height is None else {field: height}


def _check_increasing(name: str, values: Sequence[float]) -> None:
    if not any(isinstance(value, Tracer) for value in values) and np.any(np.diff(values) <= 0):
        raise OuteroptError(
            f"The {name} of a schedule must increase; given: {', '.join(f'{v:g}' for v in values)}."
        )


_FRACTIONS = {
    "end_fraction": spaces.FRACTION,
    "warmup_fraction": Space.linear(0.0, 0.2, allowed=(0.0, 1.0)),
    "constant_fraction": Space.linear(0.0, 0.9, allowed=(0.0, 1.0)),
}
