"""Layers that tasks share, as plain functions of arrays and flat dictionaries of parameters.

Initial weights are those of dm-haiku's layers, with which the tasks of learned_optimization were defined, so
that curves of tasks of the same name compare.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from outeropt.errors import ConfigError, OutOfSpace, unknown_name


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "elu": jax.nn.elu,
    "softplus": jax.nn.softplus,
}


def activation(name: str) -> Callable[[Array], Array]:
    """The elementwise function of this name.

    Raises:
      UnknownName: there is none.
    """
    if name not in ACTIVATIONS:
        raise unknown_name("activation", name, ACTIVATIONS, ", ".join(ACTIVATIONS))
    return ACTIVATIONS[name]


def fan_in_normal(key: PRNGKeyArray, shape: Sequence[int], gain: float = 1.0) -> Float[Array, "..."]:
    """Weights `gain / sqrt(fan_in)` times a standard normal cut off at -2 and 2.

    The fan-in is the product of all axes but the last. The cut is not compensated: the standard deviation is
    0.88 times the factor, as in dm-haiku's `TruncatedNormal`.
    """
    weights = jax.random.truncated_normal(key, -2.0, 2.0, tuple(shape), jnp.float32)
    return weights * (gain / _fan_in(shape) ** 0.5)


def stacked_fan_in_normal(
    key: PRNGKeyArray, depth: int, shape: Sequence[int], gain: float = 1.0
) -> Float[Array, "depth ..."]:
    """`fan_in_normal` weights of `depth` equal layers, stacked along a leading axis for one scan."""
    return jax.vmap(lambda one: fan_in_normal(one, shape, gain))(jax.random.split(key, depth))


def fan_in_normal_uncut(key: PRNGKeyArray, shape: Sequence[int], gain: float = 1.0) -> Float[Array, "..."]:
    """Weights `gain / sqrt(fan_in)` times a standard normal, whose tails are not cut off."""
    return jax.random.normal(key, tuple(shape), jnp.float32) * (gain / _fan_in(shape) ** 0.5)


def _fan_in(shape: Sequence[int]) -> int:
    return math.prod(shape[:-1])


def glorot_uniform(key: PRNGKeyArray, shape: Sequence[int]) -> Float[Array, "..."]:
    """Uniform weights in `+-sqrt(6 / (fan_in + fan_out))`, Keras' default.

    Glorot and Bengio 2010, "Understanding the difficulty of training deep feedforward neural networks",
    equation 16. A convolution's fans count every place of its kernel.
    """
    bound = math.sqrt(6 / (math.prod(shape[:-2]) * (shape[-2] + shape[-1])))
    return jax.random.uniform(key, tuple(shape), jnp.float32, -bound, bound)


def he_normal(key: PRNGKeyArray, shape: Sequence[int]) -> Float[Array, "..."]:
    """Normal weights of variance `2 / fan_out`, which is what the ReLUs behind them leave (He et al. 2015).

    arXiv 1502.01852, the case of the gradient. The fan-out of a convolution counts every place of its kernel.
    """
    fan_out = math.prod(shape[:-2]) * shape[-1]
    return jax.random.normal(key, tuple(shape), jnp.float32) * math.sqrt(2 / fan_out)


INITIAL: dict[str, Callable[..., Array]] = {
    "truncated_normal": fan_in_normal,
    "normal": fan_in_normal_uncut,
    "glorot_uniform": glorot_uniform,
}


def along_last(vector: Float[Array, "features"], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """A vector with leading axes of length 1, to meet the last axis of `x`."""
    return vector.reshape((1,) * (x.ndim - 1) + vector.shape)


def linear(
    x: Float[Array, "*rows features"], w: Float[Array, "features units"], b: Float[Array, "units"]
) -> Float[Array, "*rows units"]:
    """`x w + b` along the last axis."""
    y = jax.lax.dot_general(x, w, (((x.ndim - 1,), (0,)), ((), ())))
    return y + along_last(b, y)


def mlp_init(
    key: PRNGKeyArray, sizes: Sequence[int], weights: Callable[..., Array] = fan_in_normal
) -> dict[str, Array]:
    """Parameters `w{i}` and `b{i}` of a chain of linear layers.

    Args:
      key: randomness.
      sizes: widths, the input's first and the output's last.
      weights: draws a layer's weights from a key and a shape; biases are 0.
    """
    params = {}
    for i, layer_key in enumerate(jax.random.split(key, len(sizes) - 1)):
        params[f"w{i}"] = weights(layer_key, sizes[i : i + 2])
        params[f"b{i}"] = jnp.zeros(sizes[i + 1], jnp.float32)
    return params


def uniform_init(key: PRNGKeyArray, sizes: Sequence[int]) -> dict[str, Array]:
    """Parameters as `mlp_init` has them, all uniform in `+-1/sqrt(inputs of the layer)`: PyTorch's way."""
    params = {}
    for i, (inputs, units) in enumerate(itertools.pairwise(sizes)):
        draw = jax.random.uniform(jax.random.fold_in(key, i), (inputs + 1, units), minval=-1.0)
        params[f"w{i}"], params[f"b{i}"] = draw[:-1] / math.sqrt(inputs), draw[-1] / math.sqrt(inputs)
    return params


