"""What `train` and `sweep` share: the machine, the optimizers, and progress."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outeropt.cli.values import Plain, Rows, type_name
from outeropt.errors import ConfigError, UnknownName


if TYPE_CHECKING:
    from outeropt import Archive, Optimizer, Settings, Task
    from outeropt.cli.sweep import Config as SweepConfig
    from outeropt.cli.train import Config as TrainConfig
    from outeropt.store.commands import Command


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a sweep runs: its optimizers and protocol."""

    name: str
    optimizer_name: str
    optimizers: "Settings | Sequence[Optimizer]"
    seeds: int
    steps: int
    eval_every: int | None
    eval_batches: int = 5
    last_eval_batches: int = 10
    episodes: int = 1


def prepare() -> None:
    """Lets JAX use every core and keep compiled programs; call before anything else of JAX."""
    from outeropt import use_all_cores

    use_all_cores()


def task_of(config: "TrainConfig") -> "Task":
    """The task, on the rows that the configuration says.

    Raises:
      UnknownName: no such task.
      ConfigError: it has no rows that could be put together.
    """
    return _on_rows(config.task, config.train_on)


def tasks_of(config: "SweepConfig") -> "list[Task]":
    """The tasks of a sweep, on the rows that the configuration says.

    Raises:
      UnknownName: no such task, or none of a pattern.
      ConfigError: one has no rows that could be put together.
    """
    from outeropt import tasks

    if config.task is not None:
        return [_on_rows(config.task, config.train_on)]
    names: dict[str, None] = {}
    for pattern in config.tasks:
        found = tasks.names(pattern) if set(pattern) & set("*?[") else [pattern]
        if not found:
            raise UnknownName(f"No tasks match {pattern!r}; outeropt list tasks shows all.")
        names |= dict.fromkeys(found)
    return [_on_rows(name, config.train_on) for name in names]


def _on_rows(name: str, rows: Rows) -> "Task":
    from outeropt import tasks
    from outeropt.tasks.wrappers.train_valid import SUFFIX, train_valid

    task = tasks.get(name)
    return train_valid(task) if rows == "train+valid" and not task.name.endswith(SUFFIX) else task


def optimizer_from(name: str, hyperparameters: Mapping[str, Plain]) -> "Optimizer":
    """The named optimizer with some hyperparameters set.

    Raises:
      UnknownName: no such optimizer or hyperparameter.
      OutOfSpace: a value outside its space.
      ConfigError: a value of another type than the hyperparameter's, or one for a learned optimizer.
    """
    from outeropt import optimizers
    from outeropt.bench.learned_names import refuse_hyperparameters

    refuse_hyperparameters(name, hyperparameters)
    settings = optimizers.describe(name).settings
    for key, value in hyperparameters.items():
        wanted = type(settings.get(key.rpartition(".")[2], 0.0))
        allowed = (int, float) if wanted is float else wanted
        if not isinstance(value, allowed) or (isinstance(value, bool) and wanted is not bool):
            raise ConfigError(f"{key} of {name} must be {type_name(wanted)}, not {value!r}.")
    return optimizers.get(name, **hyperparameters)


def plans_of(config: "SweepConfig") -> list[Plan]:
    """The sweeps that a configuration asks for: one, or those of a collection.

    Raises:
      UnknownName: no such set, optimizer or hyperparameter.
      OutOfSpace: a value outside its space.
      ConfigError: options that contradict each other or cannot be understood.
    """
    names = config.sets if config.set is None else (config.set,)
    if names:
        if config.name is not None and len(names) > 1:
            raise ConfigError("--name names one set, and --sets gives several; leave it out.")
        return [plan for name in names for plan in _of_sets(config, name)]
    from outeropt import grid, sample
    from outeropt.bench.learned_names import shown

    assert config.optimizer is not None
    base = optimizer_from(config.optimizer, config.hyperparameters)
    if config.sample is not None:
        import jax

        fixed = {_full_name(name, base) for name in config.hyperparameters}
        free = [name for name in base.spaces if name not in fixed]
        if not free:
            raise ConfigError(f"Nothing of {config.optimizer} is left to sample; it has no other spaces.")
        settings = sample(base, config.sample, jax.random.key(0), free)
        varied = [f"sample{config.sample}"]
    else:
        axes = _axes(config, base)
        settings = grid(base, {name: values for name, (_, values) in axes.items()})
        varied = [text for text, _ in axes.values()]
    plan = Plan(
        config.name or label(config.optimizer, config.hyperparameters, varied),
        shown(config.optimizer),
        settings,
        3 if config.seeds is None else config.seeds,
        1000 if config.steps is None else config.steps,
        config.eval_every,
        5 if config.eval_batches is None else config.eval_batches,
        10 if config.last_eval_batches is None else config.last_eval_batches,
        episodes=1 if config.episodes is None else config.episodes,
    )
    return [plan]


