"""What a search is about: everything but the method."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from outeropt._sweep import sweep
from outeropt._sweep.runner import Protocol
from outeropt.errors import ConfigError
from outeropt.optimizer import Optimizer
from outeropt.search.domain import Domain, Point
from outeropt.search.found import scores
from outeropt.store import Archive, Store
from outeropt.task import Task


@dataclasses.dataclass(frozen=True)
class Problem:
    """What a method searches, with which means.

    Attributes:
      task: what to train.
      optimizer: gives all leaves that are not tuned.
      domain: the tuned leaves and their spaces.
      protocol: how a trial of full length is run and evaluated.
      seeds: seeds of every setting.
      trials: settings that are begun, at the most.
      parallel: settings that are trained at a time.
      seed: of the method's own randomness.
      warm: earlier points and their scores.
      lanes: trials that one device runs at a time; `"auto"` chooses.
      store: where finished trials are kept and looked up.
      set: name of the collection of trials in the store; None leaves them unnamed.
      optimizer_name: name of the optimizer in archives.
      report: called with the share of a full-length setting that a piece of work was worth.
    """

    task: Task
    optimizer: Optimizer
    domain: Domain
    protocol: Protocol
    seeds: tuple[int, ...]
    trials: int
    parallel: int
    seed: int = 0
    warm: tuple[tuple[Point, float], ...] = ()
    lanes: int | Literal["auto"] = "auto"
    store: Store | None = None
    set: str | None = None
    optimizer_name: str = ""
    report: Callable[[float], None] | None = None

    def swept(self, points: Sequence[Point]) -> Archive:
        """Trains these points to the end, but for those that the store has."""
        protocol, report = self.protocol, self.report
        every, batches, last_batches = protocol.cadence
        return sweep(
            self.task,
            self.domain.settings(self.optimizer, points),
            seeds=self.seeds,
            steps=protocol.steps,
            eval_every=every,
            eval_batches=batches,
            last_eval_batches=last_batches,
            lanes=self.lanes,
            store=self.store,
            optimizer_name=self.optimizer_name,
            report=report and (lambda trials: report(trials / len(self.seeds))),
        )

    def keep(self, archive: Archive) -> None:
        """Names the trials of an archive as the set of this search, where there is a store."""
        if self.store and self.set is not None:
            self.store.add_archive(dataclasses.replace(archive, set=self.set))


def warm_points(
    archives: Iterable[Archive], task: Task, optimizer_name: str, domain: Domain, steps: int, set: str | None
) -> tuple[tuple[Point, float], ...]:
    """Points and scores of stored archives: of the same task, optimizer and number of steps.

    Losses after other numbers of steps rank otherwise, and are passed over. So is the search's own set: an
    interrupted search that heard its own trials beforehand would ask for others than it did at first.

    Raises:
      ConfigError: no archive fits.
    """
    given = list(archives)
    found: list[tuple[Point, float]] = []
    for archive in given:
        if (archive.task, archive.num_steps) != (task.name, steps) or archive.episodes > 1:
            continue
        if archive.set == set or (optimizer_name and archive.optimizer != optimizer_name):
            continue
        for setting, score in zip(archive.settings, scores(archive)):
            if all(name in setting for name in domain.spaces):
                point = {name: float(setting[name]) for name in domain.spaces}
                found.append((point, float(score)))
    if given and not found:
        has = {f"{a.optimizer} on {a.task}, {a.num_steps} steps" for a in given}
        raise ConfigError(
            f"Nothing to start from: wanted {optimizer_name or 'this optimizer'} on {task.name} with "
            f"{steps} steps and {', '.join(domain.spaces)}; there are only {'; '.join(sorted(has))}."
        )
    return tuple(found)
