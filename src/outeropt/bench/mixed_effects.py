"""How much replicates differ, and how much evaluations of one replicate do: a random intercept, by REML.

`y_ij = mu + a_i + e_ij` with `a_i ~ N(0, s_a^2)` for replicate i (a learned optimizer that was meta-trained
again) and `e_ij ~ N(0, s_e^2)` for its evaluation j (a seed). Optimizer amalgamation calls s_a meta-stability
and s_e evaluation stability (Huang et al. 2022, arXiv 2203.06474, section 5); its code does not have the fit.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from outeropt.bench.statistics import Interval


Many = np.ndarray | float

_NAN = Interval(np.nan, np.nan, np.nan)


@dataclasses.dataclass(frozen=True)
class MixedEffects:
    """A fitted random intercept.

    Attributes:
      mean: the mean mu over replicates, with Student's interval on replicates - 1 degrees of freedom.
      replicate_sd: standard deviation of the replicates' effects, with its profile interval; NaN with one
        replicate, or with one evaluation of each, which cannot be told from noise.
      residual_sd: standard deviation of evaluations about their replicate, with its profile interval; NaN
        with one evaluation of each replicate.
      replicates: how many there are.
      evaluations: how many values there are.
      left_out: values that were not finite, of runs that diverged: they have no place in a normal model.
    """

    mean: Interval
    replicate_sd: Interval
    residual_sd: Interval
    replicates: int
    evaluations: int
    left_out: int


@dataclasses.dataclass(frozen=True)
class _Groups:
    """Sufficient statistics: sizes and means of the groups, and the squares within them."""

    sizes: Float[np.ndarray, " k"]
    means: Float[np.ndarray, " k"]
    within: float

    def mean(self, a2: Many, e2: Many) -> tuple[np.ndarray, np.ndarray]:
        """The estimate of mu at these variances, and its own variance; of many at once."""
        weights = self.sizes / (np.asarray(e2)[..., None] + self.sizes * np.asarray(a2)[..., None])
        return (weights * self.means).sum(-1) / weights.sum(-1), 1 / weights.sum(-1)

    def cost(self, a2: Many, e2: Many) -> np.ndarray:
        """Minus twice the restricted log-likelihood, but for a constant."""
        mean, variance = self.mean(a2, e2)
        spread = np.asarray(e2)[..., None] + self.sizes * np.asarray(a2)[..., None]
        away = self.sizes * (self.means - mean[..., None]) ** 2
        between = (away / spread + np.log(spread)).sum(-1)
        return (self.sizes - 1).sum() * np.log(e2) + self.within / e2 + between - np.log(variance)


def fit(groups: Sequence[Float[np.ndarray, " n"]], confidence: float = 0.95) -> MixedEffects:
    """Fits the model by restricted maximum likelihood (Patterson and Thompson 1971).

    With `V_i = s_e^2 I + s_a^2 11^T` the mean at given variances is weighted by `n_i / (s_e^2 + n_i s_a^2)`,
    and the ratio `s_a^2 / s_e^2` is searched along the profile, where `s_e^2` has a closed form. For equal
    group sizes that is the analysis of variance: `s_e^2 = MSW` and `s_a^2 = (MSB - MSW) / n`, or 0 and the
    variance of all values where that is negative. Intervals of the deviations are profile intervals (the
    other one maximised), which may begin at 0.

    Args:
      groups: the values of each replicate's evaluations; what is not finite is left out and counted.
      confidence: probability mass of the intervals.
    """
    finite = [np.asarray(group, np.float64) for group in groups]
    lost = sum(int((~np.isfinite(group)).sum()) for group in finite)
    finite = [group[np.isfinite(group)] for group in finite]
    finite = [group for group in finite if group.size]
    count, total = len(finite), sum(group.size for group in finite)
    if not count:
        return MixedEffects(_NAN, _NAN, _NAN, 0, 0, lost)
    held = _Groups(
        np.array([group.size for group in finite], np.float64),
        np.array([group.mean() for group in finite]),
        float(sum(((group - group.mean()) ** 2).sum() for group in finite)),
    )
    if count == 1 or total == count:
        return _one_level(held, count, total, lost, confidence)
    # Scale: all that follows is of values of unit spread, so that tolerances mean the same everywhere.
    everything = np.concatenate(finite)
    scale = float(everything.std()) or 1.0
    held = dataclasses.replace(held, means=held.means / scale, within=max(held.within / scale**2, 1e-12))
    a2, e2 = _maximum(held)
    mean, variance = map(float, held.mean(a2, e2))
    half = _student(count - 1, confidence) * variance**0.5
    ceiling = float(held.cost(a2, e2)) + _normal(confidence) ** 2
    sds = (
        _profile(lambda a: _lowest(lambda e: held.cost(a**2, np.exp(2 * e)), _LOGS)[1] - ceiling, a2**0.5),
        _profile(lambda e: _lowest(lambda a: held.cost(np.exp(2 * a), e**2), _LOGS)[1] - ceiling, e2**0.5),
    )
    replicate, residual = (Interval(sd * scale, low * scale, high * scale) for sd, low, high in sds)
    centre = Interval(mean * scale, (mean - half) * scale, (mean + half) * scale)
    return MixedEffects(centre, replicate, residual, count, total, lost)


def _one_level(held: _Groups, count: int, total: int, lost: int, confidence: float) -> MixedEffects:
    """One replicate, or one evaluation of each: a mean, and the deviation where it has a meaning."""
    if total == 1:
        mean = float(held.means[0])
        return MixedEffects(Interval(mean, -np.inf, np.inf), _NAN, _NAN, count, total, lost)
    if count == 1:
        variance = held.within / (total - 1)
        sd = _chi_interval(variance**0.5, total - 1, confidence)
    else:
        variance, sd = float(held.means.var(ddof=1)), _NAN
    mean, half = float(held.means.mean()), _student(total - 1, confidence) * (variance / total) ** 0.5
    return MixedEffects(Interval(mean, mean - half, mean + half), _NAN, sd, count, total, lost)


def _maximum(held: _Groups) -> tuple[float, float]:
    """The variances that maximise the restricted likelihood."""

    def residual(ratio: np.ndarray) -> np.ndarray:
        """The best s_e^2 where s_a^2 / s_e^2 is `ratio`."""
        away = (held.means - held.mean(ratio, 1.0)[0][..., None]) ** 2
        squares = held.within + (held.sizes * away / (1 + held.sizes * ratio[..., None])).sum(-1)
        return squares / (held.sizes.sum() - 1)

    def cost(log_ratio: np.ndarray) -> np.ndarray:
        ratio = np.exp(log_ratio)
        return held.cost(ratio * residual(ratio), residual(ratio))

    log_ratio, least = _lowest(cost, _LOGS)
    zero = residual(np.zeros(1))
    if held.cost(np.zeros(1), zero)[0] <= least:
        return 0.0, float(zero[0])
    ratio = np.exp(np.array([log_ratio]))
    return float(ratio[0] * residual(ratio)[0]), float(residual(ratio)[0])


# Logarithms of deviations, or of ratios of variances, among values of unit spread.
_LOGS = np.linspace(np.log(1e-10), np.log(1e10), 129)


def _lowest(cost: Callable[[np.ndarray], np.ndarray], points: np.ndarray) -> tuple[float, float]:
    """The place and the value of the minimum of a function with one valley, by ever finer grids."""
    for _ in range(6):
        costs = cost(points)
        best = int(np.argmin(costs))
        at, least = float(points[best]), float(costs[best])
        points = np.linspace(points[max(best - 1, 0)], points[min(best + 1, len(points) - 1)], 65)
    return at, least


def _profile(excess: Callable[[float], float], at: float) -> tuple[float, float, float]:
    """A deviation with the places below and above it where the profile leaves the interval."""
    at = float(at)
    low = 0.0 if excess(1e-9) <= 0 else _bisect(excess, 1e-9, max(at, 1e-9))
    top = max(2 * at, 1e-3)
    while excess(top) <= 0 and top < 1e6:
        top *= 2
    return at, low, (_bisect(excess, top, max(at, 1e-9)) if top < 1e6 else np.inf)


def _bisect(excess: Callable[[float], float], outside: float, inside: float) -> float:
    for _ in range(40):
        middle = (outside * inside) ** 0.5
        outside, inside = (middle, inside) if excess(middle) > 0 else (outside, middle)
    return inside


def _student(freedom: float, confidence: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + confidence) / 2))


def _normal(confidence: float) -> float:
    from scipy.special import ndtri

    return float(ndtri((1 + confidence) / 2))


def _chi_interval(sd: float, freedom: int, confidence: float) -> Interval:
    """The exact interval of one standard deviation, `sd sqrt(n / chi^2_n)`."""
    from scipy.special import chdtri

    low, high = (
        sd * (freedom / float(chdtri(freedom, (1 + side * confidence) / 2))) ** 0.5 for side in (-1, 1)
    )
    return Interval(sd, min(low, high), max(low, high))
