"""One small network applied to every parameter of a tensor: the inner loop of all MLP optimizers.

The inputs of the network are some dozens of features of each parameter. To write them down for a whole tensor
takes many times the tensor's memory, and most of the time. So

* features are normalised by scaling the rows of the first layer, never by rewriting the features;
* narrow networks are written as sums of products, which XLA fuses with the features into one loop; there a
  feature that is constant along an axis (an average over rows) meets its weights before it is spread out;
* wide networks are matrix products over blocks of parameters that stay in the cache;
* on a GPU, kernels make the features in registers and evaluate the network there (`fused`), and, where an
  optimizer tells them as a `Rule`, the next moments and the update as well.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from outeropt.learned import fused
from outeropt.learned.fused import Features, Rule


# Up to this width one fused loop is faster than matrix products, and compiles in the same time.
NARROW = 8
# Parameters in one block of a wide network: its activations should stay in a core's cache.
BLOCK = 16_384


class Layer(NamedTuple):
    """Weights `[inputs, outputs]` and bias `[outputs]` of one affine map."""

    weight: Float[Array, "inputs outputs"]
    bias: Float[Array, " outputs"]


class Affine(Protocol):
    """What has weights and a bias: a `Layer`, or `networks.Linear`."""

    @property
    def weight(self) -> Array: ...

    @property
    def bias(self) -> Array: ...


def per_parameter(
    layers: Sequence[Affine],
    features: Features,
    sources: PyTree,
    shape: tuple[int, ...],
    shared: Float[Array, " shared"] | None = None,
) -> list[Float[Array, "*shape"]]:
    """A ReLU network applied to each parameter of a tensor, on normalised features.

    Args:
      layers: of the network; the first takes the features and then the shared inputs.
      features: makes the features from `sources` or from a block of them: arrays of rank `len(shape)` whose
        axes have the tensor's length or 1. Works on each parameter by itself. Closes over no arrays, and
        also takes tuples of channels in the place of arrays that have channels, which is what kernels give.
      sources: arrays `shape` or `[channels, *shape]`, or with length 1 along some of the tensor's axes.
      shape: the tensor's, of rank 1 or more.
      shared: inputs that all parameters have in common, such as the time; they are not normalised.

    Returns:
      The outputs of the network, one array for each.
    """
    return per_parameter_step(layers, outputs_of(features), (), sources, shape, shared)[0]


def outputs_of(features: Features) -> Rule:
    """The rule that stores nothing and leaves the network's outputs as they are."""
    return Rule(lambda _, sources: (sources, ()), features, lambda outputs, _: list(outputs))


def per_parameter_step(
    layers: Sequence[Affine],
    rule: Rule,
    stored: PyTree,
    given: PyTree,
    shape: tuple[int, ...],
    shared: Float[Array, " shared"] | None = None,
) -> tuple[PyTree, PyTree]:
    """The same with what lies before and after the network, so that a GPU does all of it in one pass.

    Args:
      layers: as for `per_parameter`.
      rule: what is stored next, the features, and what becomes of the outputs.
      stored: arrays `shape` or `[channels, *shape]`.
      given: arrays such as the sources of `per_parameter`.
      shape: as for `per_parameter`.
      shared: as for `per_parameter`.

    Returns:
      What the rule makes of the outputs, and what is to be stored in the place of `stored`.
    """
    if jax.default_backend() == "gpu" and fused.covers(shape):  # Elsewhere kernels are not even traced.
        return _by_kernels(layers, rule, stored, given, shape, shared)
    sources, stored = rule.look(stored, given)
    made = rule.features(sources)
    outputs = _outputs(_scaled(layers, mean_squares(made), shared), rule.features, sources, shape, made)
    return rule.finish(outputs, sources), stored


def _by_kernels(layers, rule, stored, given, shape, shared) -> tuple[PyTree, PyTree]:
    """The same with `fused`, if the device that a program is compiled for turns out to be a GPU."""

    def squares(stored, given):
        return mean_squares(rule.features(rule.look(stored, given)[0]))

    def step(layers, stored, given):
        sources, stored = rule.look(stored, given)
        outputs = _outputs(layers, rule.features, sources, shape, rule.features(sources))
        return rule.finish(outputs, sources), stored

    squares = fused.on_gpu(functools.partial(fused.mean_squares, rule, shape), squares)
    step = fused.on_gpu(functools.partial(fused.step, rule, shape), step)
    return step(_scaled(layers, squares(stored, given), shared), stored, given)


def _scaled(
    layers: Sequence[Affine], squares: Float[Array, " features"], shared: Float[Array, " shared"] | None
) -> tuple[Layer, ...]:
    """The network on features as they are, without shared inputs."""
    first, scales = layers[0], jax.lax.rsqrt(1e-5 + squares)
    bias = first.bias if shared is None else first.bias + shared @ first.weight[squares.size :]
    scaled = Layer(first.weight[: squares.size] * scales[:, None], bias)
    return scaled, *(Layer(layer.weight, layer.bias) for layer in layers[1:])


