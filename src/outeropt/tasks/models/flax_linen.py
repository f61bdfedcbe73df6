"""A task from a module of flax.linen."""

import dataclasses
from typing import Any

import jax

from outeropt.errors import ConfigError
from outeropt.tasks.contract import kind
from outeropt.tasks.models.calling import flags
from outeropt.tasks.models.fields import Inputs, Loss
from outeropt.tasks.models.libraries import load
from outeropt.tasks.models.model_task import ModelTask, Network, model_task


def from_flax_linen(
    module: Any,
    loss: Loss,
    *,
    data: Any,
    inputs: Inputs = None,
    name: str = "own",
    batch_size: int = 128,
) -> ModelTask:
    """A task from a module of flax.linen.

    The parameters are the collection `params`. All other collections (`batch_stats`) are the model state:
    what a call in training changes in them is kept, and evaluation leaves them as they are. Of the arguments
    `train`, `training` and `is_training` of the module's `__call__`, those that it has are true in training;
    of `deterministic`, `use_running_average`, `inference` and `is_eval`, those that it has are true at
    evaluation. All streams of random numbers, `dropout` among them, come from the step's key; at evaluation
    there are none.

    Args:
      module: the module, such as `Net(width=16)`.
      loss: `"cross_entropy"`, `"mean_squared_error"`, or `(outputs, batch) -> loss`, which gives a scalar or
        `(scalar, metrics)` with a dictionary of scalars.
      data: as for `from_functions`: an object with `batch(split, key)`, rows, or rows by split.
      inputs: what of a batch the module is called with: a field's name, or `batch -> input`, where a tuple is
        several arguments. By default the field `image`, `x` or `obs`. Bytes that are read by name become
        fractions of 255.
      name: the task's name in stores and reports.
      batch_size: rows in a batch, if `data` are rows.

    Raises:
      ConfigError: flax is not installed, this is no module of it, or a batch lacks what is read.
      UnknownName: no loss is called so.
      OuteroptError: the data are no such rows.
    """
    linen = load("flax.linen", "flax")
    if not isinstance(module, linen.Module):
        raise ConfigError(
            f"The model is {kind(module)}; from_flax_linen takes a flax.linen.Module, made: Net()."
        )
    return model_task(Linen(module), loss, data, inputs, name, batch_size)


@dataclasses.dataclass(frozen=True)
class Linen(Network):
    """A module of flax.linen."""

    module: Any

    def init(self, inputs, key):
        """The collection `params`, and the others if there are any."""
        # In training, since a module may have parts that only training uses.
        variables = dict(self.module.init(_streams(key), *inputs, **self._flags(True)))
        return variables.pop("params", {}), variables or None

    def apply(self, params, state, inputs, key):
        """A call of the module."""
        variables = {"params": params, **(state or {})}
        if key is None:
            return self.module.apply(variables, *inputs, **self._flags(False)), state
        outputs, changed = self.module.apply(
            variables, *inputs, **self._flags(True), rngs=_streams(key), mutable=list(state or {})
        )
        return outputs, {**state, **changed} if state else state

    def _flags(self, training: bool) -> dict[str, bool]:
        return flags(type(self.module).__call__, training)


def _streams(key):
    """Streams of random numbers; flax takes `params` for those that have no other name here."""
    params, dropout = jax.random.split(key)
    return {"params": params, "dropout": dropout}
