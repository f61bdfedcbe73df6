"""What `train` and `sweep` share: the machine, the optimizers, and progress."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from outeropt.errors import ConfigError


if TYPE_CHECKING:
    from outeropt import Archive, Optimizer, Settings, Task
    from outeropt.cli.sweep import Config as SweepConfig
    from outeropt.cli.train import Config as TrainConfig


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


def prepare() -> None:
    """Lets JAX use every core and keep compiled programs; call before anything else of JAX."""
    from outeropt import use_all_cores

    use_all_cores()


def optimizer_from(name: str, hyperparameters: Mapping[str, Any]) -> "Optimizer":
    """The named optimizer with some hyperparameters set."""
    from outeropt import optimizers

    return optimizers.get(name, **hyperparameters)


def plan_of(config: "SweepConfig") -> Plan:
    """The sweep that a configuration asks for."""
    if config.set is not None:
        return _of_set(config, config.set)
    from outeropt import grid, sample
    from outeropt.space import parse_grid

    assert config.optimizer is not None
    base = optimizer_from(config.optimizer, config.hyperparameters)
    if config.sample is not None:
        import jax

        settings = sample(base, config.sample, jax.random.key(0))
        label = f"{config.optimizer}-sample{config.sample}"
    else:
        axes = dict(_axis(text) for text in config.grid)
        settings = grid(base, {name: parse_grid(values) for name, values in axes.items()})
        label = "-".join([config.optimizer, *(f"{name}={values}" for name, values in axes.items())])
    return Plan(
        config.name or label,
        config.optimizer,
        settings,
        config.seeds or 3,
        config.steps or 1000,
        config.eval_every,
    )


def _of_set(config: "SweepConfig", name: str) -> Plan:
    from outeropt.bench import sets

    item = sets.get(name)
    steps = config.steps or item.steps
    every = config.eval_every or (item.eval_every if steps % item.eval_every == 0 else None)
    return Plan(
        config.name or item.name,
        item.optimizer,
        item.optimizers(),
        config.seeds or item.seeds,
        steps,
        every,
        item.eval_batches,
        item.last_eval_batches,
    )


def _axis(text: str) -> tuple[str, str]:
    name, equals, values = text.partition("=")
    if not equals:
        raise ConfigError(f"--grid {text} is not understood; write NAME=log:1e-5:1e-1:9 or NAME=0.1,0.3,1.")
    return name.replace("-", "_"), values


def swept(task: "Task", plan: Plan, config: "SweepConfig") -> "Archive":
    """Runs the plan with progress."""
    from outeropt import Store, sweep
    from outeropt.progress import Progress

    count = len(plan.optimizers) * plan.seeds
    with Store(config.store) as store, Progress("trials") as progress:
        bar = progress.task(task.name, count)
        return sweep(
            task,
            plan.optimizers,
            seeds=plan.seeds,
            steps=plan.steps,
            eval_every=plan.eval_every,
            eval_batches=plan.eval_batches,
            last_eval_batches=plan.last_eval_batches,
            lanes=config.lanes or "auto",
            store=store,
            set=plan.name,
            optimizer_name=plan.optimizer_name,
            report=bar.advance,
        )


def single(task: "Task", optimizer: "Optimizer", config: "TrainConfig") -> "Archive":
    """Runs one trial with progress, in steps."""
    import contextlib

    from outeropt import Store, sweep
    from outeropt.progress import Progress

    with contextlib.ExitStack() as stack:
        store = stack.enter_context(Store(config.store)) if config.store else None
        bar = stack.enter_context(Progress("steps")).task(task.name, config.steps)
        return sweep(
            task,
            optimizer,
            seeds=[config.seed],
            steps=config.steps,
            eval_every=config.eval_every,
            eval_batches=config.eval_batches,
            last_eval_batches=config.last_eval_batches,
            store=store,
            set=f"{config.optimizer}-train",
            optimizer_name=config.optimizer,
            report=lambda trials: bar.advance(round(trials * config.steps)),
        )
