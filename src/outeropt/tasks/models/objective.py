"""What is asked of a model: which fields it reads and the loss of what it gives, in JAX."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from outeropt.data import as_float
from outeropt.errors import ConfigError, unknown_name
from outeropt.task import Batch
from outeropt.tasks import losses
from outeropt.tasks.models.fields import (
    LABELS,
    VALUES,
    Inputs,
    Loss,
    field,
    inputs_of,
    value_and_metrics,
)


Scored = tuple[Float[Array, ""], dict[str, Array]]


def cross_entropy(outputs: Float[Array, "*rows classes"], batch: Batch) -> Scored:
    """Mean cross entropy of class scores, in nats, and the accuracy.

    Args:
      outputs: scores (logits).
      batch: with integers of shape (*rows) in `label`, or in `target` if there is no `label`.
    """
    label = field(batch, LABELS, "cross_entropy reads", "loss")
    same = is_array(outputs) and outputs.ndim > 0 and outputs.shape[:-1] == label.shape
    if not same or not jnp.issubdtype(label.dtype, jnp.integer):
        raise ConfigError(
            mismatch("cross_entropy", outputs, label, "scores [*rows, classes]", "integers [*rows]")
        )
    flat = outputs.reshape(-1, outputs.shape[-1]).astype(jnp.float32), label.reshape(-1).astype(jnp.int32)
    return losses.softmax_cross_entropy(*flat), {"accuracy": losses.accuracy(*flat)}


def mean_squared_error(outputs: Float[Array, "*shape"], batch: Batch) -> Scored:
    """Mean of squared differences between outputs and the batch's `y`, or `target` if there is no `y`."""
    y = field(batch, VALUES, "mean_squared_error reads", "loss")
    if not is_array(outputs) or outputs.shape != y.shape:
        raise ConfigError(mismatch("mean_squared_error", outputs, y, "values", "values of the same shape"))
    return jnp.mean(jnp.square(outputs - y)), {}


LOSSES = {"cross_entropy": cross_entropy, "mean_squared_error": mean_squared_error}


@dataclasses.dataclass(frozen=True)
class Objective:
    """Inputs and loss of a model.

    Attributes:
      loss: a name of `LOSSES`, or `(outputs, batch) -> scalar` or `-> (scalar, metrics)`.
      inputs: as `fields.inputs_of` takes it.
    """

    loss: Loss
    inputs: Inputs

    def __post_init__(self):
        known(self.loss)

    def read(self, batch: Batch) -> tuple[Any, ...]:
        """The model's positional arguments."""
        return inputs_of(batch, self.inputs, as_float)

    def score(self, outputs: Any, batch: Batch) -> tuple[Any, dict[str, Any]]:
        """Loss and metrics of what the model gave."""
        loss = LOSSES[self.loss] if isinstance(self.loss, str) else self.loss
        return value_and_metrics(loss(outputs, batch), self.loss)


def known(loss: Loss) -> None:
    """Refuses a loss that is neither a function nor a name.

    Raises:
      UnknownName: no loss is called so.
    """
    if isinstance(loss, str) and loss not in LOSSES:
        raise unknown_name("loss", loss, LOSSES, ", ".join(LOSSES))
    if not callable(loss) and not isinstance(loss, str):
        raise ConfigError(f"loss = {loss!r} is not usable; give {' or '.join(LOSSES)}, or a function.")


def is_array(value: Any) -> bool:
    """Whether a value has a shape and a type, in whatever library."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def mismatch(loss: str, outputs: Any, target: Any, want: str, against: str) -> str:
    """The message for outputs that a named loss cannot compare."""
    have = f"the model gave {form(outputs)}, and the batch has {form(target)}"
    return f"{loss} compares {want} with {against}; {have}."


def form(value: Any) -> str:
    """Type and shape of an array, or the kind of anything else."""
    if not is_array(value):
        return f"a {type(value).__name__}"
    return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
