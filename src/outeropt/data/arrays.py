"""Data that fits in memory: device arrays from which a batch is an index gather."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

from outeropt.data import draw
from outeropt.task import Split
from outeropt.tree import size


class ArrayData(eqx.Module):
    """Rows of arrays, by split.

    Attributes:
      splits: for each of train, valid and test a pytree of arrays with equal leading axes (rows).
      batch_size: rows in a batch, drawn uniformly with replacement.
    """

    splits: dict[str, PyTree[Array]]
    batch_size: int = eqx.field(static=True)

    def batch(self, split: Split, key: PRNGKeyArray) -> PyTree[Array]:
        """`batch_size` random rows of a split; the same key gives the same rows."""
        rows = self.splits[split]
        index = draw.rows(key, self.batch_size, size(rows))
        return jax.tree.map(lambda leaf: leaf.at[index].get(mode="promise_in_bounds"), rows)


def as_float(x: Array) -> Array:
    """Float32 features: bytes become fractions of 255, floats stay as they are."""
    return x.astype(jnp.float32) * (1 / 255) if x.dtype == jnp.uint8 else x
