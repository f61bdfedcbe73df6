"""Running chunks of lanes: a few seconds of work per call, checkpointed while it lasts."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from outeropt import checkpoint
from outeropt._sweep.lanes import WINDOWS, Block, Carry, advance, blank
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
    def details(self) -> dict[str, int]:
        """What a trial says of it beside its cadence."""
        return {} if self.episodes == 1 else {"episodes": self.episodes}

    @property
    def points(self) -> np.ndarray:
        """Inner steps of the evaluations."""
        return np.append(np.arange(0, self.steps, self.eval_every), self.steps).astype(np.int32)


class Reached(NamedTuple):
    """How far a chunk has come.

    Attributes:
      done: windows.
      seconds: wall-clock seconds of the whole chunk.
      carry: the lanes' states (seeds, settings, ...) and mean losses since the last evaluation.
      records: rows (seeds, settings, windows + 1, columns) of the curves; 0 after `done`.
    """

    done: int
    seconds: float
    carry: Carry
    records: np.ndarray


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
        """Runs a chunk to the end, from its checkpoint where there is one.

        Args:
          chunk: the lanes.
          partial: the checkpoint of the unfinished chunk; None keeps none.

        Returns:
          Curves (seeds, settings, T) by name, steps of divergence (seeds, settings), run seconds per trial,
          and the last states (seeds, settings, ...).
        """
        reached = self.advance(chunk, self.windows, partial)
        lanes = len(chunk.seeds) * len(chunk.settings)
        return *self.curves(reached), reached.seconds / lanes, reached.carry[0]

    @property
    def windows(self) -> int:
        """Windows of a whole run."""
        return self.protocol.steps // self.protocol.eval_every

    def advance(
        self, chunk: Chunk, until: int, partial: Path | None, since: "Reached | None" = None
    ) -> "Reached":
        """Brings a chunk to a window, from its checkpoint where there is one.

        Args:
          chunk: the lanes.
          until: the window; at most `windows`.
          partial: the checkpoint of the unfinished piece of work; None keeps none.
          since: how far the chunk has come; None begins it.
        """
        stacked = self.settings.select(chunk.settings).stacked
        keys = jnp.stack([jax.random.key(seed) for seed in chunk.seeds])
        if since is None:
            shape = len(chunk.seeds), len(chunk.settings), self.windows + 1, len(self.block.columns)
            carry = blank(self.task, stacked, self.block)
            since = Reached(0, 0.0, carry, np.zeros(shape, np.float32))

        done, spent, carry, records = self._resume(chunk, partial, since)
        carry, *_ = self._call(stacked, keys, carry, done, 0)  # compiles; no window is done
        count, saved = 1, time.monotonic()
        while done < until:
            count = min(count, until - done, WINDOWS)
            carry, rows, took = self._call(stacked, keys, carry, done, count)
            records[:, :, done : done + count + 1] = rows
            done, spent = done + count, spent + took
            if self.report:
                self.report(chunk.lanes * count / self.windows)
            count = max(1, int(_CALL_SECONDS / (took / count)))
            if partial and done < until and time.monotonic() - saved > _CHECKPOINT_SECONDS:
                checkpoint.save(partial, (carry, records), {"done": done, "seconds": spent})
                saved = time.monotonic()
        return Reached(done, spent, carry, records)

    def curves(self, reached: "Reached") -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Curves (seeds, settings, T) by name up to a window, and steps of divergence (seeds, settings)."""
        rows = reached.records[:, :, : reached.done + 1]
        points = self.protocol.points[: reached.done + 1]
        curves = {name: rows[..., column] for column, name in enumerate(self.block.columns)}
        diverged_at = self._diverged(np.asarray(reached.carry[0].diverged_at), rows[:, :, -1], points[-1])
        return mask_diverged(curves, points, diverged_at, self.protocol.episodes), diverged_at

    def _call(self, stacked, keys, carry, done: int, count: int):
        protocol = self.protocol
        every, batches, last_batches = protocol.cadence
        lengths = protocol.steps, protocol.steps // protocol.episodes
        clock = jnp.asarray([done * every, count, every, *lengths, batches, last_batches], jnp.int32)
        began = time.perf_counter()
        carry, rows = advance((self.task, stacked, keys, clock), carry, self.block)
        rows = np.asarray(rows)[:, :, : count + 1]
        return carry, rows, time.perf_counter() - began

    def _diverged(self, diverged_at: np.ndarray, last: np.ndarray, step: int) -> np.ndarray:
        """Adds trials whose very last update, before `step`, went wrong."""
        late = (diverged_at < 0) & ~np.isfinite(last[..., self.block.columns.index("train/loss")])
        return np.where(late, step, diverged_at)

    def _resume(self, chunk: Chunk, path: Path | None, since: "Reached") -> "Reached":
        if path is None or not path.exists():
            return since
        try:
            kept = checkpoint.metadata(path)
            carry, records = checkpoint.load(path, (since.carry, since.records))
        except OuteroptError:
            # Another process finished the chunk meanwhile, or the file is damaged: the chunk starts afresh.
            return since
        if self.report:
            self.report(chunk.lanes * (kept["done"] - since.done) / self.windows)
        return Reached(kept["done"], kept["seconds"], carry, np.array(records))


def _nameless(task: Task) -> Task:
    """The same task without its name, which must not tell equal programs apart."""
    copy = object.__new__(type(task))
    for field, value in vars(task).items():
        object.__setattr__(copy, field, "" if field == "name" else value)
    return copy
