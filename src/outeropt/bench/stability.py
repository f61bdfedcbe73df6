"""How well and how steadily runs end, and how much one meta-training differs from the next.

The statistics are those of Huang et al. 2022 (arXiv 2203.06474) over evaluations once an epoch. Its published
code takes the mean training loss from the validation losses and one best accuracy from all repeats together;
here each is what its name says. A run that diverged keeps its place: it is counted, and what it cannot have
is NaN.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from outeropt.bench import scores
from outeropt.bench.learned_names import WORD
from outeropt.bench.mixed_effects import MixedEffects, fit


if TYPE_CHECKING:
    from outeropt.store.archive import Archive

SMOOTHING = 2.0
"""Standard deviation, in epochs, of the filter that epoch-to-epoch changes are measured against."""

STATISTICS = ("valid_best", "train_last")
"""What replicates are compared by: the best validation loss, and the last training loss, as logarithms."""

_REPLICATE = re.compile(r"(?P<family>.+)[-/](?P<replicate>\d+)")


@dataclasses.dataclass(frozen=True)
class RunStatistics:
    """One setting's runs in numbers: arrays with one value for each seed. Losses are natural logarithms.

    Attributes:
      method: the optimizer's name.
      task: name of the task.
      valid_best: lowest validation loss of all epochs, before a divergence too; NaN where no epoch has one.
      valid_best_epoch: the epoch of it, from 1; NaN likewise.
      valid_last: last validation loss; NaN where the run diverged, as for all that follow.
      valid_mean: mean over epochs of the logarithm of the validation loss.
      jitter: standard deviation over epochs of `log filtered loss - log loss` of validation, with a Gaussian
        filter of two epochs: the paper's optimization stability.
      train_best: lowest training loss of an epoch; before a divergence too.
      train_last: training loss of the last epoch.
      train_mean: mean over epochs of the logarithm of the training loss.
      accuracy_best: highest validation accuracy; NaN where the task has none.
      diverged: which runs did.
    """

    method: str
    task: str
    valid_best: Float[np.ndarray, " seeds"]
    valid_best_epoch: Float[np.ndarray, " seeds"]
    valid_last: Float[np.ndarray, " seeds"]
    valid_mean: Float[np.ndarray, " seeds"]
    jitter: Float[np.ndarray, " seeds"]
    train_best: Float[np.ndarray, " seeds"]
    train_last: Float[np.ndarray, " seeds"]
    train_mean: Float[np.ndarray, " seeds"]
    accuracy_best: Float[np.ndarray, " seeds"]
    diverged: Bool[np.ndarray, " seeds"]


@dataclasses.dataclass(frozen=True)
class Family:
    """Replicates of one learned optimizer on one task.

    Attributes:
      name: what they have in common.
      task: name of the task.
      replicates: statistics of each, by replicate.
      fits: replicates and their evaluations as a random intercept, by name of the statistic (`STATISTICS`).
    """

    name: str
    task: str
    replicates: dict[str, RunStatistics]
    fits: dict[str, MixedEffects]

    @property
    def diverged(self) -> tuple[int, int]:
        """Runs that diverged, and all runs."""
        lost = [runs.diverged for runs in self.replicates.values()]
        return sum(int(one.sum()) for one in lost), sum(one.size for one in lost)


def epochs(archive: "Archive", curve: str, setting: int | None = None) -> Float[np.ndarray, "seeds epochs"]:
    """One curve after each epoch: all evaluations but that of the initial values.

    Args:
      archive: one optimizer on one task, evaluated once an epoch.
      curve: its name. `"train/loss"` is the mean over the epoch's batches, `inner/loss`, where there is one.
      setting: index of the setting; None for the one that the validation loss picks.
    """
    if curve == "train/loss" and "inner/loss" in archive.curves:
        curve = "inner/loss"
    setting = scores.chosen(archive) if setting is None else setting
    return scores.values(archive, curve)[setting, :, 1:].astype(np.float64)


def run_statistics(archive: "Archive", setting: int | None = None) -> RunStatistics:
    """The statistics of one setting's runs.

    Args:
      archive: one optimizer on one task, evaluated once an epoch.
      setting: index of the setting; None for the one that the validation loss picks.

    Raises:
      UnknownName: the archive lacks the training or the validation loss.
    """
    setting = scores.chosen(archive) if setting is None else setting
    valid, train = (epochs(archive, curve, setting) for curve in ("valid/loss", "train/loss"))
    log_valid, log_train = logarithm(valid), logarithm(train)
    known = np.isfinite(log_valid).any(axis=1)
    best_epoch = np.where(np.isfinite(log_valid), log_valid, np.inf).argmin(axis=1) + 1.0
    lost = (archive.diverged_at[setting] >= 0) | ~np.isfinite(valid[:, -1])
    accuracy = np.full_like(valid, np.nan)
    if "valid/accuracy" in archive.curves:
        accuracy = epochs(archive, "valid/accuracy", setting)
    return RunStatistics(
        method=archive.optimizer or archive.set,
        task=archive.task,
        valid_best=_least(log_valid),
        valid_best_epoch=np.where(known, best_epoch, np.nan),
        valid_last=log_valid[:, -1],
        valid_mean=log_valid.mean(axis=1),
        jitter=jitter(valid),
        train_best=_least(log_train),
        train_last=log_train[:, -1],
        train_mean=log_train.mean(axis=1),
        accuracy_best=-_least(-accuracy),
        diverged=lost,
    )


def jitter(loss: Float[np.ndarray, "seeds epochs"]) -> Float[np.ndarray, " seeds"]:
    """Standard deviation over epochs of `log filtered loss - log loss`; NaN where a loss is missing.

    The filter is Gaussian with a standard deviation of `SMOOTHING` epochs, cut off at four of them, and goes
    on with the first and the last loss beyond the ends.
    """
    from scipy.ndimage import gaussian_filter1d

    whole = np.isfinite(loss).all(axis=1, keepdims=True)
    filtered = gaussian_filter1d(np.where(whole, loss, 1.0), SMOOTHING, axis=1, mode="nearest")
    return (logarithm(filtered) - logarithm(np.where(whole, loss, np.nan))).std(axis=1)


def logarithm(loss: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Natural logarithm; NaN of what is not positive or not finite."""
    usable = np.isfinite(loss) & (loss > 0)
    return np.where(usable, np.log(np.where(usable, loss, 1.0)), np.nan)


