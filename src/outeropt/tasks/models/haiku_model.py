"""A task from a function of haiku modules."""

import dataclasses
from collections.abc import Callable
from typing import Any

from outeropt.errors import ConfigError
from outeropt.tasks.contract import kind
from outeropt.tasks.models.calling import flags
from outeropt.tasks.models.fields import Inputs, Loss
from outeropt.tasks.models.libraries import load
from outeropt.tasks.models.model_task import ModelTask, Network, model_task


def from_haiku(
    function: Callable[..., Any],
    loss: Loss,
    *,
    data: Any,
    inputs: Inputs = None,
    name: str = "own",
    batch_size: int = 128,
) -> ModelTask:
    """A task from a function that haiku transforms.

    haiku's state (`hk.BatchNorm`, `hk.get_state`) is the model state: what a call in training changes in it
    is kept, and evaluation leaves it as it is. Arguments such as `is_training` are filled in as in
    `from_flax_linen`. `hk.next_rng_key` gives keys in training only.

    Args:
      function: `inputs -> outputs`, as `hk.transform_with_state` takes it, not yet transformed.
      loss, data, inputs, name, batch_size: as for `from_flax_linen`.

    Raises:
      ConfigError: haiku is not installed, this is no function, or a batch lacks what is read.
      UnknownName: no loss is called so.
      OuteroptError: the data are no such rows.
    """
    load("haiku", "dm-haiku")
    if not callable(function):
        raise ConfigError(
            f"The model is a {type(function).__name__}; from_haiku takes the function itself, untransformed."
            if hasattr(function, "apply")
            else f"The model is {kind(function)}; from_haiku takes a function that calls haiku modules."
        )
    return model_task(Haiku(function), loss, data, inputs, name, batch_size)


@dataclasses.dataclass(frozen=True)
class Haiku(Network):
    """A function of haiku modules."""

    function: Callable[..., Any]

    def init(self, inputs, key):
        """haiku's parameters, and its state if there is any."""
        haiku = load("haiku", "dm-haiku")
        transformed = haiku.transform_with_state(self.function)
        params, state = transformed.init(key, *inputs, **flags(self.function, True))
        return params, state or None

    def apply(self, params, state, inputs, key):
        """A call of the function."""
        haiku = load("haiku", "dm-haiku")
        apply = haiku.transform_with_state(self.function).apply
        training = key is not None
        outputs, changed = apply(params, state or {}, key, *inputs, **flags(self.function, training))
        return outputs, (changed or None) if training else state
