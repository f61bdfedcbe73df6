"""Where methods begin that choose all their settings at once."""

import math

from outeropt.errors import ConfigError
from outeropt.search.domain import Point
from outeropt.search.problem import Problem
from outeropt.search.samplers.base import Sampler


def starts(problem: Problem, sampler: type[Sampler]) -> list[Point]:
    """As many points as there are trials: the best earlier one, if any, and those of a sampler.

    Raises:
      ConfigError: the sampler has fewer points.
    """
    good = [pair for pair in problem.warm if math.isfinite(pair[1])]
    warm = [min(good, key=lambda pair: pair[1])[0]] if good else []
    count = problem.trials - len(warm)
    if not count:
        return warm
    source = sampler(problem.domain, trials=count, parallel=problem.parallel, seed=problem.seed)
    drawn: list[Point] = []
    while len(drawn) < count and (asked := source.ask(count - len(drawn))):
        drawn += asked
    if len(drawn) < count:
        raise ConfigError(
            f"{sampler.__name__} has only {len(drawn)} of {count} settings to begin with; "
            "give fewer trials or another sampler."
        )
    return warm + drawn
