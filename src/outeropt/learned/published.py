"""Weights that other programs trained, from their files onto our architectures."""

import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Array

from outeropt.errors import ConfigError, unknown_name
from outeropt.learned.base import LearnedOptimizer
from outeropt.learned.published_formats import read_arrays


__all__ = ["load_published", "published_paths", "read_arrays"]

Architecture = TypeVar("Architecture", bound=LearnedOptimizer)

# Where learned_optimization keeps a learned optimizer's weights in its files: `checkpoint_N` with the state
# of meta-training, `params_N`, a dictionary of theta alone, and the tuples that its first versions wrote.
_ROOTS = ("gradient_learner_state/theta_opt_state/params", "params", "theta", "0")

# Sizes of the groups that the original cuts the first layer of VeLO's per-parameter networks into.
_VELO_GROUPS = (1, 1, 1, 3, 1, 3, 1, 3, 1, 3, 3, 3, 3, 3)


def load_published(
    path: str | Path | Sequence[str | Path],
    architecture: type[Architecture],
    *,
    also: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Architecture:
    """A learned optimizer with weights that another program trained.

    What is known to load, with the settings that such weights need; step sizes are never in the file:

    | weights | files | architecture |
    |---|---|---|
    | learned_optimization | `params_N`, `checkpoint_N` | each of its own, with the settings of the training |
    | Celo2, Celo2-base | `theta.state` | `Celo2`, `harness="orthogonal"` or `"none"` |
    | PyLO's small_fc, muLO, ELO | safetensors | `AdafacMLP`, `hidden_size=32`, and the decays by `also` |
    | PyLO's VeLO | both safetensors, of RNN and MLP | `HyperV2`, `lstm_hidden_size=512, param_inits=256` |
    | PyLO's CELO2 | safetensors | `Celo2` |
    | Optimizer Amalgamation | safetensors of its arrays | `RNNProp`, `warmup_steps=100` |

    The decays of the first PyLO row are in PyLO's code and not in its files. They are called
    `momentum_decays`, `rms_decays` and `adafactor_decays`: zeros for ELO; for muLO
    (0.15216392, 0.14245212, 0.06812963), (0.01079706,) and (0.18621896, -0.10864615, -0.06185547), with
    `step_mult=0.01`.

    Args:
      path: the file, or several that hold parts of one optimizer; see `read_arrays` for the formats.
      architecture: the class.
      also: arrays that the files do not hold, by their published path.
      **settings: of the architecture, by name.

    Raises:
      UnknownName: the architecture has no such setting.
      ConfigError: a file cannot be read, an array is missing, or its size is not that of the settings.
    """
    known = [name for name in inspect.signature(architecture.__init__).parameters if name != "self"]
    for name in settings:
        if name not in known:
            raise unknown_name(f"setting of {architecture.__name__}", name, known, ", ".join(known))
    paths = [path] if isinstance(path, str | Path) else list(path)
    arrays: dict[str, Any] = {}
    for one in paths:
        arrays |= published_paths(read_arrays(one))
    arrays |= {name: np.asarray(value, np.float32) for name, value in (also or {}).items()}
    try:
        return architecture(**settings).from_published(arrays)
    except ConfigError as error:
        where = " and ".join(str(one) for one in paths)
        raise ConfigError(
            f"{where} does not fit: {error} Arrays that the files do not hold can be given by `also`."
        ) from error


def published_paths(arrays: Mapping[str, np.ndarray]) -> dict[str, Array | np.ndarray]:
    """Arrays of a file, by the paths in which `from_published` looks for them.

    Drops what leads to the weights in a file of learned_optimization, and everything beside them. Adds to
    PyLO's arrays the names and layouts of the original code; torch keeps the weights of an affine map as
    `[outputs, inputs]`.
    """
    for root in _ROOTS:
        start = root + "/"
        below = {name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)}
        if below:
            return dict(below)
    return {
        **arrays,
        **_pylo_small_fc(arrays),
        **_pylo_celo2(arrays),
        **_pylo_velo_networks(arrays),
        **_pylo_velo_controller(arrays),
    }


