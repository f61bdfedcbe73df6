"""A user's own data: arrays or `.npz` files as task data."""

import zipfile
import zlib
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from outeropt.data.arrays import ArrayData
from outeropt.errors import OuteroptError
from outeropt.task import SPLITS


def from_arrays(
    train: PyTree, valid: PyTree | None = None, test: PyTree | None = None, *, batch_size: int = 128
) -> ArrayData:
    """Task data from arrays in memory.

    A split that is not given takes a tenth of the rows of `train` (rounded down, at least one): rows are
    dealt by a fixed shuffle that depends on nothing but their number, so the same arrays give the same splits
    everywhere. With all three given, rows stay as they are.

    Args:
      train: an array or pytree of arrays with equal leading axes (rows), such as `{"x": x, "y": y}`.
      valid: the same structure, for validation.
      test: the same structure, for testing.
      batch_size: rows in a batch, drawn with replacement.

    Returns:
      Data whose batches have the structure of `train`: floats as float32, other integers than uint8 as int32,
      uint8 and bool as they are.

    Raises:
      OuteroptError: no arrays or no rows, unequal lengths, object or text arrays, integers beyond 32 bits,
        splits of different structure, shape or type, or a batch size below 1.

    Examples:
      >>> import numpy as np
      >>> from outeropt import data
      >>> rows = data.from_arrays({"x": np.ones((100, 4), np.float32), "y": np.arange(100)})
      >>> {split: len(rows.splits[split]["y"]) for split in ("train", "valid", "test")}
      {'train': 80, 'valid': 10, 'test': 10}
    """
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise OuteroptError(f"batch_size = {batch_size!r} is not a number of rows; give an integer from 1.")
    given = {name: rows for name, rows in zip(SPLITS, (train, valid, test)) if rows is not None}
    splits = {name: _check(name, rows) for name, rows in given.items()}
    for name in splits:
        _same_form(splits, name)
    splits = _complete(splits)
    with jax.ensure_compile_time_eval():
        return ArrayData({name: jax.tree.map(jnp.asarray, splits[name]) for name in SPLITS}, batch_size)


def from_npz(path: str | PathLike[str], *, batch_size: int = 128) -> ArrayData:
    """Task data from an `.npz` file.

    Arrays are named after the fields of a batch, either with the split after the last underscore (`x_train`,
    `y_train`, `x_test`, `y_test`, `x_valid`, ...) or without (`x`, `y`, all rows together). Splits that are
    missing are cut from the training rows as `from_arrays` does. Batches are dictionaries such as
    `{"x": ..., "y": ...}`. Files are never unpickled.

    Args:
      path: the file.
      batch_size: rows in a batch, drawn with replacement.

    Raises:
      OuteroptError: no such file, not an `.npz` file, object arrays, missing or unknown names, and whatever
        `from_arrays` raises.
    """
    path = Path(path)
    splits: dict[str, dict[str, np.ndarray]] = {}
    for key, array in _read(path).items():
        field, _, split = key.rpartition("_")
        if not field or split not in SPLITS:
            field, split = key, ""
        splits.setdefault(split, {})[field] = array
    if "" in splits and len(splits) > 1:
        raise OuteroptError(
            f"{path} has arrays with a split in their name and others without ({', '.join(splits[''])}); "
            "name all of them like x_train, y_train, x_test, or all of them like x, y."
        )
    train = splits.get("train") or splits.get("")
    if not train:
        raise OuteroptError(
            f"{path} has no training arrays; name them x_train, y_train (and x_valid, x_test, ...), or x, y."
        )
    for name in ("valid", "test"):
        if name in splits and splits[name].keys() != train.keys():
            odd = sorted(splits[name].keys() ^ train.keys())
            missing = [f"{field}_{'train' if field in splits[name] else name}" for field in odd]
            raise OuteroptError(
                f"{path} has no array {' or '.join(missing)}; each split needs the same fields."
            )
    try:
        return from_arrays(train, splits.get("valid"), splits.get("test"), batch_size=batch_size)
    except OuteroptError as error:
        raise OuteroptError(f"{path}: {error}") from None


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        stream = path.open("rb")
    except OSError as error:
        raise OuteroptError(
            f"{path} cannot be opened ({error.strerror}); give the path of an .npz file."
        ) from None
    with stream:
        try:
            archive = np.load(stream, allow_pickle=False)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            raise OuteroptError(f"{path} is not an intact .npz file; write it with numpy.savez.") from None
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise OuteroptError(f"{path} is a single array; save x and y together with numpy.savez.")
        with archive:
            return {key: _read_array(path, archive, key) for key in archive.files}


