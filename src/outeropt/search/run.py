"""The search: checks what was asked for, and hands it to a method."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

from outeropt._sweep.runner import Protocol
from outeropt.errors import ConfigError, unknown_name
from outeropt.optimizer import Optimizer
from outeropt.search.domain import domain
from outeropt.search.found import Found
from outeropt.search.full_length import FullLength
from outeropt.search.halving import Halving, Hyperband
from outeropt.search.method import Method
from outeropt.search.population import PopulationBased
from outeropt.search.problem import Problem, warm_points
from outeropt.search.samplers.bayes import Bayes
from outeropt.search.samplers.cmaes import CMAES
from outeropt.search.samplers.grid import Grid
from outeropt.search.samplers.random import Random
from outeropt.search.samplers.sobol import Sobol
from outeropt.space import Space
from outeropt.store import Archive, Store
from outeropt.task import Task
from outeropt.training import cadence


METHODS: dict[str, Method] = {
    "random": FullLength(Random, "independent points"),
    "grid": FullLength(Grid, "all combinations of evenly spread values"),
    "sobol": FullLength(Sobol, "points that fill the space evenly"),
    "bayes": FullLength(Bayes, "points that look good after those that were tried (Optuna's TPE)"),
    "cmaes": FullLength(CMAES, "a normal distribution that moves to where it is good (CMA-ES)"),
    "halving": Halving(),
    "hyperband": Hyperband(),
    "pbt": PopulationBased(),
}


def search(
    task: Task,
    optimizer: Optimizer,
    *,
    method: str | Method = "random",
    trials: int,
    parallel: int = 16,
    steps: int,
    seeds: int = 1,
    seed: int = 0,
    tune: Sequence[str] | Mapping[str, Space] | None = None,
    eval_every: int | None = None,
    eval_batches: int = 5,
    last_eval_batches: int = 10,
    lanes: int | Literal["auto"] = "auto",
    store: Store | None = None,
    set: str | None = None,
    optimizer_name: str = "",
    warm_start: Iterable[Archive] = (),
    report: Callable[[float], None] | None = None,
) -> Found:
    """Looks for the hyperparameters with the lowest validation loss after `steps` inner steps.

        found = search(task, optimizers.get("adamw"), method="bayes", trials=64, steps=1000, store=store)
        found.optimizer, found.score

    Settings are scored by their validation loss, averaged over seeds; one that diverges counts as the worst,
    is recorded, and harms no other. A search that was interrupted, and is begun again with the same arguments
    and store, goes on where it was and ends with the same answer, bit for bit on the same machine.

    Args:
      task: what to train.
      optimizer: what to tune; gives all leaves that are not tuned.
      method: a name of `METHODS`, or one of their classes with options of its own, such as `Halving(eta=4)`.
      trials: settings to try, at least 1.
      parallel: settings that are trained side by side, before the method hears of them.
      steps: inner steps of a trial of full length.
      seeds: seeds (0, 1, ...) for every setting.
      seed: of the method's own randomness.
      tune: names of the leaves to tune, or narrower spaces by name; None tunes the learning rate, or every
        leaf with a space where there is none.
      eval_every: inner steps between evaluations; None chooses about a hundred evaluations.
      eval_batches: batches per split and evaluation.
      last_eval_batches: the same for the evaluation after the last step, which is the score.
      lanes: trials that one device runs at a time; `"auto"` chooses.
      store: where finished trials are kept, and looked up before anything is run.
      set: name of the collection of trials, for the archive and the store; None leaves them unnamed.
      optimizer_name: name of the optimizer in archives.
      warm_start: archives whose points and scores the method hears first; those of another task, optimizer
        (by `optimizer_name`) or number of steps are passed over.
      report: called with the number of trials that a piece of work was worth (fractions sum to `trials`; less
        if a grid has fewer points).

    Raises:
      UnknownName: no such method or leaf.
      ConfigError: an argument that cannot be used, a leaf without a space, or a package that is missing.
      StoreError: the store cannot be read or written.

    Examples:
      >>> from outeropt import optimizers, tasks
      >>> from outeropt.search import search
      >>> task, sgd = tasks.get("Quadratic_10"), optimizers.get("sgd")
      >>> found = search(task, sgd, trials=4, parallel=4, steps=20, tune=["learning_rate"])
      >>> len(found.trials), found.score == min(trial.score for trial in found.trials)
      (4, True)
    """
    chosen, problem = planned(
        task,
        optimizer,
        method=method,
        trials=trials,
        parallel=parallel,
        steps=steps,
        seeds=seeds,
        seed=seed,
        tune=tune,
        eval_every=eval_every,
        eval_batches=eval_batches,
        last_eval_batches=last_eval_batches,
        warm_start=warm_start,
        set=set,
        optimizer_name=optimizer_name,
    )
    share = trials / chosen.work(problem)
    told = report and (lambda done: report(done * share))
    return chosen.run(dataclasses.replace(problem, lanes=lanes, store=store, report=told))


def planned(
    task: Task,
    optimizer: Optimizer,
    *,
    method: str | Method,
    trials: int,
    parallel: int,
    steps: int,
    seeds: int,
    seed: int,
    tune: Sequence[str] | Mapping[str, Space] | None,
    eval_every: int | None,
    eval_batches: int = 5,
    last_eval_batches: int = 10,
    warm_start: Iterable[Archive] = (),
    set: str | None = None,
    optimizer_name: str = "",
) -> tuple[Method, Problem]:
    """What a search with these arguments will do; whatever is wrong with them fails here, at no cost.

    Raises:
      UnknownName: as `search`.
      ConfigError: as `search`.
    """
    if isinstance(method, str):
        if method not in METHODS:
            raise unknown_name("method of search", method, METHODS, ", ".join(METHODS))
        method = METHODS[method]
    for name, count in (("trials", trials), ("parallel", parallel), ("seeds", seeds)):
        if count < 1:
            raise ConfigError(f"{name} = {count} is not allowed; give at least 1.")
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed = {seed} is not allowed; give a whole number from 0 to {2**32 - 1}.")
    every = cadence(steps, eval_every, eval_batches, last_eval_batches)
    searched = domain(optimizer, tune)
    problem = Problem(
        task=task,
        optimizer=optimizer,
        domain=searched,
        protocol=Protocol(steps, every, eval_batches, last_eval_batches),
        seeds=tuple(range(seeds)),
        trials=trials,
        parallel=min(parallel, trials),
        seed=seed,
        warm=warm_points(warm_start, task, optimizer_name, searched, steps, set),
        set=set,
        optimizer_name=optimizer_name,
    )
    method.work(problem)
    return method, problem
