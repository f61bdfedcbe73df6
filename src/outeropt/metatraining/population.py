"""Population-based training: several meta-trainings of one optimizer, whose numbers are tuned as they go."""

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from outeropt import checkpoint, tree
from outeropt.errors import ConfigError
from outeropt.metatraining import checkpoints
from outeropt.metatraining.devices import gathered
from outeropt.metatraining.estimators import Estimator
from outeropt.metatraining.member import Member
from outeropt.metatraining.processes import DRIFTED
from outeropt.metatraining.run import Report
from outeropt.metatraining.tuned import moved, numbers, resolved
from outeropt.metatraining.validation import Validation
from outeropt.optimizer import Optimizer
from outeropt.progress import Scalars
from outeropt.space import Space
from outeropt.task import Task, TaskFamily


class PopulationTraining:
    """Meta-trains a population, and tunes numbers of the estimator and of the outer optimizer on the way.

        run = PopulationTraining(
            AdafacMLP(), tasks, estimator=PES(lengths=Constant(200)), outer=optimizers.get("adam"),
            tuned={"estimator.std": Space.log(1e-3, 0.1), "outer.learning_rate": Space.log(1e-4, 1e-2)},
            validation=Validation(validation_tasks), steps=2000, key=key,
        )
        run.run()
        run.history["outer.learning_rate"]

    Members begin with the same optimizer and differ in their randomness and in the tuned numbers: the first
    has those that were given, the others draw theirs from the spaces. After every validation but the first
    and the last, each of the worst members takes over all that one of the best has (optimizer, outer state,
    particles, numbers) and multiplies or divides each number by `factor`, with equal chance and inside its
    space: truncation selection and perturbation (Jaderberg et al. 2017, arXiv 1711.09846).

    All members run the same compiled program, one after the other. Moving numbers compiles nothing.

    Args:
      optimizer: where to start; its floating leaves are the meta-parameters.
      tasks: what to learn on; see `MetaTraining`.
      estimator: of the outer gradient.
      outer: the optimizer of the outer loop.
      tuned: where to look for each number, by its name: a floating scalar leaf, as `"estimator.std"` or
        `"outer.inner.b1"`, for which `"outer.b1"` is enough if only one leaf of `outer` ends so. Ranges are
        positive. On a logit space the odds, `x / (1 - x)`, are multiplied.
      validation: what ranks the members, and how often.
      steps: outer steps of each member, at least 1.
      key: seeds everything.
      members: how many, at least 2.
      exploit: share of the members that take over from others, in (0, 1); at least one member does, and at
        least one does not. Their parents are drawn from as many of the best, or from all others if those are
        fewer: up to a half this is truncation selection, and near 1 the winner takes all.
      factor: what numbers are multiplied or divided by, above 1.
      **options: what else `MetaTraining` takes: `meta_loss`, `unit`, `since`, `finish`, `devices`,
        `spread`.

    Raises:
      ConfigError: no validation, fewer than two members, nothing to tune, a range that cannot be searched by
        factors, or `exploit` or `factor` out of their ranges.
      UnknownName: a tuned number does not exist.
      OutOfSpace: a tuned number lies outside its space to begin with.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        tasks: Task | TaskFamily | Sequence[Task | TaskFamily],
        *,
        estimator: Estimator,
        outer: Optimizer,
        tuned: Mapping[str, Space],
        validation: Validation,
        steps: int,
        key: PRNGKeyArray,
        members: int = 4,
        exploit: float = 0.25,
        factor: float = 1.25,
        **options: Any,
    ):
        if not isinstance(validation, Validation):
            raise ConfigError("A population is ranked by validation; give a Validation of some tasks.")
        if members < 2:
            raise ConfigError(f"A population of {members} has nobody to copy from; give at least 2 members.")
        if not 0 < exploit < 1:
            raise ConfigError(f"A share of {exploit} cannot copy from others; exploit is between 0 and 1.")
        if not factor > 1:
            raise ConfigError(f"Numbers cannot be moved by a factor of {factor}; give one above 1.")
        given = numbers(estimator, outer)
        self._spaces = resolved(tuned, given)
        self._factor = factor
        self._copying = min(max(round(exploit * members), 1), members - 1)
        key, start_key, self._key = jax.random.split(key, 3)
        # Every member has its number's own randomness; the data on the devices are shared.
        options = options | {"estimator": estimator, "outer": outer, "steps": steps, "validation": validation}
        first = Member(optimizer, tasks, key=jax.random.fold_in(key, 0), **options)
        others = [
            Member(optimizer, first.families, key=jax.random.fold_in(key, i), **options)
            for i in range(1, members)
        ]
        self.members = [first, *others]
        self.together = first.together
        self.steps = steps
        self._identity = tree.fingerprint((first.identity, members, self._spaces, exploit, factor))
        self._points = first.scores["step"]
        shape = (len(self._points), members)
        self._parents = np.full(shape, -1, np.int32)
        self._values = {name: np.full(shape, np.nan, np.float32) for name in self._spaces}
        for i, (name, space) in enumerate(self._spaces.items()):
            drawn = space.sample(jax.random.fold_in(start_key, i), members - 1)
            self._values[name][0] = [given[name], *np.asarray(drawn)]
        self._retune(0)
        self._folder: Path | None = None

    @property
    def optimizer(self) -> Optimizer:
        """The best optimizer by validation so far, of all members and times."""
        return self.members[self.best].optimizer

    @property
    def best(self) -> int:
        """The number of the member that had the best validation so far; 0 before the first."""
        means = self.scores["mean"]
        return int(np.argmin(np.min(np.where(np.isnan(means), np.inf, means), axis=1)))

    @property
    def done(self) -> int:
        """Outer steps done, of all members together."""
        return sum(member.done for member in self.members)

    @property
    def curves(self) -> dict[str, np.ndarray]:
        """Arrays (members, outer steps) by name, as those of `MetaTraining`; NaN where not done.

        A member that took over another's state goes on with that, and keeps its own curve so far.
        """
        return _side_by_side([member.curves for member in self.members])

    @property
    def scores(self) -> dict[str, np.ndarray]:
        """Validations: outer steps as `step`; arrays (members, validations) by task, and their `mean`."""
        found = _side_by_side([member.scores for member in self.members])
        return {**found, "step": self._points}

    @property
    def history(self) -> dict[str, np.ndarray]:
        """What became of the members at each validation: arrays (members, validations), but `step`.

        `step`: outer steps done. `score`: mean share, smaller is better; NaN where not done. `parent`: the
        member whose state each goes on with, mostly itself; -1 where not done. By their full names: the tuned
        numbers that it goes on with.
        """
        values = {name: values.T for name, values in self._values.items()}
        return {"step": self._points, "score": self.scores["mean"], "parent": self._parents.T, **values}

    def resume(self, folder: str | Path) -> int:
        """Keeps the run in a folder, and goes on from what it holds of the same recipe.

        Checkpoints are written each minute and at the end, TensorBoard scalars of member `i` under `log/i`.

        Returns:
          Outer steps that were done before, of all members together.

        Raises:
          ConfigError: the folder holds a run of another recipe.
        """
        self._folder = Path(folder)
        recipe = "population, tasks, optimizer, estimator"
        found = self.together.told(lambda: checkpoints.latest(Path(folder), self._identity, recipe))
        if found is None:
            return 0
        path, about = found
        kept, parents, values = self.together.received(lambda like: checkpoint.load(path, like), self._kept())
        self._parents = np.array(parents)
        self._values = {name: np.array(values[name]) for name in self._spaces}
        for member, own, done in zip(self.members, kept, about["done"]):
            member.restore(own, done)
        self._retune(max(int(np.sum(self._parents[:, 0] >= 0)) - 1, 0))
        return self.done

    def run(self, report: Report | None = None) -> None:
        """Does the outer steps that are left.

        Args:
          report: called about every two seconds with the number of new outer steps, of whichever member, and
            the last scalars.
        """
        saved = time.monotonic()

        def told(count: int, values: Mapping[str, float]) -> None:
            nonlocal saved
            if report:
                report(count, values)
            late = time.monotonic() - saved > checkpoints.SECONDS
            if self._folder and self.together.told(lambda: late):
                self._save(self._folder)
                saved = time.monotonic()

        with contextlib.ExitStack() as open_logs:
            writers: list[Scalars | None] = [None] * len(self.members)
            if self._folder:
                for i, member in enumerate(self.members):
                    log = self.together.log(self._folder / "log" / str(i), member.logs_from)
                    writers[i] = open_logs.enter_context(log)
            for place in np.flatnonzero(self._parents[:, 0] < 0):
                for member, writer in zip(self.members, writers):
                    member.advance_to(int(self._points[place]), told, writer)
                self._select(int(place))
                self._log(int(place), writers)
        if self._folder:
            self._save(self._folder)

    def _select(self, place: int) -> None:
        """Decides whose state, and which numbers, each member goes on with after a validation."""
        parent_key, key = jax.random.split(jax.random.fold_in(self._key, place))
        parents = own = np.arange(len(self.members), dtype=np.int32)
        if 0 < place < len(self._points) - 1:
            parents = succession(self.scores["mean"][:, place], self._copying, parent_key)
        heirs = np.flatnonzero(parents != own)
        for values in self._values.values():
            values[place] = values[max(place - 1, 0), parents]
        for i, (name, space) in enumerate(self._spaces.items() if heirs.size else ()):
            values = self._values[name]
            up = jax.random.bernoulli(jax.random.fold_in(key, i), shape=heirs.shape)
            ratios = jnp.where(up, self._factor, 1.0 / self._factor)
            values[place, heirs] = moved(space, jnp.asarray(values[place, heirs]), ratios)
        for heir in heirs:
            self.members[heir].take_over(self.members[parents[heir]])
        self._parents[place] = parents
        self._retune(place)

    def _retune(self, place: int) -> None:
        """Gives the members their numbers."""
        for i, member in enumerate(self.members):
            member.retune({name: values[place, i] for name, values in self._values.items()})

    def _log(self, place: int, writers: Sequence[Scalars | None]) -> None:
        for i, writer in enumerate(writers):
            if writer:
                now = {f"population/{name}": values[place, i] for name, values in self._values.items()}
                now["population/parent"] = self._parents[place, i]
                writer.log(int(self._points[place]), now)

    def _kept(self):
        return tuple(member.kept for member in self.members), self._parents, self._values

    def _save(self, folder: Path) -> None:
        about = {"identity": self._identity, "done": [member.done for member in self.members]}
        self.together.check_same([member.theta for member in self.members], DRIFTED)
        kept = gathered(self._kept(), self.together.first)
        self.together.told(lambda: checkpoints.save(folder, self.done, kept, about))


def succession(scores: np.ndarray, count: int, key: PRNGKeyArray) -> np.ndarray:
    """Whose state each member goes on with: its own, or for the worst members that of one of the best.

    Args:
      scores: of the members, smaller is better. Of equal ones the first counts as better.
      count: how many are the worst, at least 1 and fewer than all.
      key: chooses among the best, which are as many, or all others if those are fewer.

    Returns:
      The members' numbers (members,).
    """
    ranked = np.argsort(scores, kind="stable").astype(np.int32)
    best, worst = ranked[: min(count, len(ranked) - count)], ranked[-count:]
    parents = np.arange(len(ranked), dtype=np.int32)
    parents[worst] = best[np.asarray(jax.random.randint(key, worst.shape, 0, len(best)))]
    return parents


def _side_by_side(members: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack([own[name] for own in members]) for name in members[0]}
