"""Comparisons whose length is counted in epochs: every task for as many steps as its rows are many.

A suite names the problems and the baselines of a study, evaluated once an epoch on whole splits.
"""

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from outeropt import checkpoint, tasks
from outeropt.bench.sets import HyperparameterSet
from outeropt.errors import ConfigError
from outeropt.store import Archive
from outeropt.tasks.wrappers import whole_splits


@dataclasses.dataclass(frozen=True)
class EpochSuite:
    """A study's problems and what they are compared with.

    Attributes:
      name: the suite's name, in place of task names.
      tasks: names of its problems, those whose data outeropt does not provide among them.
      against: pattern of the baselines' hyperparameter sets.
      epochs: how long every problem is trained.
    """

    name: str
    tasks: tuple[str, ...]
    against: str
    epochs: int


SUITES = {
    suite.name: suite
    for suite in (
        # Huang et al. 2022, arXiv 2203.06474, figures 2 and 4.
        EpochSuite(
            "amalgamation-suite",
            (
                *("conv_train", "conv_deeper_pool", "conv_wider", "conv_fmnist", "conv_svhn"),
                *("conv_cifar10_wider", "conv_smallbatch", "conv_train_dp", "mlp_train", "resnet"),
            ),
            "Amalgamation_*",
            25,
        ),
    )
}


def plan(
    names: Sequence[str], everyone: Sequence[HyperparameterSet], epochs: int
) -> dict[str, list[HyperparameterSet]]:
    """What `bench.run.run_all` takes: each task on whole splits, each set as long as it has epochs.

    There is one evaluation at the start and one after each epoch, of all validation and test rows. Those of
    training rows are of one batch (of ten at the end); `inner/loss` is the mean over an epoch's batches.

    Args:
      names: of tasks with rows.
      everyone: the sets; their seeds stay, and names say the length in epochs.
      epochs: how many, at least 1.

    Raises:
      ConfigError: a task without rows.
    """
    found = {}
    for name in names:
        length = whole_splits.steps_per_epoch(tasks.get(name))
        found[f"{name}{whole_splits.SUFFIX}"] = [
            dataclasses.replace(
                named(item, epochs),
                steps=epochs * length,
                eval_every=length,
                eval_batches=1,
                last_eval_batches=10,
            )
            for item in everyone
        ]
    return found


def named(item: HyperparameterSet, epochs: int) -> HyperparameterSet:
    """The set with a name that says how many epochs it ran."""
    return dataclasses.replace(item, name=f"{item.name}@{epochs}epochs")


def problem(task: str) -> str:
    """A task's name as it was asked for, without `_WholeSplits`."""
    return task.removesuffix(whole_splits.SUFFIX)


def save_evaluation(archive: Archive, folder: str | Path) -> Path:
    """Writes an optimizer's curves on a problem to `folder/eval/PROBLEM.npz`, in place of an older file.

    Each curve is an array (repeats, evaluations) by its name, such as `valid/loss`; `steps` are the inner
    steps of the evaluations, `seeds`, `seconds` and `diverged_at` (-1 where it did not) those of each repeat.
    The file holds plain arrays, no pickles.

    Raises:
      ConfigError: more than one setting.
      OuteroptError: the file cannot be written.
    """
    if len(archive.settings) != 1:
        raise ConfigError(f"{archive.set} has {len(archive.settings)} settings; only one can be written.")
    path = Path(folder) / "eval" / f"{_file_name(problem(archive.task))}.npz"
    arrays = {name: curve[0] for name, curve in archive.curves.items()}
    about = {"seconds": archive.seconds[0], "diverged_at": archive.diverged_at[0]}
    data = io.BytesIO()
    np.savez(data, steps=archive.steps, seeds=np.asarray(archive.seeds), **about, **arrays)
    checkpoint.replace(path, data.getvalue())
    return path


def _file_name(task: str) -> str:
    """Of `path/to/file.py:attribute` the attribute."""
    return task.rpartition(":")[2]
