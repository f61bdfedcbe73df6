"""The network of `per_parameter` as one GPU kernel, for networks too wide for one fused loop.

A program of the kernel takes one tile of parameters after another: it reads the sources of a tile, makes the
features in registers, puts them side by side as a matrix, multiplies it with the layers one by one, and writes
the outputs. The global memory sees the sources once and the outputs once, whatever the number of features and
units. Matrix products have the precision of `jax.default_matmul_precision`, so by default TensorFloat-32 on
GPUs that have it, as for all of JAX's products there.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, PyTree


# Parameters in a tile, and how many of them come from one row of a matrix: 32 numbers are one cache line.
TILE = 128
ROW = 32
# Tiles that one program takes, so that it reads the weights once for all of them.
STEPS = 8
WARPS = 4
# Triton's matrix products want at least so many rows and columns.
LEAST = 16


class Plan(NamedTuple):
    """How a tensor is cut.

    Attributes:
      shape: of the tensor with neighbouring axes joined, three axes `[stacks, rows, columns]`.
      tile: rows and columns of a tile.
      steps: tiles below each other and beside each other that one program takes; one of both is 1.
    """

    shape: tuple[int, int, int]
    tile: tuple[int, int]
    steps: tuple[int, int]

    @property
    def grid(self) -> tuple[int, int, int]:
        """Numbers of programs."""
        stacks, *lengths = self.shape
        down, across = (-(-n // (t * s)) for n, t, s in zip(lengths, self.tile, self.steps))
        return stacks, down, across


def covers(shape: tuple[int, ...], sources: PyTree) -> bool:
    """Whether the kernel can compute the outputs for a tensor.

    Where axes of the sources with length 1 and with the tensor's length alternate, more than three axes may be
    left when neighbours of one kind are joined; such tensors, and empty ones, are not covered.

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
        features alone.
      sources: arrays `[channels, *shape]`, or with length 1 along some of the tensor's axes.
      interpret: runs the kernel in JAX's interpreter, which needs no GPU.

    Returns:
      The outputs of the network, arrays of the tensor's shape.
    """
    groups = _joined(shape, sources)
    plan = _plan([math.prod(shape[a] for a in group) for group in groups])
    leaves, structure = jax.tree.flatten(sources)
    leaves = [_joined_axes(x, groups) for x in leaves]
    network = [x for layer in _padded(layers) for x in layer]
    outputs = layers[-1].bias.size

    rows, columns = (t * s for t, s in zip(plan.tile, plan.steps))
    tile_of_tensor = pl.BlockSpec((None, rows, columns), lambda i, j, k: (i, j, k))
    results = pl.pallas_call(
        partial(_kernel, features, structure, [x.shape for x in leaves], plan),
        out_shape=[jax.ShapeDtypeStruct(plan.shape, jnp.float32)] * outputs,
        grid=plan.grid,
        in_specs=[*(_whole(x.shape) for x in network), *(_block(x.shape, rows, columns) for x in leaves)],
        out_specs=[tile_of_tensor] * outputs,
        compiler_params=triton.CompilerParams(num_warps=WARPS),
        interpret=interpret,
        name="per_parameter",
    )(*network, *leaves)
    return tuple(x.reshape(shape) for x in results)


def _joined(shape: tuple[int, ...], sources: PyTree) -> list[list[int]]:
    """Groups of neighbouring axes along which each source has either all lengths or none."""
    leaves = jax.tree.leaves(sources)
    long = [axis for axis, length in enumerate(shape) if length > 1]
    kinds = itertools.groupby(long, key=lambda axis: tuple(x.shape[1 + axis] > 1 for x in leaves))
    return [list(axes) for _, axes in kinds]


def _joined_axes(x: Array, groups: list[list[int]]) -> Array:
    lengths = [math.prod(x.shape[1 + axis] for axis in group) for group in groups]
    return x.reshape(x.shape[0], *(1,) * (3 - len(groups)), *lengths)


def _plan(lengths: list[int]) -> Plan:
    stacks, height, width = (1,) * (3 - len(lengths)) + tuple(lengths)
    rows = min(pl.next_power_of_2(height), TILE // ROW)
    columns = min(pl.next_power_of_2(width), TILE // rows)
    rows = TILE // columns
    down, across = -(-height // rows), -(-width // columns)
    steps = (min(STEPS, down), 1) if down > across else (1, min(STEPS, across))
    return Plan((stacks, height, width), (rows, columns), steps)


def _whole(shape: tuple[int, ...]) -> pl.BlockSpec:
    """All of a small array, for every program."""
    return pl.BlockSpec(shape, lambda i, j, k: (0,) * len(shape))


def _block(shape: tuple[int, ...], rows: int, columns: int) -> pl.BlockSpec:
    """A program's part of a source, which may have length 1 along any axis."""
    channels, *lengths = shape
    long = [length > 1 for length in lengths]
    part = (channels, None, rows if long[1] else 1, columns if long[2] else 1)
    return pl.BlockSpec(
        part, lambda i, j, k: (0, *(n if is_long else 0 for n, is_long in zip((i, j, k), long)))
    )


