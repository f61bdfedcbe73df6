"""What devices tell each other of their particles: a few words each, and nothing of the size of theta.

A perturbation follows from a key. So devices send each other the particles' losses and keys, and each draws
the perturbations of all particles again and adds them up by itself, to the same gradient (Salimans et al.
2017, arXiv 1703.03864, section 2.1).
"""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, UInt32


def shares(axis: str | None) -> int:
    """Among how many devices the particles are shared."""
    return 1 if axis is None else jax.lax.axis_size(axis)


def everyone(rows: PyTree, axis: str | None) -> PyTree:
    """The rows of all particles on every device, in one exchange.

    Args:
      rows: this device's, numbers of 32 bits, bools or keys; leading axis of particles.
      axis: mesh axis of the particles, if they are shared.
    """
    if shares(axis) == 1:
        return rows
    leaves, structure = jax.tree.flatten(rows)
    words = [_words(leaf) for leaf in leaves]
    # One exchange: over a network each costs its delay, whatever it carries.
    together = jax.lax.all_gather(jnp.concatenate(words, axis=1), axis, tiled=True)
    ends = list(itertools.accumulate(each.shape[1] for each in words))
    parts = jnp.split(together, ends[:-1], axis=1)
    return jax.tree.unflatten(structure, [_back(part, leaf) for part, leaf in zip(parts, leaves)])


def over_shares(
    function: Callable[[PyTree], tuple[PyTree, PyTree]], rows: PyTree, axis: str | None
) -> tuple[PyTree, PyTree]:
    """The sum of a function over the shares of all devices, and its rows put together.

    Each device does all the shares, one after the other, so that it needs memory for one.

    Args:
      function: gives a sum and rows for the rows of one share.
      rows: of all particles.
      axis: mesh axis of the particles, if they are shared.
    """
    count = shares(axis)
    cut = jax.tree.map(lambda leaf: leaf.reshape(count, -1, *leaf.shape[1:]), rows)

    def one(total, share):
        found, made = function(share)
        return jax.tree.map(jnp.add, total, found), made

    shapes, _ = jax.eval_shape(function, jax.tree.map(lambda leaf: leaf[0], cut))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, made = jax.lax.scan(one, zeros, cut)
    return total, jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), made)


def _words(leaf: Array) -> UInt32[Array, "rows words"]:
    """The bits of rows."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    leaf = leaf.reshape(leaf.shape[0], -1)
    if leaf.dtype == jnp.bool_:
        return leaf.astype(jnp.uint32)
    return jax.lax.bitcast_convert_type(leaf, jnp.uint32)


def _back(words: UInt32[Array, "rows words"], like: Array) -> Array:
    """Rows of their bits."""
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        shape = jax.random.key_data(like).shape[1:]
        return jax.random.wrap_key_data(words.reshape(-1, *shape), impl=jax.random.key_impl(like))
    shaped = words.reshape(-1, *like.shape[1:])
    if like.dtype == jnp.bool_:
        return shaped.astype(jnp.bool_)
    return jax.lax.bitcast_convert_type(shaped, like.dtype)