def _of_sets(config: "SweepConfig", name: str) -> list[Plan]:
    from outeropt.bench import collections, sets

    protocol = {count: getattr(config, count) for count in ("seeds", "steps", "episodes", "eval_every")}
    batches = {count: getattr(config, count) for count in ("eval_batches", "last_eval_batches")}
    if name in collections.names():
        if config.name is not None:
            raise ConfigError(f"--name names one set, and {name} is several; leave it out.")
        items = [item.adapted(**batches) for item in collections.get(name).sets(**protocol)]
    else:
        # Under a name of its own: a shorter run must not take the place of a published one in the store.
        items = [sets.get(name).adapted(**protocol, **batches)]
    return [Plan(config.name or item.name, item.shown, item.optimizers(), **item.protocol) for item in items]


def _axes(config: "SweepConfig", base: "Optimizer") -> dict[str, tuple[str, Sequence[float]]]:
    """The text and the values of every --grid, by the full name of its hyperparameter."""
    from outeropt.bench.learned_names import refuse_hyperparameters
    from outeropt.space import parse_grid

    fixed = {_full_name(name, base): name for name in config.hyperparameters}
    axes = {}
    for text in config.grid:
        name, equals, values = text.partition("=")
        if not equals:
            raise ConfigError(
                f"--grid {text} is not understood; write NAME=log:1e-5:1e-1:9 or NAME=0.1,0.3,1."
            )
        refuse_hyperparameters(config.optimizer or "", [name])
        full = _full_name(name.replace("-", "_"), base)
        if full in axes:
            raise ConfigError(f"{full} has two grids, {axes[full][0]} and {text}; give one.")
        if full in fixed:
            raise ConfigError(f"{full} has a grid and --optimizer.{fixed[full]}; give one of them.")
        axes[full] = text, parse_grid(values)
    return axes


def _full_name(name: str, optimizer: "Optimizer") -> str:
    """A hyperparameter's leaf name; fixed settings, which are no leaves, keep theirs."""
    from outeropt.optimizer import resolve

    try:
        return resolve(name, optimizer.hyperparameters)
    except UnknownName:
        return name


def label(optimizer: str, hyperparameters: Mapping[str, Plain], more: Sequence[str]) -> str:
    """A set's name in the store, for sweeps that have no other; unequal settings must not share it."""
    return "-".join([optimizer, *(f"{name}={value}" for name, value in hyperparameters.items()), *more])


def check(task: "Task", optimizer: "Optimizer", protocol: "Plan | TrainConfig") -> None:
    """Finds what is wrong before anything is written."""
    from outeropt import tasks, training

    training.cadence(
        protocol.steps,
        protocol.eval_every,
        protocol.eval_batches,
        protocol.last_eval_batches,
        protocol.episodes,
    )
    tasks.check(task)
    training.check(task, optimizer)


