"""AlgoPerf's names of hyperparameters, and the leaves of an optimizer that they stand for."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, Literal

from outeropt.errors import ConfigError, UnknownName
from outeropt.optimizer import Optimizer, resolve


LOSS_NAMES = ("label_smoothing", "dropout_rate", "grad_clip")
"""Hyperparameters that belong to the loss and its gradient, not to an optimizer."""

# The usual spellings in AlgoPerf's search spaces, and the leaves that mean the same.
_SPELLINGS = {
    "beta1": ("b1", "betas.0", "momentum", "beta"),
    "beta2": ("b2", "betas.1"),
    "beta3": ("b3", "betas.2"),
    "epsilon": ("eps",),
    "warmup_factor": ("warmup_fraction",),
    "end_factor": ("end_fraction",),
}
COMPLEMENT = "one_minus_"
# Names become fields of a namedtuple there, which cannot hold a dot.
_DOT = "__"


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a value with one of AlgoPerf's names goes.

    Attributes:
      leaf: full name of the optimizer's leaf.
      kind: the leaf is the value itself (`same`), 1 minus the value (`complement`), or the value's share of
        the run, in steps (`steps`).
    """

    leaf: str
    kind: Literal["same", "complement", "steps"] = "same"

    def to_leaf(self, value: float, num_steps: int | None) -> float:
        """The leaf's value for a value under AlgoPerf's name."""
        if self.kind == "complement":
            return 1.0 - value
        if self.kind == "steps":
            if num_steps is None:
                raise ConfigError(
                    f"{self.leaf} counts steps, and AlgoPerf's name a share of the run; give num_steps."
                )
            return value * num_steps
        return value


def find(name: str, leaves: Collection[str]) -> Place:
    """The place of the value that AlgoPerf calls `name`, among an optimizer's leaves.

    A leaf's own name wins, whole or its unique ending, with `__` for a dot; then the usual spellings:
    `beta1`, `beta2`, `epsilon`, `warmup_factor`, `end_factor`, and `one_minus_` in front of any name.

    Raises:
      UnknownName: no leaf, or more than one, can be meant.
    """
    own = name.replace(_DOT, ".")
    if _has(own, leaves):
        return Place(resolve(own, leaves))
    for spelled in _SPELLINGS.get(name, ()):
        if _has(spelled, leaves):
            return Place(resolve(spelled, leaves))
    if name == "warmup_factor" and _has("warmup_steps", leaves):
        return Place(resolve("warmup_steps", leaves), "steps")
    if name.startswith(COMPLEMENT):
        inside = find(name.removeprefix(COMPLEMENT), leaves)
        if inside.kind == "same":
            return Place(inside.leaf, "complement")
    if name == "warmup_factor":
        raise UnknownName(
            "Hyperparameter 'warmup_factor' needs an optimizer with a warm-up; "
            "put a schedule in front of its name, as in cosine:adamw."
        )
    try:
        return Place(resolve(own, leaves))
    except UnknownName as error:
        raise UnknownName(
            f"{error} In AlgoPerf's files write __ for a dot; the loss has {', '.join(LOSS_NAMES)}."
        ) from None


def name_of(leaf: str, leaves: Collection[str]) -> str:
    """AlgoPerf's name of a leaf: its usual spelling, or its shortest unique ending."""
    for name, spelled in _SPELLINGS.items():
        if any(leaf == ending or leaf.endswith("." + ending) for ending in spelled) and _means(
            name, leaf, leaves
        ):
            return name
    parts = leaf.split(".")
    endings = (".".join(parts[start:]) for start in reversed(range(len(parts))))
    name = next(ending for ending in endings if _has(ending, leaves) and resolve(ending, leaves) == leaf)
    return name.replace(".", _DOT)


def fill(optimizer: Optimizer, hyperparameters: Any, num_steps: int | None = None) -> Optimizer:
    """The optimizer with the values of one trial of AlgoPerf's external tuning in its leaves.

    Args:
      optimizer: what is tuned.
      hyperparameters: a namedtuple, as the harness gives it, or a mapping; None for the self-tuning ruleset.
        Names of the loss (`LOSS_NAMES`) are left aside.
      num_steps: length of the run, for leaves that count steps.

    Raises:
      UnknownName: a name that no leaf, or more than one, has.
      OutOfSpace: a value lies outside its leaf's space.
      ConfigError: two names stand for one leaf, or a leaf counts steps and `num_steps` is None.
    """
    return optimizer.replace(leaf_values(values_of(hyperparameters), optimizer, num_steps))


def leaf_values(values: Mapping[str, float], optimizer: Optimizer, num_steps: int | None) -> dict[str, float]:
    """Values by leaf for values by AlgoPerf's names; names of the loss are left out."""
    leaves = optimizer.hyperparameters
    found: dict[str, float] = {}
    named: dict[str, str] = {}
    for name, value in values.items():
        if name in LOSS_NAMES:
            continue
        place = find(name, leaves)
        if place.leaf in found:
            raise ConfigError(
                f"Hyperparameters {named[place.leaf]} and {name} both stand for {place.leaf}; give one."
            )
        found[place.leaf], named[place.leaf] = place.to_leaf(value, num_steps), name
    return found


def values_of(hyperparameters: Any) -> dict[str, Any]:
    """Values by name of what the harness hands over: a namedtuple, or None."""
    if hyperparameters is None:
        return {}
    return dict(hyperparameters if isinstance(hyperparameters, Mapping) else hyperparameters._asdict())


def _has(name: str, leaves: Collection[str]) -> bool:
    """Whether a leaf has this name, or exactly one ends so."""
    return name in leaves or sum(leaf.endswith("." + name) for leaf in leaves) == 1


def _means(name: str, leaf: str, leaves: Collection[str]) -> bool:
    try:
        return find(name, leaves) == Place(leaf)
    except UnknownName:
        return False
