"""Settings that are trained from rung to rung, with every result kept."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from outeropt import tree
from outeropt._sweep.plan import cost
from outeropt._sweep.planned import identity
from outeropt.search import trials
from outeropt.search.domain import Point
from outeropt.search.found import scores
from outeropt.search.lanes import Lane, Lanes, Place
from outeropt.search.problem import Problem
from outeropt.store import Archive, Trial


class Rungs:
    """Trains settings to rungs, numbers of windows of which the last is a whole trial.

    A trial that reached the last rung is a trial as `outeropt.sweep` makes it, and is stored as such. What a
    shorter rung gave is stored under an identity of its own, in no set. States are kept beside the store
    until the next rung is done, so that nothing is trained twice. If they are lost, their lanes are trained
    again, by the same pieces in blocks of the same widths.

    Args:
      problem: what is searched.
      points: the settings, by position.
      rungs: windows of each rung, rising to those of a whole trial.
      shrink: how fast settings become fewer.
    """

    def __init__(self, problem: Problem, points: Sequence[Point], rungs: Sequence[int], shrink: int):
        self.problem = problem
        self.points = list(points)
        self.rungs = tuple(rungs)
        settings = problem.domain.settings(problem.optimizer, points)
        self._lanes = Lanes(problem, settings, shrink)
        self._described = settings.describe()
        self._details = cost(problem.task, settings[0]) | problem.protocol.details
        task = tree.fingerprint(problem.task)
        prints = [tree.fingerprint(settings[i]) for i in range(len(settings))]
        self._ids = {
            (i, seed): identity(task, prints[i], seed, problem.protocol)
            for i in range(len(settings))
            for seed in problem.seeds
        }
        self._name = tree.fingerprint(
            (sorted(self._ids.items()), self.rungs, shrink, problem.parallel, problem.lanes)
        )
        self._abreast: dict[int, int] = {}
        self._trials: dict[tuple[Place, int], Trial] = {}
        self._states: dict[Place, Lane] = {}
        files = self._files_of(range(len(self.rungs)))
        self._files = max((int(path.stem.rpartition("-")[2]) + 1 for path in files), default=0)
        for path in files:
            self._states |= self._lanes.load(path)

    def climb(self, alive: Sequence[int], rung: int, first: int) -> Float[np.ndarray, " alive"]:
        """Trains settings to a rung, and returns their scores.

        Args:
          alive: positions of the settings.
          rung: number of the rung.
          first: number of the rung that they began with.
        """
        places = [(i, seed) for i in alive for seed in self.problem.seeds]
        self._abreast[rung] = len(alive)
        self._look_up(places, rung)
        missing = [place for place in places if (place, rung) not in self._trials]
        if self.problem.report:
            length = self.rungs[rung] - (self.rungs[rung - 1] if rung > first else 0)
            found = (len(places) - len(missing)) / len(self.problem.seeds)
            self.problem.report(found * length / self._lanes.windows)
        self._train(missing, rung, first)
        self._remove(rung)
        return scores(self.archive(alive, rung))

    def archive(self, settings: Sequence[int], rung: int) -> Archive:
        """The curves of settings up to a rung."""
        seeds = self.problem.seeds
        return trials.archive(
            self.problem, [[self._trials[(i, seed), rung] for seed in seeds] for i in settings]
        )

    def finish(self) -> None:
        """Forgets all states: nothing is going on from them."""
        self._states.clear()
        self._remove(len(self.rungs))

    def forget(self, gone: Sequence[int]) -> None:
        """Forgets the states of settings that were stopped."""
        for i in gone:
            for seed in self.problem.seeds:
                self._states.pop((i, seed), None)

    @property
    def _folder(self) -> Path | None:
        return Path(f"{self.problem.store.path}.partial") if self.problem.store else None

    def _identity(self, place: Place, rung: int) -> str:
        """The trial's own id on the last rung; of a shorter one, another for each length."""
        windows = self.rungs[rung]
        own = self._ids[place]
        return own if windows == self._lanes.windows else tree.fingerprint((own, "stopped after", windows))

    def _look_up(self, places: Sequence[Place], rung: int) -> None:
        """Finds what the store has: results of this rung, or whole trials that passed it."""
        store = self.problem.store
        wanted = [place for place in places if (place, rung) not in self._trials]
        if store is None or not wanted:
            return
        by_id = store.get([name for p in wanted for name in (self._identity(p, rung), self._ids[p])])
        for place in wanted:
            trial = by_id.get(self._identity(place, rung))
            if trial is None and self._ids[place] in by_id:
                trial = self._cut(by_id[self._ids[place]], place, rung)
            if trial is not None:
                self._trials[place, rung] = trial

    def _cut(self, whole: Trial, place: Place, rung: int) -> Trial:
        count = self.rungs[rung] + 1
        curves = {name: curve[:count] for name, curve in whole.curves.items()}
        step = int(whole.steps[count - 1])
        # A step that goes wrong after this evaluation is none of its business.
        gone = whole.diverged_at < step or not np.isfinite(curves["train/loss"][-1])
        seconds = whole.seconds * step / int(whole.steps[-1])
        return self._trial(place, rung, curves, whole.diverged_at if gone else -1, seconds)

    def _trial(self, place: Place, rung: int, curves, diverged_at: int, seconds: float) -> Trial:
        stopped = self.rungs[rung] < self._lanes.windows
        return trials.trial(
            self.problem,
            self._identity(place, rung),
            self._described[place[0]],
            place[1],
            curves,
            diverged_at,
            seconds,
            self._details | ({"stopped_of_steps": self.problem.protocol.steps} if stopped else {}),
        )

    def _train(self, places: Sequence[Place], rung: int, first: int) -> None:
        """Brings lanes to a rung from the one before, which they reach first if their states are lost."""
        if not places:
            return
        begin = self.rungs[rung - 1] if rung > first else 0
        lost = [place for place in places if begin and not self._stands_at(place, begin)]
        self._train(lost, rung - 1, first)
        ready = {place: self._states[place] if begin else None for place in places}
        store, last = self.problem.store, rung == len(self.rungs) - 1
        for done in self._lanes.advance(
            ready, self.rungs[rung], lambda chunk: self._partial(chunk, rung), self._abreast[rung]
        ):
            fresh = {
                place: self._trial(place, rung, *trials.told(self._lanes, lane))
                for place, lane in done.items()
            }
            self._trials |= {(place, rung): trial for place, trial in fresh.items()}
            if store:
                store.add(list(fresh.values()))
            if not last:
                self._states |= done
                if self._folder:
                    self._lanes.save(self._folder / f"{self._name}-{rung}-{self._files}.safetensors", done)
                    self._files += 1
            if partial := self._partial(sorted(done), rung):
                partial.unlink(missing_ok=True)

    def _stands_at(self, place: Place, windows: int) -> bool:
        return place in self._states and self._states[place].done == windows

    def _partial(self, places: Sequence[Place], rung: int) -> Path | None:
        """Where a chunk on its way to a rung is checkpointed."""
        if self._folder is None:
            return None
        name = tree.fingerprint(([self._ids[place] for place in places], self.rungs[rung], self._name))
        return self._folder / f"{name}.safetensors"

    def _remove(self, rung: int) -> None:
        """Deletes the files of states on lower rungs."""
        for path in self._files_of(range(rung)):
            path.unlink(missing_ok=True)

    def _files_of(self, rungs: Sequence[int]) -> list[Path]:
        """The files of states on some rungs, older ones first."""
        found = list(self._folder.glob(f"{self._name}-*.safetensors")) if self._folder else []
        numbered = [(*map(int, path.stem.split("-")[1:]), path) for path in found]
        return [path for rung, _, path in sorted(numbered) if rung in rungs]
