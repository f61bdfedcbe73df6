"""Trainings that stop, are packed anew and go on: what rungs and populations are made of."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Float, PyTree

from outeropt import checkpoint, tree
from outeropt._sweep import Settings
from outeropt._sweep.lanes import blank
from outeropt._sweep.plan import Chunk, chunks, layout
from outeropt._sweep.runner import Reached, Runner
from outeropt.errors import OuteroptError
from outeropt.search.problem import Problem


Place = tuple[int, int]

# A call of a narrow block costs about as much as one of so many lanes more, so that a few wide calls are
# better than many narrow ones.
_OVERHEAD = 4


class Lane(NamedTuple):
    """How far one setting with one seed has come, on the host.

    Attributes:
      done: windows.
      seconds: wall-clock seconds of its share of compiled programs.
      carry: its state, as the compiled program takes it.
      records: rows of its curves, shape (windows + 1, columns); 0 after `done`.
    """

    done: int
    seconds: float
    carry: PyTree
    records: Float[np.ndarray, "windows columns"]


class Lanes:
    """Trains settings in blocks of a few widths, each of which is compiled once.

    Whichever lanes are left are packed anew into full blocks, and go on from their states. Lanes of one width
    share no arithmetic and do not depend on their places; two widths may round differently.

    Args:
      problem: what to train, and how.
      settings: all settings, in the order of their positions.
      shrink: how fast the widths fall from that of `problem.parallel` settings; 1 keeps to one width.
    """

    def __init__(self, problem: Problem, settings: Settings, shrink: int = 1):
        self.problem = problem
        self.settings = settings
        local = jax.local_devices()
        self._blocks = {}
        count = min(problem.parallel, len(settings))
        while True:
            block = layout(problem.task, settings.select([0] * count), problem.seeds, problem.lanes, local)
            self._blocks[block.settings] = block
            if shrink == 1 or count == 1:
                break
            count = math.ceil(count / shrink)
        self._runners: dict[int, Runner] = {}
        self.windows = problem.protocol.steps // problem.protocol.eval_every

    def advance(
        self,
        lanes: Mapping[Place, Lane | None],
        until: int,
        partial: Callable[[Sequence[Place]], Path | None],
        abreast: int,
    ) -> Iterator[dict[Place, Lane]]:
        """Brings lanes to a window, chunk by chunk.

        Args:
          lanes: how far each setting and seed has come, all equally far; None begins it.
          until: the window.
          partial: names the checkpoint of a chunk while it runs.
          abreast: how many settings this piece of training is for, of which some may have had it already:
            the width goes by these, so that the others get the same numbers whenever they are trained.

        Yields:
          The lanes of one chunk as they are now.
        """
        wanted: dict[int, list[int]] = {}
        for i, seed in sorted(lanes):
            wanted.setdefault(i, []).append(seed)
        runner = self._runner(self._width(abreast))
        for chunk in chunks(list(wanted.items()), runner.block):
            places = [(i, seed) for seed in chunk.seeds for i in chunk.settings]
            since = self._packed(runner, chunk, [lanes[place] for place in places])
            reached = runner.advance(chunk, until, partial(sorted({*places})), since)
            share = reached.seconds / len(places)
            carry = _host(reached.carry)
            done = {}
            for k, seed in enumerate(chunk.seeds):
                for j, i in enumerate(chunk.settings):
                    before = lanes[i, seed]
                    seconds = share + (before.seconds if before else 0.0)
                    # Copies, since a view of one lane would keep the whole block in memory.
                    own = jax.tree.map(lambda leaf, k=k, j=j: np.array(leaf[k, j]), carry)
                    done[i, seed] = Lane(until, seconds, own, reached.records[k, j].copy())
            yield done

    def curves(self, lane: Lane) -> tuple[dict[str, np.ndarray], int]:
        """The curves of a lane so far, shape (T,) each, and the step at which it diverged, or -1."""
        runner = self._runner(max(self._blocks))
        told = Reached(lane.done, lane.seconds, lane.carry, lane.records[None, None])
        curves, diverged_at = runner.curves(told)
        return {name: curve[0, 0] for name, curve in curves.items()}, int(diverged_at[0, 0])

    def save(self, path: Path, lanes: Mapping[Place, Lane]) -> None:
        """Writes lanes to a file."""
        kept = list(lanes.values())
        seconds = np.array([lane.seconds for lane in kept])
        records = np.stack([lane.records for lane in kept])
        carry = jax.tree.map(lambda *leaves: np.stack(leaves), *(lane.carry for lane in kept))
        about = {"places": [list(place) for place in lanes], "done": [lane.done for lane in kept]}
        checkpoint.save(path, (carry, records, seconds), about)

    def load(self, path: Path) -> dict[Place, Lane]:
        """Reads lanes back; none from a file that is missing or damaged, since they can be trained anew."""
        try:
            about = checkpoint.metadata(path)
            count = len(about["places"])
            runner = self._runner(max(self._blocks))
            shapes = jax.eval_shape(lambda: _host_shaped(self._blank(runner)))
            like = jax.tree.map(lambda leaf: np.zeros((count, *leaf.shape[2:]), leaf.dtype), shapes)
            rows = np.zeros((count, self.windows + 1, len(runner.block.columns)), np.float32)
            carry, records, seconds = checkpoint.load(path, (like, rows, np.zeros(count)))
        except OuteroptError:
            return {}
        return {
            (i, seed): Lane(done, float(seconds[n]), tree.take(carry, n), records[n])
            for n, ((i, seed), done) in enumerate(zip(about["places"], about["done"]))
        }

    def _width(self, settings: int) -> int:
        """The width of block that so many settings are trained in."""

        def cost(width: int) -> tuple[int, int]:
            return math.ceil(settings / width) * (width + _OVERHEAD), -width

        return min(self._blocks, key=cost)

    def _runner(self, width: int) -> Runner:
        report, seeds = self.problem.report, len(self.problem.seeds)
        if width not in self._runners:
            told = report and (lambda trials: report(trials / seeds))
            block = self._blocks[width]
            problem = self.problem
            self._runners[width] = Runner(problem.task, self.settings, problem.protocol, block, told)
        self._runners[width].settings = self.settings
        return self._runners[width]

    def _blank(self, runner: Runner) -> PyTree:
        one = self.settings.select([0] * runner.block.settings).stacked
        return blank(runner.task, one, runner.block)

    def _packed(self, runner: Runner, chunk: Chunk, lanes: Sequence[Lane | None]) -> Reached | None:
        """Lanes (seeds outside) as a block on the devices; None where they have not begun."""
        kept = [lane for lane in lanes if lane is not None]
        if not kept:
            return None
        shape = len(chunk.seeds), len(chunk.settings)
        sharding = NamedSharding(runner.block.mesh, runner.block.specs[2])

        def pack(like: Any, *leaves: np.ndarray) -> Any:
            array: Any = np.stack(leaves).reshape(*shape, *leaves[0].shape)
            if _is_key(like):
                array = jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(like))
            return jax.device_put(array, sharding)

        carry = jax.tree.map(pack, self._blank(runner), *(lane.carry for lane in kept))
        records = np.stack([lane.records for lane in kept])
        return Reached(kept[0].done, 0.0, carry, records.reshape(*shape, *records.shape[1:]))


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _host_shaped(carry: PyTree) -> PyTree:
    """PRNG keys as plain numbers, which numpy can hold."""
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, carry)


def _host(carry: PyTree) -> PyTree:
    """A state as numpy arrays."""
    return jax.tree.map(np.asarray, _host_shaped(carry))
