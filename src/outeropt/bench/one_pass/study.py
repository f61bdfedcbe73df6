"""The plan of the study: which methods run on which rows, and what their trials are called in a store.

Clarke, Oldewage and Hernandez-Lobato 2022 (arXiv 2110.10461), section 4: every method starts from the same
random hyperparameters and initial networks. A start is a seed.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from outeropt import tasks
from outeropt._sweep import sweep
from outeropt._sweep.runner import Report
from outeropt.bench import restarts
from outeropt.bench.one_pass.problems import PROBLEMS
from outeropt.bench.restarts import Restarts, Summary
from outeropt.errors import OuteroptError, unknown_name
from outeropt.optimizer import Optimizer
from outeropt.selftuning import study_names
from outeropt.store import Archive, Store
from outeropt.tasks.wrappers import train_valid


@dataclasses.dataclass(frozen=True)
class Method:
    """One row of the paper's table.

    Attributes:
      name: as in the paper's code.
      label: as in the paper's tables.
      optimizer: its optimizer's key in `outeropt.selftuning.study_methods()`; None for a method that is
        derived from the runs of another.
      whole: whether it trains on training and validation rows, because it needs no others.
    """

    name: str
    label: str
    optimizer: str | None
    whole: bool = False


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("Random", "Random", "Random", whole=True),
        Method("Random_SteppedLR", "Random (×LR)", "Random_SteppedLR", whole=True),
        Method("Random_Validation", "Random, train split", "Random"),
        Method("Random_3Batched", "Random (3-batched)", None),
        Method("Lorraine", "Lorraine", "Lorraine"),
        Method("Baydin", "Baydin", "Baydin", whole=True),
        Method("Ours_LR", "Ours WD+LR", "Ours_LR"),
        Method("Ours_LR_Momentum", "Ours WD+LR+M", "Ours_LR_Momentum"),
        Method("Ours_HDLR_Momentum", "Ours WD+HDLR+M", "Ours_HDLR_Momentum"),
        Method("DiffThroughOpt", "Diff-through-Opt", "DiffThroughOpt"),
    )
}

# The runs that are grouped by three.
_BATCHED, _FROM = "Random_3Batched", "Random_Validation"


def chosen(names: Sequence[str], known: Sequence[str], kind: str) -> tuple[str, ...]:
    """Names in the order of the study; none, or `all`, stands for every one.

    Raises:
      UnknownName: no such dataset or method.
    """
    if not names or "all" in names:
        return tuple(known)
    for name in names:
        if name not in known:
            raise unknown_name(kind, name, known, see=", ".join(known))
    return tuple(name for name in known if name in names)


def run_names(methods: Sequence[str]) -> tuple[str, ...]:
    """The methods that are run for these: a derived one asks for the runs that it is made from."""
    wanted = {_FROM if name == _BATCHED else name for name in methods}
    return tuple(name for name in METHODS if name in wanted)


def set_name(dataset: str, method: str, steps: int) -> str:
    """What a method's trials are called in a store; shorter ones must not take the place of the paper's."""
    return f"one-pass-{method}" + ("" if steps == PROBLEMS[dataset].steps else f"@{steps}")


def task_name(dataset: str, method: str) -> str:
    """The task on which a method runs."""
    return f"{PROBLEMS[dataset].task}{train_valid.SUFFIX if METHODS[method].whole else ''}"


def run(
    store: Store,
    dataset: str,
    methods: Sequence[str] = tuple(METHODS),
    *,
    seeds: int | None = None,
    steps: int | None = None,
    eval_every: int | None = None,
    lanes: int | Literal["auto"] = "auto",
    optimizers: Mapping[str, Optimizer] | None = None,
    report: Report | None = None,
) -> dict[str, Archive]:
    """Runs on one dataset what the store does not have yet.

    Args:
      store: where trials are kept, and looked up first: a killed study goes on where it was.
      dataset: one of `problems.PROBLEMS`.
      methods: names of `METHODS`.
      seeds: restarts; None for the paper's number.
      steps: inner steps of each; None for the paper's number.
      eval_every: inner steps between evaluations; None for those of the problem or, where the steps are not
        the paper's, about a hundred evaluations.
      lanes: runs that one device does at a time, or `"auto"`.
      optimizers: in place of `study_methods(dataset)`.
      report: called with the number of trials that a piece of work was worth.

    Returns:
      An archive for each method that was run.

    Raises:
      OuteroptError: a method has no optimizer.
      ConfigError: a count that cannot be used.
      StoreError: the store cannot be written.
    """
    problem = PROBLEMS[dataset]
    found = study_methods(dataset) if optimizers is None else optimizers
    steps = problem.steps if steps is None else steps
    archives = {}
    for name in run_names(methods):
        method = METHODS[name]
        optimizer = found.get(method.optimizer or "")
        if optimizer is None:
            raise OuteroptError(
                f"{name} needs the optimizer {method.optimizer!r}; there are {', '.join(found) or 'none'}."
            )
        archives[name] = sweep(
            tasks.get(task_name(dataset, name)),
            optimizer,
            seeds=problem.restarts if seeds is None else seeds,
            steps=steps,
            eval_every=problem.eval_every if (eval_every, steps) == (None, problem.steps) else eval_every,
            eval_batches=problem.eval_batches,
            last_eval_batches=problem.last_eval_batches,
            lanes=lanes,
            store=store,
            set=set_name(dataset, name, steps),
            optimizer_name=method.label,
            report=report,
        )
    return archives


def study_methods(dataset: str) -> Mapping[str, Optimizer]:
    """The optimizers of the study on a problem, by name; each draws its hyperparameters when it begins."""
    return study_names.clipped_methods() if PROBLEMS[dataset].clipped else study_names.methods()


def all_restarts(
    archives: Mapping[str, Archive], dataset: str, *, threshold: float | None = None, seed: int = 0
) -> dict[str, Restarts]:
    """Runs by method with losses as the paper tells them, and those of the derived method.

    Args:
      archives: by method, on one dataset.
      dataset: one of `problems.PROBLEMS`.
      threshold: a final test loss, told in the same way, from which on a run counts as diverged; None for the
        paper's.
      seed: of the shuffling before runs are grouped by three.
    """
    found = with_derived(archives, dataset, threshold=threshold, seed=seed)
    return {name: PROBLEMS[dataset].runs(archive) for name, archive in found.items()}


def with_derived(
    archives: Mapping[str, Archive], dataset: str, *, threshold: float | None = None, seed: int = 0
) -> dict[str, Archive]:
    """Archives with losses in the target's own units, and that of the derived method, in the study's order.

    Seeds of the derived one are those of the runs that stay, its seconds those of whole groups. With fewer
    than three runs that did not diverge there is none.

    Args:
      archives: by method, on one dataset.
      dataset: one of `problems.PROBLEMS`.
      threshold: as in `all_restarts`.
      seed: of the shuffling before runs are grouped by three.
    """
    problem = PROBLEMS[dataset]
    found = {name: problem.in_units(archive) for name, archive in archives.items()}
    if (source := found.get(_FROM)) is not None:
        rng, limit = np.random.RandomState(seed), limit_of(dataset, threshold)
        chosen, groups = restarts.batched(problem.runs(source), rng, 3, limit)
        if len(chosen):
            found[_BATCHED] = dataclasses.replace(
                source,
                set=source.set.replace(_FROM, _BATCHED),
                optimizer=METHODS[_BATCHED].label,
                seeds=tuple(source.seeds[i] for i in chosen),
                curves={name: curve[:, chosen] for name, curve in source.curves.items()},
                diverged_at=source.diverged_at[:, chosen],
                seconds=source.seconds[:, groups].sum(axis=-1),
                ids=None,
            )
    return {name: found[name] for name in METHODS if name in found}


def limit_of(dataset: str, threshold: float | None) -> float | None:
    """The final test loss from which on a run counts as diverged: as given, or the paper's, or none."""
    return PROBLEMS[dataset].threshold if threshold is None else threshold


def summaries(
    runs: Mapping[str, Restarts], *, threshold: float | None = None, seed: int = 0
) -> dict[str, Summary]:
    """How each method ended; one stream of random numbers serves all bootstraps, in the methods' order."""
    rng = np.random.RandomState(seed)
    return {name: restarts.summary(one, rng, threshold=threshold) for name, one in runs.items()}
