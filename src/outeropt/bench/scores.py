"""Scores of single trials, and which archives belong together."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Bool, Float, Float32

from outeropt.bench.normalizer import Normalizer
from outeropt.errors import OuteroptError, unknown_name


if TYPE_CHECKING:
    from outeropt.store.archive import Archive

Ruleset = Literal["tuned", "as is"]
RULESETS: tuple[Ruleset, ...] = ("tuned", "as is")

SELECTION_CURVE = "valid/loss"


def ruleset_of(set_name: str) -> Ruleset:
    """The ruleset that a set plays by: `"as is"` if its name ends in `-default`, else `"tuned"`."""
    return "as is" if set_name.endswith("-default") else "tuned"


def values(archive: "Archive", curve: str) -> Float32[np.ndarray, "settings seeds T"]:
    """One curve of an archive.

    Raises:
      UnknownName: the archive does not have it.
    """
    if curve not in archive.curves:
        raise unknown_name(f"curve of {archive.set} on {archive.task}", curve, archive.curves)
    return archive.curves[curve]


def chosen(archive: "Archive") -> int:
    """Index of the setting that the validation loss picks (final value, mean over seeds)."""
    values(archive, SELECTION_CURVE)
    return archive.best(SELECTION_CURVE)


def diverged(archive: "Archive") -> Bool[np.ndarray, "settings seeds"]:
    """Which trials diverged, or ended without a finite training loss."""
    return (archive.diverged_at >= 0) | ~np.isfinite(values(archive, "train/loss")[:, :, -1])


def steps_to_target(
    archive: "Archive", target: float, curve: str = "valid/loss"
) -> Float[np.ndarray, "settings seeds"]:
    """First evaluated step at which the curve is at or below `target` (at or above, for an accuracy).

    Infinite for a trial that never gets there.
    """
    curves = values(archive, curve)
    reached = curves >= target if curve.endswith("accuracy") else curves <= target
    first = archive.steps[np.argmax(reached, axis=-1)].astype(np.float64)
    return np.where(reached.any(axis=-1), first, np.inf)


def seconds_to_target(
    archive: "Archive", target: float, curve: str = "valid/loss"
) -> Float[np.ndarray, "settings seeds"]:
    """Wall-clock seconds to `target`: the trial's seconds times the share of its steps that it needed."""
    return archive.seconds * (steps_to_target(archive, target, curve) / archive.num_steps)


def normalised(
    archive: "Archive", normalizer: Normalizer, curve: str = "train/loss"
) -> Float32[np.ndarray, "settings seeds T"]:
    """Whole curves in steps of the reference: what `normalizer` says about each value."""
    return normalizer(archive.task, values(archive, curve), curve)


def speedups(
    archive: "Archive", normalizer: Normalizer, curve: str = "train/loss"
) -> Float[np.ndarray, "settings seeds"]:
    """Score of every trial: speed-up over the frozen, tuned reference.

    `normalizer(task, final loss) / num_steps`: the steps that the reference needs to reach the trial's final
    loss, over the steps that the trial took. 1 is as fast as the reference, 2 twice as fast; a diverged trial
    has 0. Of several episodes the last one counts, over the steps of one episode.
    """
    final = values(archive, curve)[:, :, -1]
    failed = diverged(archive) | ~np.isfinite(final)
    steps = normalizer(archive.task, final, curve).astype(np.float64)
    return np.where(failed, 0.0, steps / (archive.num_steps // archive.episodes))


@dataclasses.dataclass(frozen=True)
class Entry:
    """One contestant: the archives of one hyperparameter set, over the tasks it has run.

    Attributes:
      optimizer: label, unique within its ruleset: the optimizer's name, with the set's in brackets where
        several sets of that optimizer compete.
      set: name of the hyperparameter set.
      ruleset: `"tuned"` or `"as is"`.
      archives: by task.
    """

    optimizer: str
    set: str
    ruleset: Ruleset
    archives: dict[str, "Archive"]


def entries(archives: Sequence["Archive"]) -> tuple[Entry, ...]:
    """Groups archives into contestants, one for each (optimizer, set), sorted by name.

    Raises:
      OuteroptError: two archives of one set on one task.
    """
    groups: dict[tuple[str, str], dict[str, Archive]] = {}
    for archive in archives:
        by_task = groups.setdefault((archive.optimizer, archive.set), {})
        if archive.task in by_task:
            raise OuteroptError(
                f"There are two archives of {archive.set} on {archive.task}; give one of each set and task."
            )
        by_task[archive.task] = archive
    rivals: dict[tuple[str, Ruleset], int] = {}
    for optimizer, name in groups:
        key = optimizer, ruleset_of(name)
        rivals[key] = rivals.get(key, 0) + 1
    return tuple(
        Entry(
            optimizer if rivals[optimizer, ruleset_of(name)] == 1 else f"{optimizer} ({name})",
            name,
            ruleset_of(name),
            by_task,
        )
        for (optimizer, name), by_task in sorted(groups.items(), key=lambda item: item[0])
    )
