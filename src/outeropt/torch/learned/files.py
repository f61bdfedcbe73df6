"""Files of learned optimizers, read without JAX."""

import json
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import torch
from torch import Tensor

from outeropt.errors import ConfigError, OuteroptError
from outeropt.weight_files import located


class Learned(NamedTuple):
    """What a file holds.

    Attributes:
      architecture: the name of a class.
      settings: its plain settings by name; lists stand for tuples.
      weights: its meta-parameters by the path of their leaf, such as `"net.layers[0].weight"`.
      source: where they came from, for messages.
    """

    architecture: str
    settings: dict[str, Any]
    weights: dict[str, Tensor]
    source: str


def read(name: str | Path) -> Learned:
    """Weights that ship with the package, or those in a file.

    Args:
      name: a name of `names()`, a file that `outeropt.learned` saved, or a folder of `metatrain` or
        `amalgamate`.

    Raises:
      UnknownName: neither a name nor a file.
      OuteroptError: the file is damaged, or of no learned optimizer. Nothing in it is ever executed.
    """
    with located(name) as path:
        return _read(path)


def _read(path: Path) -> Learned:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        made = json.loads(header.get("metadata", "{}"))
        total = 0
        for name in sorted(arrays):
            total = zlib.crc32(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data, total)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise OuteroptError(f"{path} is truncated or damaged, or of another kind ({error}).") from error
    if "architecture" not in made:
        raise ConfigError(f"{path} holds no learned optimizer; give a file that outeropt.learned saved.")
    if header.get("checksum") != str(total):
        raise OuteroptError(f"{path} is damaged (its checksum differs); copy it again.")
    weights = {name.removeprefix("."): torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    return Learned(made["architecture"], made["settings"], weights, str(path))
