"""A chunk of lanes as a piece of work that any process can do, and what comes of it."""

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from outeropt._sweep.devices import use_all_cores
from outeropt._sweep.lanes import Block, Device
from outeropt._sweep.plan import Chunk
from outeropt._sweep.runner import Protocol, Runner
from outeropt._sweep.settings import Settings
from outeropt.errors import OuteroptError
from outeropt.task import Task
from outeropt.training import TrainState


class Work(NamedTuple):
    """What all chunks of a sweep have in common whose optimizers have one structure.

    Attributes:
      id: hash of all of it; chunks of equal work share a compiled program.
      task: what is trained.
      settings: every setting; chunks name theirs by position.
      protocol: how every trial is run.
      block: the shape of all chunks. Its devices are those where it was planned.
    """

    id: str
    task: Task
    settings: Settings
    protocol: Protocol
    block: Block


class Job(NamedTuple):
    """One chunk. Nothing of it depends on any other, nor on where it runs.

    Attributes:
      id: hash of its trials' identities.
      work: what it shares with others.
      chunk: its lanes.
      partial: where it is checkpointed while it runs; None for nowhere.
    """

    id: str
    work: Work
    chunk: Chunk
    partial: Path | None


class Outcome(NamedTuple):
    """What a chunk gave.

    Attributes:
      curves: (seeds, settings, T) by name.
      diverged_at: (seeds, settings), the first step with a loss that is not finite, or -1.
      seconds: run seconds per trial.
      states: the last training states (seeds, settings, ...); None from other processes.
    """

    curves: dict[str, np.ndarray]
    diverged_at: np.ndarray
    seconds: float
    states: TrainState | None


def runner(work: Work, devices: Sequence[Device]) -> Runner:
    """What runs the chunks of a piece of work on some devices of this process.

    Raises:
      OuteroptError: there are fewer devices than it was planned for.
    """
    wanted = len(work.block.devices)
    if len(devices) < wanted:
        raise OuteroptError(
            f"A chunk planned for {wanted} devices came where JAX has {len(devices)}; "
            "give its worker as many cores (JAX_NUM_CPU_DEVICES) or GPUs as the executor says."
        )
    block = dataclasses.replace(work.block, devices=tuple(devices[:wanted]))
    return Runner(work.task, work.settings, work.protocol, block, None)


# One process keeps the data and programs of the last work that it did: chunks come work by work.
_KEPT: dict[str, Runner] = {}


def perform(job: Job) -> Outcome:
    """Runs a chunk in a worker process, on as many devices as it was planned for."""
    work = job.work
    if work.id not in _KEPT:
        _get_ready(work.block.devices)
        _KEPT.clear()
        _KEPT[work.id] = runner(work, jax.local_devices())
    curves, diverged_at, seconds, _ = _KEPT[work.id].run(job.chunk, job.partial)
    return Outcome(curves, diverged_at, seconds, states=None)


def _get_ready(devices: Sequence[Device]) -> None:
    """Gives JAX the devices that were planned for, if it has not started here yet."""
    use_all_cores()
    with contextlib.suppress(RuntimeError):
        if devices[0].platform == "cpu":
            # XLA's threads: one for each device, as other workers have the other cores.
            os.environ.setdefault("NPROC", str(len(devices)))
            jax.config.update("jax_platforms", "cpu")
            jax.config.update("jax_num_cpu_devices", len(devices))
