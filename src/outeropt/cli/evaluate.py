"""`outeropt evaluate`: learned optimizers against tuned baselines."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from outeropt.errors import ConfigError, MissingData, UnknownName


if TYPE_CHECKING:
    from outeropt.bench import HyperparameterSet


@dataclasses.dataclass(frozen=True)
class Config:
    """Compare learned optimizers with tuned baselines on tasks, seed by seed and at equal steps.

    Seeds, length and cadence are those of the first baseline set. Trials that the store has are not run
    again; an interrupted run goes on where it stopped.
    """

    tasks: tuple[str, ...]
    """Names or patterns of tasks (quote them), or path/to/file.py:attribute."""
    weights: tuple[str, ...] = ()
    """Learned optimizers: names of outeropt list weights, files, or folders of metatrain."""
    optimizers: tuple[str, ...] = ()
    """Other contestants, at their defaults: names of outeropt list optimizers."""
    against: tuple[str, ...] = ("AdamLR_2000_R5",)
    """Baselines: hyperparameter sets (outeropt list sets), .yaml files, or path.py:attribute."""
    steps: int | None = None
    """Inner steps of everyone. Default: those of the first baseline."""
    seeds: Annotated[int | None, tyro.conf.arg(aliases=("--repeat",))] = None
    """Seeds of every setting of everyone. Default: those of the first baseline."""
    last_eval_batches: int | None = None
    """Batches of everyone's last evaluation; more make it less noisy. Default: the first baseline's."""
    store: Path = Path("runs.db")
    """Where finished trials are kept; those that are there already are not run again."""

    def check(self) -> None:
        """Raises `ConfigError` where something is missing."""
        if not self.weights and not self.optimizers:
            raise ConfigError("Nobody to evaluate: give --weights NAME ... or --optimizers NAME ...")
        if not self.tasks:
            raise ConfigError("No task to evaluate on: give --tasks NAME ...")
        if not self.against:
            raise ConfigError("Nothing to compare with: give --against SET ...")
        if self.seeds is not None and self.seeds < 1:
            raise ConfigError(f"--seeds {self.seeds} is not allowed; give at least 1.")
        if self.last_eval_batches is not None and self.last_eval_batches < 1:
            raise ConfigError(
                f"--last-eval-batches {self.last_eval_batches} is not allowed; give at least 1."
            )


def run(config: Config) -> None:
    """Runs the command."""
    from outeropt.cli.running import prepare

    config.check()
    prepare()
    from outeropt.bench import versus
    from outeropt.bench.run import run_all, trials
    from outeropt.cli.show import show_comparison, show_standings
    from outeropt.progress import Progress
    from outeropt.store import Store

    contestants, baselines = _sets(config)
    names = _tasks(config.tasks)
    everyone = [*contestants, *baselines]
    with Store(config.store) as store, Progress("trials") as progress:
        bar = progress.task("evaluation", trials(everyone) * len(names), compiles=True)
        archives = run_all(dict.fromkeys(names, everyone), store, bar.advance)
    comparisons = versus.compare(archives, [item.name for item in baselines])
    for comparison in comparisons:
        show_comparison(comparison)
    show_standings(versus.standings(comparisons))
    print(f"Trials: {config.store}   next: outeropt report {config.store}")


def _sets(config: Config) -> tuple[list["HyperparameterSet"], list["HyperparameterSet"]]:
    """The sets of contestants and baselines, all under one protocol.

    Raises:
      UnknownName: no such weights, optimizer or set.
      OuteroptError: weights that cannot be read.
      ConfigError: two of them would have one name in the store.
    """
    from outeropt.bench import sets

    baselines = [sets.get(name) for name in dict.fromkeys(config.against)]
    first = baselines[0]
    contestants = [sets.learned(weights, first) for weights in dict.fromkeys(config.weights)]
    contestants += [sets.get(f"{name}-default") for name in dict.fromkeys(config.optimizers)]
    protocol = first.adapted(
        steps=config.steps, seeds=config.seeds, last_eval_batches=config.last_eval_batches
    ).protocol
    contestants, baselines = (
        [item.adapted(**protocol) for item in side] for side in (contestants, baselines)
    )
    names: dict[str, str] = {}
    for item in (*contestants, *baselines):
        if item.name in names:
            raise ConfigError(
                f"{names[item.name]} and {item.optimizer} would both be the set {item.name} in the store; "
                "give one of them, or a copy of its file under another name."
            )
        names[item.name] = item.optimizer
        item.optimizers()
    return contestants, baselines


def _tasks(patterns: Sequence[str]) -> list[str]:
    """Names of the tasks that match and whose data are here; the others are named on standard output.

    Raises:
      UnknownName: nothing matches.
      MissingData: no task has its data here.
    """
    from outeropt import tasks

    found: dict[str, None] = {}
    for pattern in patterns:
        matches = tasks.names(pattern) if set("*?[") & set(pattern) else [pattern]
        if not matches:
            raise UnknownName(f"No tasks match {pattern!r}; outeropt list tasks shows all.")
        found |= dict.fromkeys(matches)
    here, missing = [], []
    for name in found:
        try:
            task = tasks.get(name)
        except MissingData:
            missing.append(name)
            continue
        if ".py:" in name:
            tasks.check(task)
        here.append(name)
    if missing:
        datasets = dict.fromkeys(filter(None, map(tasks.dataset, missing)))
        told = f"{', '.join(missing)}: the data are not here; outeropt data get {' '.join(datasets)}"
        if not here:
            raise MissingData(told)
        print(f"Skipped {told}")
    return here
