"""Contestants against tuned baselines, task by task: who ends lower, by how much, and how sure that is.

Every set is judged at the setting that its validation loss picks (final value, mean over seeds); the verdict
is on the test loss. A seed that diverged counts as an infinite loss.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float

from outeropt.bench import scores
from outeropt.bench.normalizer import envelope
from outeropt.bench.smoothing import centred
from outeropt.bench.statistics import Interval, mean_interval, probability_of_improvement
from outeropt.errors import OuteroptError


if TYPE_CHECKING:
    from outeropt.store.archive import Archive

Verdict = Literal["wins", "loses", "unclear"]

LOSSES = ("train/loss", "valid/loss", "test/loss")
_JUDGED = "test/loss"


@dataclasses.dataclass(frozen=True)
class Final:
    """How one set ended on one task, at its chosen setting.

    Attributes:
      label: the optimizer's name, with the set's in brackets where several sets of it are compared.
      set: name of the hyperparameter set.
      setting: the chosen values of the hyperparameters that the set varies, by name.
      losses: mean over the seeds that did not diverge, with 95% interval, by curve (`LOSSES`).
      diverged: seeds of that setting that diverged.
      seeds: all its seeds.
    """

    label: str
    set: str
    setting: dict[str, float]
    losses: dict[str, Interval]
    diverged: int
    seeds: int


@dataclasses.dataclass(frozen=True)
class Duel:
    """One contestant against one baseline on one task.

    Attributes:
      task: name of the task.
      contestant: label.
      baseline: label.
      ours: the contestant's final test loss, seed by seed; infinite where it diverged.
      theirs: the baseline's.
      ratio: mean of ours over mean of theirs, below 1 where the contestant is better; infinite or 0 where one
        of them diverged, NaN where the baseline's is not positive.
      difference: mean of ours minus mean of theirs, with 95% interval; NaN where a seed diverged.
      paired: whether the interval is of differences seed by seed, as equal seeds allow.
      steps: inner steps after which the baseline's test loss (mean over seeds, smoothed) is at the
        contestant's final one; infinite where it never is, NaN where a seed diverged.
      verdict: whether the interval is below 0 (`"wins"`), above it (`"loses"`), or neither. Fewer diverged
        seeds win; equally many are unclear.
    """

    task: str
    contestant: str
    baseline: str
    ours: tuple[float, ...]
    theirs: tuple[float, ...]
    ratio: float
    difference: Interval
    paired: bool
    steps: float
    verdict: Verdict


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All that is compared on one task.

    Attributes:
      task: name of the task.
      steps: inner steps of every trial.
      baselines: how they ended, in the order asked for.
      contestants: how they ended, in the order given.
      duels: every contestant against every baseline, contestant by contestant.
    """

    task: str
    steps: int
    baselines: tuple[Final, ...]
    contestants: tuple[Final, ...]
    duels: tuple[Duel, ...]


@dataclasses.dataclass(frozen=True)
class Standing:
    """One contestant against one baseline over all tasks.

    Attributes:
      contestant: label.
      baseline: label.
      tasks: how many they both have run.
      wins: tasks on which the contestant's test loss is surely lower.
      losses: tasks on which it is surely higher.
      ratio: median over tasks of the ratio of test losses; NaN where no task has one.
      better: probability that a trial of the contestant ends below one of the baseline, on a task drawn at
        random, with 95% interval.
      diverged: the contestant's seeds that diverged, over all tasks.
      trials: all its seeds, over all tasks.
    """

    contestant: str
    baseline: str
    tasks: int
    wins: int
    losses: int
    ratio: float
    better: Interval
    diverged: int
    trials: int

    @property
    def unclear(self) -> int:
        """Tasks that neither wins."""
        return self.tasks - self.wins - self.losses


