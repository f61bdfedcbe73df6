"""Population-based training: settings are tuned while they train, by copying those that do better."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from outeropt import tree
from outeropt._sweep.planned import identity
from outeropt.errors import ConfigError
from outeropt.search import trials
from outeropt.search.domain import Point
from outeropt.search.found import Found, Incumbent, Tried, scores
from outeropt.search.lanes import Lane, Lanes, Place
from outeropt.search.method import Method
from outeropt.search.problem import Problem
from outeropt.search.samplers.base import Sampler
from outeropt.search.samplers.random import Random
from outeropt.search.starts import starts
from outeropt.space import Space
from outeropt.store import Archive, Trial


@dataclasses.dataclass(frozen=True)
class PopulationBased(Method):
    """Population-based training of as many members as there are trials.

    Jaderberg et al. 2017, "Population Based Training of Neural Networks", arXiv 1711.09846: truncation
    selection, perturbation and resampling. At every interval each of the worst members takes over the whole
    training state of one of the best, and its hyperparameters, each of which it then draws anew or moves by a
    factor (the odds of one on a logit scale; a choice moves to its neighbour). What is found is a schedule:
    `Found.history` tells it, and `Found.optimizer` has its end.

    Attributes:
      intervals: into how many equal pieces a run is cut, as near as the evaluations allow; at least 2.
      share: of the members that take over, and of those that are taken over; in (0, 0.5].
      factors: what a hyperparameter is multiplied by, with equal chance.
      resample: chance that it is drawn from its space instead, in [0, 1].
      sampler: chooses where the members begin.
    """

    intervals: int = 10
    share: float = 0.25
    factors: tuple[float, float] = (0.8, 1.2)
    resample: float = 0.25
    sampler: type[Sampler] = Random

    @property
    def note(self) -> str:
        return "members that do badly take over from those that do well, while they train"

    def work(self, problem: Problem) -> float:
        if problem.trials < 2:
            raise ConfigError("A population of 1 has nobody to take over from; give at least 2 trials.")
        if self.intervals < 2 or not 0 < self.share <= 0.5 or not 0 <= self.resample <= 1:
            raise ConfigError(
                f"intervals = {self.intervals}, share = {self.share:g}, resample = {self.resample:g} are no "
                "population; give at least 2 intervals, a share in (0, 0.5], a chance in [0, 1]."
            )
        if len(self._ends(problem)) < 2:
            raise ConfigError("A population needs two evaluations after the first; lower eval_every.")
        return problem.trials

    def run(self, problem: Problem) -> Found:
        return _Population(problem, self).run()

    def _ends(self, problem: Problem) -> list[int]:
        """The windows after which members are compared, the last one among them."""
        total = problem.protocol.steps // problem.protocol.eval_every
        return sorted({max(1, round(total * (i + 1) / self.intervals)) for i in range(self.intervals)})

    def selected(
        self, losses: Float[np.ndarray, " members"], rng: np.random.Generator
    ) -> Int[np.ndarray, " members"]:
        """Whose state each member goes on with: mostly its own."""
        count = max(1, math.floor(self.share * len(losses)))
        order = np.argsort(losses, kind="stable")
        parents = np.arange(len(losses))
        parents[order[-count:]] = rng.choice(order[:count], count)
        return parents

    def explored(self, spaces: Mapping[str, Space], point: Point, rng: np.random.Generator) -> Point:
        """A point near another, or in part drawn anew."""
        found = {}
        for name, space in spaces.items():
            anew, fresh, factor = rng.random() < self.resample, rng.random(), rng.choice(self.factors)
            found[name] = space.at(fresh) if anew else _moved(space, point[name], float(factor))
        return found


def _moved(space: Space, value: float, factor: float) -> float:
    """A value times a factor, on the scale and inside the range."""
    if space.scale == "choice":
        place = min(range(len(space.choices)), key=lambda i: abs(space.choices[i] - value))
        return space.choices[min(max(place + (1 if factor > 1 else -1), 0), len(space.choices) - 1)]
    if space.scale == "logit":
        odds = factor * value / (1 - value)
        return space.at(space.fraction(odds / (1 + odds)))
    return space.at(space.fraction(factor * value))


class _Population:
    """One run. All decisions follow from the members' curves, so that no more than lanes need be kept."""

    def __init__(self, problem: Problem, method: PopulationBased):
        self.problem = problem
        self.method = method
        self.ends = method._ends(problem)
        self.points = starts(problem, method.sampler)
        settings = problem.domain.settings(problem.optimizer, self.points)
        self.lanes = Lanes(problem, settings)
        self.places = [(i, seed) for i in range(problem.trials) for seed in problem.seeds]
        task, start = tree.fingerprint(problem.task), tree.fingerprint(settings)
        told = [identity(task, start, seed, problem.protocol) for seed in problem.seeds]
        spaces = sorted(problem.domain.spaces.items())
        self.name = tree.fingerprint((told, method, spaces, problem.seed, problem.parallel, problem.lanes))

    def run(self) -> Found:
        problem, total = self.problem, self.lanes.windows
        stored = self._stored()
        now = {} if stored else self._resumed()
        done = total if stored else next((lane.done for lane in now.values()), 0)
        if problem.report and done:
            problem.report(done / total * problem.trials)
        history: dict[str, list[np.ndarray]] = {name: [] for name in ("score", "parent", *self.points[0])}
        for k, end in enumerate(self.ends):
            if end > done:
                now = self._trained(now, end)
            losses = scores(self._cut(stored or self._archive(now), end))
            parents = np.arange(problem.trials)
            if end < total:
                rng = np.random.default_rng([problem.seed, k])
                parents = self.method.selected(losses, rng)
                heirs = np.flatnonzero(parents != np.arange(problem.trials)).tolist()
                spaces = problem.domain.spaces
                new = {i: self.method.explored(spaces, self.points[parents[i]], rng) for i in heirs}
                if end > done:
                    now |= {
                        (i, seed): self._heir(now[i, seed], now[int(parents[i]), seed])
                        for i in heirs
                        for seed in problem.seeds
                    }
                self.points = [new.get(i, point) for i, point in enumerate(self.points)]
            if end > done and end < total:
                self._save(k, now)
            history["score"].append(losses)
            history["parent"].append(parents)
            for name in self.points[0]:
                history[name].append(np.array([point[name] for point in self.points]))
        archive = stored or self._finished(now)
        problem.keep(archive)
        best = int(np.argmin(losses))
        share = np.array(self.ends) / total
        values = {name: np.stack(values) for name, values in history.items()}
        return Found(
            optimizer=problem.optimizer.replace(self.points[best]),
            setting=self.points[best],
            score=float(losses[best]),
            trials=tuple(
                Tried(setting, float(loss), archive.num_steps, float(seconds))
                for setting, loss, seconds in zip(archive.settings, losses, archive.seconds.sum(axis=1))
            ),
            incumbent=Incumbent(
                problem.trials * share,
                archive.seconds.sum(dtype=np.float64) * share,
                values["score"].min(axis=1),
            ),
            archives=(archive,),
            history={"step": np.array(self.ends) * problem.protocol.eval_every, **values},
        )

    def _trained(self, now: dict[Place, Lane], end: int) -> dict[Place, Lane]:
        """All members, brought to a window with the hyperparameters of the moment."""
        self.lanes.settings = self.problem.domain.settings(self.problem.optimizer, self.points)
        after: dict[Place, Lane] = {}

        def partial(places):
            return self._file(tree.fingerprint((places, end))) if self.problem.store else None

        before = {place: now.get(place) for place in self.places}
        for done in self.lanes.advance(before, end, partial, self.problem.trials):
            for place, lane in done.items():
                # The evaluation at which it took over another's state is its own, and is not made again.
                if (first := before[place]) is not None:
                    lane.records[first.done] = first.records[first.done]
            after |= done
            if path := partial(sorted(done)):
                path.unlink(missing_ok=True)
        return after

    def _heir(self, own: Lane, parent: Lane) -> Lane:
        """A member with the state of another: it keeps its own curve so far, and how long it took."""
        curves, _ = self.lanes.curves(own)
        records = own.records.copy()
        # Where it had diverged, which its new state does not know.
        records[: own.done + 1][~np.isfinite(curves["valid/loss"])] = np.nan
        return own._replace(carry=parent.carry, records=records)

    def _archive(self, now: dict[Place, Lane]) -> Archive:
        """The members' curves so far."""
        return trials.archive(self.problem, self._rows(now))

    def _rows(self, now: dict[Place, Lane]) -> list[list[Trial]]:
        problem, ids = self.problem, self._ids()
        described = problem.domain.settings(problem.optimizer, self.points).describe()
        details = {"population": self.name}
        return [
            [
                trials.trial(
                    problem, name, described[i], seed, *trials.told(self.lanes, now[i, seed]), details
                )
                for name, seed in zip(ids[i], problem.seeds)
            ]
            for i in range(problem.trials)
        ]

    def _finished(self, now: dict[Place, Lane]) -> Archive:
        rows = self._rows(now)
        if self.problem.store:
            self.problem.store.add([trial for row in rows for trial in row])
            self._clear()
        return trials.archive(self.problem, rows)

    def _stored(self) -> Archive | None:
        """The finished members, where the store has them all."""
        if self.problem.store is None:
            return None
        ids = self._ids()
        kept = self.problem.store.get([name for row in ids for name in row])
        if len(kept) < len(self.places):
            return None
        return trials.archive(self.problem, [[kept[name] for name in row] for row in ids])

    def _cut(self, archive: Archive, end: int) -> Archive:
        """Curves up to a window."""
        curves = {name: curve[:, :, : end + 1] for name, curve in archive.curves.items()}
        return dataclasses.replace(archive, steps=archive.steps[: end + 1], curves=curves)

    def _ids(self) -> list[list[str]]:
        """Identities of the members' trials: they are no trials of one setting."""
        members, seeds = range(self.problem.trials), self.problem.seeds
        return [[tree.fingerprint((self.name, i, seed)) for seed in seeds] for i in members]

    def _file(self, name: str) -> Path:
        assert self.problem.store is not None
        return Path(f"{self.problem.store.path}.partial") / f"{self.name}-{name}.safetensors"

    def _save(self, k: int, now: dict[Place, Lane]) -> None:
        """Keeps the members as they go on from the k-th comparison, and nothing older."""
        if self.problem.store:
            self.lanes.save(self._file(str(k)), now)
            self._file(str(k - 1)).unlink(missing_ok=True)

    def _resumed(self) -> dict[Place, Lane]:
        """The members as they were kept last; none where they were not."""
        if self.problem.store:
            for k in reversed(range(len(self.ends))):
                if len(found := self.lanes.load(self._file(str(k)))) == len(self.places):
                    return found
        return {}

    def _clear(self) -> None:
        for k in range(len(self.ends)):
            self._file(str(k)).unlink(missing_ok=True)