def mlp(
    params: Mapping[str, Array], x: Float[Array, "rows features"], function: Callable[[Array], Array]
) -> Float[Array, "rows units"]:
    """A chain of linear layers as `mlp_init` made it, with `function` between them."""
    for i in range(len(params) // 2):
        x = linear(x if i == 0 else function(x), params[f"w{i}"], params[f"b{i}"])
    return x


def blocks_init(
    key: PRNGKeyArray, depth: int, width: int, layers: Mapping[str, tuple[int, int]]
) -> dict[str, Array]:
    """Parameters of `depth` equal pre-norm blocks, stacked along a leading axis for one scan.

    Args:
      key: randomness.
      depth: number of blocks.
      width: features of a token.
      layers: inputs and outputs of each linear layer by name.

    Returns:
      `scale` and `offset` (depth, 2, width) of the two norms, and `{layer}_w`, `{layer}_b` of every layer.
    """
    params = {
        "scale": jnp.ones((depth, 2, width), jnp.float32),
        "offset": jnp.zeros((depth, 2, width), jnp.float32),
    }
    for layer_key, (layer, shape) in zip(jax.random.split(key, len(layers)), layers.items()):
        params[f"{layer}_w"] = stacked_fan_in_normal(layer_key, depth, shape)
        params[f"{layer}_b"] = jnp.zeros((depth, shape[-1]), jnp.float32)
    return params


def prefixed(leaves: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    """The same leaves named `{prefix}_{name}`."""
    return {f"{prefix}_{name}": leaf for name, leaf in leaves.items()}


def part(leaves: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    """The leaves named `{prefix}_{name}`, by `name`."""
    start = f"{prefix}_"
    return {name.removeprefix(start): leaf for name, leaf in leaves.items() if name.startswith(start)}


def conv(
    x: Float[Array, "rows height width features"],
    w: Float[Array, "kernel kernel features channels"],
    stride: int = 1,
    padding: int | None = None,
) -> Float[Array, "rows height2 width2 channels"]:
    """Convolution in NHWC without bias; zeros on each side as many as `padding`, or by default SAME.

    With a stride, SAME pads an even side by one row less in front, where PyTorch's padding is symmetric.
    """
    sides = "SAME" if padding is None else [(padding, padding)] * 2
    return jax.lax.conv_general_dilated(
        x, w, (stride, stride), sides, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def max_pool(x: Float[Array, "rows height width channels"], size: int) -> Float[Array, "rows h w channels"]:
    """Largest value of each `size` x `size` square; rows and columns left over at the far edges are dropped.

    A reshape and a maximum: the gradient of `reduce_window` is slow on CPU.
    """
    rows, height, width, channels = x.shape
    h, w = height // size, width // size
    return x[:, : h * size, : w * size].reshape(rows, h, size, w, size, channels).max(axis=(2, 4))


def overlapping_max_pool(
    x: Float[Array, "rows height width channels"],
) -> Float[Array, "rows h w channels"]:
    """Largest value of the 3 x 3 square around every second pixel: size 3, stride 2, padding 1.

    Maxima of slices, along one axis after the other, for the reason of `max_pool`.
    """
    for axis in (1, 2):
        sides = [(0, 0)] * x.ndim
        sides[axis] = (1, 1)
        padded, count = jnp.pad(x, sides, constant_values=-jnp.inf), (x.shape[axis] + 1) // 2
        first, second, third = (
            jax.lax.slice_in_dim(padded, start, start + 2 * count - 1, 2, axis) for start in range(3)
        )
        x = jnp.maximum(jnp.maximum(first, second), third)
    return x


def positions_after_pooling(height: int, width: int, times: int) -> int:
    """Pixels that are left of an image after max-pooling by 2 this many times.

    Raises:
      ConfigError: none are left.
    """
    positions = (height // 2**times) * (width // 2**times)
    if not positions:
        raise ConfigError(
            f"Images of {height} x {width} vanish after pooling by 2 {times} times; "
            f"use images of at least {2**times} x {2**times}, or fewer stages."
        )
    return positions


def patches(
    x: Float[Array, "rows height width channels"], size: int
) -> Float[Array, "rows patches patch_features"]:
    """Cuts images into squares of `size` x `size` pixels, row by row, each flattened.

    Raises:
      ConfigError: the size does not divide height and width.
    """
    rows, height, width, channels = x.shape
    if height % size or width % size:
        raise ConfigError(
            f"Images of {height} x {width} cannot be cut into patches of {size}; use a divisor of both."
        )
    x = x.reshape(rows, height // size, size, width // size, size, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(rows, (height // size) * (width // size), size * size * channels)


def dropout(x: Float[Array, "..."], rate: float, key: PRNGKeyArray | None) -> Float[Array, "..."]:
    """Zeroes entries with probability `rate`, in [0, 1), and divides the rest by `1 - rate`.

    Without a key nothing happens: that is evaluation.

    Raises:
      OutOfSpace: the rate is outside [0, 1).
    """
    if not 0 <= rate < 1:
        raise OutOfSpace(f"A dropout rate of {rate} was given; it must be at least 0 and below 1.")
    if key is None or rate == 0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x * (1 / (1 - rate)), 0.0)
