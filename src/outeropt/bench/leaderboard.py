"""The table: who is faster than the frozen reference, by how much, and how sure that is."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from outeropt.bench import scores
from outeropt.bench.normalizer import Normalizer
from outeropt.bench.scores import Entry, Ruleset
from outeropt.bench.statistics import Interval, bootstrap_iqm, probability_of_improvement
from outeropt.errors import OuteroptError


if TYPE_CHECKING:
    from outeropt.store.archive import Archive


@dataclasses.dataclass(frozen=True)
class Row:
    """One contestant's line.

    Attributes:
      optimizer: label, unique within its ruleset.
      ruleset: `"tuned"` (the setting of its set that the validation loss picks, task by task) or `"as is"`
        (its one default setting).
      score: inter-quartile mean over tasks and seeds of the speed-up over the reference; higher is better.
      low: lower end of the 95% interval.
      high: upper end.
      per_task: mean speed-up over seeds, by task.
      setting: the hyperparameters that were scored, by task.
      diverged: share of all its trials that diverged, in [0, 1].
      seconds: median wall-clock seconds of a trial; NaN if unknown.
      set: name of the hyperparameter set.
      trials: speed-up of every scored seed, by task.
      clipped: share of the scored trials that end below the reference's lowest loss, so that their speed-up
        is only a lower bound.
    """

    optimizer: str
    ruleset: Ruleset
    score: float
    low: float
    high: float
    per_task: dict[str, float]
    setting: dict[str, dict[str, float]]
    diverged: float
    seconds: float
    set: str
    trials: dict[str, tuple[float, ...]]
    clipped: float


@dataclasses.dataclass(frozen=True)
class Leaderboard:
    """Rows, best first; a row that lacks some of the tasks comes after all that have every one.

    Attributes:
      rows: all rows, of both rulesets.
      tasks: tasks that were scored, sorted.
      reference: version of the normalizer.
      curve: the curve that was scored.
      unscored: tasks in the archives that the normalizer does not know.
    """

    rows: tuple[Row, ...]
    tasks: tuple[str, ...]
    reference: str
    curve: str
    unscored: tuple[str, ...] = ()

    def rows_of(self, ruleset: Ruleset) -> tuple[Row, ...]:
        """The rows of one ruleset, best first."""
        return tuple(row for row in self.rows if row.ruleset == ruleset)

    def missing(self, row: Row) -> tuple[str, ...]:
        """Scored tasks that a row has not run."""
        return tuple(task for task in self.tasks if task not in row.per_task)


def leaderboard(
    archives: Sequence["Archive"],
    normalizer: Normalizer,
    curve: str = "train/loss",
    seed: int = 0,
    resamples: int = 2000,
) -> Leaderboard:
    """Scores every contestant by itself against the frozen reference.

    A row's numbers depend on its own archives and the normalizer only, so adding an optimizer never changes
    another's score.

    Args:
      archives: one for each set and task; sets named `*-default` play as is, all others tuned.
      normalizer: the reference; tasks that it does not know are left out and listed in `unscored`.
      curve: the loss to score. Settings are always chosen on `valid/loss`.
      seed: of the bootstrap.
      resamples: bootstrap resamples.

    Raises:
      OuteroptError: nothing to score, or two archives of one set on one task.
    """
    known = [archive for archive in archives if normalizer.knows(archive.task, curve)]
    if not known:
        raise OuteroptError(
            f"Normalizer {normalizer.version} has no {curve} for any task given, so there is nothing to "
            "score; make one with Normalizer.from_archives."
        )
    tasks = tuple(sorted({archive.task for archive in known}))
    rows = [_row(entry, normalizer, curve, seed, resamples) for entry in scores.entries(known)]
    rows.sort(key=lambda row: (len(tasks) - len(row.per_task), -row.score, row.optimizer, row.ruleset))
    unscored = tuple(sorted({archive.task for archive in archives} - set(tasks)))
    return Leaderboard(tuple(rows), tasks, normalizer.version, curve, unscored)


def improvement(ours: Row, theirs: Row, seed: int = 0, resamples: int = 2000) -> Interval:
    """How likely a trial of one row beats a trial of another on a task that both have run.

    Raises:
      OuteroptError: they have no task in common.
    """
    one, other = ({task: np.array(trials) for task, trials in row.trials.items()} for row in (ours, theirs))
    return probability_of_improvement(one, other, resamples=resamples, seed=seed)


def _row(entry: Entry, normalizer: Normalizer, curve: str, seed: int, resamples: int) -> Row:
    trials, setting, below = {}, {}, []
    for task, archive in sorted(entry.archives.items()):
        best = scores.chosen(archive)
        trials[task] = scores.speedups(archive, normalizer, curve)[best]
        setting[task] = dict(archive.settings[best])
        below.append(normalizer.clipped(task, scores.values(archive, curve)[best, :, -1], curve) > 0)
    # A generator of its own for each row: the interval must not depend on who else is in the table.
    interval = bootstrap_iqm(list(trials.values()), resamples, seed=seed)
    everything = entry.archives.values()
    return Row(
        optimizer=entry.optimizer,
        ruleset=entry.ruleset,
        score=interval.estimate,
        low=interval.low,
        high=interval.high,
        per_task={task: float(speedup.mean()) for task, speedup in trials.items()},
        setting=setting,
        diverged=float(np.mean(np.concatenate([scores.diverged(archive).ravel() for archive in everything]))),
        seconds=_median([archive.seconds.ravel() for archive in everything]),
        set=entry.set,
        trials={task: tuple(map(float, speedup)) for task, speedup in trials.items()},
        clipped=float(np.mean(np.concatenate(below))),
    )


def _median(parts: list[np.ndarray]) -> float:
    known = np.concatenate(parts)
    known = known[np.isfinite(known)]  # archives of others may not say
    return float(np.median(known)) if known.size else float("nan")
