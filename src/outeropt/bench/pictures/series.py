"""The numbers that the figures and the report page both draw, taken from archives.

Nothing here knows about pixels: means and bands over seeds, smoothing, the loss at each value of a
hyperparameter, and which points of a long curve to keep.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from scipy.special import stdtrit

from outeropt.bench import tunability
from outeropt.bench.normalizer import Normalizer
from outeropt.bench.pictures.contestants import Contestant
from outeropt.errors import OuteroptError
from outeropt.store.archive import Archive


MAX_VALUES = 32

Kind = Literal["range", "interval"]


@dataclasses.dataclass(frozen=True)
class Band:
    """A centre with a lower and an upper edge, arrays of one shape; NaN where no seed is finite."""

    centre: Float[np.ndarray, "*shape"]
    low: Float[np.ndarray, "*shape"]
    high: Float[np.ndarray, "*shape"]


def band(values: Float[np.ndarray, "seeds *shape"], kind: Kind = "range") -> Band:
    """Mean over seeds and its band.

    Seeds that are not finite (diverged) are left out of both, so a curve goes on while any seed survives;
    pictures mark the divergence separately.

    Args:
      values: one row per seed.
      kind: `"range"`: smallest and largest seed. `"interval"`: 95 % confidence interval of the mean under
        Student's t, mean -+ t(0.975, n - 1) s / sqrt(n), with the sample standard deviation s of the n finite
        seeds; the mean itself where n is 1.
    """
    finite = np.isfinite(values)
    count = finite.sum(axis=0)
    clean = np.where(finite, values, 0.0).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        centre = np.where(count > 0, clean.sum(axis=0) / np.maximum(count, 1), np.nan)
        if kind == "range":
            low = np.where(finite, values, np.inf).min(axis=0)
            high = np.where(finite, values, -np.inf).max(axis=0)
        else:
            squares = np.where(finite, clean - centre[None], 0.0) ** 2
            spread = np.sqrt(squares.sum(axis=0) / np.maximum(count - 1, 1) / np.maximum(count, 1))
            half = np.where(count > 1, stdtrit(np.maximum(count - 1, 1), 0.975) * spread, 0.0)
            low, high = centre - half, centre + half
    seen = count > 0
    return Band(centre, np.where(seen, low, np.nan), np.where(seen, high, np.nan))


def smoothed(values: Float[np.ndarray, "*shape steps"], decay: float) -> Float[np.ndarray, "*shape steps"]:
    """Exponential moving average along the last axis, without the bias towards the first value.

    y_t = sum_s decay^(t-s) x_s / sum_s decay^(t-s), over s <= t with finite x_s (the bias correction of Adam,
    Kingma and Ba 2015, section 3). Where x_t is not finite, y_t is NaN, so a diverged curve still ends.

    Args:
      values: curves.
      decay: in [0, 1); 0 changes nothing.

    Raises:
      OuteroptError: when `decay` is outside [0, 1).
    """
    if not 0 <= decay < 1:
        raise OuteroptError(f"Smoothing is {decay}; it must be at least 0 (none) and below 1.")
    values = np.asarray(values, np.float64)
    smooth = np.full(values.shape, np.nan)
    total, weight = np.zeros(values.shape[:-1]), np.zeros(values.shape[:-1])
    for t in range(values.shape[-1]):
        finite = np.isfinite(values[..., t])
        total = decay * total + np.where(finite, values[..., t], 0.0)
        weight = decay * weight + finite
        smooth[..., t] = np.where(finite, total / np.maximum(weight, 1e-300), np.nan)
    return smooth


def chosen(archive: Archive, select: str = "valid/loss") -> int:
    """Index of the archive's best setting by `select`, or by train/loss, or by its first curve."""
    names = [name for name in (select, "train/loss", *archive.curves) if name in archive.curves]
    return archive.best(names[0])


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """Final loss against one hyperparameter: arrays over its values, sorted.

    Attributes:
      values: the hyperparameter, shape (V,).
      final: band over the seeds that are finite.
      diverged: seeds that diverged, shape (V,).
      seeds: seeds per value.
    """

    values: Float[np.ndarray, "V"]
    final: Band
    diverged: Int[np.ndarray, "V"]
    seeds: int


def sensitivity(archive: Archive, hyperparameter: str, curve: str = "valid/loss") -> Sensitivity | None:
    """Final value of `curve` for each value of `hyperparameter`; None when the archive has no such number.

    Of settings that share the value (a grid over several hyperparameters) the best counts, by the rule of
    `Archive.best`; of more than 32 values (a random search), the best in each of 32 (log-)even intervals.
    """
    values = [_number(setting, hyperparameter) for setting in archive.settings]
    if curve not in archive.curves or not np.isfinite(values).any():
        return None
    best = [group[archive.select(group).best(curve)] for group in _groups(np.array(values))]
    finals = archive.final(curve)[best].T
    diverged = (~np.isfinite(finals)).sum(axis=0)
    return Sensitivity(np.array(values)[best], band(finals), diverged, len(archive.seeds))


