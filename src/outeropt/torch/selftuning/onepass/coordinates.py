"""Hyperparameters by name, on the scale that they are tuned in."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from outeropt.errors import OuteroptError, unknown_name


Coordinates = Literal["decades", "log", "plain"]

# The range that each is tuned in, and whether it is a rate (scaled by a factor) or a momentum.
_RATE, _MOMENTUM, _SECOND = (1e-7, 1e3), (0.5, 0.999), (0.8, 0.99999)
_RANGES = {"lr": _RATE, "weight_decay": _RATE, "momentum": _MOMENTUM, "beta1": _MOMENTUM, "beta2": _SECOND}
_PLACES = {"beta1": ("betas", 0), "beta2": ("betas", 1)}


@dataclasses.dataclass(frozen=True)
class Coordinate:
    """One tuned hyperparameter.

    All groups share the coordinate, and keep their differences. For a rate (`lr`, `weight_decay`) it is that
    of the group where the rate is largest, and others stay at their share of it. For a momentum it is that of
    the first group.

    Attributes:
      name: `"lr"`, `"weight_decay"`, `"momentum"`, `"beta1"` or `"beta2"`.
      scale: `"log"`, `"logit"` or `"plain"`.
      unit: how much of the logarithm is one.
      low: lower end of the range of its values.
      high: upper end of it.
      start: its value at the start, in the group that the coordinate is of.
    """

    name: str
    scale: Literal["log", "logit", "plain"]
    unit: float
    low: float
    high: float
    start: float

    def of(self, value: float) -> float:
        """The coordinate of a value, moved into the range."""
        value = min(max(value, self.low), self.high)
        if self.scale == "logit":
            return math.log(value) - math.log1p(-value)
        return math.log(value) / self.unit if self.scale == "log" else value

    def value(self, coordinate: Tensor) -> Tensor:
        """The value at a coordinate."""
        if self.scale == "logit":
            return torch.sigmoid(coordinate)
        return torch.exp(self.unit * coordinate) if self.scale == "log" else coordinate

    def inside(self, group: Mapping[str, Any], value: Any, reference: float) -> dict[str, Any]:
        """What a group's settings become.

        Args:
          group: its settings as the user and schedulers left them.
          value: the tuned value, a number or a tensor.
          reference: the value that the user gave, in the group that the coordinate is of.
        """
        own = _read(group, self.name)
        if not _is_rate(self.name):
            value = value + (own - reference)
        elif reference:
            value = own / reference * value
        if self.name not in _PLACES:
            return {self.name: value}
        name, place = _PLACES[self.name]
        return {name: tuple(value if i == place else old for i, old in enumerate(group[name]))}


def coordinates_of(
    groups: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    coordinates: Coordinates,
    ranges: Mapping[str, tuple[float, float]],
) -> list[Coordinate]:
    """The coordinates of hyperparameters of some groups.

    Raises:
      UnknownName: the groups have no such hyperparameter.
      OuteroptError: none is named, or there are no such coordinates, or a range does not suit its scale.
    """
    if coordinates not in ("decades", "log", "plain"):
        raise OuteroptError(f'Coordinates are "decades", "log" or "plain", not {coordinates!r}.')
    if not names:
        raise OuteroptError('Nothing is named to be tuned; name something, such as ("lr",).')
    allowed = [name for name in _RANGES if _PLACES.get(name, (name,))[0] in groups[0]]
    for name in (*names, *ranges):
        if name not in allowed:
            raise unknown_name("tunable hyperparameter", name, allowed, see=", ".join(allowed))
    found = []
    for name in names:
        values = [float(_read(group, name)) for group in groups]
        scale = "plain" if coordinates == "plain" else "log" if _is_rate(name) else "logit"
        unit = math.log(10.0) if coordinates == "decades" else 1.0
        low, high = ranges.get(name, _RANGES[name])
        if name not in ranges and scale == "plain":
            low = 0.0
        if not low <= high or (scale != "plain" and low <= 0.0) or (scale == "logit" and high >= 1.0):
            raise OuteroptError(f"The range of {name} from {low:g} to {high:g} has no {scale} coordinates.")
        found.append(Coordinate(name, scale, unit, low, high, max(values) if _is_rate(name) else values[0]))
    return found


def _is_rate(name: str) -> bool:
    return name in ("lr", "weight_decay")


def _read(group: Mapping[str, Any], name: str) -> Any:
    """A group's value, in words of this module."""
    key, place = _PLACES.get(name, (name, None))
    return group[key] if place is None else group[key][place]
