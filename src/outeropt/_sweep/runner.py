"""Running chunks of lanes: a few seconds of work per call, checkpointed while it lasts."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from outeropt import checkpoint
from outeropt._sweep.lanes import WINDOWS, Block, advance, blank
from outeropt._sweep.plan import Chunk
from outeropt._sweep.settings import Settings
from outeropt.compiling import make_room
from outeropt.errors import OuteroptError
from outeropt.task import Task
from outeropt.training import TrainState, mask_diverged


# Seconds of work per call, so that progress moves and a kill costs little, and between checkpoints.
_CALL_SECONDS = 2.0
_CHECKPOINT_SECONDS = 60.0

Report = Callable[[float], None]


class Protocol(NamedTuple):
    """How every trial of a sweep is run and evaluated.

    Attributes:
      steps: inner steps, of all episodes together.
      eval_every: inner steps between evaluations.
      eval_batches: batches per evaluation.
      last_eval_batches: batches of the evaluation after the last step.
      episodes: how many times a trial trains from fresh initial values.
    """

    steps: int
    eval_every: int
    eval_batches: int
    last_eval_batches: int
    episodes: int = 1

    @property
    def identity(self) -> tuple[int, ...]:
        """What of it makes one trial another; trials of one episode are older than episodes."""
        return tuple(self) if self.episodes > 1 else tuple(self)[:-1]

    @property
    def cadence(self) -> tuple[int, int, int]:
        """Steps between evaluations, and their batches."""
        return self.eval_every, self.eval_batches, self.last_eval_batches

    @property
    def points(self) -> np.ndarray:
        """Inner steps of the evaluations."""
        return np.append(np.arange(0, self.steps, self.eval_every), self.steps).astype(np.int32)


class Runner:
    """Runs chunks of one block shape, a few seconds of work per call."""

    def __init__(self, task, settings, protocol, block: Block, report: Report | None):
        make_room()
        arrays, static = eqx.partition(_nameless(task), eqx.is_array)
        self.task = eqx.combine(block.replicate(arrays), static)
        self.settings: Settings = settings
        self.protocol: Protocol = protocol
        self.block = block
        self.report = report

    def run(
        self, chunk: Chunk, partial: Path | None
    ) -> tuple[dict[str, np.ndarray], np.ndarray, float, TrainState]:
        """Runs a chunk, from its checkpoint where there is one.

        Args:
          chunk: the lanes.
          partial: the checkpoint of the unfinished chunk; None keeps none.

        Returns:
          Curves (seeds, settings, T) by name, steps of divergence (seeds, settings), run seconds per trial,
          and the last states (seeds, settings, ...).
        """
        protocol = self.protocol
        total = protocol.steps // protocol.eval_every
        stacked = self.settings.select(chunk.settings).stacked
        keys = jnp.stack([jax.random.key(seed) for seed in chunk.seeds])
        carry = blank(self.task, stacked, self.block)
        lanes = len(chunk.seeds), len(chunk.settings)
        records = np.zeros((*lanes, total + 1, len(self.block.columns)), np.float32)

        done, spent, carry, records = self._resume(chunk, partial, carry, records)
        carry, *_ = self._call(stacked, keys, carry, done, 0)  # compiles; no window is done
        count, saved = 1, time.monotonic()
        while done < total:
            count = min(count, total - done, WINDOWS)
            carry, rows, took = self._call(stacked, keys, carry, done, count)
            records[:, :, done : done + count + 1] = rows
            done, spent = done + count, spent + took
            if self.report:
                self.report(chunk.lanes * count / total)
            count = max(1, int(_CALL_SECONDS / (took / count)))
            if partial and done < total and time.monotonic() - saved > _CHECKPOINT_SECONDS:
                checkpoint.save(partial, (carry, records), {"done": done, "seconds": spent})
                saved = time.monotonic()
        curves = {name: records[..., column] for column, name in enumerate(self.block.columns)}
        diverged_at = self._diverged(np.asarray(carry[0].diverged_at), records[:, :, total])
        curves = mask_diverged(curves, protocol.points, diverged_at, protocol.episodes)
        return curves, diverged_at, spent / math.prod(lanes), carry[0]

    def _call(self, stacked, keys, carry, done: int, count: int):
        protocol = self.protocol
        every, batches, last_batches = protocol.cadence
        lengths = protocol.steps, protocol.steps // protocol.episodes
        clock = jnp.asarray([done * every, count, every, *lengths, batches, last_batches], jnp.int32)
        began = time.perf_counter()
        carry, rows = advance((self.task, stacked, keys, clock), carry, self.block)
        rows = np.asarray(rows)[:, :, : count + 1]
        return carry, rows, time.perf_counter() - began

    def _diverged(self, diverged_at: np.ndarray, last: np.ndarray) -> np.ndarray:
        """Adds trials whose very last update went wrong."""
        late = (diverged_at < 0) & ~np.isfinite(last[..., self.block.columns.index("train/loss")])
        return np.where(late, self.protocol.steps, diverged_at)

    def _resume(self, chunk: Chunk, path: Path | None, carry, records) -> tuple[int, float, Any, np.ndarray]:
        if path is None or not path.exists():
            return 0, 0.0, carry, records
        try:
            kept = checkpoint.metadata(path)
            carry, records = checkpoint.load(path, (carry, records))
        except OuteroptError:
            # Another process finished the chunk meanwhile, or the file is damaged: the chunk starts afresh.
            return 0, 0.0, carry, records
        if self.report:
            self.report(chunk.lanes * kept["done"] * self.protocol.eval_every / self.protocol.steps)
        return kept["done"], kept["seconds"], carry, np.array(records)


def _nameless(task: Task) -> Task:
    """The same task without its name, which must not tell equal programs apart."""
    copy = object.__new__(type(task))
    for field, value in vars(task).items():
        object.__setattr__(copy, field, "" if field == "name" else value)
    return copy
