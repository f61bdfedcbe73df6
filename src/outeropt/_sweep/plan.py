"""Which lanes go into which call: blocks, chunks and padding."""

import dataclasses
import math
from collections.abc import Collection, Iterator, Sequence
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Jaxpr, JaxprEqn, jaxprs_in_params

from outeropt._sweep.lanes import Block, Device, LaneMap, one_by_one, record_names, vectorized
from outeropt._sweep.settings import Settings
from outeropt.errors import ConfigError
from outeropt.optimizer import Optimizer
from outeropt.task import Task
from outeropt.training import start


# Lanes per device, at the most, and bytes of their training state. Measured on two cores: wide vectors pay
# until the state leaves the cache (docs/benchmarks.md). A GPU is filled by far more, and bound by its memory.
_MOST_LANES = {"cpu": 32}
_MOST_BYTES = {"cpu": 2**22}
_ELSEWHERE = 1024, 2**30
# Bytes of a loss's values from which lanes are run one by one on CPU; on two cores that takes from 0.4 to
# 1.0 of the time (docs/benchmarks.md).
_MOST_VALUES = 2**19
_CONVOLUTIONS = "conv_general_dilated", "conv_rows_last"


@dataclasses.dataclass(frozen=True)
class Chunk:
    """The lanes of one call: every setting with every seed.

    Attributes:
      settings: positions of the settings; the last one repeats as padding.
      seeds: seeds; the last one repeats as padding.
    """

    settings: tuple[int, ...]
    seeds: tuple[int, ...]

    @property
    def lanes(self) -> int:
        """Trials in the chunk, without padding."""
        return len(set(self.settings)) * len(set(self.seeds))


def layout(
    task: Task,
    settings: Settings,
    seeds: Sequence[int],
    lanes: int | Literal["auto"],
    devices: Sequence[Device],
    episodic: bool = False,
) -> Block:
    """The block that all chunks of a sweep share.

    Args:
      lanes: trials per call and device; `"auto"` chooses by the size of the training state.
      devices: devices to share the lanes.
      episodic: whether runs have more than one episode.

    Raises:
      ConfigError: `lanes` is not positive.
    """
    if lanes != "auto" and lanes < 1:
        raise ConfigError(f"lanes = {lanes} is not allowed; give a positive number or 'auto'.")
    columns = record_names(task, settings[0])
    devices = tuple(devices)[: len(settings) * len(seeds)]
    platform = devices[0].platform
    per_device = _lanes_per_device(task, settings[0], platform) if lanes == "auto" else lanes
    most = per_device * len(devices)
    seed_block = _even(len(seeds), most)
    if len(settings) < len(devices):
        # Too few settings to give every device one: share the seeds instead.
        seed_block = _round_up(min(seed_block, len(seeds)), len(devices))
        return Block(len(settings), seed_block, devices, _lane_map(task, platform), columns, episodic)
    setting_block = _fitting(len(settings), max(1, most // seed_block), len(devices))
    return Block(setting_block, seed_block, devices, _lane_map(task, platform), columns, episodic)


def chunks(wanted: Sequence[tuple[int, Collection[int]]], block: Block) -> list[Chunk]:
    """Cuts the wanted trials into chunks of one block shape, padding the last of each group.

    Args:
      wanted: for each setting its position and the seeds that it still needs.
      block: the shape.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for position, needed in wanted:
        if needed:
            groups.setdefault(tuple(needed), []).append(position)
    found = []
    for needed, positions in groups.items():
        for seeds in _cut(needed, block.seeds):
            found += [Chunk(part, seeds) for part in _cut(positions, block.settings)]
    return found


def cost(task: Task, optimizer: Optimizer) -> dict[str, float]:
    """What a step of training costs: gradients, and bytes of optimizer state for each byte of parameters."""
    shapes = eqx.filter_eval_shape(start, task, optimizer, jax.random.key(0), 1)

    def bytes_of(pytree):
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pytree))

    return {
        "gradients": round(optimizer.gradients, 3),
        "state": round(bytes_of(shapes.opt) / max(1, bytes_of(shapes.params)), 3),
    }


def _lane_map(task: Task, platform: str) -> LaneMap:
    """One by one on CPU where there is nothing to gain side by side.

    Batched kernels of convolutions become grouped convolutions, which are slow; those of `rows_last` are
    large enough products by themselves. Any task whose values fill the cache waits for memory with many
    lanes, and its small products become ones that XLA's CPU library does not take.
    """
    if platform != "cpu":
        return vectorized

    def given(key):
        return *task.init(key), task.batch("train", key), key

    shapes = jax.eval_shape(given, jax.random.key(0))
    program = jax.make_jaxpr(lambda *arguments: task.loss(*arguments)[0])(*shapes)
    steps = list(_steps(program.jaxpr))
    convolves = any(step.primitive.name.startswith(_CONVOLUTIONS) for step in steps)
    return one_by_one if convolves or sum(map(_bytes_of_floats, steps)) >= _MOST_VALUES else vectorized


def _steps(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """All operations of a program, those of a loop's body once."""
    for step in jaxpr.eqns:
        yield step
        for inner in jaxprs_in_params(step.params):
            yield from _steps(inner)


def _bytes_of_floats(step: JaxprEqn) -> int:
    values = [out.aval for out in step.outvars if isinstance(out.aval, ShapedArray)]
    return sum(v.size * v.dtype.itemsize for v in values if jnp.issubdtype(v.dtype, jnp.floating))


def state_bytes(task: Task, optimizer: Optimizer) -> int:
    """Bytes of a lane's training state."""
    state = eqx.filter_eval_shape(start, task, optimizer, jax.random.key(0), 1)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def _lanes_per_device(task: Task, optimizer: Optimizer, platform: str) -> int:
    size = state_bytes(task, optimizer)
    most, memory = _MOST_LANES.get(platform, _ELSEWHERE[0]), _MOST_BYTES.get(platform, _ELSEWHERE[1])
    return min(most, max(1, memory // max(1, size)))


def _cut(items: Sequence[int], length: int) -> list[tuple[int, ...]]:
    parts = [tuple(items[i : i + length]) for i in range(0, len(items), length)]
    return [part + part[-1:] * (length - len(part)) for part in parts]


def _even(count: int, most: int) -> int:
    """The length of equal parts of `count`, each at most `most`."""
    return math.ceil(count / math.ceil(count / most))


def _round_up(count: int, multiple: int) -> int:
    return math.ceil(count / multiple) * multiple


def _fitting(count: int, most: int, multiple: int) -> int:
    """The block length, a multiple near `most` at the largest, that pads `count` the least."""
    longest = _round_up(min(most, count), multiple)
    shortest = _round_up(max(1, longest // 2), multiple)
    return min(
        range(longest, shortest - 1, -multiple),
        key=lambda length: (math.ceil(count / length) * length, -length),
    )
