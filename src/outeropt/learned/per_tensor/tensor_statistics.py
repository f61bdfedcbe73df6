"""Numbers that say what a whole tensor is like, for networks that look at tensors instead of parameters."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float


def log_magnitude(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`log(1e-8 + |x|)`, clipped to [-5, 5]."""
    return jnp.clip(jnp.log(1e-8 + jnp.abs(x)), -5.0, 5.0)


def means_and_variances(arrays: Sequence[Float[Array, "..."]]) -> Float[Array, " twice_arrays"]:
    """The mean of each array over all its entries, then the variance of each."""
    means = [jnp.mean(x) for x in arrays]
    return jnp.stack([*means, *(jnp.mean(jnp.square(x - mean)) for x, mean in zip(arrays, means))])


def safe_sqrt(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The square root of numbers of at least 0, with gradient 0 instead of NaN at 0."""
    positive = x > 0.0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)