def _pylo_small_fc(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """PyLO's MetaMLP: `network.input`, `network.linear_0`, ..., `network.output`."""
    if "network.input.weight" not in arrays:
        return {}
    between = _numbered(arrays, r"network\.linear_(\d+)\.weight")
    layers = ["network.input", *(f"network.linear_{i}" for i in between), "network.output"]
    found = {}
    for i, layer in enumerate(layers):
        found |= _affine(arrays, layer, f"nn/~/w{i}", f"nn/~/b{i}")
    return found


def _pylo_celo2(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """PyLO's CELO2MLP, in the original's layout: `w0.0`, ..., `b0`, `dense_w.0`, ..., `dense_b.0`, ..."""
    if "dense_w.0" not in arrays:
        return {}
    stack = "ff_mod_stack/~"
    renamed = {f"{stack}/w0__{i}": f"w0.{i}" for i in _numbered(arrays, r"w0\.(\d+)")}
    renamed[f"{stack}/b0"] = "b0"
    for i in _numbered(arrays, r"dense_w\.(\d+)"):
        renamed |= {f"{stack}/w{i + 1}": f"dense_w.{i}", f"{stack}/b{i + 1}": f"dense_b.{i}"}
    return {new: arrays[old] for new, old in renamed.items() if old in arrays}


def _pylo_velo_networks(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """PyLO's VeLOMLP: banks of networks end in `_`; without it is the mixture that was used last."""
    if "input_weights_" not in arrays:
        return {}
    stack = "ff_mod_stack/~"
    first = np.swapaxes(arrays["input_weights_"], -2, -1)
    parts = np.split(first, np.cumsum(_VELO_GROUPS)[:-1], axis=1)
    found = {f"{stack}/w0__{i}": part for i, part in enumerate(parts)}
    between = _numbered(arrays, r"hidden_weights_\.(\d+)")
    weights = [*(f"hidden_weights_.{i}" for i in between), "output_weights_"]
    biases = ["input_bias_", *(f"hidden_bias_.{i}" for i in between), "output_bias_"]
    found |= {
        f"{stack}/w{i + 1}": np.swapaxes(arrays[name], -2, -1)
        for i, name in enumerate(weights)
        if name in arrays
    }
    found |= {f"{stack}/b{i}": arrays[name] for i, name in enumerate(biases) if name in arrays}
    return found


def _pylo_velo_controller(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """PyLO's VeLORNN."""
    layers = {
        "mix_layer1": "linear",
        "mix_layer2": "linear_1",
        "final_mix_layer": "linear_2",
        "lstm.linear": "rnn/linear",
        "rnn_to_controls": "rnn_to_controls",
        "step_size": "step_size",
    }
    if "lstm.linear.weight" not in arrays:
        return {}
    found = {}
    for ours, theirs in layers.items():
        found |= _affine(arrays, ours, f"rnn_params/{theirs}/w", f"rnn_params/{theirs}/b")
    states = {"lstm_init_state.0": "hidden", "lstm_init_state.1": "cell"}
    found |= {f"lstm_init_state/{new}": arrays[old] for old, new in states.items() if old in arrays}
    return found


def _affine(arrays: Mapping[str, np.ndarray], layer: str, weight: str, bias: str) -> dict[str, np.ndarray]:
    """The arrays of a torch layer, as far as they are there, by other names and with the inputs first."""
    found = {}
    if f"{layer}.weight" in arrays:
        found[weight] = arrays[f"{layer}.weight"].T
    if f"{layer}.bias" in arrays:
        found[bias] = arrays[f"{layer}.bias"]
    return found


def _numbered(arrays: Mapping[str, np.ndarray], pattern: str) -> list[int]:
    """The numbers in names of one pattern, in order."""
    return sorted(int(match[1]) for name in arrays if (match := re.fullmatch(pattern, name)))
