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
    """Names or patterns of tasks (quote them), path/to/file.py:attribute, or amalgamation-suite: ten problems
    for 25 epochs, evaluated on whole splits after each."""
    weights: tuple[str, ...] = ()
    """Learned optimizers: names of outeropt list weights, files, or folders of metatrain."""
    optimizers: tuple[str, ...] = ()
    """Other contestants, at their defaults: names of outeropt list optimizers."""
    against: tuple[str, ...] | None = None
    """Baselines: hyperparameter sets (outeropt list sets), .yaml files, or path.py:attribute. Default:
    AdamLR_2000_R5; of a suite, its own."""
    steps: int | None = None
    """Inner steps of everyone. Default: those of the first baseline."""
    epochs: int | None = None
    """Epochs of everyone on each task, in place of steps, evaluated on whole splits after each."""
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
        if self.against == ():
            raise ConfigError("Nothing to compare with: give --against SET ...")
        if self.epochs is not None and self.steps is not None:
            raise ConfigError("--epochs and --steps both say how long to train; give one of them.")
        if self.epochs is not None and self.epochs < 1:
            raise ConfigError(f"--epochs {self.epochs} is not allowed; give at least 1.")
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
    from outeropt.bench import epochs, versus
    from outeropt.bench.run import run_all, trials
    from outeropt.cli.show import show_comparison, show_families, show_runs, show_standings
    from outeropt.progress import Progress
    from outeropt.store import Store

    contestants, baselines = _sets(config)
    names = _tasks(config.tasks)
    everyone = [*contestants, *baselines]
    length = _epochs(config)
    plan = dict.fromkeys(names, everyone) if length is None else epochs.plan(names, everyone, length)
    with Store(config.store) as store, Progress("trials") as progress:
        bar = progress.task("evaluation", sum(map(trials, plan.values())), compiles=True)
        archives = run_all(plan, store, bar.advance)
    against = [item.name if length is None else epochs.named(item, length).name for item in baselines]
    comparisons = versus.compare(archives, against)
    for comparison in comparisons:
        show_comparison(comparison)
    show_standings(versus.standings(comparisons))
    if length is not None:
        show_runs(archives)
        show_families(archives)
        folders = {f"learned:{weights}": weights for weights in config.weights if Path(weights).is_dir()}
        for item in contestants:
            ours = [archive for archive in archives if archive.set == epochs.named(item, length).name]
            for archive in ours if item.optimizer in folders else ():
                epochs.save_evaluation(archive, folders[item.optimizer])
    print(f"Trials: {config.store}   next: outeropt report {config.store}")


def _epochs(config: Config) -> int | None:
    """How many epochs everyone trains; None where steps say how long."""
    from outeropt.bench.epochs import SUITES

    if config.epochs is not None or config.steps is not None:
        return config.epochs
    return next((SUITES[name].epochs for name in config.tasks if name in SUITES), None)


def _against(config: Config) -> list[str]:
    """Names of the baselines."""
    from outeropt.bench import sets
    from outeropt.bench.epochs import SUITES

    if config.against is not None:
        return list(dict.fromkeys(config.against))
    suites = [SUITES[name] for name in config.tasks if name in SUITES]
    return [name for suite in suites for name in sets.names(suite.against)] or ["AdamLR_2000_R5"]


def _sets(config: Config) -> tuple[list["HyperparameterSet"], list["HyperparameterSet"]]:
    """The sets of contestants and baselines, all under one protocol.

    Raises:
      UnknownName: no such weights, optimizer or set.
      OuteroptError: weights that cannot be read.
      ConfigError: two of them would have one name in the store.
    """
    from outeropt.bench import sets

    baselines = [sets.get(name) for name in _against(config)]
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
    from outeropt.bench.epochs import SUITES

    found: dict[str, None] = {}
    for pattern in patterns:
        if pattern in SUITES:
            found |= dict.fromkeys(filter(_provided, SUITES[pattern].tasks))
            continue
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


def _provided(name: str) -> bool:
    """Whether outeropt provides the data of a suite's task; those of others are named on standard output."""
    from outeropt import tasks

    if needed := tasks.not_provided(name):
        print(f"Skipped {name}: outeropt does not provide {needed}")
    return needed is None
