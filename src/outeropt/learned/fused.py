"""The per-parameter network and the size of its features as two GPU kernels.

Between them, the kernels read what the features are made of twice, and write the outputs of the network; features and
activations stay in registers. For AdafacMLP the sources of a matrix are gradient, parameter, three momenta and a
second moment, and rows and columns whose size does not count: 24 bytes a parameter for the mean squares, 24 for the
network, and 8 for its two outputs. What comes before and after, the moments and the step itself, is XLA's.

A program takes a block of parameters that lie one after the other in memory, whatever the tensor's shape, and finds
the entries of rows and columns that belong to them by their coordinates. The network is written as sums of products:
weights are numbers that all threads share.

The kernels are written in Pallas and compiled by Triton, which knows neither slices nor sizes other than powers of
two. So features are made from channels one by one, as vectors, and the last block is masked.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Bool, Float, Int, PyTree


# Parameters in a block of the network: four for each of 128 threads, so that each weight, once read, serves four
# products. Wider networks have two for each thread, or their activations would not fit into registers.
BLOCK, WIDE_BLOCK = 512, 256
NARROW = 8
WARPS = 4
# For the mean squares: parameters in a block, and how many blocks a program adds up before it sums over threads.
SUM_BLOCK = 512
SUM_BLOCKS = 16
SUM_WARPS = 8

Features = Callable[[PyTree], Sequence[Array]]
LayerRefs = tuple[Any, Any]


def covers(shape: tuple[int, ...]) -> bool:
    """Whether the kernels serve a tensor: it is not empty, and 32 bits count its parameters."""
    return 0 < math.prod(shape) < 2**31 - SUM_BLOCK * SUM_BLOCKS


def on_gpu(kernel: Callable[..., Any], otherwise: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is `kernel` on NVIDIA's GPUs and `otherwise` on all else.

    The choice falls when a program is compiled for a device. Derivatives of both are those of `otherwise`, so that
    there is one formula for them.

    Args:
      kernel: a function of arrays; it may close over none.
      otherwise: the same function for XLA.
    """

    @jax.custom_jvp
    def either(*given):
        return jax.lax.platform_dependent(*given, cuda=kernel, default=otherwise)

    @either.defjvp
    def _(primals, tangents):
        return jax.jvp(otherwise, primals, tangents)

    return either


def network(
    features: Features,
    shape: tuple[int, ...],
    layers: Sequence[Any],
    sources: PyTree,
    *,
    interpret: bool = False,
) -> list[Float[Array, "*shape"]]:
    """A ReLU network on the features of each parameter.

    Args:
      features: makes features, without normalising them, from `sources` with a tuple of channels in the place of
        each array that has channels. May close over no array.
      shape: the tensor's; `covers` must hold for it.
      layers: with `weight` `[inputs, outputs]` and `bias` `[outputs]`; the first takes the features alone.
      sources: float32 arrays `[channels, *shape]` or `shape`, with length 1 along any of the tensor's axes.
      interpret: runs the kernel as an XLA program that needs no GPU.

    Returns:
      The outputs of the network.
    """
    reads = _Reads(sources, shape)
    weights = [x for layer in layers for x in (layer.weight, layer.bias)]
    widths = [layer.bias.size for layer in layers]
    block = BLOCK if max(widths) <= NARROW else WIDE_BLOCK

    def kernel(*refs):
        refs, outputs = refs[: -widths[-1]], refs[-widths[-1] :]
        parameters = pl.program_id(0) * block + jnp.arange(block, dtype=jnp.int32)
        inside = parameters < math.prod(shape)
        made = features(reads(refs[len(weights) :], parameters, inside))
        pairs = list(zip(refs[: len(weights) : 2], refs[1 : len(weights) : 2]))
        for ref, value in zip(outputs, _evaluate(pairs, made, block)):
            triton.store(ref, value, mask=inside)

    out = pl.pallas_call(
        kernel,
        out_shape=[jax.ShapeDtypeStruct((math.prod(shape),), jnp.float32)] * widths[-1],
        grid=(pl.cdiv(math.prod(shape), block),),
        in_specs=[_whole(x) for x in (*weights, *reads.arrays)],
        out_specs=[pl.BlockSpec((block,), lambda i: (i,))] * widths[-1],
        compiler_params=triton.CompilerParams(num_warps=WARPS),
        interpret=interpret,
        name="per_parameter_network",
    )(*weights, *reads.arrays)
    return [x.reshape(shape) for x in out]


def mean_squares(
    features: Features, shape: tuple[int, ...], sources: PyTree, *, interpret: bool = False
) -> Float[Array, " features"]:
    """The mean square of each feature over the tensor; arguments as for `network`."""
    reads = _Reads(sources, shape)
    size = math.prod(shape)
    steps = min(SUM_BLOCKS, pl.cdiv(size, SUM_BLOCK))
    programs = pl.cdiv(size, SUM_BLOCK * steps)
    count = len(jax.eval_shape(features, reads.channels()))

    def kernel(*refs):
        refs, sums = refs[:-1], refs[-1]
        first = pl.program_id(0) * steps  # The interpreter knows no program inside of loops.

        def add(step, totals):
            parameters = (first + step) * SUM_BLOCK + jnp.arange(SUM_BLOCK, dtype=jnp.int32)
            inside = parameters < size
            made = features(reads(refs, parameters, inside))
            return tuple(
                total + jnp.where(inside, jnp.square(x), 0.0) for total, x in zip(totals, made, strict=True)
            )

        zeros = (jnp.zeros(SUM_BLOCK, jnp.float32),) * count
        for i, total in enumerate(jax.lax.fori_loop(0, steps, add, zeros)):
            sums[i] = jnp.sum(total)

    sums = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((programs, count), jnp.float32),
        grid=(programs,),
        in_specs=[_whole(x) for x in reads.arrays],
        out_specs=pl.BlockSpec((None, count), lambda i: (i, 0)),
        compiler_params=triton.CompilerParams(num_warps=SUM_WARPS),
        interpret=interpret,
        name="per_parameter_mean_squares",
    )(*reads.arrays)
    return jnp.sum(sums, axis=0) / size


