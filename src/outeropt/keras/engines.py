"""What stands between Keras and an optimizer of ours: an engine for each of Keras's backends."""

import abc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from outeropt.errors import OuteroptError


class Engine(abc.ABC):
    """An optimizer of ours by name, on the values of Keras's variables.

    Attributes:
      name: the optimizer's.
      num_steps: length of the run, or None.
      settings: its hyperparameters that differ from the defaults.
    """

    def __init__(self, name: str, num_steps: int | None, settings: Mapping[str, Any]):
        self.name, self.num_steps, self.settings = name, num_steps, dict(settings)

    @staticmethod
    @abc.abstractmethod
    def names() -> list[str]:
        """The names that there are on this backend."""

    @property
    @abc.abstractmethod
    def learning_rate(self) -> float:
        """The optimizer's own, or 1.0."""

    @abc.abstractmethod
    def build(self, owner: keras.optimizers.Optimizer, variables: Sequence[keras.Variable]) -> None:
        """Makes the state for some variables; Keras variables for it belong to `owner`."""

    @abc.abstractmethod
    def step(self, grads: Sequence[Any], variables: Sequence[keras.Variable], learning_rate: Any) -> None:
        """One step of some of the variables; of the others there are no gradients."""

    @abc.abstractmethod
    def swap(self) -> list[Any]:
        """Puts the point at which to evaluate into the variables, and returns the point of training."""

    @abc.abstractmethod
    def swap_back(self, kept: list[Any]) -> None:
        """Puts the point of training back."""

    def save(self, store: Any) -> None:
        """Writes what is in no Keras variable."""
        del store

    def load(self, store: Any) -> None:
        """Reads what `save` wrote."""
        del store


def engine() -> type[Engine]:
    """The engine for the backend that Keras runs on.

    Raises:
      OuteroptError: there is none.
    """
    backend = keras.config.backend()
    if backend == "jax":
        from outeropt.keras.with_jax import JaxEngine

        return JaxEngine
    if backend == "torch":
        from outeropt.keras.with_torch import TorchEngine

        return TorchEngine
    raise OuteroptError(
        f"outeropt.keras runs on Keras's backends jax and torch, not on {backend}; "
        "set KERAS_BACKEND=jax or torch before Keras is imported."
    )


def full_name(word: str, names: Sequence[str]) -> str:
    """The name under which everything else knows an optimizer.

    Args:
      word: a name, with or without `learned:`, or else a file or folder of a learned optimizer.
      names: those that there are.
    """
    if word in names or not word:
        return word
    return f"learned:{word}" if f"learned:{word}" in names or Path(word).exists() else word


def needs_more(name: str, error: OuteroptError) -> OuteroptError:
    """The error for an optimizer that asks for the loss."""
    return OuteroptError(
        f"{name} looks at the loss, which Keras does not give to optimizers. Use it in a loop of your own "
        f"(docs/howto/use-in-optax.md, docs/howto/torch.md), or one that needs gradients alone, such as "
        f"prodigy. ({error})"
    )
