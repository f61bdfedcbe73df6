"""Small operations on pytrees that every room needs."""

import dataclasses
import functools
import hashlib
import types
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, PyTree


_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis), np.dtype)


def is_array(leaf: Any) -> bool:
    """Whether a leaf is numeric data (a JAX or numpy array)."""
    return isinstance(leaf, jax.Array | np.ndarray | np.generic)


def stack(trees: Sequence[PyTree]) -> PyTree:
    """Stacks trees of one structure along a new leading axis of every array leaf."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def take(tree: PyTree, index: Any) -> PyTree:
    """Indexes the leading axis of every array leaf: an integer unstacks, an array or slice selects."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def size(tree: PyTree) -> int:
    """Length of the leading axis that all leaves share; 0 for a tree without leaves."""
    leaves = jax.tree.leaves(tree)
    return leaves[0].shape[0] if leaves else 0


def all_finite(tree: PyTree) -> Array:
    """A scalar bool: whether every entry of every floating leaf is finite."""
    checks = [
        jnp.all(jnp.isfinite(leaf))
        for leaf in jax.tree.leaves(tree)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    return jnp.all(jnp.stack(checks)) if checks else jnp.array(True)


def where(keep: Array, new: PyTree, old: PyTree) -> PyTree:
    """`new` where the scalar `keep` is true, else `old`, leaf by leaf."""
    return jax.tree.map(lambda a, b: jnp.where(keep, a, b), new, old)


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """Leaves by dotted name, in tree order.

    An attribute that holds a dictionary gives its place to the dictionary's keys, so the leaf at
    `optimizer.values["learning_rate"]` is called `learning_rate`.
    """
    return {leaf_name(path): leaf for path, leaf in jtu.tree_leaves_with_path(tree)}


def leaf_name(path: tuple[Any, ...]) -> str:
    """The dotted name of one key path; see `named_leaves`."""
    parts = []
    for entry, following in zip(path, (*path[1:], None)):
        if isinstance(entry, jtu.GetAttrKey) and isinstance(following, jtu.DictKey):
            continue
        parts.append(str(getattr(entry, "name", getattr(entry, "key", getattr(entry, "idx", entry)))))
    return ".".join(parts)


def fingerprint(value: Any) -> str:
    """A content hash (hex, 32 digits) of any pytree, module, function or plain value.

    Equal content gives equal hashes in every process: arrays count by dtype, shape and bytes; functions by
    name, code, constants and closure; modules and dataclasses by class name and fields. Memory addresses never count.
    """
    digest = hashlib.blake2b(digest_size=16)
    _feed(value, digest.update)
    return digest.hexdigest()


def _feed(value: Any, update: Callable[[bytes], None]) -> None:
    if is_array(value) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    if is_array(value):
        array = np.ascontiguousarray(value)
        update(f"array {array.dtype} {array.shape} ".encode())
        update(array.tobytes())
    elif isinstance(value, dict):
        update(f"dict {len(value)} ".encode())
        for key in sorted(value, key=repr):
            _feed(key, update)
            _feed(value[key], update)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        _feed(type(value), update)
        for field in dataclasses.fields(value):
            update(f"{field.name} ".encode())
            _feed(getattr(value, field.name), update)
    elif isinstance(value, list | tuple | set | frozenset):
        items = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
        update(f"{type(value).__name__} {len(items)} ".encode())
        for item in items:
            _feed(item, update)
    elif isinstance(value, types.CodeType):
        update(value.co_code)
        _feed(value.co_names, update)
        _feed(value.co_consts, update)
    elif isinstance(value, types.FunctionType):
        update(f"function {value.__module__}.{value.__qualname__} ".encode())
        _feed(value.__code__, update)
        _feed(value.__defaults__, update)
        _feed([cell.cell_contents for cell in value.__closure__ or ()], update)
    elif isinstance(value, functools.partial):
        _feed((value.func, value.args, value.keywords), update)
    elif isinstance(value, type):
        update(f"class {value.__module__}.{value.__qualname__} ".encode())
        if value.__module__.partition(".")[0] != __package__:
            # A user's own class may change between runs under the same name.
            functions = {name: f for name, f in vars(value).items() if isinstance(f, types.FunctionType)}
            _feed({name: f.__code__ for name, f in functions.items()}, update)
    elif isinstance(value, types.ModuleType):
        update(f"module {value.__name__} ".encode())
    elif isinstance(value, _PLAIN):
        update(f"{type(value).__name__} {value!r} ".encode())
    elif hasattr(value, "__name__"):
        update(f"name {getattr(value, '__module__', '')}.{value.__name__} ".encode())
    else:
        _feed(type(value), update)
        _feed(vars(value) if hasattr(value, "__dict__") else (), update)