class _Reads:
    """How blocks of the sources are read.

    Attributes:
      arrays: the sources, flattened to `[channels, parameters]`; rows and columns have fewer.
    """

    def __init__(self, sources: PyTree, shape: tuple[int, ...]):
        leaves, self._structure = jax.tree.flatten(sources)
        self._shape = shape
        self._lengths = [x.shape[x.ndim - len(shape) :] for x in leaves]
        self._has_channels = [x.ndim > len(shape) for x in leaves]
        self.arrays = [
            x.reshape(-1, math.prod(lengths)) for x, lengths in zip(leaves, self._lengths, strict=True)
        ]
        self._counts = [x.shape[0] for x in self.arrays]

    def channels(self) -> PyTree:
        """The shapes of what the features get for one parameter."""
        return self._arranged([(jax.ShapeDtypeStruct((1,), jnp.float32),) * n for n in self._counts])

    def __call__(
        self, refs: Sequence[Any], parameters: Int[Array, " block"], inside: Bool[Array, " block"]
    ) -> PyTree:
        """What the features of some parameters are made of, vectors of the block's length.

        Args:
          refs: to the `arrays`.
          parameters: their numbers, counted through the tensor in the order of memory.
          inside: which of them there are.
        """
        place = functools.cache(functools.partial(_place, parameters, self._shape))
        return self._arranged(
            [
                tuple(
                    triton.load(ref.at[channel, place(lengths)], mask=inside, other=0.0)
                    for channel in range(count)
                )
                for ref, lengths, count in zip(refs, self._lengths, self._counts, strict=True)
            ]
        )

    def _arranged(self, channels: list[tuple[Any, ...]]) -> PyTree:
        parts = [many if has else many[0] for many, has in zip(channels, self._has_channels, strict=True)]
        return jax.tree.unflatten(self._structure, parts)


def _place(
    parameters: Int[Array, " block"], shape: tuple[int, ...], lengths: tuple[int, ...]
) -> Int[Array, " block"]:
    """Where parameters of a tensor meet a flattened array that has the tensor's lengths or 1.

    Neighbouring axes that the array has, or has not, are one axis: then most arrays need one division.
    """
    place, below = jnp.zeros_like(parameters), math.prod(shape)
    pairs = [(n, own) for n, own in zip(shape, lengths, strict=True) if n > 1]
    for kept, group in itertools.groupby(pairs, key=lambda pair: pair[1] > 1):
        length = math.prod(n for n, _ in group)
        is_first, below = below == math.prod(shape), below // length
        if kept:
            # Numbers are not negative, for which these are the division and the remainder of C.
            axis = parameters if below == 1 else jax.lax.div(parameters, jnp.full_like(parameters, below))
            axis = axis if is_first else jax.lax.rem(axis, jnp.full_like(parameters, length))
            place = place * length + axis
    return place


def _evaluate(layers: Sequence[LayerRefs], inputs: Iterable[Array], block: int) -> list[Array]:
    """The network on vectors.

    Units of every other layer live only until they are added to the units of the next, in a loop over them: this
    needs registers for half of the layers, and makes programs that are short and compile soon.
    """
    units = [jnp.broadcast_to(x, (block,)) for x in inputs]
    for i in range(0, len(layers) - 1, 2):
        units = [_relu(x) for x in units] if i else units
        units = _two_layers(layers[i], layers[i + 1], units)
    if len(layers) % 2:
        units = [_relu(x) for x in units] if len(layers) > 1 else units
        units = [_unit(layers[-1], units, j) for j in range(layers[-1][1].shape[0])]
    return units


def _two_layers(first: LayerRefs, second: LayerRefs, inputs: list[Array]) -> list[Array]:
    weight, bias = second

    def add(j, totals):
        unit = _relu(_unit(first, inputs, j))
        return tuple(total + unit * weight[j, i] for i, total in enumerate(totals))

    start = tuple(jnp.broadcast_to(bias[i], inputs[0].shape) for i in range(bias.shape[0]))
    return list(jax.lax.fori_loop(0, weight.shape[0], add, start))


def _unit(layer: LayerRefs, inputs: list[Array], j: Int[Array, ""] | int) -> Array:
    weight, bias = layer
    total = jnp.broadcast_to(bias[j], inputs[0].shape)
    for i, x in enumerate(inputs):
        total = total + x * weight[i, j]
    return total


def _relu(x: Array) -> Array:
    # Triton's maximum of NaN and 0 is 0, and diverged runs would look sound.
    return jnp.where(x <= 0.0, 0.0, x)


def _whole(x: Array) -> pl.BlockSpec:
    """All of an array, for every program."""
    return pl.BlockSpec(x.shape, lambda i: (0,) * x.ndim)
