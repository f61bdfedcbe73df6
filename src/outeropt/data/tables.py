"""Regression tables: normalised columns on the device."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from outeropt.data import registry
from outeropt.data.formats import read_npz
from outeropt.data.locate import locate
from outeropt.errors import OuteroptError


GAL_SPLITS = 20


def table(name: str, split: int | None = None) -> dict[str, dict[str, Array]]:
    """A UCI regression table, split into train, valid and test, and normalised.

    Columns and targets have the mean of train and valid together taken off and are divided by their standard
    deviation (divisor N - 1; a zero deviation counts as 1), as in Clarke, Oldewage and Hernández-Lobato,
    "Scalable One-Pass Optimisation of High-Dimensional Weight-Update Hyperparameters by Implicit
    Differentiation", ICLR 2022.

    Args:
      name: `"uci_boston"`, `"uci_concrete"`, `"uci_energy"`, `"uci_kin8nm"`, `"uci_naval"`, `"uci_power"`,
        `"uci_wine"` or `"uci_yacht"`.
      split: None for the one split of that paper; 0 to 19 for one of the twenty splits of Gal and Ghahramani,
        "Dropout as a Bayesian Approximation", ICML 2016 (90 % train and 10 % test, the last fifth of the
        training rows being validation).

    Returns:
      For each split `"x"` (N, features) float32 and `"y"` (N, 1) float32, shared by all callers.

    Raises:
      UnknownName: no dataset has this name.
      OuteroptError: the dataset is not a table, or `split` is out of range.
      MissingData: a file is neither on this machine nor to be had.
      CorruptData: a file fails its checksum.
    """
    registry.get(name, "table")
    if split is not None and not 0 <= split < GAL_SPLITS:
        raise OuteroptError(f"split = {split} does not exist; give None or 0 to {GAL_SPLITS - 1}.")
    with jax.ensure_compile_time_eval():
        return {part: dict(columns) for part, columns in _table(name, split).items()}


def target_deviation(name: str, split: int | None = None) -> float:
    """By what a table's target was divided: the standard deviation of train and valid together (N - 1).

    A mean squared error times its square is in the target's own units.

    Args:
      name: as in `table`.
      split: as in `table`.

    Raises:
      As `table`.
    """
    table(name, split)  # checks the arguments
    _, y, order = _columns(name)
    train, valid, _ = _rows(name, len(y), order, split)
    return float(_deviation(y[np.concatenate([train, valid])])[0])


def gal_split(rows: int, split: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row numbers of train, valid and test in one of the twenty splits of Gal and Ghahramani (2016).

    Their splits are twenty successive permutations of NumPy's legacy generator with seed 1, whose stream is
    frozen, so they need no file.
    """
    generator = np.random.RandomState(1)
    for _ in range(split + 1):
        order = generator.permutation(rows)
    end = round(rows * 0.9)
    return order[: int(0.8 * end)], order[int(0.8 * end) : end], order[end:]


@functools.lru_cache(maxsize=32)
def _table(name: str, split: int | None) -> dict[str, dict[str, Array]]:
    x, y, order = _columns(name)
    train, valid, test = _rows(name, len(x), order, split)
    seen = np.concatenate([train, valid])
    x, y = _normalise(x, seen), _normalise(y, seen)
    return {
        part: {"x": jnp.asarray(x[rows]), "y": jnp.asarray(y[rows])}
        for part, rows in (("train", train), ("valid", valid), ("test", test))
    }


def _rows(name: str, rows: int, order: np.ndarray, split: int | None) -> Sequence[np.ndarray]:
    """Row numbers of train, valid and test."""
    if split is not None:
        return gal_split(rows, split)
    sizes = registry.get(name).splits
    return np.split(order, np.cumsum([sizes["train"], sizes["valid"]]))


def _normalise(columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
    mean = columns[rows].mean(axis=0)
    return ((columns - mean[None]) / _deviation(columns[rows])[None]).astype(np.float32)


def _deviation(columns: np.ndarray) -> np.ndarray:
    # A constant column's deviation comes out as rounding noise, not always as zero.
    return np.where(np.ptp(columns, axis=0) == 0, 1.0, columns.std(axis=0, ddof=1))


def _columns(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs, targets and the order of rows before they are cut into splits."""
    dataset = registry.get(name)
    found = locate(dataset)
    if found.layout == "prepared":
        arrays = read_npz(found.paths[0])
        return arrays["x"], arrays["y"], arrays["permutation"]
    # Further columns, which naval has, are other targets.
    rows = np.loadtxt(found.paths[0])
    features = dataset.shape[0]
    order = np.loadtxt(found.paths[1], dtype=np.int64)
    return rows[:, :features], rows[:, features : features + 1], order