def _outputs(
    layers: tuple[Layer, ...],
    features: Features,
    sources: PyTree,
    shape: tuple[int, ...],
    made: Sequence[Array],
) -> list[Array]:
    """The network in the form for its width, on features that were made or on sources."""
    if max(layer.bias.size for layer in layers) <= NARROW:
        return [jnp.broadcast_to(out, shape) for out in _narrow(layers, tuple(made))]
    return _blocked(layers, features, sources, shape)


def mean_squares(features: Sequence[Array]) -> Float[Array, " features"]:
    """The mean square of each array; arrays of one shape are read in one pass."""
    values: list[Array | None] = [None] * len(features)
    for group in _by_shape(features).values():
        means = _mean_squares(tuple(features[i] for i in group))
        for place, i in enumerate(group):
            values[i] = means[place]
    return jnp.stack([value for value in values if value is not None])


@jax.custom_jvp
def _mean_squares(features: tuple[Array, ...]) -> Float[Array, " features"]:
    # XLA's CPU compiler does not fuse reductions beside each other; one of many operands is one loop.
    sums = jax.lax.reduce(
        tuple(jnp.square(x) for x in features),
        (jnp.float32(0),) * len(features),
        lambda left, right: tuple(a + b for a, b in zip(left, right)),
        tuple(range(features[0].ndim)),
    )
    return jnp.stack(sums) / max(features[0].size, 1)


@_mean_squares.defjvp
def _mean_squares_jvp(primals, tangents):
    features, changes = primals[0], tangents[0]
    slopes = [2.0 * jnp.mean(x * dx) for x, dx in zip(features, changes)]
    return _mean_squares(features), jnp.stack(slopes)


def _by_shape(features: Sequence[Array]) -> dict[tuple[int, ...], list[int]]:
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, x in enumerate(features):
        groups.setdefault(x.shape, []).append(i)
    return groups


@jax.custom_jvp
def _narrow(layers: tuple[Layer, ...], features: tuple[Array, ...]) -> tuple[Array, ...]:
    """The network as sums of products, a layer's units in one array.

    That is a third of the operations to trace that units by themselves would be, and a little slower.
    """
    rank = features[0].ndim

    def column(values: Array) -> Array:
        return values.reshape(-1, *(1,) * rank)

    first = layers[0]
    units = column(first.bias)
    # The small arrays first, so that what is constant along an axis is summed where it is small.
    for group in sorted(_by_shape(features).values(), key=lambda group: features[group[0]].size):
        terms = [features[i][None] * column(first.weight[i]) for i in group]
        units = _spread_sum(units, functools.reduce(jnp.add, terms))
    for layer in layers[1:]:
        terms = [unit[None] * column(row) for unit, row in zip(jax.nn.relu(units), layer.weight)]
        units = _spread_sum(column(layer.bias), functools.reduce(jnp.add, terms))
    return tuple(units)


@_narrow.defjvp
def _narrow_jvp(primals, tangents):
    # Derivatives of hundreds of sums of products take minutes to compile; those of matrix products do not.
    def wide(layers, features):
        shape: tuple[int, ...] = np.broadcast_shapes(*(x.shape for x in features))
        return tuple(_wide(layers, features, shape))

    return jax.jvp(wide, primals, tangents)


def _spread_sum(a: Array, b: Array) -> Array:
    shape = jnp.broadcast_shapes(a.shape, b.shape)
    return jnp.broadcast_to(a, shape) + jnp.broadcast_to(b, shape)


def _blocked(
    layers: Sequence[Layer], features: Features, sources: PyTree, shape: tuple[int, ...]
) -> list[Array]:
    """The network as matrix products over blocks along the tensor's longest axis."""
    axis = max(range(len(shape)), key=lambda a: shape[a])
    length = shape[axis]
    step = min(length, max(1, BLOCK * length // max(math.prod(shape), 1)))

    def block(start: Array | int, size: int) -> Array:
        part = jax.tree.map(lambda x: _part(x, axis - len(shape), length, start, size), sources)
        return _wide(layers, features(part), (*shape[:axis], size, *shape[axis + 1 :]))

    if step == length:
        return list(block(0, length))
    whole, rest = divmod(length, step)
    parts = jax.lax.map(lambda i: block(i * step, step), jnp.arange(whole))
    out = jnp.moveaxis(parts, 0, 1 + axis)
    out = out.reshape(out.shape[0], *shape[:axis], whole * step, *shape[axis + 1 :])
    if rest:
        out = jnp.concatenate([out, block(whole * step, rest)], axis=1 + axis)
    return list(out)


def _part(x: Array, axis: int, length: int, start: Array | int, size: int) -> Array:
    """A slice along an axis of full length; axes of length 1 hold for all slices."""
    if x.shape[axis] != length or length == 1:
        return x
    return jax.lax.dynamic_slice_in_dim(x, start, size, axis + x.ndim)


def _wide(layers: Sequence[Layer], features: Sequence[Array], shape: tuple[int, ...]) -> Array:
    """The network as matrix products, units first: `[outputs, *shape]`."""
    units = jnp.stack([jnp.broadcast_to(x, shape).reshape(-1) for x in features])
    units = layers[0].weight.T @ units + layers[0].bias[:, None]
    for layer in layers[1:]:
        units = layer.weight.T @ jax.nn.relu(units) + layer.bias[:, None]
    return units.reshape(-1, *shape)
