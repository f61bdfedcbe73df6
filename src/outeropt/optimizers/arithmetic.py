"""Arithmetic over whole parameter trees: wide, and with derivatives that are numbers where a norm is zero."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree


def wide_type(params: PyTree) -> Any:
    """The type to compute in: float32, or float64 where some of the parameters have it."""
    types = {leaf.dtype for leaf in jax.tree.leaves(params)}
    return jnp.float64 if jnp.dtype(jnp.float64) in types else jnp.float32


def widen(values: PyTree) -> PyTree:
    """Every leaf as float32, or as float64 if it is that already: narrow types hold no small differences."""
    return jax.tree.map(lambda leaf: leaf.astype(np.promote_types(np.float32, leaf.dtype)), values)


def inner(first: PyTree, second: PyTree) -> Float[Array, ""]:
    """Inner product of two trees, all entries together."""
    return _total(lambda a, b: a * b, first, second)


def squared_norm(values: PyTree) -> Float[Array, ""]:
    """Sum of the squares of all entries."""
    return _total(jnp.square, values)


def absolute_sum(values: PyTree) -> Float[Array, ""]:
    """Sum of the magnitudes of all entries."""
    return _total(jnp.abs, values)


def root(square: Float[Array, "..."]) -> Float[Array, "..."]:
    """The square root, with derivative 0 at 0. What is no number stays none."""
    zero = square == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, jnp.ones_like(square), square)))


def quotient(numerator: Float[Array, "..."], denominator: Float[Array, "..."]) -> Float[Array, "..."]:
    """The quotient, or 0 where the denominator is 0."""
    known = denominator != 0
    return jnp.where(known, numerator / jnp.where(known, denominator, jnp.ones_like(denominator)), 0.0)


def _total(function: Callable[..., Array], *trees: PyTree) -> Float[Array, ""]:
    wide = wide_type(trees)
    found = [
        jnp.sum(function(*leaves)).astype(wide) for leaves in zip(*map(jax.tree.leaves, map(widen, trees)))
    ]
    return jnp.sum(jnp.stack(found)) if found else jnp.zeros((), wide)


def unzip(structure: PyTree, found: PyTree) -> list[PyTree]:
    """Trees of firsts, of seconds, ... from a tree, of the structure of `structure`, of tuples."""
    shape = jax.tree.structure(structure)
    return [jax.tree.unflatten(shape, column) for column in zip(*shape.flatten_up_to(found))]
