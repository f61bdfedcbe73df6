"""All combinations of evenly spread values."""

import itertools
import math

from outeropt.search.domain import Point
from outeropt.search.samplers.base import Sampler


class Grid(Sampler):
    """A grid of as many points as the trials allow, spread evenly on the scales of the spaces.

    Every leaf gets as many values as the others or one more, those named first the more; a choice space no
    more than its choices. The last leaf changes fastest. There may be fewer points than trials.
    """

    def __init__(self, domain, *, trials, parallel, seed):
        super().__init__(domain, trials=trials, parallel=parallel, seed=seed)
        spaces = list(domain.spaces.values())
        counts = _counts([len(space.choices) or trials for space in spaces], trials)
        # A single value is best in the middle; Space.grid puts it at the low end.
        axes = [space.grid(n) if n > 1 else (space.at(0.5),) for space, n in zip(spaces, counts)]
        axes = [axis[:n] for axis, n in zip(axes, counts)]
        self._points = [dict(zip(domain.spaces, values)) for values in itertools.product(*axes)]

    def ask(self, count: int) -> list[Point]:
        now, self._points = self._points[:count], self._points[count:]
        return now


def _counts(most: list[int], trials: int) -> list[int]:
    """Values for each axis: as equal as possible, with a product of `trials` at the most."""
    counts = [1] * len(most)
    while True:
        open_axes = [
            i
            for i, count in enumerate(counts)
            if count < most[i] and math.prod(counts) // count * (count + 1) <= trials
        ]
        if not open_axes:
            return counts
        counts[min(open_axes, key=lambda i: counts[i])] += 1
