"""A Keras optimizer that is one of ours, whatever backend Keras runs on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from outeropt.errors import OuteroptError
from outeropt.keras.engines import engine


@keras.saving.register_keras_serializable(package="outeropt")
class Optimizer(keras.optimizers.Optimizer):
    """An optimizer of ours for `model.compile`; `outeropt.keras.load` is a shorter way to make one.

    It does what every Keras optimizer does: schedules and callbacks drive `learning_rate`, gradients are
    clipped, scaled and accumulated, weights decay and are averaged as Keras's options say, and it is saved
    and loaded with its model. Keras's learning rate takes the place of the optimizer's own; for optimizers
    that have none it is a factor on the update.

    Args:
      optimizer: a name of `names()`, one of the weights that ship without their `learned:`, or a file or
        folder of a learned optimizer, which must still be there when the model is loaded.
      learning_rate: a number, a schedule of Keras or a function; None for the optimizer's own default.
      num_steps: number of updates in the whole run, for optimizers that follow a schedule over it.
      settings: hyperparameters that differ from their defaults, as `outeropt.optimizers.get` (JAX) or the
        class in `outeropt.torch` (PyTorch) takes them.
      name: Keras's name of the object.
      **options: Keras's own: `weight_decay`, `clipnorm`, `clipvalue`, `global_clipnorm`, `use_ema`,
        `ema_momentum`, `ema_overwrite_frequency`, `loss_scale_factor`, `gradient_accumulation_steps`.

    Raises:
      UnknownName: there is no such optimizer on this backend, or no such hyperparameter.
      OuteroptError: a setting is not allowed, the optimizer needs what Keras does not give, or Keras runs on
        another backend than JAX and PyTorch.
    """

    def __init__(
        self,
        optimizer: str | Path,
        learning_rate: Any = None,
        *,
        num_steps: int | None = None,
        settings: Mapping[str, Any] | None = None,
        name: str | None = None,
        **options: Any,
    ):
        made = engine()(str(optimizer), num_steps, settings or {})
        if learning_rate is None:
            learning_rate = made.learning_rate
        if isinstance(learning_rate, int):
            learning_rate = float(learning_rate)
        super().__init__(learning_rate=learning_rate, name=name or _plain(made.name), **options)
        self.engine = made

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Makes the state for the variables of a model; Keras calls it before the first step."""
        if not self.built:
            super().build(variables)
            self.engine.build(self, variables)

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        # One step of all variables: many of our optimizers look at them together.
        self.engine.step(grads, trainable_variables, learning_rate)

    def save_own_variables(self, store: Any) -> None:
        """Writes the state; Keras calls it when a model is saved."""
        super().save_own_variables(store)
        if self.built:
            self.engine.save(store)

    def load_own_variables(self, store: Any) -> None:
        """Reads what `save_own_variables` wrote.

        Raises:
          OuteroptError: it is of another optimizer or model.
        """
        numbered = [key for key in store.keys() if key.isdigit()]  # noqa: SIM118 (no mapping)
        shapes = [tuple(np.shape(store[str(index)])) for index in range(len(numbered))]
        if shapes != [tuple(variable.shape) for variable in self.variables]:
            raise OuteroptError(
                f"The saved state of {self.engine.name} does not fit: it has {len(numbered)} arrays, and the "
                f"optimizer here {len(self.variables)} or others. Load it with the same model, options and "
                f"backend, or with compile=False."
            )
        for index, variable in enumerate(self.variables):
            variable.assign(store[str(index)])
        if len(numbered) < len(store.keys()):
            self.engine.load(store)

    def get_config(self) -> dict[str, Any]:
        """What the optimizer is made of again from a saved model."""
        return {
            **super().get_config(),
            "optimizer": self.engine.name,
            "num_steps": self.engine.num_steps,
            "settings": dict(self.engine.settings),
        }


def load(
    name: str | Path,
    learning_rate: Any = None,
    *,
    num_steps: int | None = None,
    settings: Mapping[str, Any] | None = None,
    **options: Any,
) -> Optimizer:
    """An optimizer of ours for Keras: `load("amalgam-choice-large-7")`, `load("prodigy", weight_decay=0.01)`.

    Arguments and errors are those of `Optimizer`.
    """
    return Optimizer(name, learning_rate, num_steps=num_steps, settings=settings, **options)


def names() -> list[str]:
    """The names that `load` takes on the backend that Keras runs on.

    Raises:
      OuteroptError: Keras runs on another backend than JAX and PyTorch.
    """
    return engine().names()


def _plain(name: str) -> str:
    """A name that may stand in paths of variables."""
    return "".join(letter if letter.isalnum() else "_" for letter in name)