def _padded(layers: Sequence[Any]) -> list[tuple[Array, Array]]:
    """Weights and biases with zeros up to sizes that Triton multiplies; the last layer's weights transposed."""
    *hidden, last = layers
    padded = []
    for layer in hidden:
        missing = [_size(n) - n for n in layer.weight.shape]
        weight = jnp.pad(layer.weight, [(0, n) for n in missing])
        padded.append((weight, jnp.pad(layer.bias, (0, missing[1]))))
    inputs = last.weight.shape[0]
    return [*padded, (jnp.pad(last.weight.T, [(0, 0), (0, _size(inputs) - inputs)]), last.bias)]


def _size(n: int) -> int:
    return max(pl.next_power_of_2(n), LEAST)


def _kernel(plan: Plan, features, structure, layers: int, *refs):
    """One program, on references to the layers, to its parts of the sources and to its parts of the outputs."""
    network, rest = refs[: 2 * layers], refs[2 * layers :]
    sources, outputs = rest[: structure.num_leaves], rest[structure.num_leaves :]
    *hidden, last = zip(network[::2], network[1::2])
    hidden = [(weight[...], bias[...]) for weight, bias in hidden]

    def take(step: Array | int, _: None) -> None:
        place = tuple(step * tile if steps > 1 else 0 for steps, tile in zip(plan.steps, plan.tile))
        inside = _inside(plan, place)
        parts = [
            tuple(_load(ref, channel, plan, place, inside) for channel in range(ref.shape[0]))
            for ref in sources
        ]
        made = features(structure.unflatten(parts))
        units = _side_by_side([jnp.broadcast_to(x, plan.tile).reshape(TILE) for x in made])
        for weight, bias in hidden:
            product = jnp.dot(units, weight)
            units = jnp.maximum(product + jnp.broadcast_to(bias[None], product.shape), 0.0)
        for i, ref in enumerate(outputs):
            weighted = units * jnp.broadcast_to(last[0][i, :][None], units.shape)
            value = jnp.sum(weighted, axis=1) + last[1][i]
            window = tuple(pl.ds(start, size) for start, size in zip(place, plan.tile))
            mask = _mask(inside, plan.tile)
            triton.store(ref.at[window], value.reshape(plan.tile), mask=mask)

    if plan.steps == (1, 1):
        take(0, None)
    else:
        jax.lax.fori_loop(0, max(plan.steps), take, None)


def _inside(plan: Plan, place: tuple[Array | int, Array | int]) -> list[Array | None]:
    """For rows `[rows, 1]` and columns `[1, columns]` of a tile, which are the tensor's; None if all are."""
    found: list[Array | None] = []
    for axis, (start, tile, steps) in enumerate(zip(place, plan.tile, plan.steps)):
        length = plan.shape[1 + axis]
        if length % (tile * steps) == 0:
            found.append(None)
            continue
        first = pl.program_id(1 + axis) * (tile * steps) + start
        along = (tile, 1) if axis == 0 else (1, tile)
        found.append(first + jax.lax.broadcasted_iota(jnp.int32, along, axis) < length)
    return found


def _mask(inside: list[Array | None], shape: tuple[int, ...]) -> Array | None:
    """The entries of an array that are inside along each axis that it has; None if all are."""
    masks = [
        jnp.broadcast_to(known, shape)
        for axis, known in enumerate(inside)
        if known is not None and known.shape[axis] == shape[axis]
    ]
    return functools.reduce(jnp.logical_and, masks) if masks else None


def _load(ref, channel: int, plan: Plan, place, inside: list[Array | None]) -> Array:
    """A tile of a channel, with length 1 along axes along which the source is constant."""
    long = [length > 1 for length in ref.shape[1:]]
