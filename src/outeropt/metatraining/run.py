"""The outer loop: meta-training that reports, validates, keeps the best, and resumes exactly."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from outeropt import checkpoint, optimizers, tree
from outeropt.errors import ConfigError
from outeropt.metatraining import checkpoints
from outeropt.metatraining.devices import gathered, on_this
from outeropt.metatraining.estimators import Estimator
from outeropt.metatraining.inner_training import InnerTraining, MetaLoss, Unit
from outeropt.metatraining.places import PLACES, Spread
from outeropt.metatraining.processes import DRIFTED, OTHER_RECIPE
from outeropt.metatraining.program import ROWS, Recipe, columns
from outeropt.metatraining.validation import Validation
from outeropt.optimizer import Optimizer
from outeropt.progress import Scalars
from outeropt.task import Task, TaskFamily
from outeropt.tasks.wrappers.families import single


# Seconds of work per call of the program, so that progress moves and a kill costs little.
_CALL_SECONDS = 2.0

Report = Callable[[int, Mapping[str, float]], None]
AnyOptimizer = TypeVar("AnyOptimizer", bound=Optimizer)


class MetaTraining:
    """Descends on an optimizer's leaves by estimated gradients of its meta-loss.

        run = MetaTraining(AdafacMLP(), tasks, estimator=PES(lengths=Constant(200)), steps=1000, key=key)
        run.resume("runs/mine")
        run.run()
        run.optimizer.save("mine.safetensors")

    Args:
      optimizer: where to start; its floating leaves are the meta-parameters, whatever its kind.
      tasks: what to learn on. Each task or family has its own particles, and all share each outer step.
      estimator: of the outer gradient (`PES`, `FullES`, `Backprop`, ...).
      steps: outer steps in all, at least 1.
      key: seeds everything.
      outer: the optimizer of the outer loop; by default Adam at 1e-3 with the gradient's norm clipped to 1.
      meta_loss: which loss is learned on; see `InnerTraining`.
      unit: of the meta-loss; see `InnerTraining`.
      since: share of each trajectory before which losses do not count; see `InnerTraining`.
      validation: tasks to choose the best optimizer by.
      finish: makes of the optimizer that is learned the one that is validated and used, such as the same with
        a schedule; by default it is used as it is.
      devices: share the particles; by default as many as divide them, of each process as many.
      spread: `"particles"` shares those of each family among all devices, one family after the other;
        `"families"` gives each family devices of its own, side by side (in one process).

    In several processes that JAX has joined, all make the same calls with the same arguments. Only the first
    reads and writes the folder; all have the same numbers.

    Raises:
      ConfigError: no task, less than one step, particles that the processes cannot share equally, fewer
        devices than families that are spread, or another recipe in another process.

    Attributes:
      optimizer: the best optimizer by validation so far; without validation, the last.
      done: outer steps done.
      together: the processes that do this; the first of them writes.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        tasks: Task | TaskFamily | Sequence[Task | TaskFamily],
        *,
        estimator: Estimator,
        steps: int,
        key: PRNGKeyArray,
        outer: Optimizer | None = None,
        meta_loss: MetaLoss = "train",
        unit: Unit = "share",
        since: float = 0.0,
        validation: Validation | None = None,
        finish: Callable[[Optimizer], Optimizer] | None = None,
        devices: Sequence[Any] | None = None,
        spread: Spread = "particles",
    ):
        families = [tasks] if isinstance(tasks, Task | TaskFamily) else list(tasks)
        if not families:
            raise ConfigError("Meta-training needs at least one task or family.")
        if steps < 1:
            raise ConfigError(f"{steps} outer steps are not possible; give at least 1.")
        systems = tuple(
            InnerTraining(single(item) if isinstance(item, Task) else item, meta_loss, unit, since=since)
            for item in families
        )
        outer = optimizers.get("clip_norm:adam", learning_rate=1e-3) if outer is None else outer
        recipe = Recipe(systems, estimator, outer)
        self.steps, self.key, self.validation = steps, key, validation
        self.done = 0
        start, self._finish = optimizer, finish or (lambda learned: learned)
        optimizer = self._finish(optimizer)
        made = (start, optimizer) if finish else start
        self._identity = tree.fingerprint((recipe, made, jax.random.key_data(key), steps, validation))
        self._names = columns(recipe)
        if spread not in PLACES:
            raise ConfigError(f"Nothing can be spread by {spread!r}; give {' or '.join(PLACES)}.")
        self._places = PLACES[spread](recipe, devices)
        self.together = self._places.together
        self.together.check_same(self._identity, OTHER_RECIPE)
        self._recipe = self._places.placed(recipe)
        self._state = self._places.begin(recipe, start, key, steps)
        self._best = optimizer
        self._curves = np.full((steps, len(self._names)), np.nan, np.float32)
        tested = 0 if validation is None else len(validation.tasks) + 1
        self._scores = np.full((len(self._points()), tested), np.nan, np.float32)
        self._folder: Path | None = None

    @property
    def optimizer(self) -> Optimizer:
        """The best optimizer by validation so far; without validation, the last."""
        return self.last if self.validation is None else self._best

    @property
    def last(self) -> Optimizer:
        """The optimizer after the last outer step, as it is evaluated and used."""
        outer, theta = on_this((self._state.outer, self._state.theta))
        return self._finish(self._recipe.outer.eval_params(outer, theta))

    @property
    def curves(self) -> dict[str, np.ndarray]:
        """Arrays (outer steps,) by name: `meta/loss`, `meta/gradient`, diagnostics; NaN where not done."""
        return {name: self._curves[:, i] for i, name in enumerate(self._names)}

    @property
    def scores(self) -> dict[str, np.ndarray]:
        """Validations: their outer steps as `step`, shares by task name, and their `mean`."""
        if self.validation is None:
            return {}
        labels = [*(task.name for task in self.validation.tasks), "mean"]
        shares = {name: self._scores[:, i] for i, name in enumerate(labels)}
        return {"step": np.asarray(self._points()), **shares}

    @property
    def logs_from(self) -> int:
        """The first step whose scalars are still to be logged; those of a validation belong to its step."""
        points = self._points()
        return self.done + (self.done in points and self._scored(points.index(self.done)))

    def resume(self, folder: str | Path) -> int:
        """Keeps the run in a folder, and goes on from what it holds of the same recipe.

        Checkpoints are written each minute and at the end, TensorBoard scalars under `log`.

        Returns:
          Outer steps that were done before.

        Raises:
          ConfigError: the folder holds a run of another recipe.
        """
        self._folder = Path(folder)
        recipe = "tasks, optimizer, estimator"
        found = self.together.told(lambda: checkpoints.latest(Path(folder), self._identity, recipe))
        if found is None:
            return 0
        path, about = found
        kept = self.together.received(lambda like: checkpoint.load(path, like), self._kept())
        self._state, self._best, curves, scores = kept
        self._curves, self._scores = np.array(curves), np.array(scores)
        self.done = about["done"]
        return self.done

    def run(self, report: Report | None = None) -> None:
        """Does the outer steps that are left.

        Args:
          report: called about every two seconds with the number of new outer steps and the last scalars.
        """
        if self._folder is None:
            self.advance_to(self.steps, report)
            return
        with self.together.log(self._folder / "log", self.logs_from) as writer:
            self.advance_to(self.steps, report, writer)
        self._save(self._folder)

    def advance_to(self, step: int, report: Report | None = None, writer: Scalars | None = None) -> None:
        """Does the outer steps up to one of them, and the validations on the way, the one at its end too.

        Args:
          step: how many outer steps are done then, at most `steps`.
          report: see `run`.
          writer: of TensorBoard scalars.
        """
        saved, count, compiled = time.monotonic(), 1, False
        while self.done < step:
            self._validate(writer)
            stop = min([step, *(point for point in self._points() if point > self.done)])
            count = min(count, stop - self.done, ROWS)
            began = time.perf_counter()
            values = self._advance(count, writer)
            took = time.perf_counter() - began
            if report:
                report(count, values)
            # The first call compiles, and says nothing of the rate.
            count = max(1, int(_CALL_SECONDS / (took / count))) if compiled else 2
            compiled = True
            late = time.monotonic() - saved > checkpoints.SECONDS
            # Clocks differ, and all processes have to do the same.
            count, late = self.together.told(lambda: (count, late))  # noqa: B023 (called at once)
            if self._folder and late:
                self._save(self._folder)
                saved = time.monotonic()
        self._validate(writer)

    def _advance(self, count: int, writer: Scalars | None) -> dict[str, float]:
        """Some outer steps; the scalars of the last."""
        self._state, rows = self._places.advance(self._recipe, self.key, count, self._state, self._names)
        self._curves[self.done : self.done + count] = rows
        for i, row in enumerate(rows if writer else ()):
            known = {name: value for name, value in zip(self._names, row) if np.isfinite(value)}
            writer.log(self.done + i, known)  # pyright: ignore
        self.done += count
        return dict(zip(self._names, map(float, rows[-1])))

    def _points(self) -> list[int]:
        """Outer steps before which the optimizer is validated, and the end."""
        if self.validation is None:
            return []
        return [*range(0, self.steps, self.validation.every), self.steps]

    def _validate(self, writer: Scalars | None) -> None:
        """Scores the optimizer if this is a point that has no scores yet, and keeps it if it is the best."""
        points = self._points()
        if self.validation is None or self.done not in points:
            return
        place = points.index(self.done)
        if self._scored(place):
            return
        last = self.last
        # All do it, so that none waits for long; the first one's numbers count.
        scores = self.validation.scores(last)
        found = self.together.told(lambda: scores)
        self._scores[place] = list(found.values())
        if found["mean"] <= np.nanmin(self._scores[:, -1]):
            self._best = last
        if writer:
            writer.log(self.done, {f"validation/{name}": value for name, value in found.items()})

    def _scored(self, place: int) -> bool:
        return not np.isnan(self._scores[place]).any()

    def _kept(self):
        return self._state, self._best, self._curves, self._scores

    def _save(self, folder: Path) -> None:
        self.together.check_same(self._state.theta, DRIFTED)
        kept = gathered(self._kept(), self.together.first)
        about = {"identity": self._identity, "done": self.done}
        self.together.told(lambda: checkpoints.save(folder, self.done, kept, about))


def metatrain(
    optimizer: AnyOptimizer,
    tasks: Task | TaskFamily | Sequence[Task | TaskFamily],
    *,
    folder: str | Path | None = None,
    report: Report | None = None,
    **options: Any,
) -> AnyOptimizer:
    """A meta-trained copy of an optimizer: `MetaTraining` from its start to its end.

    Args:
      optimizer: where to start.
      tasks: what to learn on.
      folder: see `MetaTraining.resume`.
      report: see `MetaTraining.run`.
      **options: the rest of what `MetaTraining` takes; `estimator`, `steps` and `key` are required.

    Returns:
      The best optimizer by validation; without validation, the last.
    """
    run = MetaTraining(optimizer, tasks, **options)
    if folder is not None:
        run.resume(folder)
    run.run(report)
    return run.optimizer  # pyright: ignore[reportReturnType]
