"""Small operations on pytrees that every room needs."""

import dataclasses
import functools
import hashlib
import pathlib
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, PyTree


_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis), np.dtype)
_CODE = (type, types.FunctionType, types.MethodType, types.ModuleType, functools.partial)
_STEADY = (*_PLAIN, *_CODE, dict, list, tuple, set, frozenset)


# Metadata of a dataclass field that decides no number: labels, search ranges.
NO_IDENTITY = {"identity": False}


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


def zeros_beside(leaf: Any, *leading: int, dtype: Any = None) -> Array:
    """Zeros `[*leading, *leaf.shape]`, divided among devices as the leaf is.

    Args:
      leaf: an array.
      *leading: lengths of axes in front, whose entries stay together.
      dtype: of the zeros; None for the leaf's.
    """
    return jnp.broadcast_to(jnp.zeros_like(leaf, dtype=dtype), (*leading, *leaf.shape))


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


def with_leaves(tree: PyTree, values: Mapping[str, Any]) -> PyTree:
    """The tree with some of its arrays replaced, by full name, in their own types."""

    def swap(path, leaf):
        name = leaf_name(path)
        return jnp.asarray(values[name], leaf.dtype) if name in values and is_array(leaf) else leaf

    return jtu.tree_map_with_path(swap, tree)


def fingerprint(value: Any) -> str:
    """A content hash (hex, 32 digits) of any pytree, module, function or plain value.

    Equal content gives equal hashes in every process. Arrays count by dtype, shape and bytes; modules and
    dataclasses by class name and fields; functions by name, code, constants, defaults and closure. Functions
    and classes that are neither outeropt's nor of an installed package also count by the functions, classes
    and values that their code names, so that a change in a helper is a change. Memory addresses never count,
    and neither do fields marked with `NO_IDENTITY`.
    """
    digest = hashlib.blake2b(digest_size=16)
    _Feeder(digest.update, {}).feed(value)
    return digest.hexdigest()