def _read_array(path: Path, archive: np.lib.npyio.NpzFile, key: str) -> np.ndarray:
    try:
        return archive[key]
    except ValueError:
        raise OuteroptError(
            f"{path}: array {key!r} holds Python objects, which could run code; save plain numbers."
        ) from None
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise OuteroptError(f"{path}: array {key!r} is damaged ({error}).") from None


def _check(split: str, rows: PyTree) -> PyTree:
    """The rows as arrays of the types that tasks use; raises when they are not rows."""
    named = jax.tree_util.tree_leaves_with_path(rows)
    if not named:
        raise OuteroptError(f"{split} holds no arrays; give an array or a dictionary of arrays.")
    arrays = [_plain(split + jax.tree_util.keystr(path), leaf) for path, leaf in named]
    lengths = {split + jax.tree_util.keystr(path): len(array) for (path, _), array in zip(named, arrays)}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise OuteroptError(f"Arrays of one split need equally many rows; given: {listed}.")
    if len(arrays[0]) == 0:
        raise OuteroptError(f"{split} has no rows; give at least one.")
    return jax.tree.unflatten(jax.tree.structure(rows), arrays)


def _plain(name: str, leaf: Any) -> np.ndarray:
    array = np.asarray(leaf)
    if array.ndim == 0:
        raise OuteroptError(f"{name} is a single value; give an array with rows along its first axis.")
    if array.dtype in (np.uint8, np.bool_):
        return array
    if jnp.issubdtype(array.dtype, jnp.floating):
        return array.astype(np.float32)
    if np.issubdtype(array.dtype, np.integer):
        if array.size and (array.max() > np.iinfo(np.int32).max or array.min() < np.iinfo(np.int32).min):
            raise OuteroptError(f"{name} holds integers beyond 32 bits; give values that fit into int32.")
        return array.astype(np.int32)
    raise OuteroptError(f"{name} has type {array.dtype}; give numbers (floats, integers or booleans).")


def _same_form(splits: dict[str, PyTree], name: str) -> None:
    def form(rows: PyTree) -> tuple[Any, list]:
        leaves, structure = jax.tree.flatten(rows)
        return structure, [(leaf.shape[1:], str(leaf.dtype)) for leaf in leaves]

    (structure, rows), (other, other_rows) = form(splits["train"]), form(splits[name])
    if structure != other:
        raise OuteroptError(f"{name} is structured {other}, train {structure}; give both the same structure.")
    if rows != other_rows:
        raise OuteroptError(
            f"A row of {name} is {other_rows}, of train {rows}; give both the same shapes and types."
        )


def _complete(splits: dict[str, PyTree]) -> dict[str, PyTree]:
    missing = [name for name in ("valid", "test") if name not in splits]
    if not missing:
        return splits
    train = splits["train"]
    count = len(jax.tree.leaves(train)[0])
    share = max(1, count // 10)
    if count <= share * len(missing):
        raise OuteroptError(
            f"{count} rows are too few to cut {' and '.join(missing)} from; "
            f"give at least {len(missing) + 1} rows, or the splits themselves."
        )
    # NumPy's legacy generator has a frozen stream, so this order never changes.
    order = np.random.RandomState(0).permutation(count)
    rest = count - share * len(missing)
    parts = [order[:rest], *np.split(order[rest:], len(missing))]
    cut = {
        name: jax.tree.map(lambda leaf, rows=rows: leaf[rows], train)
        for name, rows in zip(("train", *missing), parts)
    }
    return {**splits, **cut}
