"""Arrays from files of other programs: flax's msgpack, safetensors and npz. Nothing in a file is executed."""

import io
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors

from outeropt.errors import ConfigError, first_line


# Extension types of flax's msgpack.
_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3
_CHUNKED = "__msgpack_chunked_array__"

_SAFETENSORS_TYPES = {
    **{"BOOL": "bool", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64"},
    **{"U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64"},
    **{"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"},
}


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a published checkpoint by their path in it, such as `"params/nn/~/w0"`.

    Reads flax's msgpack (`params_0`, `theta.state`; needs the small package msgpack, and not flax),
    safetensors, and `.npz` without pickles; the content shows which it is. Keys of nested dictionaries are
    joined by `/`. Plain numbers count as arrays without axes; everything else is left out.

    Args:
      path: the file.

    Raises:
      ConfigError: there is no such file, it is damaged or in another format, msgpack is needed and not
        installed, or the file is a pickle: opening one runs whatever its author wrote into it.
    """
    path = Path(path)
    if not path.exists():
        raise ConfigError(f"There is no file {path}.")
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; give a file in it, such as params_0 or model.safetensors.")
    data = path.read_bytes()
    why = "it begins like none of them"
    for belongs, read in _FORMATS:
        if belongs(data):
            try:
                return read(path, data)
            except _DAMAGE as error:
                why = first_line(error)
                break
    raise ConfigError(
        f"{path} is truncated or damaged, or in another format than flax's msgpack, safetensors and .npz "
        f"({why})."
    )


# What the readers raise when the content is not what its beginning promised.
_DAMAGE = (
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    safetensors.SafetensorError,
)


def _is_safetensors(data: bytes) -> bool:
    return data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data) - 8


def _read_safetensors(path: Path, data: bytes) -> dict[str, np.ndarray]:
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    if header.get("__metadata__", {}).get("format") == "outeropt checkpoint":
        raise ConfigError(f"{path} is a file of outeropt's own; read it with outeropt.learned.load.")
    arrays = {}
    for name, tensor in safetensors.deserialize(data):
        if tensor["dtype"] not in _SAFETENSORS_TYPES:
            raise ConfigError(f"Array {name!r} of {path} has type {tensor['dtype']}, which is not supported.")
        dtype = jnp.dtype(_SAFETENSORS_TYPES[tensor["dtype"]])
        arrays[name] = np.frombuffer(tensor["data"], dtype).reshape(tensor["shape"])
    return arrays


def _is_pickle(data: bytes) -> bool:
    # An empty msgpack dictionary is the same byte alone.
    return data[:1] == b"\x80" and data[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")


def _refuse_pickle(path: Path, data: bytes) -> dict[str, np.ndarray]:
    del data
    raise ConfigError(
        f"{path} is a pickle (as Python and torch.save write), which can run any program when it is opened, "
        "and is not read. Convert it where it was made: numpy.savez('weights.npz', **arrays), or safetensors."
    )


def _is_zip(data: bytes) -> bool:
    return data[:4] == b"PK\x03\x04"


def _read_npz(path: Path, data: bytes) -> dict[str, np.ndarray]:
    names = zipfile.ZipFile(io.BytesIO(data)).namelist()
    if any(name.endswith(".pkl") for name in names):
        return _refuse_pickle(path, data)
    if not all(name.endswith(".npy") for name in names):
        raise ConfigError(f"{path} is a zip file, but no .npz of numpy: it holds {names[0]}.")
    arrays = {}
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        for name in file.files:
            try:
                array = file[name]
            except ValueError as error:
                if "allow_pickle" in str(error):
                    return _refuse_pickle(path, data)
                raise
            if array.dtype.kind in "biufc":
                arrays[name] = array
    return arrays


def _is_msgpack(data: bytes) -> bool:
    """Whether the first byte begins a dictionary."""
    return len(data) > 0 and (0x80 <= data[0] <= 0x8F or data[0] in (0xDE, 0xDF))


def _read_msgpack(path: Path, data: bytes) -> dict[str, np.ndarray]:
    try:
        import msgpack
    except ImportError:
        raise ConfigError(f"{path} is in flax's msgpack format; to read it: pip install msgpack.") from None

    def array(data: bytes) -> np.ndarray:
        shape, dtype, buffer = msgpack.unpackb(data, raw=True)
        return np.frombuffer(buffer, jnp.dtype(dtype.decode())).reshape(shape)

    def extension(code: int, data: bytes) -> Any:
        if code in (_ARRAY, _SCALAR):
            return array(data)
        if code == _COMPLEX:
            return complex(*msgpack.unpackb(data))
        raise ValueError(f"extension type {code} is not one of flax's")

    try:
        content = msgpack.unpackb(data, ext_hook=extension, raw=False, strict_map_key=False)
    except msgpack.UnpackException as error:
        raise ValueError(first_line(error)) from error
    return dict(_leaves(content, ""))


def _leaves(node: Any, path: str) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays and numbers in nested dictionaries and lists, by path."""
    if isinstance(node, dict) and _CHUNKED in node:
        yield path, np.concatenate(_in_order(node["chunks"])).reshape(_in_order(node["shape"]))
    elif isinstance(node, dict):
        if set(node) == {"name", "fields", "values"}:  # a named tuple, as old versions of flax wrote it
            node = dict(zip(_in_order(node["fields"]), _in_order(node["values"])))
        for key, value in node.items():
            yield from _leaves(value, f"{path}/{key}" if path else str(key))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from _leaves(value, f"{path}/{i}" if path else str(i))
    elif isinstance(node, np.ndarray):
        yield path, node
    elif isinstance(node, bool | int | float | complex):
        yield path, np.asarray(node)


def _in_order(numbered: dict[str, Any]) -> list[Any]:
    """What flax writes for a tuple: a dictionary with keys "0", "1", ..."""
    return [numbered[str(i)] for i in range(len(numbered))]


_Reader = Callable[[Path, bytes], dict[str, np.ndarray]]
_FORMATS: tuple[tuple[Callable[[bytes], bool], _Reader], ...] = (
    # First, for its beginning is a number, which may look like anything.
    (_is_safetensors, _read_safetensors),
    (_is_pickle, _refuse_pickle),
    (_is_zip, _read_npz),
    (_is_msgpack, _read_msgpack),
)
