"""One period of a training: its unrolls, one by one, then those of its validation."""

from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from outeropt.amalgamation import outer, race
from outeropt.amalgamation.outer import Learner, Recipe, Report
from outeropt.amalgamation.race import Runners
from outeropt.amalgamation.strategies import Period, Plan
from outeropt.optimizer import Optimizer
from outeropt.task import Task


# One program each for all unrolls of a task.
_start = eqx.filter_jit(race.start)
_warm_up = eqx.filter_jit(race.warm_up)
_learn = eqx.filter_jit(outer.learn)
_watch = eqx.filter_jit(outer.watch)

# Streams of randomness. A validation is the same test each time, so that students can be compared.
_TRAINING, _VALIDATION = range(2)


class PeriodRun:
    """A period under way.

    Args:
      period: what is to be done.
      tasks: trained on one after the other; then validated on in the same order.
      recipe: what stays the same from outer step to outer step.
      learner: where it starts.
      finish: makes of the student as it is learned the one that is validated.
      key: randomness of the whole training.

    Attributes:
      learner: the student and the outer optimizer's state by now.
      done: unrolls that are done, warm-ups included.
      total: all unrolls.
      logs: arrays by name, `[tasks, outer steps]`, with a last axis for teachers where there is one; NaN
        where not done. Those of the validation begin with `validation_`.
    """

    def __init__(
        self,
        period: Period,
        tasks: Sequence[Task],
        recipe: Recipe,
        learner: Learner,
        finish: Callable[[Optimizer], Optimizer],
        key: PRNGKeyArray,
    ):
        self._period, self._tasks, self._recipe, self._finish = period, tasks, recipe, finish
        place = period.place
        self._keys = {
            _TRAINING: _fold(key, _TRAINING, place.stage, place.period, place.repeat),
            _VALIDATION: _fold(key, _VALIDATION, place.stage),
        }
        self.learner = learner
        self._runners: Runners | None = None
        self.done = 0
        self.total = len(tasks) * (period.training.unrolls + period.validation.unrolls)
        steps = (len(tasks), period.training.epochs * period.training.depth)
        checks = (len(tasks), period.validation.epochs * period.validation.depth)
        self.logs = {
            "meta_loss": np.full(steps, np.nan, np.float32),
            "imitation_loss": np.full(steps, np.nan, np.float32),
            "teacher_counts": np.zeros((*steps, len(recipe.teachers)), np.int32),
            "teacher_losses": np.full((*steps, len(recipe.teachers)), np.nan, np.float32),
            "skipped": np.zeros(steps, np.int32),
            "cut": np.zeros(steps, np.int32),
            "validation_meta_loss": np.full(checks, np.nan, np.float32),
        }

    @property
    def state(self) -> PyTree:
        """All that changes, for a checkpoint."""
        return self.learner, self._runners, self.logs

    def restore(self, done: int, load: Callable[[PyTree], PyTree]) -> None:
        """Goes on from an earlier `state`.

        Args:
          done: unrolls that were done then.
          load: gives the state, told its structure and shapes.
        """
        self.done = done
        runners = None
        if not self._between_episodes:
            kind, task, _, _ = self._place()
            runners = eqx.filter_eval_shape(self._begin, kind, task, self._keys[kind])
        self.learner, self._runners, logs = load((self.learner, runners, self.logs))
        self.logs = {name: np.array(logs[name]) for name in self.logs}  # in their order

    def step(self) -> str:
        """Does the next unroll; a few words on it."""
        kind, task, episode, unroll = self._place()
        plan = self._plan(kind)
        key = _fold(self._keys[kind], task, episode)
        if unroll == 0:
            self._runners = self._begin(kind, task, key)
        key = jax.random.fold_in(key, 1 + unroll)
        if unroll < plan.warmup:
            student, teachers = self._racers(kind)
            rate = jnp.float32(plan.warmup_rate)
            self._runners = _warm_up(self._tasks[task], student, teachers, self._at, rate, key, plan.unroll)
            note = "warm-up"
        else:
            number = episode * plan.depth + unroll - plan.warmup
            note = self._unroll(kind, task, plan, key, number)
        self.done += 1
        if self._between_episodes:
            self._runners = None
        return note

    @property
    def validation(self) -> float:
        """Mean meta-loss of the validation."""
        return float(np.mean(self.logs["validation_meta_loss"]))

    @property
    def _at(self) -> Runners:
        assert self._runners is not None, "an episode begins with `_begin`"
        return self._runners

    def _unroll(self, kind: int, task: int, plan: Plan, key: PRNGKeyArray, number: int) -> str:
        if kind == _VALIDATION:
            student = self._racers(kind)[0]
            self._runners, found = _watch(
                self._tasks[task], self._recipe, student, self._at, key, plan.unroll
            )
            # Steps that do not count are worth no change; a student that dies must not be chosen for that.
            self.logs["validation_meta_loss"][task, number] = np.nan if found.cut else found.meta_loss
            return f"validation {float(found.meta_loss):.3f}"
        weight = jnp.float32(plan.imitation)
        self.learner, self._runners, found = _learn(
            self._tasks[task], self._recipe, self.learner, self._at, weight, key, plan.unroll
        )
        self._log(task, number, found)
        return f"meta-loss {float(found.meta_loss):.3f}, imitation {float(found.imitation_loss):.2f}"

    def _log(self, task: int, number: int, found: Report) -> None:
        self.logs["meta_loss"][task, number] = found.meta_loss
        self.logs["imitation_loss"][task, number] = found.imitation_loss
        self.logs["teacher_counts"][task, number] = found.wins
        self.logs["teacher_losses"][task, number] = found.teacher_losses
        self.logs["skipped"][task, number] = found.skipped
        self.logs["cut"][task, number] = found.cut

    def _begin(self, kind: int, task: int, key: PRNGKeyArray) -> Runners:
        plan = self._plan(kind)
        steps = jnp.int32((plan.warmup + plan.depth) * plan.unroll)
        student, teachers = self._racers(kind)
        return _start(self._tasks[task], student, teachers, self._recipe.spread, steps, key)

    def _racers(self, kind: int) -> tuple[Optimizer, tuple[Optimizer, ...]]:
        if kind == _TRAINING:
            return self.learner.student, self._recipe.teachers
        return self._finish(self.learner.student), ()

    def _plan(self, kind: int) -> Plan:
        return self._period.training if kind == _TRAINING else self._period.validation

    @property
    def _between_episodes(self) -> bool:
        return self.done == self.total or self._place()[3] == 0

    def _place(self) -> tuple[int, int, int, int]:
        """Whether the next unroll is of training or validation, and its task, episode and number in it."""
        training = len(self._tasks) * self._period.training.unrolls
        kind = _TRAINING if self.done < training else _VALIDATION
        plan = self._plan(kind)
        number = self.done - (0 if kind == _TRAINING else training)
        task, number = divmod(number, plan.unrolls)
        return kind, task, *divmod(number, plan.depth + plan.warmup)


def _fold(key: PRNGKeyArray, *numbers: int) -> PRNGKeyArray:
    for number in numbers:
        key = jax.random.fold_in(key, number)
    return key
