"""Numbers that follow the stage or the period of a training: one for all, a list, or a geometric sequence."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from outeropt.errors import ConfigError


Schedule = float | Sequence[float] | Mapping[str, float]


def at(schedule: Schedule, index: int) -> float:
    """The value at one stage or period.

    Args:
      schedule: a number; a list, whose last number holds for all that follow; or `{"start": a, "factor": b}`
        for `a b^index`.
      index: from 0.
    """
    if isinstance(schedule, Mapping):
        return schedule["start"] * schedule["factor"] ** index
    if isinstance(schedule, Sequence):
        return schedule[min(index, len(schedule) - 1)]
    return schedule


def whole(schedule: Schedule, index: int, lowest: int) -> int:
    """The same as a whole number, rounded to the nearest, and at least `lowest`: sequences may fall."""
    return max(lowest, round(at(schedule, index)))


def check(name: str, schedule: Any, lowest: float, *, is_whole: bool = False) -> Schedule:
    """The schedule, if it is one.

    Args:
      name: for the message.
      schedule: what was given.
      lowest: the least value that is allowed.
      is_whole: whether lists and numbers must be whole.

    Raises:
      ConfigError: it is none, or a value is too low or not finite.
    """
    if isinstance(schedule, Mapping):
        values = [schedule.get("start"), schedule.get("factor")]
        shaped = schedule.keys() == {"start", "factor"} and all(map(_is_number, values))
        if shaped and schedule["start"] >= lowest and schedule["factor"] > 0:
            return {"start": schedule["start"], "factor": schedule["factor"]}
    else:
        values = list(schedule) if isinstance(schedule, list | tuple) else [schedule]
        fits = bool(values) and all(_is_number(value) and value >= lowest for value in values)
        if fits and (not is_whole or all(value == int(value) for value in values)):
            return tuple(values) if isinstance(schedule, list | tuple) else schedule
    kind = "whole numbers" if is_whole else "numbers"
    raise ConfigError(
        f"{name} = {schedule!r} is not possible; give {kind} of at least {lowest:g}: one, a list such as "
        "1,2,5 of which the last holds on, or start and factor of a geometric sequence."
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