def family_of(optimizer: str) -> tuple[str, str] | None:
    """Family and replicate that a learned optimizer's name tells; None where it tells none.

    `learned:amalgam-min-max-3` is the third replicate of `amalgam-min-max`, and `learned:rnnprop/min-max/3`,
    from a folder `policy/experiment/replicate`, of `rnnprop/min-max`.
    """
    wrappers, found, name = optimizer.partition(WORD)
    parts = _REPLICATE.fullmatch(name)
    return (wrappers + parts["family"], parts["replicate"]) if found and parts else None


def families(archives: Sequence["Archive"]) -> tuple[Family, ...]:
    """The families of two replicates or more among these archives, task by task.

    Args:
      archives: evaluated once an epoch; those of learned optimizers that are numbered replicates count.
    """
    held: dict[tuple[str, str], dict[str, RunStatistics]] = {}
    for archive in archives:
        if named := family_of(archive.optimizer):
            replicates = held.setdefault((archive.task, named[0]), {})
            replicates[named[1]] = run_statistics(archive)
    return tuple(
        Family(name, task, replicates, {of: _fit(replicates, of) for of in STATISTICS})
        for (task, name), replicates in held.items()
        if len(replicates) > 1
    )


def _fit(replicates: dict[str, RunStatistics], statistic: str) -> MixedEffects:
    return fit([getattr(runs, statistic) for runs in replicates.values()])


def _least(values: Float[np.ndarray, "seeds epochs"]) -> Float[np.ndarray, " seeds"]:
    least = np.where(np.isfinite(values), values, np.inf).min(axis=1)
    return np.where(np.isfinite(least), least, np.nan)
