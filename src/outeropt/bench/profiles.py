"""Performance profiles and their score, after AlgoPerf.

Source: Dahl et al. 2023, "Benchmarking Neural Network Training Algorithms", arXiv 2306.07179; the
profiles themselves are of Dolan and Moré 2002.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float

from outeropt.bench import scores
from outeropt.bench.normalizer import Normalizer
from outeropt.bench.scores import Ruleset
from outeropt.errors import OuteroptError


if TYPE_CHECKING:
    from outeropt.store.archive import Archive

R_MAX = 4.0


@dataclasses.dataclass(frozen=True)
class Profile:
    """How much longer than the yardstick a contestant takes to the target, task by task.

    Attributes:
      optimizer: label, unique within its ruleset.
      ruleset: `"tuned"` or `"as is"`.
      ratios: time to the target over the yardstick's, by task; infinite where the target was not reached.
      score: `benchmark_score` of the ratios, in [0, 1].
    """

    optimizer: str
    ruleset: Ruleset
    ratios: dict[str, float]
    score: float

    def rho(self, tau: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Share of the tasks that are done within `tau` times the yardstick's time."""
        return profile(np.array(list(self.ratios.values())), tau)


def profile(ratios: Float[np.ndarray, " tasks"], tau: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """`rho(tau)`, the share of `ratios` that are at most `tau`."""
    return (ratios[None, :] <= np.asarray(tau)[:, None]).mean(axis=1)


def benchmark_score(ratios: Float[np.ndarray, " tasks"], r_max: float = R_MAX) -> float:
    """`B = 1 / (r_max - 1) * integral_1^{r_max} rho(tau) d tau`, in [0, 1].

    `rho` is a staircase, so the integral is exact: every task adds what is left of `[1, r_max]` beyond its
    ratio.
    """
    left = np.clip(r_max - np.asarray(ratios, np.float64), 0.0, r_max - 1)
    return float(left.mean() / (r_max - 1))


def target(normalizer: Normalizer, task: str, step: float, curve: str = "valid/loss") -> tuple[float, float]:
    """The loss that the frozen reference has reached by `step`, and the first step at which it had it.

    Raises:
      UnknownName: the normalizer has no such task or curve.
    """
    loss = normalizer.loss_at(task, step, curve)
    return loss, float(normalizer(task, loss, curve))


def seconds_per_step(archives: Sequence["Archive"]) -> dict[str, float]:
    """Median seconds of an inner step by task: what `profiles` needs of the reference to compare seconds."""
    return {archive.task: float(np.median(archive.seconds)) / archive.num_steps for archive in archives}


def profiles(
    archives: Sequence["Archive"],
    normalizer: Normalizer,
    curve: str = "valid/loss",
    share: float = 1 / R_MAX,
    relative_to: Literal["reference", "best"] = "reference",
    reference_seconds: Mapping[str, float] | None = None,
    r_max: float = R_MAX,
) -> tuple[Profile, ...]:
    """Performance profiles of all contestants, best first.

    A trial of n steps aims at the loss that the reference reaches in `share * n` steps. A contestant's time
    is the median over the seeds of the setting that the validation loss picks.

    Args:
      archives: one for each set and task.
      normalizer: the reference; tasks that it does not know are left out.
      curve: the loss to reach.
      share: where on the reference's way the target lies, in (0, 1]. Above `1 / r_max` trials end before a
        ratio of `r_max`, so that slow ones count as failed.
      relative_to: `"reference"` divides by the frozen reference's time, so that a contestant's profile does
        not depend on the others. `"best"` divides by the fastest contestant of the same ruleset, as AlgoPerf
        does: a new contestant can then lower every other's score.
      reference_seconds: seconds of a step of the reference on the machine of these archives, by task (see
        `seconds_per_step`). If given, time is in seconds, else in steps.
      r_max: ratios from here on count as not reached; above 1.

    Raises:
      OuteroptError: nothing to score, a task without reference seconds, or trials of different lengths on one
        task, which cannot be compared by `"best"`.
    """
    known = [archive for archive in archives if normalizer.knows(archive.task, curve)]
    if not known:
        raise OuteroptError(f"Normalizer {normalizer.version} has no {curve} for any task given.")
    if relative_to == "best":
        _same_lengths(known)
    clock = scores.steps_to_target if reference_seconds is None else scores.seconds_to_target

    times: dict[tuple[str, Ruleset], dict[str, float]] = {}
    yardsticks: dict[tuple[str, Ruleset], dict[str, float]] = {}
    for entry in scores.entries(known):
        name = entry.optimizer, entry.ruleset
        times[name], yardsticks[name] = {}, {}
        for task, archive in entry.archives.items():
            goal, steps = target(normalizer, task, share * archive.num_steps, curve)
            times[name][task] = float(np.median(clock(archive, goal, curve)[scores.chosen(archive)]))
            yardsticks[name][task] = steps * _unit(task, reference_seconds)
    if relative_to == "best":
        for (_, ruleset), sticks in yardsticks.items():
            for task in sticks:
                rivals = [
                    found[task] for (_, rules), found in times.items() if rules == ruleset and task in found
                ]
                sticks[task] = min(rivals)

    rows = []
    for (optimizer, ruleset), found in times.items():
        sticks = yardsticks[optimizer, ruleset]
        ratios = {task: _ratio(time, sticks[task]) for task, time in found.items()}
        rows.append(
            Profile(optimizer, ruleset, ratios, benchmark_score(np.array(list(ratios.values())), r_max))
        )
    return tuple(sorted(rows, key=lambda row: (-row.score, row.optimizer, row.ruleset)))


def _same_lengths(archives: Sequence["Archive"]) -> None:
    lengths: dict[str, Archive] = {}
    for archive in archives:
        first = lengths.setdefault(archive.task, archive)
        if first.num_steps != archive.num_steps:
            raise OuteroptError(
                f"{first.set} ran {first.num_steps} steps of {archive.task} and {archive.set} "
                f'{archive.num_steps}; relative_to="best" needs trials of one length. Use "reference".'
            )


def _unit(task: str, reference_seconds: Mapping[str, float] | None) -> float:
    if reference_seconds is None:
        return 1.0
    if task not in reference_seconds:
        raise OuteroptError(
            f"The reference's seconds per step on {task} are not given; have: {sorted(reference_seconds)}."
        )
    return reference_seconds[task]


def _ratio(time: float, yardstick: float) -> float:
    if not np.isfinite(time):
        return np.inf
    if yardstick > 0:
        return time / yardstick
    return 1.0 if time == 0 else np.inf
