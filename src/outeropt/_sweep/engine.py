"""Many trials of one task as calls of one compiled program."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax

from outeropt import tree
from outeropt._sweep.lanes import Device
from outeropt._sweep.plan import Chunk, chunks, cost, layout
from outeropt._sweep.runner import Protocol, Report, Runner
from outeropt._sweep.settings import Settings, groups
from outeropt.errors import ConfigError
from outeropt.optimizer import Optimizer
from outeropt.store import Archive, Store, Trial
from outeropt.store.trial import as_archive
from outeropt.task import Task
from outeropt.training import TrainState, cadence


# Raise it when the meaning of a trial changes (keys, cadence, evaluation): old trials are then run anew.
DEFINITION = 1

Keep = Callable[[int, int, TrainState], None]


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
      report: called with the number of trials that a piece of work was worth (fractions sum to the total).
      keep: called with the position of the setting, the seed and the last training state of every trial;
        no store has these, so that trials are run again.

    Returns:
      Curves with axes setting (in the order given), seed, step. A diverged trial is NaN from then on.

    Raises:
      ConfigError: an argument that cannot be used.
      StoreError: the store cannot be read or written.
    """
    every = cadence(steps, eval_every, eval_batches, last_eval_batches, episodes)
    protocol = Protocol(steps * episodes, every, eval_batches, last_eval_batches, episodes)
    seed_list = _seeds(seeds)
    local = jax.local_devices() if devices is None else devices
    parts = groups(optimizers)
    described: dict[int, dict[str, float]] = {}
    ids: dict[tuple[int, int], str] = {}
    details: dict[int, dict[str, Any]] = {}
    task_print = tree.fingerprint(task)
    for positions, settings in parts:
        described |= zip(positions, settings.describe())
        details |= dict.fromkeys(positions, cost(task, settings[0]) | protocol.details)
        for i, position in enumerate(positions):
            optimizer = tree.fingerprint(settings[i])
            for seed in seed_list:
                ids[position, seed] = identity(task_print, optimizer, seed, protocol)
    in_order = [described[i] for i in sorted(described)]
    whole = _Whole(task, optimizer_name, set, protocol, seed_list, in_order, ids, details)
    # A setting that is given twice is run once, in its first place.
    first: dict[str, tuple[int, int]] = {}
    for place, name in ids.items():
        first.setdefault(name, place)
    # Traces the task with every optimizer: what cannot run fails here, before the store hears of it.
    blocks = []
    for positions, settings in parts:
        once = [i for i, p in enumerate(positions) if first[ids[p, seed_list[0]]][0] == p]
        blocks.append(layout(task, settings.select(once), seed_list, lanes, local, episodes > 1))

    found: dict[tuple[int, int], Trial] = {}
    if store:
        if set is not None:
            whole.declare(store, set)
        found = {} if keep else whole.stored(store, ids)
    if report and found:
        report(len(found))
    for (positions, settings), block in zip(parts, blocks):
        wanted = [
            (i, [k for k in seed_list if (p, k) not in found and first[ids[p, k]] == (p, k)])
            for i, p in enumerate(positions)
        ]
        if not any(needed for _, needed in wanted):
            continue
        runner = Runner(task, settings, protocol, block, report)
        for chunk in chunks(wanted, block):
            places = [(positions[i], seed) for seed in chunk.seeds for i in chunk.settings]
            # Another process may have run this chunk since the sweep began.
            done = whole.stored(store, places) if store and not keep else {}
            if len(done) < len({*places}):
                partial = whole.partial(store, places) if store else None
                *results, states = runner.run(chunk, partial)
                done = whole.trials(chunk, positions, *results)
                if keep:
                    for place, (k, j) in whole.lanes(chunk, positions).items():
                        keep(*place, tree.take(tree.take(states, k), j))
                if store:
                    store.add(list(done.values()))
                if partial:
                    partial.unlink(missing_ok=True)
            elif report:
                report(chunk.lanes)
            found |= done
    again = {place: found[first[name]] for place, name in ids.items() if place not in found}
    if report and again:
        report(len(again))
    return whole.archive(found | again)


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


class _Whole(NamedTuple):
    """All that a sweep consists of, before and after it ran."""

    task: Task
    optimizer_name: str
    set: str | None
    protocol: Protocol
    seeds: tuple[int, ...]
    settings: list[dict[str, float]]
    ids: dict[tuple[int, int], str]
    details: dict[int, dict[str, Any]]

    def declare(self, store: Store, set: str) -> None:
        """Tells the store which trials the set consists of."""
        store.declare(
            set,
            self.task.name,
            self.optimizer_name,
            self.settings,
            self.seeds,
            [[self.ids[i, seed] for seed in self.seeds] for i in range(len(self.settings))],
            self.protocol.points,
            *self.protocol.cadence,
        )

    def stored(self, store: Store, places: Iterable[tuple[int, int]]) -> dict[tuple[int, int], Trial]:
        """The trials of these settings and seeds that the store has."""
        wanted = {place: self.ids[place] for place in places}
        kept = store.get(wanted.values())
        return {place: kept[name] for place, name in wanted.items() if name in kept}

    def partial(self, store: Store, places: Iterable[tuple[int, int]]) -> Path:
        """Where a chunk is checkpointed while it runs: beside the store, named by the trials in it."""
        name = tree.fingerprint([self.ids[place] for place in places])
        return Path(f"{store.path}.partial") / f"{name}.safetensors"

    def trials(
        self, chunk: Chunk, positions: list[int], curves, diverged_at, seconds
    ) -> dict[tuple[int, int], Trial]:
        """The trials of a chunk that has run, by setting and seed."""
        return {
            place: Trial(
                id=self.ids[place],
                task=self.task.name,
                optimizer=self.optimizer_name,
                setting=self.settings[place[0]],
                seed=place[1],
                steps=self.protocol.points,
                curves={name: curve[k, j] for name, curve in curves.items()},
                diverged_at=int(diverged_at[k, j]),
                seconds=seconds,
                eval_every=self.protocol.eval_every,
                eval_batches=self.protocol.eval_batches,
                last_eval_batches=self.protocol.last_eval_batches,
                details=self.details[place[0]],
            )
            for place, (k, j) in self.lanes(chunk, positions).items()
        }

    def lanes(self, chunk: Chunk, positions: list[int]) -> dict[tuple[int, int], tuple[int, int]]:
        """Where the lane of each setting and seed is in a chunk; padding falls on its original."""
        return {
            (positions[i], seed): (k, j)
            for k, seed in enumerate(chunk.seeds)
            for j, i in enumerate(chunk.settings)
        }

    def archive(self, found: dict[tuple[int, int], Trial]) -> Archive:
        """The finished sweep."""
        rows = [[found[i, seed] for seed in self.seeds] for i in range(len(self.settings))]
        return as_archive(
            rows, set=self.set or "sweep", optimizer=self.optimizer_name, settings=self.settings
        )
