"""Tensors as matrices, and matrices on their two sides."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


Sides = tuple[Array | None, Array | None]
"""What belongs to the rows and to the columns of a tensor; None for a side that has nothing."""

product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
"""Matrix product without the shorter types that accelerators put in."""


def folded(leaf: Float[Array, "..."]) -> Float[Array, "rows columns"]:
    """The tensor as a matrix: its last axis the columns, all others the rows. Vectors are a column."""
    return leaf.reshape(-1, leaf.shape[-1]) if leaf.ndim > 1 else leaf.reshape(-1, 1)


def squares(leaf: Float[Array, "..."], max_size: int, dtype) -> Sides:
    """A zero matrix for each side of at most `max_size` of a tensor; none for vectors and scalars."""
    if leaf.ndim < 2:
        return None, None
    rows, columns = folded(leaf).shape
    left = jnp.zeros((rows, rows), dtype) if rows <= max_size else None
    return left, jnp.zeros((columns, columns), dtype) if columns <= max_size else None


def gathered(moments: Sides, matrix: Float[Array, "rows columns"], decay: Float[Array, ""]) -> Sides:
    """Decayed means of `G G^T` and `G^T G`."""
    left, right = moments
    rows = None if left is None else decay * left + (1.0 - decay) * product(matrix, matrix.T)
    return rows, None if right is None else decay * right + (1.0 - decay) * product(matrix.T, matrix)


def between(left: Array | None, matrix: Float[Array, "rows columns"], right: Array | None) -> Array:
    """`left @ matrix @ right`, without the sides that are None."""
    matrix = matrix if left is None else product(left, matrix)
    return matrix if right is None else product(matrix, right)


def into(bases: Sides, matrix: Float[Array, "rows columns"]) -> Array:
    """The matrix in orthonormal bases: `Q_L^T @ matrix @ Q_R`."""
    left, right = bases
    return between(None if left is None else left.T, matrix, right)


def out_of(bases: Sides, matrix: Float[Array, "rows columns"]) -> Array:
    """The matrix back from orthonormal bases: `Q_L @ matrix @ Q_R^T`."""
    left, right = bases
    return between(left, matrix, None if right is None else right.T)
