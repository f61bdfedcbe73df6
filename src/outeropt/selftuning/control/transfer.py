"""Coefficients of one controller in the form of another: of another memory, kind or model."""

import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float, PyTree

from outeropt import tree


def fitted(coefficients: PyTree, zeros: PyTree) -> PyTree:
    """Coefficients that came from anywhere, in the form of `zeros`.

    Ages beyond the shorter memory are dropped or zero. A leaf is taken from the one of the same dotted name,
    else from the mean of all; where shapes differ, its mean over everything but ages stands everywhere (on
    the diagonal, for matrices).

    Args:
      coefficients: a pytree whose leaves have ages first; a dictionary may have dotted names as its keys.
      zeros: what `Controller.zeros` gives for the model to be trained.
    """
    named = tree.named_leaves(coefficients)
    shared = functools.reduce(jnp.add, [_mean(leaf) for leaf in named.values()]) / len(named)

    def one(path, like):
        return _one(named.get(tree.leaf_name(path), shared), like)

    return jtu.tree_map_with_path(one, zeros)


def by_name(leaves: Mapping[str, Any]) -> PyTree:
    """Coefficients from their leaves by dotted name; a single nameless one stands for itself."""
    return leaves[""] if "" in leaves else dict(leaves)


def _one(leaf: Array, like: Array) -> Array:
    kept = jnp.asarray(leaf)[: like.shape[0]].astype(like.dtype)
    kept = jnp.pad(kept, [(0, like.shape[0] - kept.shape[0])] + [(0, 0)] * (kept.ndim - 1))
    if kept.shape == like.shape:
        return kept
    means = _mean(kept).reshape(-1, *[1] * (like.ndim - 1))
    if like.ndim == 3 and like.shape[1] == like.shape[2] and kept.ndim == 1:
        return means * jnp.eye(like.shape[1], dtype=like.dtype)[None]
    return jnp.broadcast_to(means, like.shape)


def _mean(leaf: Float[Array, "H *shape"]) -> Float[Array, " H"]:
    leaf = jnp.asarray(leaf)
    return jnp.mean(leaf.reshape(leaf.shape[0], -1), axis=1)