class _Feeder:
    """Writes content into a hash."""

    def __init__(self, update: Callable[[bytes], None], known: dict[int, str]):
        self.update = update
        # Digests of functions and classes by address, for as long as one call lasts; "" while in progress.
        self.known = known

    def feed(self, value: Any) -> None:
        if is_array(value):
            self._array(value)
        elif isinstance(value, dict):
            self._say(f"dict {len(value)}")
            for key in sorted(value, key=repr):
                self.feed(key)
                self.feed(value[key])
        elif isinstance(value, types.FunctionType | type):
            self._once(value)
        elif dataclasses.is_dataclass(value):
            self.feed(type(value))
            for field in dataclasses.fields(value):
                if field.metadata.get("identity", True):
                    self._say(field.name)
                    self.feed(getattr(value, field.name))
        elif isinstance(value, list | tuple | set | frozenset):
            items = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
            self._say(f"{type(value).__name__} {len(items)}")
            for item in items:
                self.feed(item)
        elif isinstance(value, types.CodeType):
            self.update(value.co_code)
            self.feed(value.co_names)
            self.feed(value.co_consts)
        elif isinstance(value, functools.partial):
            self.feed((value.func, value.args, value.keywords))
        elif isinstance(value, types.MethodType):
            self.feed((value.__func__, value.__self__))
        elif isinstance(value, types.ModuleType):
            self._say(f"module {value.__name__}")
        elif isinstance(value, _PLAIN):
            self._say(f"{type(value).__name__} {value!r}")
        elif hasattr(value, "__name__"):
            self._say(f"name {getattr(value, '__module__', '')}.{value.__name__}")
            if _is_own(value) and hasattr(value, "__wrapped__"):
                self.feed(value.__wrapped__)  # such as jax.jit made
        else:
            self.feed(type(value))
            self.feed(_attributes(value))

    def _say(self, text: str) -> None:
        self.update(f"{text} ".encode())

    def _array(self, array: Any) -> None:
        if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
            array = jax.random.key_data(array)
        array = np.ascontiguousarray(array)
        self._say(f"array {array.dtype} {array.shape}")
        if array.dtype == object:
            self.feed(array.tolist())
        else:
            self.update(array.tobytes())

    def _once(self, value: types.FunctionType | type) -> None:
        """Feeds the digest of a function or class, which may refer to itself."""
        kind = "class" if isinstance(value, type) else "function"
        self._say(f"{kind} {value.__module__}.{value.__qualname__}")
        if id(value) not in self.known:
            self.known[id(value)] = ""
            digest = hashlib.blake2b(digest_size=16)
            inner = _Feeder(digest.update, self.known)
            if isinstance(value, type):
                inner._class(value)
            else:
                inner._function(value)
            self.known[id(value)] = digest.hexdigest()
        self._say(self.known[id(value)])

    def _function(self, function: types.FunctionType) -> None:
        self.feed(function.__code__)
        self.feed(function.__defaults__)
        self.feed(function.__kwdefaults__)
        self.feed([_content(cell) for cell in function.__closure__ or ()])
        if _is_own(function):
            self.feed(_named_by(function.__code__, function.__globals__))

    def _class(self, cls: type) -> None:
        if cls.__module__.partition(".")[0] == __package__:
            return
        if not _is_own(cls):
            methods = {name: f for name, f in vars(cls).items() if isinstance(f, types.FunctionType)}
            self.feed({name: f.__code__ for name, f in methods.items()})
            return
        # A user's own class may change between runs under the same name.
        self.feed([base for base in cls.__mro__[1:] if _is_own(base)])
        for name in sorted(vars(cls)):
            value = vars(cls)[name]
            if isinstance(value, property):
                value = (value.fget, value.fset)
            # What dataclasses write follows from the fields.
            written = isinstance(value, types.FunctionType) and value.__code__.co_filename != "<string>"
            if written or (not name.startswith("__") and _is_steady(value)):
                self._say(name)
                self.feed(value)


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


def _named_by(code: types.CodeType, scope: Mapping[str, Any]) -> dict[str, Any]:
    """What a function's code names in its module, and in modules of the user's own."""
    names, codes = set(), [code]
    while codes:
        code = codes.pop()
        names.update(code.co_names)
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    found = {name: scope[name] for name in names if name in scope}
    for module in [value for value in found.values() if isinstance(value, types.ModuleType)]:
        if _is_own(module):
            inside = vars(module)
            found |= {f"{module.__name__}.{name}": inside[name] for name in names if name in inside}
    return {name: value if _is_steady(value) else type(value) for name, value in found.items()}


def _is_steady(value: Any) -> bool:
    """Whether a value has content of its own, unlike a log, a lock or an open file."""
    wraps = dataclasses.is_dataclass(value) or hasattr(value, "__wrapped__")
    return is_array(value) or isinstance(value, _STEADY) or wraps


def _is_own(value: Any) -> bool:
    """Whether code is the user's: neither outeropt's nor of Python or an installed package."""
    if isinstance(value, types.ModuleType):
        return is_own_module(value.__name__)
    return is_own_module(getattr(value, "__module__", None) or "builtins")


@functools.cache
def is_own_module(name: str) -> bool:
    """Whether a module is the user's, by its name."""
    top = name.partition(".")[0]
    if top == __package__ or (top in sys.stdlib_module_names and top != "__main__"):
        return False
    path = getattr(sys.modules.get(name), "__file__", None) or ""
    return not {"site-packages", "dist-packages"} & set(pathlib.PurePath(path).parts)


def _attributes(value: Any) -> dict[str, Any]:
    slots = [name for cls in type(value).__mro__ for name in _as_tuple(vars(cls).get("__slots__", ()))]
    found = {name: getattr(value, name) for name in slots if hasattr(value, name)}
    return {**found, **getattr(value, "__dict__", {})}


def _as_tuple(names: Any) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)
