"""All coordinates of all tensors in one array, for networks that look at each coordinate alone.

Coordinates stand in the order of the pytree's leaves, each leaf flattened in C order. One wide call of a
network, on `[features, coordinates]` or `[coordinates, features]`, replaces a call for each tensor.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from outeropt.errors import ConfigError


def sizes(tree: PyTree) -> tuple[int, ...]:
    """The number of coordinates of each leaf (tensor) of a pytree that has at least one."""
    return tuple(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def flatten(tree: PyTree) -> Float[Array, " coordinates"]:
    """The coordinates of all leaves as one float32 vector."""
    leaves = jax.tree.leaves(tree)
    return jnp.concatenate([leaf.reshape(-1).astype(jnp.float32) for leaf in leaves])


def restore(vector: Float[Array, " coordinates"], like: PyTree) -> PyTree:
    """The inverse of `flatten`, with the structure, shapes and dtypes of `like`."""
    leaves, structure = jax.tree.flatten(like)
    parts = jax.lax.split(vector, sizes(like))
    return structure.unflatten(
        [part.reshape(leaf.shape).astype(leaf.dtype) for part, leaf in zip(parts, leaves)]
    )


def tensor_means(
    rows: Float[Array, "coordinates features"], counts: tuple[int, ...]
) -> Float[Array, "tensors features"]:
    """The mean over the coordinates of each tensor, given their numbers; 0 for a tensor without any."""
    # Slices and sums: XLA's CPU scatter, which a segment sum becomes, visits one row after another.
    parts = jax.lax.split(rows, counts)
    return jnp.stack([jnp.sum(part, axis=0) / max(count, 1) for part, count in zip(parts, counts)])


def spread(
    rows: Float[Array, "tensors features"], counts: tuple[int, ...]
) -> Float[Array, "coordinates features"]:
    """Each tensor's row, repeated for each of its coordinates."""
    return jnp.concatenate(
        [jnp.broadcast_to(rows[index], (count, rows.shape[1])) for index, count in enumerate(counts)]
    )


def log_rates(
    bounds: tuple[float, float], count: int, key: PRNGKeyArray | None
) -> Float[Array, " coordinates"]:
    """Logarithms of initial learning rates, uniform between the logarithms of two bounds.

    Args:
      bounds: the lowest and the highest rate; see `rate_bounds`.
      count: how many to draw.
      key: randomness; None always gives the same ones.
    """
    low, high = (math.log(bound) for bound in bounds)
    draws = jax.random.uniform(jax.random.key(0) if key is None else key, (count,), jnp.float32)
    return low + (high - low) * draws


def rate_bounds(given: tuple[float, float]) -> tuple[float, float]:
    """Bounds of initial learning rates as a pair of floats.

    Raises:
      ConfigError: they are not two positive finite numbers, the lower one first.
    """
    bounds = tuple(float(bound) for bound in given)
    if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1] < math.inf:
        raise ConfigError(
            f"initial_rates = {given} is not a range of learning rates; give two positive numbers, the lower "
            "one first, such as (1e-6, 1e-2), or one rate twice."
        )
    return bounds[0], bounds[1]
