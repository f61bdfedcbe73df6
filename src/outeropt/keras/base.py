"""What the optimizers of both backends share: arguments, configuration, and where the model is evaluated."""

import abc
import inspect
from collections.abc import Mapping
from typing import Any

import keras

from outeropt.errors import OuteroptError


KERAS_SETTINGS = tuple(
    name
    for name, parameter in inspect.signature(keras.optimizers.Optimizer.__init__).parameters.items()
    if name not in ("self", "learning_rate") and parameter.kind is not parameter.VAR_KEYWORD
)
"""What every Keras optimizer takes beside a learning rate."""


class KerasOptimizer(keras.optimizers.Optimizer, abc.ABC):
    """An optimizer of this package as a Keras optimizer; made by `load`.

    All that Keras does around an optimizer works as ever: schedules and callbacks of the learning rate,
    weight decay, clipping, averages (`use_ema`), accumulation of gradients, scaling of the loss. A model is
    saved and loaded with its optimizer, and training goes on exactly; import `outeropt.keras` before
    `keras.saving.load_model`.

    Some methods are to be evaluated elsewhere than they train, at an average. After `fit` the model is there,
    and the next step goes back to where training was; `EvaluationPoint` validates there as well.
    """

    def __init__(
        self,
        method: str,
        learning_rate: Any,
        *,
        num_steps: int | None,
        seed: int,
        hyperparameters: Mapping[str, Any],
        **keras_settings: Any,
    ):
        rate = float(learning_rate) if isinstance(learning_rate, int) else learning_rate
        super().__init__(learning_rate=rate, **keras_settings)
        self.method = method
        self.num_steps = num_steps
        self.seed = seed
        self.hyperparameters = dict(hyperparameters)

    @abc.abstractmethod
    def eval(self) -> None:
        """Moves the model to where it is to be evaluated, until `train` is called or a step is made."""

    @abc.abstractmethod
    def train(self) -> None:
        """Moves the model back to where it trains, exactly."""

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """One step from gradients, from where the model trains."""
        self.train()
        super().apply(grads, trainable_variables)

    def finalize_variable_values(self, var_list: Any) -> None:
        """Moves the model to where it is to be evaluated; `fit` calls this when it ends."""
        self.eval()
        # Keras's own average, if it was asked for, has the last word.
        super().finalize_variable_values(var_list)

    def exclude_from_weight_decay(self, var_list: Any = None, var_names: Any = None) -> None:
        """Excludes variables from the weight decay, which must be Keras's.

        Raises:
          OuteroptError: the weight decay is the optimizer's own, which is for all variables.
        """
        if "weight_decay" in self.hyperparameters:
            raise OuteroptError(
                f"The weight decay of {self.method} is its own and for all variables; take an optimizer "
                "without one, for which Keras does it."
            )
        super().exclude_from_weight_decay(var_list, var_names)

    def get_config(self) -> dict[str, Any]:
        """What makes this optimizer again, but for its state."""
        return {
            **super().get_config(),
            "method": self.method,
            "num_steps": self.num_steps,
            "seed": self.seed,
            "hyperparameters": dict(self.hyperparameters),
        }

    def moved(self) -> list[Any]:
        """The variables that an update moves, all but those that Keras sets to their gradients."""
        return [
            variable
            for variable in self._trainable_variables
            if not self._overwrite_variable_with_gradient(variable)
        ]


def needs_more(method: str, error: OuteroptError) -> OuteroptError:
    """The error for an optimizer that cannot do with gradients alone."""
    return OuteroptError(
        f"{method} needs more than gradients, and Keras gives its optimizers nothing else; take another one, "
        f"such as prodigy, or another loop. ({error})"
    )
