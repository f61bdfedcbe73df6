"""The network of `per_parameter` as one GPU kernel, for networks too wide for one fused loop.

A program of the kernel takes one tile of parameters after another: it reads the sources of a tile, makes the
features in registers, puts them side by side as a matrix, multiplies it with one layer after the other, and
writes the outputs. The global memory sees the sources once and the outputs once, whatever the number of
features and units. Matrix products have the precision of `jax.default_matmul_precision`; where that says
nothing it is TensorFloat-32 on GPUs that have it, as for all of JAX's products there.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, PyTree


# Parameters in a tile, and how many of them come from one row of a matrix: 32 numbers are one cache line.
TILE = 128
ROW = 32
# Tiles that one program takes at most, so that it reads the weights once for all of them.
STEPS = 8
WARPS = 4
# Triton's matrix products want at least so many rows and columns.
LEAST = 16


class Plan(NamedTuple):
    """How a tensor is cut.

    Attributes:
      shape: the tensor's with neighbouring axes joined, three axes `[stacks, rows, columns]`.
      tile: rows and columns of a tile.
      steps: tiles below each other and beside each other that one program takes; one of both is 1.
    """

    shape: tuple[int, int, int]
    tile: tuple[int, int]
    steps: tuple[int, int]

    @property
    def part(self) -> tuple[int, int]:
        """Rows and columns of what one program takes."""
        return self.tile[0] * self.steps[0], self.tile[1] * self.steps[1]


def covers(shape: tuple[int, ...], sources: PyTree) -> bool:
    """Whether the kernel can compute the outputs for a tensor: almost always.

    Neighbouring axes are joined where each source has either all of their lengths or none. Not covered are
    empty tensors, and those of which more than three axes are left.

    Args:
      shape: the tensor's.
      sources: arrays `[channels, *shape]`, or with length 1 along some of the tensor's axes.
    """
    return math.prod(shape) > 0 and len(_joined(shape, sources)) <= 3


def fused(
    features: Callable[[PyTree], Sequence[Array]],
    shape: tuple[int, ...],
    layers: Sequence[Any],
    sources: PyTree,
    *,
    interpret: bool = False,
) -> tuple[Array, ...]:
    """The outputs of a ReLU network on features of each parameter of a tensor, by one kernel.

    It has no derivative of its own.

    Args:
      features: makes the features of a tile from `sources`, with a tuple of its channels in the place of each
        array: arrays that broadcast against the tile, by operations on each parameter alone.
      shape: the tensor's; `covers` must hold for it.
      layers: of the network, with `weight` `[inputs, outputs]` and `bias` `[outputs]`. The first takes the
        features and nothing else.
      sources: float32 arrays `[channels, *shape]`, or with length 1 along some of the tensor's axes.
      interpret: runs the kernel in JAX's interpreter, which needs no GPU.

    Returns:
      The outputs of the network, arrays of the tensor's shape.
    """
    groups = _joined(shape, sources)
    plan = _plan(*(1,) * (3 - len(groups)), *(math.prod(shape[axis] for axis in group) for group in groups))
    # Each channel is an operand of its own, of which the array stays one and the same.
    apart = jax.tree.map(lambda x: (_with_joined_axes(x, groups),) * x.shape[0], sources)
    places = jax.tree.map(lambda x: tuple(range(x.shape[0])), sources)
    channels, structure = jax.tree.flatten(apart)
    network = _padded(layers)
    outputs = layers[-1].bias.size
    run = pl.pallas_call(
        functools.partial(_kernel, plan, features, structure, len(layers)),
        out_shape=[jax.ShapeDtypeStruct(plan.shape, jnp.float32)] * outputs,
        grid=(plan.shape[0], *(pl.cdiv(length, part) for length, part in zip(plan.shape[1:], plan.part))),
        in_specs=[
            *(_whole(x.shape) for x in network),
            *(_part(x.shape, channel, plan) for x, channel in zip(channels, jax.tree.leaves(places))),
        ],
        out_specs=[pl.BlockSpec((None, *plan.part), lambda i, j, k: (i, j, k))] * outputs,
        compiler_params=triton.CompilerParams(num_warps=WARPS),
        interpret=interpret,
        name="per_parameter",
    )
    return tuple(x.reshape(shape) for x in run(*network, *channels))


def _joined(shape: tuple[int, ...], sources: PyTree) -> list[list[int]]:
    """Groups of neighbouring axes along which each source has either all lengths or none."""
    leaves = jax.tree.leaves(sources)
    long = [axis for axis, length in enumerate(shape) if length > 1]
    kinds = itertools.groupby(long, key=lambda axis: tuple(x.shape[1 + axis] > 1 for x in leaves))
    return [list(axes) for _, axes in kinds]


def _with_joined_axes(x: Array, groups: list[list[int]]) -> Array:
    lengths = [math.prod(x.shape[1 + axis] for axis in group) for group in groups]
    return x.reshape(x.shape[0], *(1,) * (3 - len(groups)), *lengths)


def _plan(stacks: int, height: int, width: int) -> Plan:
    rows = min(pl.next_power_of_2(height), TILE // ROW)
    columns = min(pl.next_power_of_2(width), TILE // rows)
    rows = TILE // columns
    down, across = pl.cdiv(height, rows), pl.cdiv(width, columns)
    steps = (min(STEPS, down), 1) if down > across else (1, min(STEPS, across))
    return Plan((stacks, height, width), (rows, columns), steps)


def _padded(layers: Sequence[Any]) -> list[Array]:
    """Weights and biases, with zeros up to sizes that Triton multiplies; the last weights transposed."""
    *hidden, last = layers
    arrays = []
    for layer in hidden:
        more_inputs, more_outputs = (_size(n) - n for n in layer.weight.shape)
        arrays.append(jnp.pad(layer.weight, ((0, more_inputs), (0, more_outputs))))
        arrays.append(jnp.pad(layer.bias, (0, more_outputs)))
    inputs = last.weight.shape[0]
    return [*arrays, jnp.pad(last.weight.T, ((0, 0), (0, _size(inputs) - inputs))), last.bias]


def _size(n: int) -> int:
    return max(pl.next_power_of_2(n), LEAST)


def _whole(shape: tuple[int, ...]) -> pl.BlockSpec:
    """All of a small array, for every program."""
    return pl.BlockSpec(shape, lambda *_: (0,) * len(shape))


def _part(shape: tuple[int, ...], channel: int, plan: Plan) -> pl.BlockSpec:
    """A program's part of a channel of a source, which may have length 1 along any axis."""
    long = [length > 1 for length in shape[1:]]
    rows, columns = (part if is_long else 1 for part, is_long in zip(plan.part, long[1:]))

    def place(*program):
        return (channel, *(i if is_long else 0 for i, is_long in zip(program, long)))

    return pl.BlockSpec((None, None, rows, columns), place)


