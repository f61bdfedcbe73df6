"""Independent uniform draws."""

import numpy as np

from outeropt.search.domain import Point
from outeropt.search.samplers.base import Sampler


class Random(Sampler):
    """Points drawn independently and uniformly on the scales of the spaces.

    Bergstra and Bengio 2012, "Random Search for Hyper-Parameter Optimization". More trials with the same seed
    begin with the points of fewer.
    """

    def __init__(self, domain, *, trials, parallel, seed):
        super().__init__(domain, trials=trials, parallel=parallel, seed=seed)
        self._rng = np.random.default_rng(seed)

    def ask(self, count: int) -> list[Point]:
        return [self.domain.point(row) for row in self._rng.random((count, len(self.domain)))]
