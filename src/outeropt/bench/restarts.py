"""How a method ends when it starts many times: the statistics of one-pass tuning.

A restart is a seed: the same method from other initial weights and other hyperparameters. The protocol is
that of Clarke, Oldewage and Hernandez-Lobato 2022 (arXiv 2110.10461), whose numbers these functions give,
but for one thing: there a run that ended without a number is left out and not mentioned, so that a method
which diverges more often looks better. Here every summary counts such runs, and its quantiles hold them as
infinite losses.
"""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from outeropt.best_of import chances
from outeropt.errors import OuteroptError, UnknownName


if TYPE_CHECKING:
    from outeropt.store.archive import Archive

RESAMPLES = 1000


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number and its standard error; both NaN where there is nothing to estimate from."""

    value: float
    error: float


@dataclasses.dataclass(frozen=True)
class Restarts:
    """The runs of one method on one task.

    Attributes:
      method: what the runs are called.
      steps: inner steps of the evaluations, shape (T,).
      test: test loss, shape (runs, T); NaN from where a run diverged.
      valid: validation loss, shape (runs, T).
      seconds: wall-clock seconds of each run, shape (runs,).
    """

    method: str
    steps: Int[np.ndarray, " T"]
    test: Float[np.ndarray, "runs T"]
    valid: Float[np.ndarray, "runs T"]
    seconds: Float[np.ndarray, " runs"]

    @property
    def final(self) -> Float[np.ndarray, " runs"]:
        """Last test loss of each run."""
        return self.test[:, -1]

    def diverged(self, threshold: float | None = None) -> Bool[np.ndarray, " runs"]:
        """Which runs ended without a number, or at `threshold` or above."""
        lost = ~np.isfinite(self.final)
        return lost if threshold is None else lost | ~(self.final < threshold)

    def take(self, runs: np.ndarray) -> "Restarts":
        """Only some of the runs, by index or mask."""
        kept = {name: getattr(self, name)[runs] for name in ("test", "valid", "seconds")}
        return dataclasses.replace(self, **kept)

    def at_best_validation(self) -> Float[np.ndarray, " runs"]:
        """Test loss of each run at the evaluation of its lowest validation loss; NaN where there is none."""
        valid = np.where(np.isfinite(self.valid), self.valid, np.inf)
        best = np.take_along_axis(self.test, valid.argmin(axis=1)[:, None], axis=1)[:, 0]
        return np.where(np.isfinite(valid).any(axis=1), best, np.nan)


@dataclasses.dataclass(frozen=True)
class Summary:
    """How the runs of one method ended.

    Attributes:
      method: what they are called.
      runs: how many there were.
      diverged: how many of them diverged.
      mean: mean of the final losses of the others, with its bootstrap error.
      median: their median, likewise.
      quantiles: of all runs at 25, 75 and 90 %: each is the loss of a run, infinite where that one diverged.
      best: smallest final loss.
      best_anywhere: smallest loss at any evaluation of any run that did not diverge: what the paper's tables
        call best. It chooses by the test loss.
      at_best_validation: median of the test losses at each run's lowest validation loss, with its bootstrap
        error, over the runs that did not diverge.
      seconds: median wall-clock seconds of a run.
    """

    method: str
    runs: int
    diverged: int
    mean: Estimate
    median: Estimate
    quantiles: tuple[float, float, float]
    best: float
    best_anywhere: float
    at_best_validation: Estimate
    seconds: float

    @property
    def diverged_rate(self) -> float:
        """Share of the runs that diverged."""
        return self.diverged / self.runs


def restarts(archive: "Archive", scale: float = 1.0, setting: int = 0) -> Restarts:
    """The runs of an archive: its seeds at one setting.

    Args:
      archive: one method on one task.
      scale: what losses are multiplied by, such as the target's variance to have them in its units.
      setting: index of the setting.

    Raises:
      UnknownName: the archive lacks the test loss.
      OuteroptError: no such setting.
    """
    if "test/loss" not in archive.curves:
        raise UnknownName(
            f"{archive.set} on {archive.task} has no curve test/loss; restarts are judged by it."
        )
    if not 0 <= setting < len(archive.settings):
        raise OuteroptError(
            f"{archive.set} has {len(archive.settings)} settings; setting {setting} is not one of them."
        )
    test = np.asarray(archive.curves["test/loss"][setting], np.float64)
    valid = np.asarray(
        archive.curves.get("valid/loss", np.full_like(test, np.nan)[None])[setting], np.float64
    )
    seconds = np.asarray(archive.seconds[setting], np.float64)
    name = archive.optimizer or archive.set
    return Restarts(name, archive.steps, test * scale, valid * scale, seconds)


def bootstrap(
    values: Float[np.ndarray, " n"], rng: np.random.RandomState, resamples: int = RESAMPLES
) -> tuple[Estimate, Estimate]:
    """Mean and median with bootstrap errors, as the paper computes them.

    Each is the mean of the statistic over the resamples, its error the standard deviation over them (divisor
    `resamples`). The only random numbers are one `rng.choice(n, (resamples, n))`; the legacy generator's
    stream is frozen, so that published seeds give published numbers.

    Args:
      values: finite values.
      rng: numpy's legacy generator.
      resamples: how many.

    Returns:
      The mean, and the median.
    """
    if not len(values):
        return Estimate(np.nan, np.nan), Estimate(np.nan, np.nan)
    drawn = values[rng.choice(len(values), (resamples, len(values)))]
    means, medians = drawn.mean(axis=1), np.median(drawn, axis=1)
    return Estimate(float(means.mean()), float(means.std())), Estimate(
        float(medians.mean()), float(medians.std())
    )


def batched(
    runs: Restarts, rng: np.random.RandomState, size: int = 3, threshold: float | None = None
) -> tuple[Int[np.ndarray, " groups"], Int[np.ndarray, "groups size"]]:
    """Best of every few runs: what a user has who affords `size` runs and keeps the best.

    Runs that did not diverge are shuffled (one `rng.permutation`) and grouped in that order; what is left
    over is dropped. Of each group the run with the lowest final validation loss stays, with all its curves.
    The paper's code filters the runs but not their validation losses, so that a diverged run shifts its
    pairing; here both are filtered.

    Returns:
      The run that stays of each group, and the runs of each group, as indices.
    """
    kept = np.flatnonzero(~runs.diverged(threshold))
    groups = kept[rng.permutation(len(kept))[: len(kept) // size * size]].reshape(-1, size)
    return groups[np.arange(len(groups)), runs.valid[groups, -1].argmin(axis=1)], groups


def summary(
    runs: Restarts,
    rng: np.random.RandomState,
    *,
    threshold: float | None = None,
    resamples: int = RESAMPLES,
) -> Summary:
    """How the runs of one method ended.

    Args:
      runs: the runs.
      rng: for the bootstrap of the final losses, as in `bootstrap`. Losses at the lowest validation loss,
        which the paper does not have, are resampled with seed 0.
      threshold: a final test loss from which on a run counts as diverged; None for no limit.
      resamples: bootstrap resamples.

    Raises:
      OuteroptError: there are no runs.
    """
    if not len(runs.final):
        raise OuteroptError(f"{runs.method} has no runs to summarise.")
    lost = runs.diverged(threshold)
    kept = runs.take(~lost)
    mean, median = bootstrap(kept.final, rng, resamples)
    stopped = kept.at_best_validation()
    at_best = bootstrap(stopped[np.isfinite(stopped)], np.random.RandomState(0), resamples)[1]
    everyone = np.where(lost, np.inf, runs.final)
    # Values of runs, never between two: between a number and infinity there is nothing.
    low, high, top = (float(np.quantile(everyone, q, method="inverted_cdf")) for q in (0.25, 0.75, 0.9))
    known = runs.seconds[np.isfinite(runs.seconds)]
    return Summary(
        method=runs.method,
        runs=len(lost),
        diverged=int(lost.sum()),
        mean=mean,
        median=median,
        quantiles=(low, high, top),
        best=float(kept.final.min()) if len(kept.final) else np.nan,
        best_anywhere=float(np.nanmin(kept.test)) if len(kept.final) else np.nan,
        at_best_validation=at_best,
        seconds=float(np.median(known)) if known.size else np.nan,
    )


def ended(
    archive: "Archive", setting: int = 0, prefix: str = "optimizer/"
) -> dict[str, tuple[float, float, float]]:
    """Where tuned hyperparameters ended: first quartile, median and third quartile, by name.

    Args:
      archive: one method on one task.
      setting: index of the setting.
      prefix: how the names of the curves of hyperparameters begin.

    Returns:
      One entry for each hyperparameter, over the runs that did not diverge; none if all did.
    """
    kept = ~restarts(archive, setting=setting).diverged()
    lasts = {
        name.removeprefix(prefix): curve[setting, kept, -1].astype(np.float64)
        for name, curve in archive.curves.items()
        if name.startswith(prefix) and kept.any()
    }
    quartiles = {name: np.quantile(last, (0.25, 0.5, 0.75)) for name, last in lasts.items()}
    return {name: (float(low), float(middle), float(high)) for name, (low, middle, high) in quartiles.items()}


def median_band(
    values: Float[np.ndarray, "runs T"], seed: int = 0, resamples: int = RESAMPLES, confidence: float = 0.95
) -> tuple[Float[np.ndarray, " T"], Float[np.ndarray, " T"], Float[np.ndarray, " T"]]:
    """Median over runs at each step, and the percentile bootstrap interval of it: median, low, high.

    What is not finite counts as infinite, so that a curve does not get better because its worst run ends.

    Args:
      values: one row for each run.
      seed: of the resampling.
      resamples: how many.
      confidence: probability mass of the interval.
    """
    values = np.sort(np.where(np.isfinite(values), values, np.inf), axis=0)
    n = len(values)
    # The median of a resample is the value at the median of its ranks, at every step: no array of
    # (resamples, runs, T) is needed.
    ranks = np.sort(np.random.default_rng(seed).integers(n, size=(resamples, n)), axis=1)
    medians = (values[ranks[:, (n - 1) // 2]] + values[ranks[:, n // 2]]) / 2
    tail = (1 - confidence) / 2
    low, high = (np.quantile(medians, q, axis=0, method="inverted_cdf") for q in (tail, 1 - tail))
    return (values[(n - 1) // 2] + values[n // 2]) / 2, low, high


def incumbent(test: Float[np.ndarray, " n"], valid: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Expected test loss of the best by validation loss of k runs drawn without replacement, for k = 1..n.

    Args:
      test: final test loss of each run, finite.
      valid: what runs are chosen by; one that is not finite is chosen last.
    """
    ordered = np.asarray(test, np.float64)[
        np.argsort(np.where(np.isfinite(valid), valid, np.inf), kind="stable")
    ]
    return chances(len(ordered)) @ ordered


def rounded(estimate: Estimate, digits: int = 1) -> str:
    """`8.9 ± 0.7`, as the paper prints it: the error to some digits and the value to the same place.

    Args:
      estimate: what to print.
      digits: significant digits of the error; the paper has one.
    """
    value, error = estimate.value, estimate.error
    if not np.isfinite(value):
        return "-"
    if not np.isfinite(error) or error <= 0:
        return f"{value:.3g}"
    place = int(np.floor(np.log10(error))) - digits + 1
    if round(error, -place) >= 10.0 ** (place + digits):  # 0.096 is 0.1: one place further left
        place += 1
    shown = max(-place, 0)
    return f"{round(value, -place):.{shown}f} ± {round(error, -place):.{shown}f}"
