"""The last rows of a pytree's history, as a ring: nothing moves when a row is added."""

from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from outeropt import tree
from outeropt.optimizers.arithmetic import wide_type


class History(eqx.Module):
    """The last `length` values of a pytree; those from before the first count as zeros.

    Ages count back from the newest row, which has age 0.

    Attributes:
      rows: a leading axis of `length` on every leaf; the row of index `s` is at `s % length`.
      count: rows written so far, which is the index of the next one.
    """

    rows: PyTree
    count: Int[Array, ""]

    @classmethod
    def empty(cls, like: PyTree, length: int, dtype: Any = None) -> Self:
        """Nothing but zeros.

        Args:
          like: one row, or its shapes.
          length: how many rows are kept.
          dtype: type of the rows; None keeps those of `like`.
        """
        rows = jax.tree.map(lambda leaf: tree.zeros_beside(leaf, length, dtype=dtype), like)
        return cls(rows, jnp.zeros((), jnp.int32))

    @property
    def length(self) -> int:
        """How many rows are kept."""
        return jax.tree.leaves(self.rows)[0].shape[0]

    def push(self, row: PyTree) -> Self:
        """The history with one row more; the oldest makes room for it."""

        def put(rows, new):
            return jax.lax.dynamic_update_index_in_dim(
                rows, new.astype(rows.dtype), self.count % rows.shape[0], 0
            )

        return type(self)(jax.tree.map(put, self.rows, row), self.count + 1)

    def row(self, index: Int[Array, ""]) -> PyTree:
        """The row that was written as number `index`, which must still be there."""
        return jax.tree.map(
            lambda rows: jax.lax.dynamic_index_in_dim(rows, index % rows.shape[0], 0, keepdims=False),
            self.rows,
        )

    def newest(self, number: int, age: int | Array = 0) -> PyTree:
        """The rows of ages `age` to `age + number - 1`, in this order."""

        def take(rows):
            return rows[(self.count - 1 - age - jnp.arange(number, dtype=jnp.int32)) % rows.shape[0]]

        return jax.tree.map(take, self.rows)

    def products(self, other: PyTree) -> list[Float[Array, " length"]]:
        """Inner products of every row with `other`, by age, for each leaf."""

        def one(rows, leaf):
            dtype = wide_type(leaf)
            places = (self.count - 1 - jnp.arange(rows.shape[0], dtype=jnp.int32)) % rows.shape[0]
            # Not flattened: that would gather what is divided among devices.
            axes = (tuple(range(1, rows.ndim)), tuple(range(leaf.ndim)))
            return jnp.tensordot(rows.astype(dtype), leaf.astype(dtype), axes=axes)[places]

        return jax.tree.leaves(jax.tree.map(one, self.rows, other))

    def weighted(self, coefficients: PyTree, age: int | Array = 0) -> PyTree:
        """The sum of the rows from one age on, each times its coefficient.

        Args:
          coefficients: for each leaf an array (number,), by age.
          age: of the row that the first coefficient is for.
        """

        def one(rows, weights):
            length, number = rows.shape[0], weights.shape[0]
            # A row's age follows from its place: the weights are put in order, not the rows.
            ages = (self.count - 1 - jnp.arange(length, dtype=jnp.int32)) % length - age
            counts = (ages >= 0) & (ages < number)
            placed = jnp.where(counts, weights[jnp.clip(ages, 0, number - 1)], jnp.zeros((), weights.dtype))
            return jnp.tensordot(placed, rows.astype(weights.dtype), axes=1)

        return jax.tree.map(one, self.rows, coefficients)
