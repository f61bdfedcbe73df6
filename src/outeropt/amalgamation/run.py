"""A whole amalgamation: `Amalgamation`, which can be looked at on the way, and `amalgamate`."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeGuard

import numpy as np
from jaxtyping import PRNGKeyArray

from outeropt import optimizers
from outeropt.amalgamation.experiment import Experiment
from outeropt.amalgamation.losses import Losses
from outeropt.amalgamation.outer import Learner, Recipe, begin
from outeropt.amalgamation.period import PeriodRun
from outeropt.amalgamation.perturbations import Perturbation, Unperturbed
from outeropt.amalgamation.strategies import Curriculum, Period, Place, Record, Strategy
from outeropt.errors import ConfigError
from outeropt.learned import LearnedOptimizer
from outeropt.optimizer import Optimizer
from outeropt.task import Task


# Seconds between checkpoints of a period that is under way.
SECONDS = 60.0


class Watcher(Protocol):
    """Whoever wants to know how far it is."""

    def period(self, label: str, total: int, done: int) -> None:
        """A period begins, or goes on, that has so many unrolls in all."""

    def unroll(self, note: str) -> None:
        """An unroll is done."""


class Amalgamation:
    """A student that learns from teachers, period after period.

    Args:
      student: the optimizer that is learned; its array leaves change. The strategy's warm-up takes the place
        of one that it, or a teacher, has of its own.
      teachers: whom it imitates; none for the meta-loss alone.
      tasks: what it is trained on, one after the other in each period.
      key: randomness.
      strategy: which unrolls there are.
      losses: what is descended on.
      perturbation: of the student's weights.
      outer: the optimizer of the outer loop.
      spread: of the random scaling of coordinates, 0 for none.
      rematerialise: recompute inner steps on the way back: less memory, one more forward pass.
      finish: makes of the student as it is learned the one that is used and validated.

    Attributes:
      records: the periods that are finished.

    Raises:
      ConfigError: there is no task, or the imitation loss is all there is and there are no teachers.
    """

    def __init__(
        self,
        student: Optimizer,
        teachers: Sequence[Optimizer],
        tasks: Sequence[Task],
        *,
        key: PRNGKeyArray,
        strategy: Strategy | None = None,
        losses: Losses | None = None,
        perturbation: Perturbation | None = None,
        outer: Optimizer | None = None,
        spread: float = 3.0,
        rematerialise: bool = False,
        finish: Callable[[Optimizer], Optimizer] | None = None,
    ):
        if not tasks:
            raise ConfigError("There is nothing to train on: give at least one task.")
        losses = Losses() if losses is None else losses
        if losses.mixture == "imitation" and not teachers:
            raise ConfigError("The imitation loss needs teachers: give at least one, or another mixture.")
        if not 0 <= spread < math.inf:
            raise ConfigError(f"The spread of the scale is {spread}; give a number of at least 0.")
        self.strategy = Curriculum() if strategy is None else strategy
        self.records: list[Record] = []
        self._tasks, self._key = tuple(tasks), key
        self._finish = (lambda learned: _without_warm_up(finish(learned))) if finish else _without_warm_up
        self._recipe = Recipe(
            tuple(_without_warm_up(teacher) for teacher in teachers),
            losses,
            Unperturbed() if perturbation is None else perturbation,
            optimizers.get("clip_adaptive:adam", learning_rate=1e-3) if outer is None else outer,
            spread,
            rematerialise,
        )
        self._fresh = begin(self._recipe, _without_warm_up(student))
        self._learners: dict[Place, Learner] = {}
        self._experiment: Experiment | None = None
        self._about: dict[str, Any] = {}

    @property
    def optimizer(self) -> Optimizer:
        """The best student by validation so far, as it is used; the fresh one before the first validation."""
        if not self.records:
            return self._finish(self._fresh.student)
        place = self.strategy.best(self.records)
        return self._used(self._learner(place).student, place)

    def resume(self, folder: str | Path, config: Mapping[str, Any]) -> int:
        """Keeps the training in a folder, and goes on from what it holds.

        Args:
          folder: see `experiment`.
          config: what was asked for, as YAML can hold it; it also goes into the files of students.

        Returns:
          Periods that were finished before.

        Raises:
          ConfigError: the folder is of another configuration.
        """
        self._experiment = Experiment(folder, self.strategy)
        self._experiment.configure(config)
        self._about = dict(config)
        self.records = self._experiment.records
        return len(self.records)

    def run(self, watcher: Watcher | None = None) -> None:
        """Does the periods that are left."""
        while (period := self.strategy.next(self.records)) is not None:
            self._run(period, watcher)

    def _run(self, period: Period, watcher: Watcher | None) -> None:
        began = time.time()
        learner = self._learner(period.start)
        run = PeriodRun(period, self._tasks, self._recipe, learner, self._finish, self._key)
        kept = self._experiment.suspended(period.place) if self._experiment else None
        if self._experiment and kept:
            began -= kept["seconds"]
            run.restore(kept["done"], self._experiment.resumed)
        label, saved = self.strategy.label(period.place), time.monotonic()
        if watcher:
            watcher.period(label, run.total, run.done)
        while run.done < run.total:
            note = run.step()
            if watcher:
                watcher.unroll(note)
            if self._experiment and time.monotonic() - saved > SECONDS:
                about = {"label": label, "done": run.done, "seconds": time.time() - began}
                self._experiment.suspend(run.state, about)
                saved = time.monotonic()
        self._close(period, run, time.time() - began)

    def _close(self, period: Period, run: PeriodRun, seconds: float) -> None:
        """Adds a finished period to the records, and to the folder."""
        record = Record(period.place, run.validation, float(np.mean(run.logs["meta_loss"])))
        self._learners[period.place] = run.learner
        records = [*self.records, record]
        if self._experiment:
            student = self._used(run.learner.student, period.place)
            best = student if self.strategy.best(records) == period.place else None
            row = _row(self.strategy, period, run, record, seconds)
            self._experiment.finish(period.place, student, run.learner, row, run.logs, self._about, best)
        self.records = records

    def _used(self, student: Optimizer, place: Place) -> Optimizer:
        """A student as it is used after training: with the warm-up that it was trained with, if it can."""
        student, plan = self._finish(student), self.strategy.plan_of(place)
        if not _can_warm_up(student):
            return student
        return student.with_settings(warmup_steps=plan.warmup * plan.unroll, warmup_rate=plan.warmup_rate)

    def _learner(self, place: Place | None) -> Learner:
        """The learner after a finished period; the fresh one for none."""
        if place is None:
            return self._fresh
        if place not in self._learners:
            assert self._experiment is not None
            self._learners[place] = self._experiment.learner(place, self._fresh)
        return self._learners[place]


def _can_warm_up(optimizer: Optimizer) -> TypeGuard[LearnedOptimizer]:
    return isinstance(optimizer, LearnedOptimizer) and "warmup_steps" in optimizer.settings


def _without_warm_up(optimizer: Optimizer) -> Optimizer:
    """The optimizer as it takes part in the warm-up of all."""
    if _can_warm_up(optimizer) and optimizer.settings["warmup_steps"]:
        return optimizer.with_settings(warmup_steps=0)
    return optimizer


def _row(
    strategy: Strategy, period: Period, run: PeriodRun, record: Record, seconds: float
) -> dict[str, Any]:
    """The values of a period's row in the summary; stages and attempts where the strategy has them."""
    place, plan = period.place, period.training
    row = {
        "validation": record.validation,
        "time": round(time.time(), 3),
        "duration": round(seconds, 3),
        "period": place.period,
        "warmup": plan.warmup,
        "warmup_rate": plan.warmup_rate,
        "p_teacher": plan.imitation,
        "depth": plan.depth,
        "unroll_len": plan.unroll,
        "epochs": plan.epochs,
        "meta_loss": record.meta_loss,
        "imitation_loss": float(np.mean(run.logs["imitation_loss"])),
    }
    if strategy.has_stages:
        row["stage"] = place.stage
    if strategy.has_repeats:
        row["repeat"] = place.repeat
    return row


def amalgamate(
    student: Optimizer,
    teachers: Sequence[Optimizer],
    tasks: Task | Sequence[Task],
    *,
    key: PRNGKeyArray,
    watcher: Watcher | None = None,
    **options: Any,
) -> Optimizer:
    """A student distilled from teachers: `Amalgamation` from its start to its end.

    Args:
      student: where to start.
      teachers: whom it imitates.
      tasks: what it is trained on.
      key: randomness.
      watcher: hears of each unroll.
      **options: the rest of what `Amalgamation` takes.

    Returns:
      The best student by validation.
    """
    run = Amalgamation(student, teachers, [tasks] if isinstance(tasks, Task) else tasks, key=key, **options)
    run.run(watcher)
    return run.optimizer
