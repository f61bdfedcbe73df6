"""Many trials of one task as calls of one compiled program."""

from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Literal

import jax

from outeropt._sweep.executors.base import Executor
from outeropt._sweep.executors.in_process import InProcess
from outeropt._sweep.job import Job
from outeropt._sweep.lanes import Device
from outeropt._sweep.planned import Keep, Planned
from outeropt._sweep.runner import Protocol, Report
from outeropt._sweep.settings import Settings
from outeropt.errors import ConfigError
from outeropt.optimizer import Optimizer
from outeropt.store import Archive, Store
from outeropt.task import Task
from outeropt.training import cadence


def sweep(
    task: Task,
    optimizers: Optimizer | Settings | Sequence[Optimizer | Settings],
    *,
    seeds: int | Iterable[int] = 3,
    steps: int,
    episodes: int = 1,
    eval_every: int | None = None,
    eval_batches: int = 5,
    last_eval_batches: int = 10,
    lanes: int | Literal["auto"] = "auto",
    store: Store | None = None,
    set: str | None = None,
    optimizer_name: str = "",
    devices: Sequence[Device] | None = None,
    executor: Executor | None = None,
    report: Report | None = None,
    keep: Keep | None = None,
) -> Archive:
    """Trains a task with every optimizer and every seed; equal structures share one compiled program.

    Args:
      task: what to train.
      optimizers: one optimizer, stacked settings (`grid`, `sample`), or a list of these.
      seeds: how many seeds (0, 1, ...), or the integers themselves.
      steps: inner steps of every trial, or of each of its episodes.
      episodes: how many times every trial trains from fresh initial values, as in `outeropt.train`.
      eval_every: inner steps between evaluations; None chooses about a hundred evaluations.
      eval_batches: batches per split and evaluation.
      last_eval_batches: the same for the evaluation after the last step.
      lanes: trials that one device runs at a time; `"auto"` chooses.
      store: where finished trials are kept, chunk by chunk, and looked up before anything is run.
      set: name of this collection of trials, for the archive and the store; None leaves them unnamed.
      optimizer_name: name of the optimizer in the archive.
      devices: devices that share the lanes; None takes all local ones.
      executor: where chunks run, in place of this process and its devices.
      report: called with the number of trials that a piece of work was worth (fractions sum to the total).
      keep: called with the position of the setting, the seed and the last training state of every trial;
        no store has these, so that trials are run again.

    Returns:
      Curves with axes setting (in the order given), seed, step. A diverged trial is NaN from then on.

    Raises:
      ConfigError: an argument that cannot be used.
      StoreError: the store cannot be read or written.

    Examples:
      >>> import outeropt
      >>> task, sgd = outeropt.tasks.get("Quadratic_10"), outeropt.optimizers.get("sgd")
      >>> settings = outeropt.grid(sgd, learning_rate=[1e-3, 1e-2])
      >>> archive = outeropt.sweep(task, settings, seeds=2, steps=20, eval_every=10)
      >>> archive.curves["valid/loss"].shape  # settings, seeds, evaluations
      (2, 2, 3)
      >>> archive.settings[archive.best("valid/loss")]
      {'learning_rate': 0.01}
    """
    if executor is not None and (keep is not None or devices is not None):
        raise ConfigError("keep and devices are of this process; an executor has its own. Leave one out.")
    where = executor or InProcess(jax.local_devices() if devices is None else devices)
    whole = planned(
        task,
        optimizers,
        seeds=seeds,
        steps=steps,
        episodes=episodes,
        eval_every=eval_every,
        eval_batches=eval_batches,
        last_eval_batches=last_eval_batches,
        lanes=lanes,
        store=store,
        set=set,
        optimizer_name=optimizer_name,
        devices=where.devices,
    )
    return drive([whole], where, report, keep)[0]


def planned(
    task: Task,
    optimizers: Optimizer | Settings | Sequence[Optimizer | Settings],
    *,
    seeds: int | Iterable[int],
    steps: int,
    episodes: int,
    eval_every: int | None,
    eval_batches: int,
    last_eval_batches: int,
    lanes: int | Literal["auto"],
    store: Store | None,
    set: str | None,
    optimizer_name: str,
    devices: Sequence[Any],
) -> Planned:
    """A sweep that `drive` will run; the arguments are those of `sweep`, the devices those of an executor."""
    every = cadence(steps, eval_every, eval_batches, last_eval_batches, episodes)
    return Planned(
        task,
        optimizers,
        seeds,
        Protocol(steps * episodes, every, eval_batches, last_eval_batches, episodes),
        lanes=lanes,
        devices=devices,
        store=store,
        set=set,
        optimizer_name=optimizer_name,
    )


def drive(
    sweeps: Iterable[Planned], executor: Executor, report: Report | None = None, keep: Keep | None = None
) -> list[Archive]:
    """Runs all that is missing of some sweeps, whose chunks are under way together.

    Args:
      sweeps: what to run; each writes its own store.
      executor: where chunks run.
      report: called with the number of trials that a piece of work was worth.
      keep: as for `sweep`; every trial is then run.

    Returns:
      The finished sweeps.
    """
    report = report or _silent
    under_way: dict[Hashable, tuple[Planned, Job, _Tally]] = {}

    def collect() -> None:
        name, outcome = executor.collect()
        whole, job, tally = under_way.pop(name)
        whole.finish(job, outcome, keep)
        tally.rest()

    begun = []
    for whole in sweeps:
        begun.append(whole)
        whole.begin(report, again=keep is not None)
        for job in whole.jobs():
            # Another of the sweeps may have the same chunk under way: then its trials are waited for.
            while any(other.id == job.id for _, other, _ in under_way.values()):
                collect()
            if whole.has(job, report):
                continue
            tally = _Tally(job.chunk.lanes, report)
            under_way[executor.submit(job, tally.tell)] = whole, job, tally
            while len(under_way) >= executor.width:
                collect()
    while under_way:
        collect()
    return [whole.archive(report) for whole in begun]


class _Tally:
    """What was told of a chunk, so that the whole of it is told once."""

    def __init__(self, trials: float, report: Report):
        self._left, self._report = trials, report

    def tell(self, trials: float) -> None:
        self._left -= trials
        self._report(trials)

    def rest(self) -> None:
        if self._left > 1e-6:
            self._report(self._left)


def _silent(trials: float) -> None:
    del trials
