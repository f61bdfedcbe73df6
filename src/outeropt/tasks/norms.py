"""Layer norm and batch norm, and the bookkeeping of a network that has one after each layer.

The small constant under the root and the running averages are those of dm-haiku, with which the tasks of
learned_optimization were defined; `torch_batch_norm` has those of PyTorch.
"""

from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from outeropt.errors import unknown_name
from outeropt.tasks.layers import along_last


Norm = Literal["layer_norm", "batch_norm", "torch_batch_norm"] | None

_NORMS = ("layer_norm", "batch_norm", "torch_batch_norm")

EPSILON = 1e-5
DECAY = 0.9


def layer_norm(
    x: Float[Array, "*rows features"], scale: Float[Array, "features"], offset: Float[Array, "features"]
) -> Float[Array, "*rows features"]:
    """Zero mean and unit variance along the last axis (Ba et al. 2016, arXiv 1607.06450)."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + EPSILON) * along_last(scale, x) + along_last(offset, x)


def fresh_statistics(channels: int, norm: Norm = "batch_norm") -> Float[Array, "kinds channels"]:
    """Running statistics before any batch: mean 0, variance 1 and, of `batch_norm`, weight 0.

    One leaf, to keep scans cheap.
    """
    zeros = jnp.zeros(channels, jnp.float32)
    return jnp.stack([zeros, zeros + 1] if norm == "torch_batch_norm" else [zeros, zeros + 1, zeros])


def batch_norm(
    x: Float[Array, "*rows channels"],
    scale: Float[Array, "channels"],
    offset: Float[Array, "channels"],
    statistics: Float[Array, "3 channels"],
    training: bool,
) -> tuple[Float[Array, "*rows channels"], Float[Array, "3 channels"]]:
    """Zero mean and unit variance of each channel over a batch (Ioffe and Szegedy 2015, arXiv 1502.03167).

    Running averages have decay 0.9 and Adam's bias correction, as in dm-haiku: with weight
    `W' = 0.9 W + 0.1` the average of a statistic s moves by `(0.1 / W') (s - average)`.

    Args:
      x: activations, channels last.
      scale: factor of each channel.
      offset: added to each channel.
      statistics: running mean, variance and weight.
      training: normalise by the batch and move the running statistics; otherwise use these.
    """
    mean, variance, weight = statistics
    if training:
        batch_axes = tuple(range(x.ndim - 1))
        weight = DECAY * weight + (1 - DECAY)
        rate = (1 - DECAY) / weight
        running_mean, running_variance = mean, variance
        mean, variance = x.mean(batch_axes), x.var(batch_axes)
        statistics = jnp.stack(
            [
                running_mean + rate * (mean - running_mean),
                running_variance + rate * (variance - running_variance),
                weight,
            ]
        )
    return _standardised(x, mean, variance, scale, offset), statistics


def torch_batch_norm(
    x: Float[Array, "*rows channels"],
    scale: Float[Array, "channels"],
    offset: Float[Array, "channels"],
    statistics: Float[Array, "2 channels"],
    training: bool,
) -> tuple[Float[Array, "*rows channels"], Float[Array, "2 channels"]]:
    """As `batch_norm`, with the running averages of PyTorch's `BatchNorm2d`.

    An average of a statistic s moves by `0.1 (s - average)` from the first batch on, so that mean 0 and
    variance 1 fade out of it. The variance that is averaged has the divisor n - 1, the one that normalises n.

    Args:
      x: activations, channels last.
      scale: factor of each channel.
      offset: added to each channel.
      statistics: running mean and variance.
      training: normalise by the batch and move the running statistics; otherwise use these.
    """
    mean, variance = statistics
    if training:
        batch_axes = tuple(range(x.ndim - 1))
        count = x.size // x.shape[-1]
        mean, variance = x.mean(batch_axes), x.var(batch_axes)
        found = jnp.stack([mean, variance * (count / max(1, count - 1))])
        statistics = statistics + (1 - DECAY) * (found - statistics)
    return _standardised(x, mean, variance, scale, offset), statistics


def _standardised(x: Array, mean: Array, variance: Array, scale: Array, offset: Array) -> Array:
    factor = scale * jax.lax.rsqrt(variance + EPSILON)
    return (x - along_last(mean, x)) * along_last(factor, x) + along_last(offset, x)


def norm_init(
    norm: Norm, widths: Mapping[int | str, int]
) -> tuple[dict[str, Array], dict[str, Array] | None]:
    """Parameters `scale{layer}`, `offset{layer}` and state `statistics{layer}` of some layers.

    The state is None unless the norm is one over the batch; without a norm there are no parameters.

    Args:
      norm: which norm.
      widths: channels by layer.

    Raises:
      UnknownName: there is no such norm.
    """
    if norm is None:
        return {}, None
    if norm not in _NORMS:
        raise unknown_name("norm", norm, _NORMS, f"{', '.join(_NORMS)}, or None")
    params: dict[str, Array] = {}
    for layer, channels in widths.items():
        params[f"scale{layer}"] = jnp.ones(channels, jnp.float32)
        params[f"offset{layer}"] = jnp.zeros(channels, jnp.float32)
    if norm == "layer_norm":
        return params, None
    statistics = {
        f"statistics{layer}": fresh_statistics(channels, norm) for layer, channels in widths.items()
    }
    return params, statistics


def normalize(
    norm: Norm,
    x: Float[Array, "*rows channels"],
    params: dict[str, Array],
    state: dict[str, Array] | None,
    layer: int | str,
    training: bool,
) -> tuple[Float[Array, "*rows channels"], dict[str, Array] | None]:
    """The norm of one layer, as `norm_init` made it, and the state with that layer's share renewed."""
    if norm is None:
        return x, state
    scale, offset = params[f"scale{layer}"], params[f"offset{layer}"]
    if norm == "layer_norm":
        return layer_norm(x, scale, offset), state
    assert state is not None
    over_batch = torch_batch_norm if norm == "torch_batch_norm" else batch_norm
    x, statistics = over_batch(x, scale, offset, state[f"statistics{layer}"], training)
    return x, {**state, f"statistics{layer}": statistics}
