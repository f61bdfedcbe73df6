"""The optimizers of this package for Keras 3, on its JAX and its PyTorch backend.

    model.compile(optimizer=outeropt.keras.load("prodigy"), loss="sparse_categorical_crossentropy")

On JAX these are the optimizers of `outeropt.optimizers`, on PyTorch those of `outeropt.torch`, without JAX at
run time.
"""

from typing import TYPE_CHECKING, Any

from outeropt.keras.backend import BACKEND
from outeropt.keras.base import KERAS_SETTINGS, KerasOptimizer
from outeropt.keras.evaluation_point import EvaluationPoint


if TYPE_CHECKING or BACKEND == "jax":
    from outeropt.keras.jax_optimizer import Optimizer
else:
    from outeropt.keras.torch_optimizer import Optimizer

__all__ = ["EvaluationPoint", "KerasOptimizer", "load"]


def load(
    method: str, /, learning_rate: Any = None, *, num_steps: int | None = None, seed: int = 0, **settings: Any
) -> KerasOptimizer:
    """A Keras optimizer by the name that it has everywhere in this package.

    Args:
      method: a name of `outeropt.optimizers` (on PyTorch of `outeropt.torch`), such as `"prodigy"` or
        `"learned:small_fc"`; names of weights that ship need no `learned:`.
      learning_rate: a number, a `keras.optimizers.schedules.LearningRateSchedule` or a function, as for every
        Keras optimizer. It takes the place of the optimizer's own learning rate; one that has none, or
        several, takes it as a factor on its updates. None for the optimizer's own, or 1.
      num_steps: length of the run in updates, for optimizers and schedules that span it.
      seed: of optimizers that draw random numbers.
      **settings: what every Keras optimizer takes (`clipnorm`, `use_ema`, `gradient_accumulation_steps`,
        ...), and what this one takes. `weight_decay` goes to an optimizer that has one, and is Keras's for
        all others.

    Raises:
      UnknownName: the backend has no such optimizer, or the optimizer no such setting.
      OuteroptError: it needs more than gradients, which Keras does not give, or the length of the run; a
        setting is not allowed.
    """
    keras = {name: value for name, value in settings.items() if name in KERAS_SETTINGS}
    own = {name: value for name, value in settings.items() if name not in keras}
    return Optimizer(method, learning_rate, num_steps=num_steps, seed=seed, hyperparameters=own, **keras)
