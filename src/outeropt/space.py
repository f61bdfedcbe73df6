"""Where a hyperparameter lives and how it is scaled."""

import contextlib
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from outeropt.errors import ConfigError, OutOfSpace


Scale = Literal["linear", "log", "logit", "choice"]

_TO = {
    "linear": lambda x: x,
    "log": jnp.log,
    "logit": lambda x: jnp.log(x) - jnp.log1p(-x),
}
_FROM = {"linear": lambda z: z, "log": jnp.exp, "logit": jax.nn.sigmoid}


def _to_real(scale: Scale, x: float) -> float:
    """The coordinate of a Python number in double precision, which float32 lacks near 1."""
    return {"linear": float, "log": math.log, "logit": lambda p: math.log(p / (1 - p))}[scale](x)


def _from_real(scale: Scale, z: float) -> float:
    return {"linear": float, "log": math.exp, "logit": lambda q: 1 / (1 + math.exp(-q))}[scale](z)


@dataclasses.dataclass(frozen=True)
class Space:
    """The range of one hyperparameter, its scale, and its unconstrained coordinates.

    Grids, random sampling, Bayesian search, hypergradients, ES noise and input checking all read it.

    Attributes:
      low: lower end of the range worth searching (inclusive).
      high: upper end of the range worth searching (inclusive).
      scale: `"log"` spreads points evenly in `log x`, `"logit"` in `log(x / (1 - x))` (for momenta and
        decays, whose distance to 1 matters), `"linear"` in `x`; `"choice"` picks from `choices`.
      choices: the values of a `"choice"` space, in order; empty otherwise.
      allowed: hard limits (inclusive): a value between these is accepted even when it is not worth searching,
        such as a weight decay of 0 on a log scale. Defaults to `(low, high)`.

    Raises:
      ConfigError: the range is empty, does not suit its scale, or reaches beyond `allowed`.

    Examples:
      >>> from outeropt import Space
      >>> rate = Space.log(1e-4, 1e-1, allowed=(0.0, 1.0))
      >>> [round(value, 6) for value in rate.grid(4)]
      [0.0001, 0.001, 0.01, 0.1]
      >>> rate.contains(0.5), rate.contains(2.0)
      (True, False)
      >>> print(Space.logit(0.5, 0.999))
      0.5 to 0.999 (logit)
      >>> print(Space.choice(16, 32))
      one of 16, 32
    """

    low: float
    high: float
    scale: Scale = "linear"
    choices: tuple[float, ...] = ()
    allowed: tuple[float, float] | None = None

    def __post_init__(self):
        if self.scale == "choice":
            if not self.choices:
                raise ConfigError("A choice space needs at least one choice.")
            return
        if self.scale not in _TO:
            raise ConfigError(f"Scale {self.scale!r} is unknown; use linear, log, logit or choice.")
        if not self.low <= self.high:
            raise ConfigError(f"Space from {self.low:g} to {self.high:g} is empty; low must not exceed high.")
        if self.scale in ("log", "logit") and self.low <= 0:
            raise ConfigError(f"A {self.scale} space must start above 0, not at {self.low:g}.")
        if self.scale == "logit" and self.high >= 1:
            raise ConfigError(f"A logit space must end below 1, not at {self.high:g}.")
        low, high = self.limits
        if not low <= self.low <= self.high <= high:
            raise ConfigError(
                f"Limits from {low:g} to {high:g} cut the space from {self.low:g} to {self.high:g}."
            )

    @classmethod
    def linear(cls, low: float, high: float, allowed: tuple[float, float] | None = None) -> "Space":
        """A range searched evenly in `x`."""
        return cls(low, high, "linear", allowed=allowed)

    @classmethod
    def log(cls, low: float, high: float, allowed: tuple[float, float] | None = None) -> "Space":
        """A positive range searched evenly in `log x`; `allowed` may add 0 or larger values."""
        return cls(low, high, "log", allowed=allowed)

    @classmethod
    def logit(cls, low: float, high: float, allowed: tuple[float, float] | None = None) -> "Space":
        """A range inside (0, 1) searched evenly in `log(x / (1 - x))`."""
        return cls(low, high, "logit", allowed=allowed)

    @classmethod
    def choice(cls, *choices: float) -> "Space":
        """A finite list of values."""
        return cls(min(choices, default=0.0), max(choices, default=0.0), "choice", tuple(choices))

    @property
    def limits(self) -> tuple[float, float]:
        """The hard limits that `check` enforces."""
        return self.allowed or (self.low, self.high)

    def contains(self, value: float) -> bool:
        """Whether `value` may be used, by the hard limits or the list of choices."""
        if self.scale == "choice":
            return any(math.isclose(value, choice, rel_tol=1e-6) for choice in self.choices)
        low, high = self.limits
        # float32 leaves come back a rounding away from the limit that they stand on.
        slack = 1e-6
        return bool(low - slack * abs(low) <= value <= high + slack * abs(high))

    def check(self, name: str, value: Any) -> None:
        """Raises `OutOfSpace` naming the hyperparameter, what was given and what is allowed."""
        for item in np.ravel(np.asarray(value, dtype=np.float64)):
            if not self.contains(float(item)):
                raise OutOfSpace(f"{name} = {float(item):g} is outside its space; allowed: {self}.")

    def clip(self, value: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """The nearest value inside `[low, high]`, or the nearest choice."""
        if self.scale == "choice":
            options = jnp.asarray(self.choices, value.dtype)
            # Into the range first: far away all choices are equally near in float32.
            value = jnp.clip(value, self.low, self.high)
            distance = jnp.abs(value[..., None] - options.reshape((1,) * value.ndim + (-1,)))
            return options[jnp.argmin(distance, axis=-1)]
        return jnp.clip(value, self.low, self.high)

    def to_unconstrained(self, value: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Coordinates on the whole real line: `x`, `log x` or `log(x / (1 - x))` by scale."""
        self._needs_coordinates()
        return _TO[self.scale](jnp.asarray(value))

    def from_unconstrained(self, coordinate: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """The inverse of `to_unconstrained`."""
        self._needs_coordinates()
        return _FROM[self.scale](jnp.asarray(coordinate))

    def _needs_coordinates(self) -> None:
        if self.scale == "choice":
            raise ConfigError(
                "A choice space has no unconstrained coordinates; search it by grid or sampling."
            )

    def grid(self, count: int) -> tuple[float, ...]:
        """`count` values spread evenly over `[low, high]` on the scale; every choice of a choice space.

        Raises:
          ConfigError: `count` is below 1.
        """
        if count < 1:
            raise ConfigError(f"A grid of {count} values is empty; give at least 1.")
        if self.scale == "choice":
            return self.choices
        if count == 1 or self.low == self.high:
            return (self.low,)
        points = np.linspace(_to_real(self.scale, self.low), _to_real(self.scale, self.high), count)
        inner = [_from_real(self.scale, float(z)) for z in points[1:-1]]
        return (self.low, *inner, self.high)

    def at(self, fraction: float) -> float:
        """The value that lies this far, from 0 to 1, through `[low, high]` on the scale.

        A choice space is cut into equal parts, one for each choice. Every search asks by these coordinates.
        The answer is a float32, as a leaf keeps it.
        """
        fraction = min(max(float(fraction), 0.0), 1.0)
        if self.scale == "choice":
            return self.choices[min(int(fraction * len(self.choices)), len(self.choices) - 1)]
        low, high = (_to_real(self.scale, end) for end in (self.low, self.high))
        value = np.float32(_from_real(self.scale, low + fraction * (high - low)))
        # The shortest decimal that reads back as this float32, as settings are described.
        return min(max(float(str(value)), self.low), self.high)

    def fraction(self, value: float) -> float:
        """How far through `[low, high]` a value lies on the scale: the inverse of `at`, from 0 to 1.

        A value beyond the range counts as its nearest end, and a choice as the middle of its part.
        """
        if self.scale == "choice":
            nearest = min(range(len(self.choices)), key=lambda i: abs(self.choices[i] - value))
            return (nearest + 0.5) / len(self.choices)
        if self.low == self.high:
            return 0.5
        low, high = (_to_real(self.scale, end) for end in (self.low, self.high))
        inside = _to_real(self.scale, min(max(float(value), self.low), self.high))
        return (inside - low) / (high - low)

    def sample(self, key: PRNGKeyArray, count: int) -> Float[Array, " count"]:
        """`count` independent draws, uniform on the space's scale."""
        if self.scale == "choice":
            return jax.random.choice(key, jnp.asarray(self.choices, jnp.float32), (count,))
        low, high = (_TO[self.scale](jnp.float32(end)) for end in (self.low, self.high))
        draws = jax.random.uniform(key, (count,), minval=low, maxval=high)
        return jnp.clip(_FROM[self.scale](draws), self.low, self.high)

    def to_algoperf(self) -> dict[str, Any]:
        """AlgoPerf's JSON form: `{"min", "max", "scaling"}` or `{"feasible_points"}`."""
        if self.scale == "choice":
            return {"feasible_points": list(self.choices)}
        return {"min": self.low, "max": self.high, "scaling": self.scale}

    @classmethod
    def from_algoperf(cls, entry: Mapping[str, Any]) -> "Space":
        """Reads one entry of an AlgoPerf search space.

        Raises:
          ConfigError: the entry is neither a range nor a list of points, or the range is no space.
        """
        with contextlib.suppress(TypeError, ValueError, KeyError):
            if "feasible_points" in entry:
                return cls.choice(*(float(point) for point in entry["feasible_points"]))
            return cls(float(entry["min"]), float(entry["max"]), entry["scaling"])
        raise ConfigError(
            f"Search space entry {json.dumps(entry)} is not understood; "
            'give {"min", "max", "scaling"} or {"feasible_points"}, with numbers.'
        )

    def __str__(self) -> str:
        if self.scale == "choice":
            return "one of " + ", ".join(f"{choice:g}" for choice in self.choices)
        low, high = self.limits
        searched = "" if (low, high) == (self.low, self.high) else f", searched {self.low:g} to {self.high:g}"
        return f"{low:g} to {high:g} ({self.scale}{searched})"


def read_search_space(text: str) -> dict[str, Space]:
    """Reads an AlgoPerf search-space JSON document into spaces by hyperparameter name.

    Raises:
      ConfigError: the text is no JSON mapping, or an entry is no space.
    """
    try:
        document = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"The search space is not JSON: {error}.") from None
    if not isinstance(document, dict):
        # AlgoPerf's other form, a list, holds the settings themselves.
        raise ConfigError(
            f"The search space is a {type(document).__name__}; it must map names to "
            '{"min", "max", "scaling"} or {"feasible_points"}.'
        )
    return {name: Space.from_algoperf(entry) for name, entry in document.items()}


def write_search_space(spaces: Mapping[str, Space]) -> str:
    """Writes spaces as an AlgoPerf search-space JSON document."""
    return json.dumps({name: space.to_algoperf() for name, space in spaces.items()}, indent=2)


def parse_grid(text: str) -> Sequence[float]:
    """Reads a grid as the command line writes it.

    `"log:1e-5:1e-1:9"` is nine values on a log scale, `"0.1,0.3,1"` a list. Scales: linear, log, logit.

    Raises:
      ConfigError: the text is neither form, or the range does not suit its scale.
    """
    try:
        if ":" in text:
            scale, low, high, count = text.split(":")
            if scale not in _TO:
                raise ConfigError(f"Grid {text!r} has the unknown scale {scale!r}; use {', '.join(_TO)}.")
            return Space(float(low), float(high), scale).grid(int(count))  # pyright: ignore[reportArgumentType]
        return tuple(float(item) for item in text.split(","))
    except ValueError:
        raise ConfigError(
            f"Grid {text!r} is not understood; write scale:low:high:count (log:1e-5:1e-1:9) "
            "or a list (0.1,0.3,1)."
        ) from None