def _groups(values: Float[np.ndarray, "S"]) -> list[list[int]]:
    """Places of equal values, in order of the values; of values in one interval where there are many."""
    finite = np.flatnonzero(np.isfinite(values))
    distinct = np.unique(values[finite])
    if len(distinct) <= MAX_VALUES:
        bins = np.searchsorted(distinct, values[finite])
    else:
        even = np.geomspace if prefers_log(distinct) else np.linspace
        bins = np.searchsorted(even(distinct[0], distinct[-1], MAX_VALUES + 1)[1:-1], values[finite])
    return [finite[bins == place].tolist() for place in np.unique(bins)]


def ceiling(archives: Sequence[Archive], curve: str) -> float:
    """Final losses above this count as lost in pictures: training did harm, and they would flatten the rest.

    The mean loss at step 0, plus a quarter of what the best setting improves on it. NaN (nothing is lost)
    where no archive has the curve, or it is an accuracy.
    """
    found = [a for a in archives if curve in a.curves and not curve.endswith("accuracy")]
    starts = [start[np.isfinite(start)] for start in (a.curves[curve][:, :, 0] for a in found)]
    finals = [final[np.isfinite(final)] for final in (a.final(curve) for a in found)]
    if not any(s.size for s in starts) or not any(f.size for f in finals):
        return float("nan")
    start = max(float(s.mean(dtype=np.float64)) for s in starts if s.size)
    lowest = min(float(f.min()) for f in finals if f.size)
    return start + 0.25 * max(start - lowest, 0.0)


def expected_best(archive: Archive, curve: str = "valid/loss") -> Float[np.ndarray, "n"] | None:
    """Expected lowest final loss (mean over seeds) of k settings drawn from the archive's, for k = 1..n.

    A setting that diverged, or ended above `ceiling`, counts as ending there. None where the archive lacks
    the curve, no setting has a finite loss, or it is an accuracy.
    """
    top = ceiling([archive], curve)
    if np.isnan(top):
        return None
    means = archive.final(curve).mean(axis=1, dtype=np.float64)
    return -tunability.expected_best(-np.where(np.isfinite(means), np.minimum(means, top), top))


def expected_speedup(
    entry: Contestant, normalizer: Normalizer, curve: str, tasks: Sequence[str]
) -> Float[np.ndarray, "n"] | None:
    """Mean over `tasks` of the expected speed-up of the best of k settings; None if one was not run.

    k goes up to the smallest number of settings on any of the tasks.
    """
    held = [entry.archives.get(task) for task in tasks]
    needed = {curve, "train/loss"}  # diverged trials are told by their training loss
    if not held or any(archive is None or not needed <= archive.curves.keys() for archive in held):
        return None
    found = [tunability.tunability(entry.archives[task], normalizer, curve).expected for task in tasks]
    shortest = min(map(len, found))
    return np.mean([expected[:shortest] for expected in found], axis=0)


def hyperparameters(archives: Iterable[Archive]) -> list[str]:
    """Names of numeric hyperparameters that take two values or more in some archive; learning rate first."""
    names: dict[str, None] = {}
    for archive in archives:
        for name in sorted({key.rpartition(".")[2] for setting in archive.settings for key in setting}):
            values = {_number(setting, name) for setting in archive.settings}
            if sum(map(np.isfinite, values)) > 1:
                names[name] = None
    return sorted(names, key=lambda name: name != "learning_rate")


def thin(steps: Int[np.ndarray, "T"], points: int) -> Int[np.ndarray, "P"]:
    """Indices of at most `points` of a curve's evaluations, always its first and last.

    Half of them are even in time and half in log time, so that the fast beginning keeps its shape.
    """
    if len(steps) <= points:
        return np.arange(len(steps))
    half = max(points // 2, 1)
    even = np.linspace(0, len(steps) - 1, half)
    log = np.geomspace(1, len(steps), half) - 1
    return np.unique(np.rint(np.concatenate([even, log])).astype(int))


def boundaries(archives: Sequence[Archive]) -> list[int]:
    """Inner steps at which an episode ends and another begins; none unless all archives share them."""
    lengths = {(archive.num_steps, archive.episodes) for archive in archives}
    if len(lengths) != 1:
        return []
    ((steps, episodes),) = lengths
    return [steps // episodes * i for i in range(1, episodes)]


def tasks(archives: Iterable[Archive]) -> list[str]:
    """Names of the tasks, in order of first appearance."""
    return list(dict.fromkeys(archive.task for archive in archives))


def prefers_log(values: Float[np.ndarray, "*shape"]) -> bool:
    """True when all finite values are positive and span more than a factor of ten."""
    finite = values[np.isfinite(values)]
    return finite.size > 0 and finite.min() > 0 and finite.max() > 10 * finite.min()


def _number(setting: Mapping[str, Any], name: str) -> float:
    """A setting's number, NaN if it has none of this name (a missing name, or a choice).

    The learning rate of a wrapped optimizer, `inner.learning_rate`, counts as its `learning_rate`.
    """
    value = setting.get(name)
    if value is None:
        ends = [full for full in setting if full.endswith(f".{name}")]
        value = setting[ends[0]] if len(ends) == 1 else None
    return float(value) if isinstance(value, int | float) else float("nan")
