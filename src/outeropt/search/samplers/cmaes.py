"""Evolution of a normal distribution over points."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from outeropt.search.domain import Point
from outeropt.search.samplers.base import Sampler, ranked
from outeropt.search.samplers.extras import needed


class CMAES(Sampler):
    """Covariance matrix adaptation: the better points of a generation move and stretch a normal distribution.

    Hansen 2016, "The CMA Evolution Strategy: A Tutorial", arXiv 1604.00772, by the package `cmaes`, in the
    unit cube of the spaces' scales; a choice is a stretch of its edge. A generation is one batch, at least 4
    points, and begins in the middle of the cube with standard deviation 0.3. With earlier scores it begins
    where the best of these are (Nomura et al. 2021, arXiv 2012.06932).

    Optuna's own wrapper of the same package draws the first batch at random and learns nothing from it, and a
    search of lanes has few batches; therefore the package is asked directly.

    Raises:
      ConfigError: cmaes is not installed.
    """

    fewest: ClassVar[int] = 2

    def __init__(self, domain, *, trials, parallel, seed):
        super().__init__(domain, trials=trials, parallel=parallel, seed=seed)
        self._cmaes = needed("cmaes", "cmaes")
        self._earlier: list[tuple[np.ndarray, float]] = []
        self._told: list[tuple[np.ndarray, float]] = []
        self._strategy = None

    def ask(self, count: int) -> list[Point]:
        strategy = self._started()
        return [self.domain.point(strategy.ask()) for _ in range(count)]

    def tell(self, points: Sequence[Point], scores) -> None:
        answers = [(self.domain.fractions(point), score) for point, score in zip(points, ranked(scores))]
        if self._strategy is None:
            self._earlier += answers
            return
        self._told += answers
        size = self._strategy.population_size
        while len(self._told) >= size:
            self._strategy.tell(self._told[:size])
            self._told = self._told[size:]

    def _started(self):
        if self._strategy is None:
            mean, sigma, cov = np.full(len(self.domain), 0.5), 0.3, None
            if self._earlier:
                # The best tenth of them, and three at the least, so that a covariance means something.
                share = min(1.0, max(0.1, 3.0 / len(self._earlier)))
                mean, sigma, cov = self._cmaes.get_warm_start_mgd(self._earlier, gamma=share)
            self._strategy = self._cmaes.CMA(
                mean=mean,
                sigma=sigma,
                cov=cov,
                bounds=np.array([[0.0, 1.0]] * len(self.domain)),
                seed=self.seed,
                population_size=max(4, self.parallel),
            )
        return self._strategy
