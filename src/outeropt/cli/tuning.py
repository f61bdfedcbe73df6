"""What `tune` does: finds the method, runs it with progress, prints what came out."""

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from outeropt.cli.running import label, optimizer_from
from outeropt.cli.show import number, show_table
from outeropt.errors import ConfigError, unknown_name


if TYPE_CHECKING:
    from outeropt.cli.tune import Config
    from outeropt.search import Found
    from outeropt.selftuning import Method
    from outeropt.store import Archive


# Settings and points of the incumbent's curve that are printed.
_MOST = 8


def tuned(config: "Config") -> None:
    """Runs the method that was asked for, and prints what it found.

    Raises:
      UnknownName: no such method, task, optimizer or hyperparameter.
      ConfigError: options that cannot be used.
    """
    from outeropt.search import METHODS
    from outeropt.selftuning import tuning_methods

    in_run = tuning_methods()
    names = [*METHODS, *in_run]
    if config.method not in names:
        raise unknown_name("method", config.method, names, ", ".join(names))
    for name in ("trials", "parallel", "restarts", "seeds"):
        if getattr(config, name) < 1:
            raise ConfigError(f"--{name} {getattr(config, name)} is not allowed; give at least 1.")
    config = _with_leaves(config)
    if config.method in METHODS:
        _search(config)
    else:
        _restart(config, in_run[config.method])


def _with_leaves(config: "Config") -> "Config":
    """sgd has a momentum and a weight decay in another optimizer only, which says so."""
    missing = {"momentum", "weight_decay"} & {*_names(config)} - {*config.hyperparameters}
    if config.optimizer != "sgd" or not missing:
        return config
    print("sgd has no momentum or weight decay to tune; heavy_ball, which is sgd with both, takes its place.")
    return dataclasses.replace(config, optimizer="heavy_ball")


def _names(config: "Config") -> list[str]:
    return [name.strip().replace("-", "_") for name in (config.tune or "").split(",") if name.strip()]


def _set(config: "Config") -> str:
    """The set's name in the store; two searches that ask for other points must not share it."""
    more = [config.method, *_names(config), *([f"seed={config.seed}"] if config.seed else [])]
    return config.name or label(config.optimizer, config.hyperparameters, more)


def _search(config: "Config") -> None:
    from outeropt import Store, tasks, training
    from outeropt.bench.learned_names import shown
    from outeropt.progress import Progress
    from outeropt.search import planned, search

    task = tasks.get(config.task)
    optimizer = optimizer_from(config.optimizer, config.hyperparameters)
    tasks.check(task)
    training.check(task, optimizer)
    earlier = []
    if config.warm_start is not None:
        with Store(config.warm_start, "read") as store:
            earlier = store.archives()
    options: dict[str, Any] = {
        "method": config.method,
        "trials": config.trials,
        "parallel": config.parallel,
        "steps": config.steps,
        "seeds": config.seeds,
        "seed": config.seed,
        "tune": _names(config) or None,
        "eval_every": config.eval_every,
        "set": _set(config),
        "optimizer_name": shown(config.optimizer),
        "warm_start": earlier,
    }
    # Before the store hears of it: what cannot be searched fails here.
    planned(task, optimizer, **options)
    with Store(config.store) as store, Progress("trials") as progress:
        bar = progress.task(task.name, config.trials, compiles=True)
        found = search(task, optimizer, store=store, report=bar.advance, **options)
    show_found(found)


def show_found(found: "Found") -> None:
    """Prints the best settings, and how the best so far became better."""
    archive = found.archives[0]
    tested = archive.final("test/loss").mean(axis=1)
    by_setting = {tuple(setting.items()): i for i, setting in enumerate(archive.settings)}
    names = list(found.setting)
    rows = []
    for trial in found.best[:_MOST]:
        i = by_setting[tuple(trial.setting.items())]
        rows.append([*(f"{trial.setting[name]:g}" for name in names), _loss(trial.score), number(tested[i])])
    seeds = f"{len(archive.seeds)} seed{'s' if len(archive.seeds) > 1 else ''}"
    title = f"{archive.task}: {archive.optimizer}, {archive.num_steps} steps, {seeds}"
    show_table([*(f"{name} " for name in names), "valid/loss ", "test/loss "], rows, title)
    curve = found.incumbent
    places = np.unique(np.linspace(0, len(curve.score) - 1, _MOST).round().astype(int))
    points = [[float(column[i]) for column in curve] for i in places]
    show_table(
        ["trials ", "seconds ", "valid/loss "],
        [[f"{n:.4g}", number(seconds), _loss(score)] for n, seconds, score in points],
        "Best so far",
    )
    diverged = sum(not math.isfinite(trial.score) for trial in found.trials)
    if diverged:
        print(f"Diverged: {diverged} of {len(found.trials)} settings.")


def _loss(score: float) -> str:
    return number(score) if math.isfinite(score) else "diverged"


def _restart(config: "Config", method: "Method") -> None:
    from outeropt import Store, sweep, tasks, training
    from outeropt.bench.learned_names import shown
    from outeropt.progress import Progress
    from outeropt.search import domain
    from outeropt.selftuning import random_start

    if config.warm_start is not None:
        raise ConfigError(f"--warm-start is for searches; {config.method} begins at random settings.")
    task = tasks.get(config.task)
    base = optimizer_from(config.optimizer, config.hyperparameters)
    # By the domain's rules, so that what has no space is told alike; the draws are the method's own.
    tuned = [name.rpartition(".")[2] for name in domain(base, _names(config) or None).spaces]
    optimizer = random_start(method, base, tuned)
    tasks.check(task)
    training.check(task, optimizer)
    training.cadence(config.steps, config.eval_every)
    with Store(config.store) as store, Progress("trials") as progress:
        bar = progress.task(task.name, config.restarts, compiles=True)
        archive = sweep(
            task,
            optimizer,
            seeds=range(config.seed, config.seed + config.restarts),
            steps=config.steps,
            eval_every=config.eval_every,
            store=store,
            set=_set(config),
            optimizer_name=f"{config.method}:{shown(config.optimizer)}",
            report=bar.advance,
        )
    print(f"{config.method}: {method.note}")
    show_restarts(archive, tuned)


def show_restarts(archive: "Archive", names: Sequence[str]) -> None:
    """Prints how restarts ended, and where their hyperparameters did."""
    from outeropt.bench.restarts import ended, restarts, summary

    found = summary(restarts(archive), np.random.RandomState(0))
    low, high, _ = found.quantiles
    row = [
        number(found.median.value),
        f"{number(found.mean.value)} ± {found.mean.error:.2g}",
        _loss(low),
        _loss(high),
        number(found.best),
        f"{found.diverged_rate:.1%}",
    ]
    columns = ["median ", "mean ± s.e. ", "25% ", "75% ", "best ", "diverged "]
    show_table(columns, [row], f"{archive.task}: test/loss of {found.runs} restarts")
    print("Median and mean are of the restarts that did not diverge, quartiles of all.")
    places = ended(archive)
    rows = [
        [name, *map(number, (places[name][1], places[name][0], places[name][2]))]
        for name in names
        if name in places
    ]
    if rows:
        show_table(["hyperparameter", "median ", "25% ", "75% "], rows, "Where they ended")
