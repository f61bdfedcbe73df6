"""The one compiled program of a sweep: a block of lanes, settings x seeds, advanced by some windows."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Key, PyTree

from outeropt import tree
from outeropt.compiling import for_loops
from outeropt.optimizer import Optimizer
from outeropt.task import Task
from outeropt.training import TrainState, evaluate, renewed, start, window


# Windows that one call can record; more are done by calling again. Fixed, so that no run length recompiles.
WINDOWS = 256
AXIS = "lanes"

Carry = tuple[TrainState, Float[Array, "..."]]
# jax.Device, which type checkers take for a variable.
Device = Any
LaneMap = Callable[[Callable[..., Any]], Callable[..., Any]]


def vectorized(lane: Callable[..., Any]) -> Callable[..., Any]:
    """Runs lanes side by side: every operation gets two leading axes, seeds then settings.

    Seeds are outside, so that what depends on the seed alone (batches, evaluation batches) is computed once
    for all settings.
    """
    over_settings = jax.vmap(lane, in_axes=(0, None, 0, None))
    return jax.vmap(over_settings, in_axes=(None, 0, 0, None))


def one_by_one(lane: Callable[..., Any]) -> Callable[..., Any]:
    """Runs lanes after each other on their device, for tasks whose batched kernels are slow."""

    def run(settings, keys, carry, clock):
        def over_settings(item):
            key, carry = item
            return jax.lax.map(lambda one: lane(one[0], key, one[1], clock), (settings, carry))

        return jax.lax.map(over_settings, (keys, carry))

    return run


class Block(eqx.Module):
    """How a block of lanes is laid out; static, so equal blocks share one compiled program.

    Attributes:
      settings: settings in the block.
      seeds: seeds in the block.
      devices: devices that share the lanes along one of the two axes.
      lane_map: `vectorized` or `one_by_one`.
      columns: names of the curves that a lane records, in the order of the record's last axis.
      episodic: whether runs have more than one episode.
    """

    settings: int = eqx.field(static=True)
    seeds: int = eqx.field(static=True)
    devices: tuple[Device, ...] = eqx.field(static=True)
    lane_map: LaneMap = eqx.field(static=True)
    columns: tuple[str, ...] = eqx.field(static=True)
    episodic: bool = eqx.field(static=True, default=False)

    @property
    def mesh(self) -> Mesh:
        """The devices in a row."""
        return Mesh(np.asarray(self.devices), (AXIS,), axis_types=(AxisType.Auto,))

    @property
    def specs(self) -> tuple[PartitionSpec, PartitionSpec, PartitionSpec]:
        """Partition of the settings axis, the seeds axis, and of arrays (seeds, settings, ...)."""
        if self.settings % len(self.devices) == 0:
            return PartitionSpec(AXIS), PartitionSpec(), PartitionSpec(None, AXIS)
        return PartitionSpec(), PartitionSpec(AXIS), PartitionSpec(AXIS)

    def replicate(self, arrays: PyTree) -> PyTree:
        """A copy of the arrays on every device of the block."""
        return jax.device_put(arrays, NamedSharding(self.mesh, PartitionSpec()))


def record_names(task: Task, optimizer: Optimizer) -> tuple[str, ...]:
    """Names of the curves that a lane records."""

    def one(key):
        return evaluate(task, optimizer, start(task, optimizer, key, 1), 0, key, 1)

    return (*eqx.filter_eval_shape(one, jax.random.key(0)), "inner/loss")


def blank(task: Task, settings: Optimizer, block: Block) -> Carry:
    """A carry of the right shapes for the first call, which fills it in."""

    def one(optimizer):
        return start(task, optimizer, jax.random.key(0), 1), jnp.float32(0)

    arrays, static = eqx.partition(settings, eqx.is_array)
    shapes = eqx.filter_eval_shape(one, eqx.combine(tree.take(arrays, 0), static))
    sharding = NamedSharding(block.mesh, block.specs[2])
    lanes = block.seeds, block.settings
    return jax.tree.map(lambda leaf: jnp.zeros((*lanes, *leaf.shape), leaf.dtype, device=sharding), shapes)


def advance(
    fixed: tuple[Task, Optimizer, Key[Array, " seeds"], Int[Array, " 7"]], carry: Carry, block: Block
) -> tuple[Carry, Float[Array, "seeds settings windows columns"]]:
    """Advances a block of lanes by some windows.

    Args:
      fixed: the task, the stacked optimizer, one key per seed, and the clock: the inner step to go on from
        (0 starts afresh, whatever the carry), windows to do (at most `WINDOWS`), inner steps per window,
        inner steps of the whole run and of an episode, batches per evaluation, and batches of the evaluation
        after the last step.
      carry: what the previous call returned, or `blank`; given away.
      block: the layout.

    Returns:
      The next carry, and a record at the start of every window and one at the end of the last; further rows
      are 0.
    """
    return _program(block.devices[0].platform)(fixed, carry, block)


@functools.cache
def _program(platform: str) -> Callable[..., Any]:
    jit: Any = eqx.filter_jit  # its signature hides the options that it hands to jax.jit
    return jit(_advance, donate="all-except-first", compiler_options=for_loops(platform))


def _advance(fixed, carry: Carry, block: Block):
    task, settings, keys, clock = fixed
    arrays, static = eqx.partition((task, settings), eqx.is_array)
    by_setting, by_seed, by_both = block.specs

    def on_device(task_arrays, setting_arrays, keys, carry, clock):
        def lane(optimizer_arrays, key, carry, clock):
            pair: Any = eqx.combine((task_arrays, optimizer_arrays), static)
            return _lane(pair[0], pair[1], key, carry, clock, block)

        return block.lane_map(lane)(setting_arrays, keys, carry, clock)

    sharded = jax.shard_map(
        on_device,
        mesh=block.mesh,
        in_specs=(PartitionSpec(), by_setting, by_seed, by_both, PartitionSpec()),
        out_specs=by_both,
        check_vma=False,
    )
    task_arrays, setting_arrays = arrays
    return sharded(task_arrays, setting_arrays, keys, carry, clock)


def _lane(task, optimizer, key, carry, clock, block: Block):
    begin_step, windows, length, num_steps, episode, eval_batches, last_eval_batches = clock

    def begin():
        return start(task, optimizer, key, episode), jnp.float32(jnp.nan)

    def body(index, loop):
        # The evaluation after the last window is one more round with no steps, so that the program holds
        # evaluation and training once each: compilation is the larger half of a small sweep.
        (state, inner), rows = loop
        step = begin_step + index * length
        batches = jnp.where(step == num_steps, last_eval_batches, eval_batches)
        values = evaluate(task, optimizer, state, step, key, batches) | {"inner/loss": inner}
        rows = rows.at[index].set(jnp.stack([values[name] for name in block.columns]))
        steps = jnp.where(index == windows, 0, length)
        if block.episodic:
            # The next call evaluates the end of the episode again: it must find it.
            due = jnp.where(index == windows, 0, step)
            state = renewed(task, optimizer, state, due, key, episode)
        state, mean = window(task, optimizer, state, step, steps, key)
        return (state, jnp.where(index == windows, inner, mean)), rows

    carry = jax.lax.cond(begin_step == 0, begin, lambda: carry)
    rows = jnp.zeros((WINDOWS + 1, len(block.columns)), jnp.float32)
    return jax.lax.fori_loop(0, windows + 1, body, (carry, rows))
