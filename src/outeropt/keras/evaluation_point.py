"""Validation where the model is to be evaluated, for optimizers that train elsewhere."""

from typing import Any

import keras

from outeropt.errors import OuteroptError
from outeropt.keras.base import KerasOptimizer


class EvaluationPoint(keras.callbacks.Callback):
    """A callback that validates the model where it is to be evaluated, and trains it where it trains.

    For schedule-free methods and averages. Without it, validation within `fit` sees the point that is
    trained, and the first gradient of another `fit` is one of the evaluation point.

        model.fit(images, labels, validation_split=0.1, callbacks=[outeropt.keras.EvaluationPoint()])
    """

    def on_train_begin(self, logs: Any = None) -> None:
        """Where training was before, if this is not the first `fit`."""
        self._training = True
        self._optimizer().train()

    def on_train_end(self, logs: Any = None) -> None:
        """`fit` itself moves the model, when it is over."""
        self._training = False

    def on_test_begin(self, logs: Any = None) -> None:
        """To the evaluation point."""
        self._optimizer().eval()

    def on_test_end(self, logs: Any = None) -> None:
        """Back, within `fit`."""
        if getattr(self, "_training", False):
            self._optimizer().train()

    def _optimizer(self) -> KerasOptimizer:
        optimizer: Any = getattr(self.model, "optimizer", None)
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)
        if not isinstance(optimizer, KerasOptimizer):
            raise OuteroptError(
                "EvaluationPoint is for optimizers of outeropt.keras.load, "
                f"not for {type(optimizer).__name__}."
            )
        return optimizer
