"""A sweep as a plan: which trials it has, which are known, and the chunks that are missing."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from outeropt import tree
from outeropt._sweep.job import Job, Outcome, Work
from outeropt._sweep.plan import Chunk, chunks, cost, layout
from outeropt._sweep.runner import Protocol, Report
from outeropt._sweep.settings import Settings, groups
from outeropt.errors import ConfigError
from outeropt.optimizer import Optimizer
from outeropt.store import Archive, Store, Trial
from outeropt.store.trial import as_archive
from outeropt.task import Task
from outeropt.training import TrainState


# Raise it when the meaning of a trial changes (keys, cadence, evaluation): old trials are then run anew.
DEFINITION = 1

Keep = Callable[[int, int, TrainState], None]
Place = tuple[int, int]


class Planned:
    """All that a sweep consists of, and what of it is done.

    Making one traces the task with every optimizer: what cannot run fails here, before a store hears of it.

    Args:
      task: what to train.
      optimizers: as for `sweep`.
      seeds: the seeds, or how many.
      protocol: how every trial is run.
      lanes: trials that one device runs at a time, or `"auto"`.
      devices: the devices that each chunk gets; the platform of each is enough.
      store: where trials are looked up and kept.
      set: the name of the whole in the store.
      optimizer_name: the optimizer's name.
    """

    def __init__(
        self,
        task: Task,
        optimizers: Optimizer | Settings | Sequence[Optimizer | Settings],
        seeds: int | Iterable[int],
        protocol: Protocol,
        *,
        lanes: int | Literal["auto"],
        devices: Sequence[Any],
        store: Store | None,
        set: str | None,
        optimizer_name: str,
    ):
        self.task, self.protocol, self.store = task, protocol, store
        self.set, self.optimizer_name = set, optimizer_name
        self.seeds = _seeds(seeds)
        self.found: dict[Place, Trial] = {}
        self._again = False
        self._ids: dict[Place, str] = {}
        self._details: dict[int, dict[str, Any]] = {}
        described: dict[int, dict[str, float]] = {}
        parts = groups(optimizers)
        task_print = tree.fingerprint(task)
        for positions, settings in parts:
            described |= zip(positions, settings.describe())
            self._details |= dict.fromkeys(positions, cost(task, settings[0]) | protocol.details)
            for i, position in enumerate(positions):
                optimizer = tree.fingerprint(settings[i])
                for seed in self.seeds:
                    self._ids[position, seed] = identity(task_print, optimizer, seed, protocol)
        self.settings = [described[i] for i in sorted(described)]
        # A setting that is given twice is run once, in its first place.
        self._first: dict[str, Place] = {}
        for place, name in self._ids.items():
            self._first.setdefault(name, place)
        self._parts: list[tuple[list[int], Work]] = []
        for positions, settings in parts:
            once = [i for i, p in enumerate(positions) if self._first[self._ids[p, self.seeds[0]]][0] == p]
            block = layout(task, settings.select(once), self.seeds, lanes, devices, protocol.episodes > 1)
            names = [self._ids[position, seed] for position in positions for seed in self.seeds]
            work = Work(
                tree.fingerprint((names, block.settings, block.seeds)), task, settings, protocol, block
            )
            self._parts.append((positions, work))

    @property
    def trials(self) -> int:
        """How many trials there are."""
        return len(self._ids)

    def begin(self, report: Report, again: bool = False) -> None:
        """Tells the store which trials belong to the set, and takes those that it has.

        Args:
          report: told how many these are.
          again: whether to take none, and run all.
        """
        self._again = again
        if self.store and self.set is not None:
            self.store.declare(
                self.set,
                self.task.name,
                self.optimizer_name,
                self.settings,
                self.seeds,
                [[self._ids[i, seed] for seed in self.seeds] for i in range(len(self.settings))],
                self.protocol.points,
                *self.protocol.cadence,
            )
        self._take(self._ids)
        if self.found:
            report(len(self.found))

    def jobs(self) -> Iterator[Job]:
        """The missing chunks, each made when it is asked for."""
        for positions, work in self._parts:
            wanted = [
                (i, [k for k in self.seeds if (p, k) not in self.found and self._is_first((p, k))])
                for i, p in enumerate(positions)
            ]
            for chunk in chunks(wanted, work.block):
                places = [(positions[i], seed) for seed in chunk.seeds for i in chunk.settings]
                name = tree.fingerprint([self._ids[place] for place in places])
                partial = self.store and Path(f"{self.store.path}.partial") / f"{name}.safetensors"
                yield Job(name, work, chunk, partial)

    def has(self, job: Job, report: Report) -> bool:
        """Whether somebody else has run a chunk since the sweep began.

        Args:
          job: the chunk.
          report: told of it then.
        """
        places = _lanes(job.chunk, self._positions(job))
        self._take(places)
        known = all(place in self.found for place in places)
        if known:
            report(job.chunk.lanes)
        return known

    def finish(self, job: Job, outcome: Outcome, keep: Keep | None = None) -> None:
        """Takes what came of a chunk, and writes it down."""
        lanes = _lanes(job.chunk, self._positions(job))
        done = {
            place: Trial(
                id=self._ids[place],
                task=self.task.name,
                optimizer=self.optimizer_name,
                setting=self.settings[place[0]],
                seed=place[1],
                steps=self.protocol.points,
                curves={name: curve[k, j] for name, curve in outcome.curves.items()},
                diverged_at=int(outcome.diverged_at[k, j]),
                seconds=outcome.seconds,
                eval_every=self.protocol.eval_every,
                eval_batches=self.protocol.eval_batches,
                last_eval_batches=self.protocol.last_eval_batches,
                details=self._details[place[0]],
            )
            for place, (k, j) in lanes.items()
        }
        if keep:
            for place, (k, j) in lanes.items():
                keep(*place, tree.take(tree.take(outcome.states, k), j))
        if self.store:
            self.store.add(list(done.values()))
        if job.partial:
            job.partial.unlink(missing_ok=True)
        self.found |= done

    def archive(self, report: Report) -> Archive:
        """The finished sweep.

        Args:
          report: told of settings that were given again.
        """
        again = {
            place: self.found[self._first[name]]
            for place, name in self._ids.items()
            if place not in self.found
        }
        if again:
            report(len(again))
        found = self.found | again
        rows = [[found[i, seed] for seed in self.seeds] for i in range(len(self.settings))]
        return as_archive(
            rows, set=self.set or "sweep", optimizer=self.optimizer_name, settings=self.settings
        )

    def _take(self, places: Iterable[Place]) -> None:
        """Takes the trials of these settings and seeds that the store has."""
        if self.store is None or self._again:
            return
        wanted = {place: self._ids[place] for place in places if place not in self.found}
        kept = self.store.get(wanted.values())
        self.found |= {place: kept[name] for place, name in wanted.items() if name in kept}

    def _positions(self, job: Job) -> list[int]:
        """Places in the whole of the settings that a chunk counts."""
        return next(positions for positions, work in self._parts if work is job.work)

    def _is_first(self, place: Place) -> bool:
        return self._first[self._ids[place]] == place


def identity(task: str, optimizer: str, seed: int, protocol: Protocol) -> str:
    """A trial's id: a hash of all that decides its numbers.

    Args:
      task: fingerprint of the task.
      optimizer: fingerprint of the optimizer at its setting.
      seed: the seed.
      protocol: how it is run and evaluated.
    """
    return tree.fingerprint((DEFINITION, task, optimizer, seed, protocol.identity))


def _seeds(seeds: int | Iterable[int]) -> tuple[int, ...]:
    given = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not given or len({*given}) < len(given):
        raise ConfigError(f"seeds = {seeds} is not usable; give a positive count or distinct integers.")
    for seed in given:
        if not 0 <= seed < 2**32:
            raise ConfigError(f"Seed {seed} is not allowed; seeds are whole numbers from 0 to {2**32 - 1}.")
    return given


def _lanes(chunk: Chunk, positions: Sequence[int]) -> dict[Place, tuple[int, int]]:
    """Where the lane of each setting and seed is in a chunk; padding falls on its original."""
    return {
        (positions[i], seed): (k, j)
        for k, seed in enumerate(chunk.seeds)
        for j, i in enumerate(chunk.settings)
    }
