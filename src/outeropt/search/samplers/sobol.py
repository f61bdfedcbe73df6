"""Points of low discrepancy."""

import math

from scipy.stats import qmc

from outeropt.search.domain import Point
from outeropt.search.samplers.base import Sampler


class Sobol(Sampler):
    """A scrambled Sobol sequence in the unit cube of the spaces' scales: random search without its gaps.

    Sobol 1967; scrambling after Owen 1998, by `scipy.stats.qmc`. A number of trials that is a power of 2 is
    spread best. More trials with the same seed begin with the points of fewer.
    """

    def __init__(self, domain, *, trials, parallel, seed):
        super().__init__(domain, trials=trials, parallel=parallel, seed=seed)
        drawn = qmc.Sobol(len(domain), scramble=True, rng=seed).random_base2(math.ceil(math.log2(trials)))
        self._points = [domain.point(row) for row in drawn]

    def ask(self, count: int) -> list[Point]:
        now, self._points = self._points[:count], self._points[count:]
        return now
