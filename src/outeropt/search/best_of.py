"""How good the best of k trials is expected to be, from trials that have been run."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from outeropt.best_of import chances
from outeropt.errors import ConfigError


class BestOfK(NamedTuple):
    """Expected lowest score of k trials, with an interval.

    Attributes:
      ks: numbers of trials.
      estimate: expected lowest score of that many.
      low: lower end of the interval.
      high: upper end of the interval.
    """

    ks: Int[np.ndarray, " ks"]
    estimate: Float[np.ndarray, " ks"]
    low: Float[np.ndarray, " ks"]
    high: Float[np.ndarray, " ks"]


def expected_best_of_k(
    scores: Sequence[float] | Float[np.ndarray, " n"],
    ks: Sequence[int] | None = None,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> BestOfK:
    """Expected lowest of k scores drawn without replacement from n, exact.

    The unbiased estimate for a random search of k trials (`best_of.chances`; Tang et al. 2020, arXiv
    2004.13705). The interval is the percentile bootstrap over the n scores.

    Args:
      scores: one for each trial, lower is better. What is not finite counts as the worst finite score.
      ks: numbers of trials, each from 1 to n; None takes 1 to n.
      level: of the interval, in (0, 1).
      resamples: bootstrap resamples.
      seed: of these.

    Raises:
      ConfigError: no score is finite, or a k is not from 1 to n.

    Examples:
      >>> from outeropt.search import expected_best_of_k
      >>> expected_best_of_k([3.0, 1.0, 2.0], [1, 2, 3]).estimate.round(3).tolist()
      [2.0, 1.333, 1.0]
    """
    given = np.asarray(scores, np.float64).ravel()
    finite = np.isfinite(given)
    if not finite.any():
        raise ConfigError("There is no best of trials that all diverged, or of none.")
    values = np.where(finite, given, given[finite].max())
    n = len(values)
    counts = np.arange(1, n + 1) if ks is None else np.asarray(ks, np.int64)
    if counts.size and not (counts.min() >= 1 and counts.max() <= n):
        raise ConfigError(f"The best of {counts.min()} to {counts.max()} of {n} trials is not defined.")
    weights = chances(n, int(counts.max(initial=1)))[counts - 1]
    drawn = np.random.default_rng(seed).choice(values, (resamples, n))
    spread = np.sort(drawn, axis=1) @ weights.T
    low, high = np.quantile(spread, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return BestOfK(counts, weights @ np.sort(values), low, high)
