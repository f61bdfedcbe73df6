"""Means that one lucky run cannot move, and intervals for them.

Source of the inter-quartile mean, the stratified bootstrap and the probability of improvement: Agarwal et
al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice", arXiv 2108.13264.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from outeropt.errors import OuteroptError


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate with a confidence interval."""

    estimate: float
    low: float
    high: float


def interquartile_mean(
    values: Float[np.ndarray, "*batch n"], weights: Float[np.ndarray, " n"] | None = None
) -> Float[np.ndarray, "*batch"]:
    """Mean of the middle half of the last axis: `2 * integral_{1/4}^{3/4} F^{-1}(u) du`.

    A value that straddles a quartile counts by the part inside, so for `n` divisible by 4 and equal weights
    this is the usual mean without the lowest and the highest quarter. Never NaN for finite values.

    Args:
      values: at least one value along the last axis.
      weights: positive weight of each value; equal if None.

    Examples:
      >>> import numpy as np
      >>> from outeropt.bench.statistics import interquartile_mean
      >>> float(interquartile_mean(np.array([1.0, 2.0, 3.0, 100.0])))
      2.5
    """
    values = np.asarray(values, np.float64)
    weights = np.ones(values.shape[-1]) if weights is None else np.asarray(weights, np.float64)
    order = np.argsort(values, axis=-1, kind="stable")
    mass = (weights / weights.sum())[order]
    upper = np.cumsum(mass, axis=-1)
    inside = np.clip(np.minimum(upper, 0.75) - np.maximum(upper - mass, 0.25), 0, None)
    sorted_values = np.take_along_axis(values, order, axis=-1)
    return (inside * sorted_values).sum(axis=-1) / inside.sum(axis=-1)


def bootstrap_iqm(
    scores: Sequence[Float[np.ndarray, " seeds"]],
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Inter-quartile mean over all (task, seed) scores, with a stratified percentile bootstrap.

    Every task counts the same, whatever its number of seeds. A resample draws seeds with replacement within
    each task (the strata), never tasks: the interval says how the score would move with other seeds on these
    tasks.

    Args:
      scores: one array of seeds per task.
      resamples: bootstrap resamples.
      confidence: probability mass of the interval, in (0, 1).
      seed: of the resampling; the same seed gives the same interval.
    """
    pooled, weights = np.concatenate(scores), _equal_tasks(scores)
    draws = _resample(scores, resamples, np.random.default_rng(seed))
    estimates = interquartile_mean(np.concatenate(draws, axis=1), weights)
    return _percentiles(float(interquartile_mean(pooled, weights)), estimates, confidence)


def mean_interval(
    values: Float[np.ndarray, "*batch seeds"], confidence: float = 0.95
) -> tuple[Float[np.ndarray, "*batch"], Float[np.ndarray, "*batch"], Float[np.ndarray, "*batch"]]:
    """Mean over the last axis with Student's t interval, `mean -+ t_{n-1} s / sqrt(n)`: mean, low, high.

    With one seed there is no spread to estimate: the interval is the mean itself.
    """
    from scipy.special import stdtrit

    values = np.asarray(values, np.float64)
    count = values.shape[-1]
    mean = values.mean(axis=-1)
    if count == 1:
        return mean, mean, mean
    half = stdtrit(count - 1, (1 + confidence) / 2) * values.std(axis=-1, ddof=1) / np.sqrt(count)
    return mean, mean - half, mean + half


def probability_of_improvement(
    ours: Mapping[str, Float[np.ndarray, " seeds"]],
    theirs: Mapping[str, Float[np.ndarray, " seeds"]],
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """How likely a run of ours scores higher than a run of theirs on a task drawn at random.

    `mean over tasks of P(X > Y) + P(X = Y) / 2` over all pairs of seeds (Mann-Whitney), on the tasks that
    both have, with a stratified bootstrap of both sides. 0.5 means no difference.

    Args:
      ours: scores by task, higher is better.
      theirs: the same for the other.
      resamples: bootstrap resamples.
      confidence: probability mass of the interval.
      seed: of the resampling.

    Raises:
      OuteroptError: no task in common.
    """
    tasks = sorted(ours.keys() & theirs.keys())
    if not tasks:
        raise OuteroptError("The two have run no task in common, so they cannot be compared.")
    x, y = ([np.asarray(side[task], np.float64) for task in tasks] for side in (ours, theirs))
    rng = np.random.default_rng(seed)
    x_draws, y_draws = _resample(x, resamples, rng), _resample(y, resamples, rng)
    estimate = np.mean([_wins(a, b) for a, b in zip(x, y)])
    estimates = np.mean([_wins(a, b) for a, b in zip(x_draws, y_draws)], axis=0)
    return _percentiles(float(estimate), estimates, confidence)


def _wins(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    sign = np.sign(x[..., :, None] - y[..., None, :])
    return (sign.mean(axis=(-2, -1)) + 1) / 2


def _equal_tasks(scores: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.full(len(task), 1 / len(task)) for task in scores])


def _resample(scores: Sequence[np.ndarray], resamples: int, rng: np.random.Generator) -> list[np.ndarray]:
    return [np.asarray(task)[rng.integers(len(task), size=(resamples, len(task)))] for task in scores]


def _percentiles(estimate: float, estimates: np.ndarray, confidence: float) -> Interval:
    tail = (1 - confidence) / 2
    low, high = np.quantile(estimates, [tail, 1 - tail])
    return Interval(estimate, float(low), float(high))
