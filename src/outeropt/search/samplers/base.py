"""The protocol of all samplers: ask for points, tell their scores."""

import abc
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from outeropt.search.domain import Domain, Point


class Sampler(abc.ABC):
    """Chooses points of a domain, batch by batch.

    The same seed and the same answers give the same questions. A search that is begun again therefore asks
    again what it asked before, and a store answers for trials that it has.

    Args:
      domain: what may be changed.
      trials: points that will be asked for in all, at the most.
      parallel: points that will be asked for at a time, at the most.
      seed: of all randomness.
    """

    fewest: ClassVar[int] = 1
    """Leaves that it takes at the least."""

    def __init__(self, domain: Domain, *, trials: int, parallel: int, seed: int):
        self.domain = domain
        self.trials = trials
        self.parallel = parallel
        self.seed = seed

    @abc.abstractmethod
    def ask(self, count: int) -> list[Point]:
        """The next points, `count` or fewer; none when all points have been asked for."""

    def tell(self, points: Sequence[Point], scores: Sequence[float] | Float[np.ndarray, " points"]) -> None:
        """Hears the scores of points: those that were asked for, or earlier ones before the first are.

        Args:
          points: any points of the domain.
          scores: lower is better; anything that is not finite is worse than every finite score.
        """
        del points, scores


# Above every float32, and finite: what samplers hear in place of an infinity. They go by ranks alone, so a
# penalty next to the worst finite score says nothing more, and would be overtaken by a worse one later. A
# trial that is reported as failed would be forgotten, and its neighbourhood asked for again.
_PENALTY = 1e39


def ranked(scores: Sequence[float] | Float[np.ndarray, " points"]) -> list[float]:
    """Scores with the penalty in place of what is not finite."""
    return [float(score) if np.isfinite(score) else _PENALTY for score in scores]
