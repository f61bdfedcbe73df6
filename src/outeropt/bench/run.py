"""Running hyperparameter sets on tasks, into a store."""

import concurrent.futures
import queue
import threading
from collections.abc import Mapping, Sequence

import jax

from outeropt import tasks
from outeropt._sweep import sweep
from outeropt._sweep.lanes import Device
from outeropt._sweep.runner import Report
from outeropt.bench.sets import HyperparameterSet
from outeropt.optimizer import Optimizer
from outeropt.store import Archive, Store
from outeropt.task import Task


def run(
    task: Task,
    sets: Sequence[HyperparameterSet],
    store: Store,
    report: Report | None = None,
    devices: Sequence[Device] | None = None,
) -> list[Archive]:
    """Runs what the store does not have yet of some sets on a task.

    Sets of one optimizer with equal seeds, length and cadence run in one sweep, so that a tuned and an as-is
    set share their compiled program.

    Args:
      task: what to train.
      sets: the sets.
      store: where trials are kept, and looked up first.
      report: called with the number of trials that a piece of work was worth.
      devices: devices that share the lanes; None takes all local ones.

    Returns:
      One archive per set, in order.
    """

    def swept(
        item: HyperparameterSet, optimizers: Sequence[Optimizer], name: str | None, report: Report | None
    ):
        return sweep(
            task,
            optimizers,
            seeds=item.seeds,
            steps=item.steps,
            episodes=item.episodes,
            eval_every=item.eval_every,
            eval_batches=item.eval_batches,
            last_eval_batches=item.last_eval_batches,
            store=store,
            set=name,
            optimizer_name=item.shown,
            devices=devices,
            report=report,
        )

    together: dict[tuple[str | int, ...], list[HyperparameterSet]] = {}
    for item in sets:
        together.setdefault((item.optimizer, *item.protocol.values()), []).append(item)
    for group in together.values():
        swept(group[0], [optimizer for item in group for optimizer in item.optimizers()], None, report)
    # Every trial is in the store now: this only names the sets and reads them.
    return [swept(item, item.optimizers(), item.name, None) for item in sets]


def run_all(
    plan: Mapping[str, Sequence[HyperparameterSet]], store: Store, report: Report | None = None
) -> list[Archive]:
    """Runs sets on many tasks, each optimizer and task on a device of its own.

    One program compiles while another runs: with many small programs that is quicker than all devices on one.

    Args:
      plan: the sets of each task, by task name.
      store: where trials are kept, and looked up first.
      report: as in `run`.

    Returns:
      The archives, task by task and optimizer by optimizer, in order.
    """
    free: queue.SimpleQueue[Device] = queue.SimpleQueue()
    for device in jax.local_devices():
        free.put(device)
    jobs = []
    for name, sets in plan.items():
        task = tasks.get(name)
        by_optimizer: dict[str, list[HyperparameterSet]] = {}
        for item in sets:
            by_optimizer.setdefault(item.optimizer, []).append(item)
        jobs += [(task, group) for group in by_optimizer.values()]

    stop = threading.Event()

    def tell(amount: float) -> None:
        if stop.is_set():
            raise concurrent.futures.CancelledError
        if report:
            report(amount)

    def work(job: tuple[Task, Sequence[HyperparameterSet]]) -> list[Archive]:
        device = free.get()
        try:
            return run(*job, store, tell, [device])
        finally:
            free.put(device)

    pool = concurrent.futures.ThreadPoolExecutor(len(jax.local_devices()))
    try:
        return [archive for archives in pool.map(work, jobs) for archive in archives]
    finally:
        # After an error or an interruption the other workers end at their next report, seconds away.
        stop.set()
        pool.shutdown(cancel_futures=True)


def trials(sets: Sequence[HyperparameterSet]) -> int:
    """How many trials the sets have on one task."""
    return sum(len(item.settings()) * item.seeds for item in sets)