def _kernel(plan: Plan, features, structure, depth: int, *refs) -> None:
    """One program, on references to the layers, to its parts of the sources, and to those of the outputs."""
    network, parts = refs[: 2 * depth], refs[2 * depth :]
    sources, outputs = parts[: structure.num_leaves], parts[structure.num_leaves :]
    *hidden, (last, last_bias) = zip(network[::2], network[1::2])
    hidden = [(weight[...], bias[...]) for weight, bias in hidden]
    corner = [pl.program_id(1 + axis) * part for axis, part in enumerate(plan.part)]

    def take(step, _) -> None:
        starts = [step * tile if steps > 1 else 0 for tile, steps in zip(plan.tile, plan.steps)]
        inside = [_inside(plan, axis, corner[axis] + start) for axis, start in enumerate(starts)]
        tiles = [_load(ref, plan, starts, inside) for ref in sources]
        made = features(structure.unflatten(tiles))
        units = _side_by_side([jnp.broadcast_to(x, plan.tile).reshape(TILE) for x in made])
        for weight, bias in hidden:
            product = jnp.dot(units, weight)
            units = jnp.maximum(product + jnp.broadcast_to(bias[None], product.shape), 0.0)
        window = tuple(pl.ds(start, tile) for start, tile in zip(starts, plan.tile))
        for i, ref in enumerate(outputs):
            # Outputs are few: a sum for each wastes less than a product padded to the least size.
            value = jnp.sum(units * jnp.broadcast_to(last[i, :][None], units.shape), axis=1) + last_bias[i]
            triton.store(ref.at[window], value.reshape(plan.tile), mask=_mask(inside, plan.tile))

    if plan.steps == (1, 1):
        take(0, None)
    else:
        jax.lax.fori_loop(0, max(plan.steps), take, None)


def _inside(plan: Plan, axis: int, first) -> Array | None:
    """Which rows `[rows, 1]` or columns `[1, columns]` of a tile are the tensor's; None if always all."""
    length, tile = plan.shape[1 + axis], plan.tile[axis]
    if length % plan.part[axis] == 0:
        return None
    shape = (tile, 1) if axis == 0 else (1, tile)
    return first + jax.lax.broadcasted_iota(jnp.int32, shape, axis) < length


def _mask(inside: Sequence[Array | None], shape: tuple[int, ...]) -> Array | None:
    masks = [jnp.broadcast_to(known, shape) for known in inside if known is not None]
    return functools.reduce(jnp.logical_and, masks) if masks else None


def _load(ref, plan: Plan, starts: Sequence[Any], inside: Sequence[Array | None]) -> Array:
    """A tile of a channel, with length 1 along axes on which it does not depend."""
    long = [length > 1 for length in ref.shape]
    shape = tuple(tile if is_long else 1 for tile, is_long in zip(plan.tile, long))
    window = tuple(pl.ds(start if is_long else 0, n) for start, is_long, n in zip(starts, long, shape))
    mask = _mask([known if is_long else None for known, is_long in zip(inside, long)], shape)
    return triton.load(ref.at[window], mask=mask, other=None if mask is None else 0.0)


def _side_by_side(columns: list[Array]) -> Array:
    """Vectors of one length as the columns of a matrix, with columns of zeros up to a power of two."""
    zeros = [jnp.zeros_like(columns[0])] * (_size(len(columns)) - len(columns))
    parts = [x.reshape(-1, 1) for x in (*columns, *zeros)]
    while len(parts) > 1:
        # Triton joins two arrays entry by entry, which costs nothing; so those half the columns apart meet.
        half = len(parts) // 2
        pairs = zip(parts[:half], parts[half:])
        parts = [jnp.stack(pair, axis=-1).reshape(columns[0].size, -1) for pair in pairs]
    return parts[0]
