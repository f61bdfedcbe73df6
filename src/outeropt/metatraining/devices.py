"""The devices that share particles, in one process or in several, and arrays on them."""

import functools
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from outeropt.errors import ConfigError


AXIS = "particles"


def mesh_for(particles: int, devices: Sequence[Any] | None = None) -> Mesh:
    """The most devices among which the particles can be shared equally; of each process as many.

    Args:
      particles: how many there are.
      devices: which may be used; by default all, those of other processes too.

    Raises:
      ConfigError: the processes cannot share the particles equally.
    """
    own = _by_process(jax.devices() if devices is None else devices)
    for each in range(min(map(len, own)), 0, -1):
        if particles % (each * len(own)) == 0:
            found = [device for group in own for device in group[:each]]
            return Mesh(np.asarray(found), (AXIS,), axis_types=(AxisType.Auto,))
    raise ConfigError(
        f"{len(own)} processes cannot share {particles} particles equally; make the estimator's particles a "
        f"multiple of {len(own)}."
    )


def exactly(count: int | Literal["all"], particles: int | None) -> list[Any]:
    """That many devices, of each process as many.

    Args:
      count: how many in all processes together, or all.
      particles: which they have to share equally; None where they need not, all together.

    Raises:
      ConfigError: there are not as many, or they cannot share the particles or be shared by the processes.
    """
    devices = jax.devices()
    own = _by_process(devices)
    count = len(devices) if count == "all" else count
    most = min(map(len, own)) * len(own)
    shared = 0 if particles is None else particles
    allowed = [n for n in range(len(own), most + 1, len(own)) if shared % n == 0]
    if count not in allowed:
        there = f"{len(devices)} devices" + (f" of {len(own)} processes" if len(own) > 1 else "")
        numbers = ", ".join(map(str, allowed)) or "no number at all"
        work = "" if particles is None else f", and {particles} particles to share equally"
        raise ConfigError(f"{count} devices cannot be used: there are {there}{work}. Possible: {numbers}.")
    return [device for group in own for device in group[: count // len(own)]]


def _by_process(devices: Sequence[Any]) -> list[list[Any]]:
    found = defaultdict(list)
    for device in devices:
        found[device.process_index].append(device)
    return [found[process] for process in sorted(found)]


def placed(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """An array that every process has, spread as the sharding says. Nothing crosses a network."""
    if sharding.is_fully_addressable or (isinstance(leaf, jax.Array) and leaf.sharding == sharding):
        return jax.device_put(leaf, sharding)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = placed(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    value = np.asarray(leaf)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """A copy of a tree's arrays (of a recipe: data, above all) on every device."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda leaf: placed(leaf, everywhere) if eqx.is_array(leaf) else leaf, tree)


def gathered(tree: PyTree, keep: bool) -> PyTree:
    """The same tree with all arrays whole in this process; every process must call it.

    Args:
      tree: arrays may be spread over processes.
      keep: whether this process wants them. If not, there is nothing in their place.
    """

    def one(leaf):
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
            return leaf
        whole = _gather(NamedSharding(leaf.sharding.mesh, PartitionSpec()))(leaf)  # pyright: ignore (of a mesh)
        # To the host at once: the devices have room for one such array, not for all.
        return on_this(whole, np.asarray) if keep else None

    return jax.tree.map(one, tree)


@functools.cache
def _gather(everywhere: NamedSharding) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda leaf: leaf, out_shardings=everywhere)


def on_this(tree: PyTree, kind: Callable[[np.ndarray], Any] = jnp.asarray) -> PyTree:
    """A tree whose arrays are the same everywhere, as arrays of this process alone.

    Args:
      tree: of arrays that every device has whole.
      kind: what they become, but for keys, which are JAX's: arrays of JAX or of numpy.
    """

    def one(leaf):
        if not isinstance(leaf, jax.Array):
            return leaf
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = np.asarray(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(jnp.asarray(data), impl=jax.random.key_impl(leaf))
        return kind(np.asarray(leaf))

    return jax.tree.map(one, tree)
