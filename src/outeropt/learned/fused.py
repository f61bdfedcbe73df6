"""The step of a per-parameter network, and the mean squares of its features, as two GPU kernels.

Both make the next moments, and features of them, in registers, where activations stay as well. Memory sees
what they are made of once in each kernel; the next moments, in the place of the last ones, and the update are
written once. For AdafacMLP and a matrix, they are made of gradient, parameter, three momenta, a second
moment, and rows and columns that weigh nothing. So 24 bytes a parameter move for the mean squares, and
24 + 20 for the step. Averages over rows and columns come before, and are left to XLA.

A program takes a block of parameters that lie one after another in memory, whatever the tensor's shape, and
finds their entries in rows and columns by their coordinates. The network is sums of products, with weights
that all threads share. The kernels are written in Pallas and compiled by Triton. Its arrays cannot be cut and
have powers of two for lengths: so features are made from single channels, and the last block is masked.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Bool, Float, Int, PyTree


try:
    from jax.experimental.pallas import triton
except ImportError:  # It is announced to go; XLA's form of the update then serves GPUs as well.
    triton: Any = None


# Parameters in a block of the network: four for each of 128 threads, so that a weight, once read, serves four
# products. Above the width `NARROW` it is two, or activations would not fit into the registers.
BLOCK, WIDE_BLOCK = 512, 256
NARROW = 8
WARPS = 4
# For the mean squares: parameters in a block, and blocks that a program adds up before it sums over threads.
SUM_BLOCK = 512
SUM_BLOCKS = 16
SUM_WARPS = 8

Features = Callable[[PyTree], Sequence[Array]]
LayerRefs = tuple[Any, Any]
MultiplyAdd = Callable[[Array, Array, Array], Array]


class Rule(NamedTuple):
    """A step of each parameter around its network, in functions that see each parameter by itself.

    They close over no arrays, and also take tuples of channels in the place of arrays that have channels.

    Attributes:
      look: `(stored, given) -> (sources, stored)`: what features are made of, and what is stored next.
      features: `sources -> features`.
      finish: `(outputs, sources) -> results`: what becomes of the network's outputs.
    """

    look: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]
    features: Features
    finish: Callable[[Sequence[Array], PyTree], PyTree]


def covers(shape: tuple[int, ...]) -> bool:
    """Whether the kernels serve a tensor: it is not empty, and 32 bits count its parameters."""
    return triton is not None and 0 < math.prod(shape) < 2**31 - SUM_BLOCK * SUM_BLOCKS


def on_gpu(kernel: Callable[..., Any], otherwise: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is `kernel` on NVIDIA's GPUs and `otherwise` on all else.

    The choice falls when a program is compiled for a device. The derivatives are always those of `otherwise`.

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


def step(
    rule: Rule,
    shape: tuple[int, ...],
    layers: Sequence[Any],
    stored: PyTree,
    given: PyTree,
    *,
    interpret: bool = False,
) -> tuple[PyTree, PyTree]:
    """A ReLU network on the features of each parameter, with what lies before and after it.

    Args:
      rule: makes features from `stored` and `given`, and results from the network's outputs.
      shape: the tensor's; `covers` must hold for it.
      layers: with `weight` `[inputs, outputs]` and `bias` `[outputs]`; the first takes the features alone.
      stored: float32 arrays `[channels, *shape]` or `shape`. The next ones may take their memory.
      given: the same, or with length 1 along any of the tensor's axes.
      interpret: runs the kernel as an XLA program that needs no GPU.

    Returns:
      The results, float32 arrays `shape`, and what is stored next.
    """
    reads = _Reads((stored, given), shape)
    weights = [x for layer in layers for x in (layer.weight, layer.bias)]
    widths = [layer.bias.size for layer in layers]
    block = BLOCK if max(widths) <= NARROW else WIDE_BLOCK
    kept, kept_structure = jax.tree.flatten(stored)
    results = jax.eval_shape(
        lambda outputs, both: rule.finish(outputs, rule.look(*both)[0]),
        [jax.ShapeDtypeStruct((1,), jnp.float32)] * widths[-1],
        reads.channels(),
    )
    count, results_structure = len(jax.tree.leaves(results)), jax.tree.structure(results)

    def kernel(*refs):
        weight_refs, refs = refs[: len(weights)], refs[len(weights) :]
        source_refs, refs = refs[: len(reads.arrays)], refs[len(reads.arrays) :]
        parameters = pl.program_id(0) * block + jnp.arange(block, dtype=jnp.int32)
        inside = parameters < math.prod(shape)

        def write(ref, channel, value):
            triton.store(ref.at[channel, parameters], jnp.broadcast_to(value, (block,)), mask=inside)

        sources, new = rule.look(*reads(source_refs, parameters, inside))
        # Before the network, which needs the registers.
        places = [(ref, channel) for ref in refs[: len(kept)] for channel in range(ref.shape[0])]
        for (ref, channel), value in zip(places, jax.tree.leaves(new), strict=True):
            write(ref, channel, value)
        units = [jnp.broadcast_to(x, (block,)) for x in rule.features(sources)]
        pairs = list(zip(weight_refs[::2], weight_refs[1::2]))
        outputs = _evaluate(_MULTIPLY_ADD[interpret], pairs, units)
        for ref, value in zip(refs[len(kept) :], jax.tree.leaves(rule.finish(outputs, sources)), strict=True):
            write(ref, 0, value)

    written = [
        *reads.arrays[: len(kept)],
        *[jax.ShapeDtypeStruct((1, math.prod(shape)), jnp.float32)] * count,
    ]
    out = pl.pallas_call(
        kernel,
        out_shape=[jax.ShapeDtypeStruct(x.shape, jnp.float32) for x in written],
        grid=(pl.cdiv(math.prod(shape), block),),
        in_specs=[_whole(x) for x in (*weights, *reads.arrays)],
        out_specs=[_whole(x) for x in written],
        # A program reads its own parameters before it writes them, and nobody else's.
        input_output_aliases={len(weights) + i: i for i in range(len(kept))},
        compiler_params=triton.CompilerParams(num_warps=WARPS),
        interpret=interpret,
        name="per_parameter_step",
    )(*weights, *reads.arrays)
    new = [x.reshape(old.shape) for x, old in zip(out, kept)]
    made = [x.reshape(shape) for x in out[len(kept) :]]
    return jax.tree.unflatten(results_structure, made), jax.tree.unflatten(kept_structure, new)


def mean_squares(
    rule: Rule, shape: tuple[int, ...], stored: PyTree, given: PyTree, *, interpret: bool = False
) -> Float[Array, " features"]:
    """The mean square of each feature over the tensor; arguments as for `step`."""
    reads = _Reads((stored, given), shape)
    size = math.prod(shape)
    steps = min(SUM_BLOCKS, pl.cdiv(size, SUM_BLOCK))
    programs = pl.cdiv(size, SUM_BLOCK * steps)

    def features(both):
        return rule.features(rule.look(*both)[0])

    count = len(jax.eval_shape(features, reads.channels()))

    def kernel(*refs):
        refs, sums = refs[:-1], refs[-1]
        first = pl.program_id(0) * steps  # The interpreter knows no program inside of loops.

        def add(step, totals):
            parameters = (first + step) * SUM_BLOCK + jnp.arange(SUM_BLOCK, dtype=jnp.int32)
            inside = parameters < size
            made = features(reads(refs, parameters, inside))
            made = [jnp.where(inside, x, 0.0) for x in made]
            return tuple(_MULTIPLY_ADD[interpret](x, x, total) for x, total in zip(made, totals, strict=True))

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

        def load(ref, channel, lengths):
            if math.prod(lengths) == 1:
                return jnp.broadcast_to(ref[channel, 0], parameters.shape)
            return triton.load(ref.at[channel, place(lengths)], mask=inside, other=0.0)

        return self._arranged(
            [
                tuple(load(ref, channel, lengths) for channel in range(count))
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


def _evaluate(multiply_add: MultiplyAdd, layers: Sequence[LayerRefs], units: list[Array]) -> list[Array]:
    """The network on vectors.

    Units of every other layer live only until they are added to the units of the next, in a loop over them.
    This needs registers for fewer units, and makes programs that are short and compile soon.
    """

    def unit(layer: LayerRefs, inputs: list[Array], j: Int[Array, ""] | int) -> Array:
        weight, bias = layer
        return functools.reduce(
            lambda total, i: multiply_add(inputs[i], weight[i, j], total),
            range(len(inputs)),
            jnp.broadcast_to(bias[j], inputs[0].shape),
        )

    def two_layers(first: LayerRefs, second: LayerRefs, inputs: list[Array]) -> list[Array]:
        weight, bias = second

        def add(j, totals):
            hidden = _relu(unit(first, inputs, j))
            return tuple(multiply_add(hidden, weight[j, i], total) for i, total in enumerate(totals))

        start = tuple(jnp.broadcast_to(bias[i], inputs[0].shape) for i in range(bias.shape[0]))
        return list(jax.lax.fori_loop(0, weight.shape[0], add, start))

    for i in range(0, len(layers), 2):
        if i:
            units = [_relu(x) for x in units]
        if i + 1 < len(layers):
            units = two_layers(layers[i], layers[i + 1], units)
        else:
            units = [unit(layers[i], units, j) for j in range(layers[i][1].shape[0])]
    return units


def _relu(x: Array) -> Array:
    # Triton's maximum of NaN and 0 is 0, and diverged runs would look sound.
    return jnp.where(x <= 0.0, 0.0, x)


def _multiply_add(x: Array, y: Array, total: Array) -> Array:
    # Triton leaves two operations of what is one instruction.
    (out,) = triton.elementwise_inline_asm(
        "fma.rn.f32 $0, $1, $2, $3;",
        args=[x, jnp.broadcast_to(y, x.shape), total],
        constraints="=f,f,f,f",
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(x.shape, jnp.float32)],
    )
    return out


# `x y + total`, by whether a kernel is interpreted.
_MULTIPLY_ADD: dict[bool, MultiplyAdd] = {False: _multiply_add, True: lambda x, y, total: x * y + total}


def _whole(x: Array) -> pl.BlockSpec:
    """All of an array, for every program."""
    return pl.BlockSpec(x.shape, lambda i: (0,) * x.ndim)
