"""Running hyperparameter sets on tasks, into a store."""

import concurrent.futures
import dataclasses
import queue
from collections.abc import Callable, Mapping, Sequence

import jax

from outeropt import tasks
from outeropt._sweep import sweep
from outeropt.bench.sets import HyperparameterSet
from outeropt.store import Archive, Store
from outeropt.task import Task


def run(
    task: Task,
    sets: Sequence[HyperparameterSet],
    store: Store,
    report: Callable[[float], None] | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> list[Archive]:
    """Runs what the store does not have yet of some sets on a task.

    Sets with equal seeds, length and cadence run in one sweep, so that a tuned and an as-is set of one optimizer
    share their compiled program.

    Args:
      task: what to train.
      sets: the sets.
      store: where trials are kept, and looked up first.
      report: called with the number of trials that a piece of work was worth.
      devices: devices that share the lanes; None takes all local ones.

    Returns:
      One archive per set, in order.
    """
    together: dict[tuple, list[HyperparameterSet]] = {}
    for item in sets:
        together.setdefault((item.optimizer, item.seeds, *_protocol(item).values()), []).append(item)
    for group in together.values():
        optimizers = [optimizer for item in group for optimizer in item.optimizers()]
        common = {"seeds": group[0].seeds, "store": store, "optimizer_name": group[0].optimizer}
        sweep(task, optimizers, report=report, devices=devices, **common, **_protocol(group[0]))
    return [
        sweep(
            task,
            item.optimizers(),
            seeds=item.seeds,
            store=store,
            set=item.name,
            optimizer_name=item.optimizer,
            **_protocol(item),
        )
        for item in sets
    ]


def run_all(
    plan: Mapping[str, Sequence[HyperparameterSet]],
    store: Store,
    report: Callable[[float], None] | None = None,
) -> list[Archive]:
    """Runs sets on many tasks, each optimizer and task on a device of its own.

    One program compiles while another runs: with many small programs that is quicker than all devices on one.

    Args:
      plan: the sets of each task, by task name.
      store: where trials are kept, and looked up first.
      report: as in `run`.

    Returns:
      The archives, task by task, in order.
    """
    free: queue.SimpleQueue[jax.Device] = queue.SimpleQueue()
    for device in jax.local_devices():
        free.put(device)
    jobs = []
    for name, sets in plan.items():
        task = tasks.get(name)
        by_optimizer: dict[str, list[HyperparameterSet]] = {}
        for item in sets:
            by_optimizer.setdefault(item.optimizer, []).append(item)
        jobs += [(task, group) for group in by_optimizer.values()]

    def work(job: tuple[Task, Sequence[HyperparameterSet]]) -> list[Archive]:
        device = free.get()
        try:
            return run(*job, store, report, [device])
        finally:
            free.put(device)

    pool = concurrent.futures.ThreadPoolExecutor(len(jax.local_devices()))
    try:
        return [archive for archives in pool.map(work, jobs) for archive in archives]
    finally:
        pool.shutdown(cancel_futures=True)


def trials(sets: Sequence[HyperparameterSet]) -> int:
    """How many trials the sets have on one task."""
    return sum(len(item.settings()) * item.seeds for item in sets)


def shortened(
    item: HyperparameterSet, *, steps: int | None = None, seeds: int | None = None
) -> HyperparameterSet:
    """A set with another length or number of seeds, under a name that says so."""
    changes = {key: value for key, value in (("steps", steps), ("seeds", seeds)) if value is not None}
    changes = {key: value for key, value in changes.items() if value != getattr(item, key)}
    return dataclasses.replace(item, **changes) if changes else item


def _protocol(item: HyperparameterSet) -> dict[str, int]:
    return {
        "steps": item.steps,
        "eval_every": item.eval_every,
        "eval_batches": item.eval_batches,
        "last_eval_batches": item.last_eval_batches,
    }
