"""What a search returns."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from outeropt.errors import OuteroptError
from outeropt.optimizer import Optimizer
from outeropt.store import Archive


class Tried(NamedTuple):
    """One setting that a search tried.

    Attributes:
      setting: hyperparameter values by name.
      score: validation loss where it stopped, mean over seeds; infinite if a seed diverged.
      steps: inner steps that it was trained for.
      seconds: wall-clock seconds of its share of the compiled program, all seeds together.
    """

    setting: dict[str, float]
    score: float
    steps: int
    seconds: float


class Incumbent(NamedTuple):
    """The best setting so far, after every batch of work.

    Attributes:
      trials: work so far, in trials of full length (a rung of a tenth of the steps counts a tenth).
      seconds: wall-clock seconds so far of all lanes' shares.
      score: score of the best setting so far when it was last evaluated; infinite while all have diverged.
    """

    trials: Float[np.ndarray, " batches"]
    seconds: Float[np.ndarray, " batches"]
    score: Float[np.ndarray, " batches"]


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
      optimizer: the optimizer at the best setting.
      setting: values of the tuned leaves there, by name.
      score: validation loss of the best setting after all steps, mean over seeds; infinite if every setting
        diverged.
      trials: everything that was tried, in the order in which it was begun.
      incumbent: the best so far against work.
      archives: curves, one archive for each length that settings were trained for, longest first. Only the
        first has trials of full length.
      history: of a method that changes hyperparameters during a trial, arrays (times, members) by name; empty
        otherwise.
    """

    optimizer: Optimizer
    setting: dict[str, float]
    score: float
    trials: tuple[Tried, ...]
    incumbent: Incumbent
    archives: tuple[Archive, ...]
    history: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def best(self) -> list[Tried]:
        """Settings of full length, best first; those that diverged last."""
        longest = max(trial.steps for trial in self.trials)
        return sorted((t for t in self.trials if t.steps == longest), key=lambda trial: trial.score)


def scores(archive: Archive, curve: str = "valid/loss") -> Float[np.ndarray, " settings"]:
    """Last values of a curve, mean over seeds; infinite where a seed has diverged."""
    final = archive.final(curve).astype(np.float64)
    return np.where(np.isfinite(final).all(axis=1), final.mean(axis=1), math.inf)


def joined(archives: Sequence[Archive]) -> Archive:
    """Archives of the same task, seeds and cadence as one, with the settings of all.

    Raises:
      OuteroptError: they are of different seeds or cadences.
    """
    first = archives[0]
    for other in archives:
        if other.seeds != first.seeds or not np.array_equal(other.steps, first.steps):
            raise OuteroptError("Archives of different seeds or steps cannot be joined.")
    return dataclasses.replace(
        first,
        settings=tuple(setting for archive in archives for setting in archive.settings),
        curves={
            name: np.concatenate([archive.curves[name] for archive in archives]) for name in first.curves
        },
        diverged_at=np.concatenate([archive.diverged_at for archive in archives]),
        seconds=np.concatenate([archive.seconds for archive in archives]),
        ids=np.concatenate([archive.ids for archive in archives if archive.ids is not None]),
    )