def swept(tasks: "Sequence[Task]", plans: Sequence[Plan], config: "SweepConfig") -> "list[Archive]":
    """Runs every plan on every task, with progress; plan by plan of the first task, then of the next."""
    from outeropt import Store
    from outeropt._sweep import drive, planned
    from outeropt.cli.executors import executor_of
    from outeropt.progress import Progress

    for task in tasks:
        for plan in plans:
            check(task, plan.optimizers[0], plan)
    count = len(tasks) * sum(len(plan.optimizers) * plan.seeds for plan in plans)
    with (
        executor_of(config.on, config.ray, config.slurm, config.store) as executor,
        Store(config.store) as store,
        Progress("trials") as progress,
    ):
        store.remember(_command(tasks, plans, config))
        bar = progress.task(tasks[0].name if len(tasks) == 1 else f"{len(tasks)} tasks", count, compiles=True)
        # One at a time: what a sweep needs is there while it runs.
        sweeps = (
            planned(
                task,
                plan.optimizers,
                seeds=plan.seeds,
                steps=plan.steps,
                episodes=plan.episodes,
                eval_every=plan.eval_every,
                eval_batches=plan.eval_batches,
                last_eval_batches=plan.last_eval_batches,
                lanes=config.lanes or "auto",
                store=store,
                set=plan.name,
                optimizer_name=plan.optimizer_name,
                devices=executor.devices,
            )
            for task in tasks
            for plan in plans
        )
        return drive(sweeps, executor, bar.advance)


def _command(tasks: "Sequence[Task]", plans: Sequence[Plan], config: "SweepConfig") -> "Command":
    """The sweep as a store remembers it: it may be given again from another folder."""
    from outeropt.store.commands import Command

    given = dataclasses.asdict(config)
    del given["store"]
    for name in ("task", "set"):
        given[name] = given[name] and _from_anywhere(given[name])
    for name in ("tasks", "sets"):
        given[name] = [_from_anywhere(each) for each in given[name]]
    return Command("sweep", given, [(task.name, plan.name) for task in tasks for plan in plans])


def _from_anywhere(name: str) -> str:
    """A name as it is, and the path of a file in full."""
    path, colon, attribute = name.partition(":")
    return f"{Path(path).resolve()}{colon}{attribute}" if Path(path).is_file() else name


def recalled(command: "Command", store: Path) -> "SweepConfig":
    """The sweep that a store remembers.

    Raises:
      ConfigError: another version wrote options that this one does not have.
    """
    from outeropt.cli.sweep import Config

    known = {field.name for field in dataclasses.fields(Config)}
    if unknown := command.config.keys() - known:
        raise ConfigError(
            f"{store} remembers a sweep with options that this outeropt does not have "
            f"({', '.join(sorted(unknown))}); give the command again that filled it."
        )
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in command.config.items()
    }
    return Config(**given, store=store)


def single(task: "Task", optimizer: "Optimizer", config: "TrainConfig") -> "tuple[Archive, Optimizer | None]":
    """Runs one trial with progress, in steps.

    Returns:
      Its curves, and with an `out` in the configuration the optimizer with what it learned.
    """
    import contextlib

    from outeropt import Store, sweep
    from outeropt.bench.learned_names import shown
    from outeropt.progress import Progress

    if not 0 <= config.seed < 2**32:
        raise ConfigError(f"--seed {config.seed} is not allowed; give a number from 0 to {2**32 - 1}.")
    more = [f"episodes={config.episodes}"] if config.episodes > 1 else []
    more += [f"from={config.load_controller}"] if config.load_controller else []
    more += ["frozen"] if config.freeze else []
    total = config.steps * config.episodes
    path = config.store or (config.out and config.out / "runs.db")
    after = []
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(Store(path)) if path else None
        bar = stack.enter_context(Progress("steps")).task(task.name, total, compiles=True)
        archive = sweep(
            task,
            optimizer,
            seeds=[config.seed],
            steps=config.steps,
            episodes=config.episodes,
            eval_every=config.eval_every,
            eval_batches=config.eval_batches,
            last_eval_batches=config.last_eval_batches,
            store=store,
            set=label(config.optimizer, config.hyperparameters, [*more, "train"]),
            optimizer_name=shown(config.optimizer),
            report=lambda trials: bar.advance(round(trials * total)),
            keep=(lambda *found: after.append(optimizer.after(found[2].opt))) if config.out else None,
        )
    return archive, after[0] if after else None
