"""Bayesian search by Optuna's tree-structured Parzen estimator."""

import warnings
from collections.abc import Sequence
from typing import Any

from outeropt.search.domain import Point
from outeropt.search.samplers.base import Sampler, ranked
from outeropt.search.samplers.extras import needed


class Bayes(Sampler):
    """Points that are likely to be among the best, by densities fitted to the better and the worse ones.

    Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization", in the multivariate form of Optuna's
    `TPESampler` (Falkner et al. 2018, arXiv 1807.01774). Points of one batch, whose scores are not known yet,
    count as bad for those after them (the constant liar of Ginsbourger et al. 2010), so that a batch does not
    crowd in one place. Leaves are searched in the unit cube of their scales; choices are categories.

    The first ten points are random.

    Raises:
      ConfigError: optuna is not installed.
    """

    def __init__(self, domain, *, trials, parallel, seed):
        super().__init__(domain, trials=trials, parallel=parallel, seed=seed)
        optuna = self._optuna = needed("optuna", "bayes")
        uniform = optuna.distributions.FloatDistribution(0.0, 1.0)
        self._distributions = {
            name: optuna.distributions.CategoricalDistribution(tuple(range(len(space.choices))))
            if space.scale == "choice"
            else uniform
            for name, space in domain.spaces.items()
        }
        with warnings.catch_warnings():
            # Earlier versions of Optuna call both options experimental.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(sampler=sampler)
        self._open: list[tuple[Point, Any]] = []

    def ask(self, count: int) -> list[Point]:
        asked = [self._study.ask(self._distributions) for _ in range(count)]
        points = [self._point(trial.params) for trial in asked]
        self._open += zip(points, asked)
        return points

    def tell(self, points: Sequence[Point], scores) -> None:
        for point, score in zip(points, ranked(scores)):
            place = next((i for i, (asked, _) in enumerate(self._open) if asked == point), None)
            if place is None:
                self._study.add_trial(self._earlier(point, score))
            else:
                self._study.tell(self._open.pop(place)[1], score)

    def _point(self, params: dict[str, Any]) -> Point:
        spaces = self.domain.spaces
        return {
            name: spaces[name].choices[params[name]]
            if spaces[name].scale == "choice"
            else spaces[name].at(params[name])
            for name in spaces
        }

    def _earlier(self, point: Point, score: float) -> Any:
        """A trial of Optuna's that nobody asked for."""
        params = {
            name: int(u * len(space.choices)) if space.scale == "choice" else float(u)
            for (name, space), u in zip(self.domain.spaces.items(), self.domain.fractions(point))
        }
        return self._optuna.trial.create_trial(params=params, distributions=self._distributions, value=score)