def compare(archives: Sequence["Archive"], against: Sequence[str]) -> tuple[Comparison, ...]:
    """Compares all sets with the baselines among them.

    Args:
      archives: one for each set and task, of equal length on each task.
      against: names of the sets that are baselines; all others are contestants.

    Returns:
      One comparison for each task that has a baseline and a contestant, in the order of the archives.

    Raises:
      OuteroptError: no task has both, trials differ in length, or a set is there twice.
      UnknownName: an archive lacks one of `LOSSES`.
    """
    sets = list(dict.fromkeys((archive.optimizer, archive.set) for archive in archives))
    shared = {name for name, _ in sets if sum(name == other for other, _ in sets) > 1}
    labels = {key: f"{key[0]} ({key[1]})" if key[0] in shared else key[0] for key in sets}
    by_task: dict[str, dict[str, Archive]] = {}
    for archive in archives:
        held = by_task.setdefault(archive.task, {})
        if archive.set in held:
            raise OuteroptError(
                f"There are two archives of {archive.set} on {archive.task}; give one of each set and task."
            )
        held[archive.set] = archive
    found = []
    for task, held in by_task.items():
        baselines = [held[name] for name in against if name in held]
        contestants = [archive for name, archive in held.items() if name not in against]
        if baselines and contestants:
            found.append(_compared(task, contestants, baselines, labels))
    if not found:
        raise OuteroptError(
            f"No task has both a baseline ({', '.join(against)}) and another set to compare with it."
        )
    return tuple(found)


def standings(comparisons: Sequence[Comparison]) -> tuple[Standing, ...]:
    """Every contestant against every baseline over all tasks, in the order of the comparisons."""
    duels: dict[tuple[str, str], list[Duel]] = {}
    for comparison in comparisons:
        for duel in comparison.duels:
            duels.setdefault((duel.contestant, duel.baseline), []).append(duel)
    return tuple(_standing(names, group) for names, group in duels.items())


def _compared(
    task: str,
    contestants: Sequence["Archive"],
    baselines: Sequence["Archive"],
    labels: dict[tuple[str, str], str],
) -> Comparison:
    everyone = [*contestants, *baselines]
    for archive in everyone:
        if archive.num_steps != baselines[0].num_steps:
            raise OuteroptError(
                f"{archive.set} ran {archive.num_steps} steps on {task}, {baselines[0].set} "
                f"{baselines[0].num_steps}; only trials of equal length compare."
            )
    chosen = [archive.select([scores.chosen(archive)]) for archive in everyone]
    names = [labels[archive.optimizer, archive.set] for archive in everyone]
    finals = [_final(name, one, whole) for name, one, whole in zip(names, chosen, everyone)]
    n = len(contestants)
    duels = [
        _duel(task, ours, theirs)
        for ours in zip(names[:n], chosen[:n])
        for theirs in zip(names[n:], chosen[n:])
    ]
    return Comparison(task, baselines[0].num_steps, tuple(finals[n:]), tuple(finals[:n]), tuple(duels))


def _final(label: str, chosen: "Archive", whole: "Archive") -> Final:
    (setting,) = chosen.settings
    varied = {name: value for name, value in setting.items() if {value} != _values(whole, name)}
    lost = scores.diverged(chosen)[0]
    losses = {}
    for curve in LOSSES:
        kept = scores.values(chosen, curve)[0, ~lost, -1]
        mean = mean_interval(kept) if kept.size else (np.nan, np.nan, np.nan)
        losses[curve] = Interval(*map(float, mean))
    return Final(label, whole.set, varied, losses, int(lost.sum()), len(lost))


def _values(archive: "Archive", name: str) -> set[float | None]:
    return {setting.get(name) for setting in archive.settings}


