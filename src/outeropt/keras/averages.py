"""Evaluation at the averages that some optimizers train, such as those without a schedule."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras

from outeropt.errors import OuteroptError
from outeropt.keras.optimizer import Optimizer


@contextmanager
def averaged(model: keras.Model) -> Iterator[None]:
    """Within it, the model has the weights with which its optimizer would have it evaluated and saved.

    For most optimizers these are the ones that are trained. For those that keep averages
    (`schedule_free_adamw`, `averaged:...`) they are not, and are better. Do not train within.

    Args:
      model: compiled with an optimizer of `outeropt.keras`.

    Raises:
      OuteroptError: it has another optimizer.
    """
    engine = _optimizer(model).engine
    kept = engine.swap()
    try:
        yield
    finally:
        engine.swap_back(kept)


class EvaluateAverages(keras.callbacks.Callback):
    """Validation within `fit`, `evaluate` and `predict` see the model as `averaged` makes it.

    Give it to each of them: `model.fit(..., callbacks=[EvaluateAverages()])`.
    """

    def __init__(self):
        super().__init__()
        self.around: Any = None

    def on_test_begin(self, logs: Any = None) -> None:
        if _optimizer(self.model).built:
            self.around = averaged(self.model)  # pyright: ignore[reportArgumentType]
            self.around.__enter__()

    def on_test_end(self, logs: Any = None) -> None:
        if self.around is not None:
            self.around.__exit__(None, None, None)
            self.around = None

    on_predict_begin, on_predict_end = on_test_begin, on_test_end


def _optimizer(model: Any) -> Optimizer:
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    if not isinstance(optimizer, Optimizer):
        raise OuteroptError(
            f"The model is compiled with {type(optimizer).__name__}, which keeps no averages; "
            "compile it with outeropt.keras.load(...)."
        )
    return optimizer
