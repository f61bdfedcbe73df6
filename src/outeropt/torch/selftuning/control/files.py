"""Controllers in files of `outeropt.selftuning`, read without JAX."""

import json
from pathlib import Path

import numpy as np
import safetensors
import torch
from torch import Tensor

from outeropt.errors import ConfigError, OuteroptError


FILE = "controller.safetensors"
"""What the file in a folder is called."""


def read(path: str | Path) -> dict[str, Tensor]:
    """The coefficients in a file, by the dotted name of their leaf; `""` for coefficients that are one array.

    Raises:
      OuteroptError: there is no such file, or it is damaged. Nothing in it is ever executed.
      ConfigError: it holds no coefficients of `MetaOpt`, or of several.
    """
    path = Path(path)
    file = path if path.suffix == ".safetensors" else path / FILE
    if not file.is_file():
        raise OuteroptError(f"There is no controller at {file}; outeropt train --out {path} writes one.")
    try:
        with safetensors.safe_open(file, framework="numpy") as opened:
            header = opened.metadata() or {}
            stored = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
        told = json.loads(header.get("metadata", "{}")).get("controller", {})
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise OuteroptError(f"{file} is truncated or damaged, or of another kind ({error}).") from error
    # A checkpoint calls the leaf of a dictionary ['name'].
    leaves = {name: stored[f"['{name}']"] for name in told if f"['{name}']" in stored}
    found: dict[str, dict[str, Tensor]] = {}
    for name, leaf in leaves.items():
        # Coefficients have an axis of ages, leaves of other optimizers have none.
        if leaf.ndim and "controller" not in name.split("."):
            before, here, after = f".{name}.".partition(".coefficients.")
            key = after.removesuffix(".") if here else name
            found.setdefault(before if here else "", {})[key] = torch.from_numpy(np.array(leaf))
    if len(found) != 1:
        raise ConfigError(f"{file} holds {len(found)} controllers of MetaOpt; a file of one is needed.")
    return found.popitem()[1]


def fitted(leaves: dict[str, Tensor], name: str, like: Tensor) -> Tensor:
    """Coefficients that came from anywhere, in the form of `like`, whose first axis is that of ages.

    Ages beyond the shorter memory are dropped or zero. A leaf is taken by name, else the mean of all; where
    shapes differ, its mean over everything but ages stands everywhere (on the diagonal, for matrices).
    """
    means = [leaf.reshape(leaf.shape[0], -1).mean(dim=1) for leaf in leaves.values()]
    leaf = leaves[name] if name in leaves else torch.stack(means).mean(dim=0)
    kept = like.new_zeros((like.shape[0], *leaf.shape[1:]))
    number = min(like.shape[0], leaf.shape[0])
    kept[:number] = leaf[:number].to(like)
    if kept.shape == like.shape:
        return kept
    flat = kept.reshape(kept.shape[0], -1).mean(dim=1).reshape(-1, *[1] * (like.dim() - 1))
    matrices = like.dim() == 3 and like.shape[1] == like.shape[2] and kept.dim() == 1
    return flat * torch.eye(like.shape[1]).to(like) if matrices else flat.expand(like.shape)
