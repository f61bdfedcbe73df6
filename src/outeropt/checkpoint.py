"""Any pytree of arrays to one file and exactly back, atomically.

The file is safetensors: arrays by the name of their leaf, and JSON about the rest. It is written beside its
place, flushed to the disk and then renamed, so a crash at any moment leaves the old file or the new one.
"""

import contextlib
import json
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import PyTree

from outeropt.errors import OuteroptError


VERSION = 1

# What a safetensors reader of numpy arrays understands; other dtypes (bfloat16, float8, complex) go as bytes.
_PLAIN = {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
_PLAIN |= {"bool", "float16", "float32", "float64"}
_NUMBERED = re.compile(r"(\d+)\.safetensors")


def save(path: str | Path, tree: PyTree, metadata: Mapping[str, Any] | None = None) -> None:
    """Writes a pytree to one file, replacing an older file at once.

    JAX arrays, numpy arrays and PRNG keys are stored with dtype and shape. All other leaves (Python numbers,
    text, functions) are taken to be part of the program: `load` finds them in `like`, and for numbers and
    text it checks that they are the same. Put a counter that must come back into an array.

    Args:
      path: the file; its folder is created if it does not exist.
      tree: any pytree.
      metadata: JSON values to keep beside it, which `metadata` reads back.

    Raises:
      OuteroptError: the file cannot be written (a full disk, no access), an array holds no numbers, or
        `metadata` is not JSON.

    Examples:
      >>> import jax.numpy as jnp
      >>> from outeropt import checkpoint
      >>> checkpoint.save("run/state.safetensors", {"w": jnp.arange(3), "step": jnp.int32(7)})
      >>> like = {"w": jnp.zeros(3, jnp.int32), "step": jnp.int32(0)}
      >>> found = checkpoint.load("run/state.safetensors", like)
      >>> found["w"].tolist(), int(found["step"])
      ([0, 1, 2], 7)
    """
    path = Path(path)
    tensors: dict[str, np.ndarray] = {}
    leaves: dict[str, dict[str, Any]] = {}
    for name, leaf in _named(tree):
        if not _is_array(leaf):
            leaves[name] = {"static": leaf if _comparable(leaf) else None}
            continue
        about = {}
        if _is_key(leaf):
            about["key"] = str(jax.random.key_impl(leaf))
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        if array.dtype.kind in "OSUMm":
            raise OuteroptError(f"Leaf {name} has dtype {array.dtype}; checkpoints hold arrays of numbers.")
        about |= {"dtype": array.dtype.name, "shape": list(array.shape)}
        plain = array.astype(array.dtype.newbyteorder("="), order="C", copy=False)
        tensors[name] = plain if array.dtype.name in _PLAIN else plain.reshape(-1).view(np.uint8)
        leaves[name] = about
    header = {
        "format": "outeropt checkpoint",
        "version": str(VERSION),
        "leaves": json.dumps(leaves),
        "checksum": str(_checksum(tensors)),
        "metadata": _json(metadata or {}),
    }
    # Two processes may save the same checkpoint at once: each writes a file of its own.
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    _clear(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        safetensors.numpy.save_file(tensors, partial, metadata=header)
        _flush(partial)
        os.replace(partial, path)
        _flush(path.parent)
    except (OSError, safetensors.SafetensorError) as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise OuteroptError(
            f"Checkpoint {path} cannot be written ({error}); the one before it is untouched. "
            "Free some space or give another folder."
        ) from error


def load(path: str | Path, like: PyTree) -> PyTree:
    """Reads a pytree back, bit for bit.

    Args:
      path: a file that `save` wrote.
      like: a pytree of the same structure, shapes and dtypes; its arrays may be `jax.ShapeDtypeStruct`s, as
        `jax.eval_shape` gives them. Leaves that are numpy arrays come back as numpy arrays, others as JAX
        arrays, with the sharding of a committed `like`.

    Raises:
      OuteroptError: there is no such file, it is damaged, or it does not fit `like`; the message names the
        first leaf that differs.
    """
    path = Path(path)
    header, tensors = _read(path)
    stored = json.loads(header["leaves"])
    wanted = _named(like)
    _same_names(path, stored, [name for name, _ in wanted])
    leaves = [_restore(path, name, leaf, stored[name], tensors.get(name)) for name, leaf in wanted]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def metadata(path: str | Path) -> dict[str, Any]:
    """The metadata given to `save`.

    Raises:
      OuteroptError: there is no such file, or it is damaged.
    """
    return json.loads(_read(Path(path))[0]["metadata"])


def replace(path: str | Path, data: bytes) -> None:
    """Writes a file in place of an older one at once; its folder is created if it does not exist.

    Raises:
      OuteroptError: it cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(data)
        _flush(partial)
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise OuteroptError(
            f"{path} cannot be written: {error.strerror or error}. Free some space or give another folder."
        ) from error


def numbered(folder: str | Path, step: int) -> Path:
    """The path of the checkpoint of one step, as `latest` and `rotate` expect it."""
    return Path(folder) / f"{step:010d}.safetensors"


def latest(folder: str | Path) -> Path | None:
    """The checkpoint of the highest step in a folder; None if there is none."""
    found = _checkpoints(Path(folder))
    return found[-1] if found else None


def rotate(folder: str | Path, keep: int) -> None:
    """Deletes all numbered checkpoints in a folder but the `keep` (at least 1) of the highest steps."""
    if keep < 1:
        raise OuteroptError(f"At least one checkpoint must be kept, not {keep}.")
    for path in _checkpoints(Path(folder))[:-keep]:
        path.unlink(missing_ok=True)


def _checkpoints(folder: Path) -> list[Path]:
    found = [(int(match[1]), path) for path in folder.glob("*") if (match := _NUMBERED.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def _named(tree: PyTree) -> list[tuple[str, Any]]:
    found = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path) or "tree", leaf) for path, leaf in found]


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _comparable(leaf: Any) -> bool:
    return isinstance(leaf, bool | int | float | str)


def _json(metadata: Mapping[str, Any]) -> str:
    try:
        return json.dumps(metadata)
    except (TypeError, ValueError) as error:
        raise OuteroptError(f"Metadata of a checkpoint must be JSON values: {error}.") from None


def _checksum(tensors: Mapping[str, np.ndarray]) -> int:
    total = 0
    for name in sorted(tensors):
        total = zlib.crc32(tensors[name].reshape(-1).view(np.uint8).data, total)
    return total


def _clear(path: Path) -> None:
    """Removes what processes that were killed while saving to `path` have left."""
    for left in path.parent.glob(f"{path.name}.*.partial"):
        try:
            os.kill(int(left.name.split(".")[-2]), 0)
        except (ValueError, ProcessLookupError):
            left.unlink(missing_ok=True)
        except PermissionError:
            continue  # somebody else's process, alive


def _flush(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    if not path.is_file():
        raise OuteroptError(f"There is no checkpoint at {path}.")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise OuteroptError(
            f"Checkpoint {path} is truncated or damaged, or a file of another kind ({error}); "
            "delete it to go on from an older one, or give another file."
        ) from error
    if header.get("format") != "outeropt checkpoint":
        raise OuteroptError(f"{path} is a safetensors file of another program, not a checkpoint.")
    if int(header["version"]) > VERSION:
        raise OuteroptError(f"Checkpoint {path} was written by a newer outeropt; upgrade outeropt.")
    if int(header["checksum"]) != _checksum(tensors):
        raise OuteroptError(
            f"Checkpoint {path} is damaged (its checksum differs); delete it and resume from an older one."
        )
    return header, tensors


def _same_names(path: Path, stored: Mapping[str, Any], wanted: list[str]) -> None:
    for name in wanted:
        if name not in stored:
            raise OuteroptError(
                f"Checkpoint {path} has no leaf {name}, which this program needs; "
                "it was saved by another program or version."
            )
    for name in stored:
        if name not in wanted:
            raise OuteroptError(
                f"Checkpoint {path} holds a leaf {name}, which this program does not have; "
                "it was saved by another program or version."
            )


def _restore(path: Path, name: str, like: Any, about: dict[str, Any], tensor: np.ndarray | None) -> Any:
    """One leaf, checked against its place in `like`."""
    if not _is_array(like):
        if tensor is not None:
            raise OuteroptError(f"Leaf {name} of checkpoint {path} is an array; here it is {like!r}.")
        if _comparable(like) and json.dumps(about["static"]) != json.dumps(like):
            raise OuteroptError(
                f"Leaf {name} of checkpoint {path} is the plain {about['static']!r}, and {like!r} here; "
                "plain values are part of the program and must be equal."
            )
        return like
    if tensor is None:
        raise OuteroptError(f"Leaf {name} of checkpoint {path} is no array; here it is {_kind(like)}.")
    array = tensor.view(jnp.dtype(about["dtype"])).reshape(about["shape"])
    value = jax.random.wrap_key_data(jnp.asarray(array), impl=about["key"]) if "key" in about else array
    if value.shape != like.shape or value.dtype != like.dtype:
        raise OuteroptError(f"Leaf {name} of checkpoint {path} is {_kind(value)}; here it is {_kind(like)}.")
    if isinstance(like, np.ndarray | np.generic):
        return array[()] if isinstance(like, np.generic) else array
    if isinstance(like, jax.Array) and like.committed:
        return jax.device_put(value, like.sharding)
    return jnp.asarray(value)


def _kind(array: Any) -> str:
    return f"{array.dtype}{list(array.shape)}"
