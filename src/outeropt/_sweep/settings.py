"""Many optimizers of one structure as one stacked pytree."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from outeropt import tree
from outeropt.errors import ConfigError
from outeropt.optimizer import Optimizer, resolve


class Settings(eqx.Module):
    """Optimizers of one structure, stacked along a new leading axis of every leaf.

    Attributes:
      stacked: the optimizer whose array leaves carry the leading setting axis.
      count: how many settings (an optimizer without leaves does not tell).
    """

    stacked: Optimizer
    count: int = eqx.field(static=True)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Optimizer:
        return _take(self.stacked, index)

    def select(self, indices: Sequence[int]) -> "Settings":
        """The settings at `indices`, in that order."""
        return Settings(_take(self.stacked, np.asarray(indices)), len(indices))

    def describe(self) -> tuple[dict[str, float], ...]:
        """Scalar hyperparameters by name, one dictionary per setting."""
        columns = {
            name: np.asarray(leaf)
            for name, leaf in self.stacked.hyperparameters.items()
            if leaf.ndim == 1 and jnp.issubdtype(leaf.dtype, jnp.number)
        }
        return tuple(
            {name: _shortest(column[i]) for name, column in columns.items()} for i in range(len(self))
        )


def _take(stacked: Optimizer, index: Any) -> Optimizer:
    arrays, static = eqx.partition(stacked, eqx.is_array)
    return eqx.combine(tree.take(arrays, index), static)


def _shortest(value: np.generic) -> float:
    """The shortest decimal that reads back as this float32: 0.003, not 0.003000000026077032."""
    return float(str(value))


def stack(optimizers: Sequence[Optimizer]) -> Settings:
    """Stacks optimizers of equal structure."""
    arrays, static = zip(*(eqx.partition(optimizer, eqx.is_array) for optimizer in optimizers))
    return Settings(eqx.combine(tree.stack(arrays), static[0]), len(optimizers))


Values = int | Iterable[float]


def grid(optimizer: Optimizer, values: Mapping[str, Values] | None = None, /, **keywords: Values) -> Settings:
    """Every combination of the given hyperparameter values.

    Args:
      optimizer: gives all other leaves.
      values: by hyperparameter name an iterable of values, or a count: that many points of its space.
      **keywords: the same by keyword.

    Returns:
      Settings in the order of nested loops, the last name fastest.

    Raises:
      UnknownName: no such hyperparameter.
      OutOfSpace: a value outside its space.
      ConfigError: an empty list, or a count for a hyperparameter without a space.

    Examples:
      >>> import outeropt
      >>> momentum = outeropt.optimizers.get("momentum")
      >>> settings = outeropt.grid(momentum, learning_rate=[0.01, 0.1], momentum=[0.9])
      >>> settings.describe()
      ({'learning_rate': 0.01, 'momentum': 0.9}, {'learning_rate': 0.1, 'momentum': 0.9})
      >>> type(settings[1]) is type(momentum)
      True
    """
    lists = {name: _values(optimizer, name, value) for name, value in {**(values or {}), **keywords}.items()}
    combinations = list(itertools.product(*lists.values()))
    return _varied(optimizer, dict(zip(lists, zip(*combinations))), len(combinations))


def _values(optimizer: Optimizer, name: str, value: Values) -> tuple[float, ...]:
    if isinstance(value, int):
        full = resolve(name, optimizer.hyperparameters)
        if full not in optimizer.spaces:
            raise ConfigError(f"{name} has no space to take {value} points from; give the values themselves.")
        return tuple(optimizer.spaces[full].grid(value))
    points = tuple(value)
    if not points:
        raise ConfigError(f"The grid of {name} is empty; give at least one value.")
    return points


def sample(
    optimizer: Optimizer, count: int, key: PRNGKeyArray, names: Sequence[str] | None = None
) -> Settings:
    """Random settings, each hyperparameter drawn independently from its space.

    Args:
      optimizer: gives all other leaves.
      count: how many settings.
      key: seeds the draws.
      names: hyperparameters to draw; None draws every one that has a space.

    Raises:
      UnknownName: no such hyperparameter.
      ConfigError: a count below 1, no names, or a hyperparameter without a space.

    Examples:
      >>> import jax, outeropt
      >>> lion = outeropt.optimizers.get("lion")
      >>> settings = outeropt.sample(lion, 3, jax.random.key(0), ["learning_rate"])
      >>> len(settings), all(1e-7 <= setting["learning_rate"] <= 10 for setting in settings.describe())
      (3, True)
    """
    if count < 1:
        raise ConfigError(f"A sample of {count} settings is empty; draw at least 1.")
    spaces = optimizer.spaces
    full = list(spaces) if names is None else [resolve(name, optimizer.hyperparameters) for name in names]
    missing = [name for name in full if name not in spaces]
    if missing or not full:
        raise ConfigError(f"No space to draw {', '.join(missing) or 'anything'} from; give values by `grid`.")
    keys = jax.random.split(key, len(full))
    draws = {name: np.asarray(spaces[name].sample(k, count)) for name, k in zip(full, keys)}
    return _varied(optimizer, draws, count)


def _varied(optimizer: Optimizer, columns: Mapping[str, Any], count: int) -> Settings:
    """Settings that differ in some leaves; ten thousand of them are never ten thousand optimizers."""
    arrays, static = eqx.partition(optimizer, eqx.is_array)
    alike = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), arrays)
    return Settings(eqx.combine(alike, static).replace(columns), count)


def groups(
    optimizers: Optimizer | Settings | Sequence[Optimizer | Settings],
) -> list[tuple[list[int], Settings]]:
    """Splits what a sweep was given into groups of equal structure, each with its places in the whole.

    Returns:
      Pairs of positions (in the order given) and the stacked settings at these positions.
    """
    if isinstance(optimizers, Settings):
        return [(list(range(len(optimizers))), optimizers)]
    given = [optimizers] if isinstance(optimizers, Optimizer) else optimizers
    singles: list[Optimizer] = []
    for item in given:
        singles += [item[i] for i in range(len(item))] if isinstance(item, Settings) else [item]
    if not singles:
        raise ConfigError("Nothing to sweep: the list of optimizers is empty.")
    by_structure: dict[Any, list[int]] = {}
    for position, optimizer in enumerate(singles):
        arrays, static = eqx.partition(optimizer, eqx.is_array)
        shapes = tuple((leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(arrays))
        key = (shapes, jax.tree.structure(arrays), tree.fingerprint(static))
        by_structure.setdefault(key, []).append(position)
    return [(where, stack([singles[i] for i in where])) for where in by_structure.values()]