def _duel(task: str, contestant: tuple[str, "Archive"], baseline: tuple[str, "Archive"]) -> Duel:
    (ours_name, one), (theirs_name, other) = contestant, baseline
    ours, theirs = (_test_losses(archive) for archive in (one, other))
    lost, lost_by_them = (int(np.isinf(side).sum()) for side in (ours, theirs))
    paired = one.seeds == other.seeds
    ratio, steps, difference = np.nan, np.nan, Interval(np.nan, np.nan, np.nan)
    if lost or lost_by_them:
        if not lost or not lost_by_them:
            ratio = np.inf if lost else 0.0
        verdict = "unclear" if lost == lost_by_them else "loses" if lost > lost_by_them else "wins"
    else:
        if theirs.mean() > 0:
            ratio = ours.mean() / theirs.mean()
        steps = _steps_to(other, float(ours.mean()))
        difference = paired_difference(ours, theirs) if paired else unpaired_difference(ours, theirs)
        verdict = "wins" if difference.high < 0 else "loses" if difference.low > 0 else "unclear"
    sides = tuple(map(float, ours)), tuple(map(float, theirs))
    return Duel(task, ours_name, theirs_name, *sides, float(ratio), difference, paired, steps, verdict)


def paired_difference(ours: Float[np.ndarray, " n"], theirs: Float[np.ndarray, " n"]) -> Interval:
    """Mean of `ours - theirs`, seed by seed, with Student's 95% interval; infinite for a single seed.

    Trials of equal seeds start from the same parameters and see the same batches, so what makes a seed easy
    or hard for both cancels.
    """
    mean, low, high = map(float, mean_interval(ours - theirs))
    return Interval(mean, low, high) if len(ours) > 1 else Interval(mean, -np.inf, np.inf)


def unpaired_difference(ours: Float[np.ndarray, " n"], theirs: Float[np.ndarray, " m"]) -> Interval:
    """Difference of means with Welch's 95% interval, `d -+ t_v sqrt(s1^2 / n + s2^2 / m)`.

    The degrees of freedom v are Welch and Satterthwaite's (Welch 1947, "The generalization of Student's
    problem when several different population variances are involved"). Infinite where a side has one seed.
    """
    from scipy.special import stdtrit

    mean = float(ours.mean() - theirs.mean())
    if min(len(ours), len(theirs)) < 2:
        return Interval(mean, -np.inf, np.inf)
    parts = [side.var(ddof=1) / len(side) for side in (ours, theirs)]
    total = sum(parts)
    if total == 0:
        return Interval(mean, mean, mean)
    freedom = total**2 / sum(part**2 / (len(side) - 1) for part, side in zip(parts, (ours, theirs)))
    half = float(stdtrit(freedom, 0.975) * np.sqrt(total))
    return Interval(mean, mean - half, mean + half)


def _test_losses(chosen: "Archive") -> Float[np.ndarray, " seeds"]:
    """Final test losses, infinite for seeds that diverged."""
    final = scores.values(chosen, _JUDGED)[0, :, -1].astype(np.float64)
    return np.where(scores.diverged(chosen)[0] | ~np.isfinite(final), np.inf, final)


def _steps_to(chosen: "Archive", target: float) -> float:
    """Steps until the smoothed mean curve is at or below `target`; infinite if it never is."""
    mean = scores.values(chosen, _JUDGED).mean(axis=1, dtype=np.float64)
    if not np.isfinite(mean).all():
        return float("nan")
    curve = envelope([centred(mean, chosen.steps)], chosen.steps)
    return float(curve.steps_to(target)) if target >= curve.losses[-1] else float("inf")


def _standing(names: tuple[str, str], duels: Sequence[Duel]) -> Standing:
    ratios = [duel.ratio for duel in duels if not np.isnan(duel.ratio)]
    sides = ({duel.task: _scored(duel.ours) for duel in duels}, {d.task: _scored(d.theirs) for d in duels})
    return Standing(
        *names,
        tasks=len(duels),
        wins=sum(duel.verdict == "wins" for duel in duels),
        losses=sum(duel.verdict == "loses" for duel in duels),
        ratio=float(np.median(ratios)) if ratios else float("nan"),
        better=probability_of_improvement(*sides),
        diverged=sum(int(np.isinf(duel.ours).sum()) for duel in duels),
        trials=sum(len(duel.ours) for duel in duels),
    )


def _scored(losses: Sequence[float]) -> Float[np.ndarray, " seeds"]:
    """Scores that rise as losses fall; all diverged trials tie below the others."""
    return np.maximum(-np.asarray(losses, np.float64), -1e300)
