"""The task of a model that runs in JAX."""

import abc
import contextlib
import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from outeropt.errors import ConfigError
from outeropt.task import Batch, ModelState, Params, Split, Task
from outeropt.tasks.models.fields import Inputs, Loss
from outeropt.tasks.models.objective import Objective
from outeropt.tasks.own import batches


@dataclasses.dataclass(frozen=True)
class Network(abc.ABC):
    """A model of some library as two pure functions. Equal networks share compiled programs."""

    @abc.abstractmethod
    def init(self, inputs: tuple[Any, ...], key: PRNGKeyArray) -> tuple[Params, ModelState]:
        """Initial parameters and model state.

        Args:
          inputs: positional arguments of the right shapes.
          key: seeds the parameters.
        """

    @abc.abstractmethod
    def apply(
        self, params: Params, state: ModelState, inputs: tuple[Any, ...], key: PRNGKeyArray | None
    ) -> tuple[Any, ModelState]:
        """What the model gives, and its next state; a key of None is evaluation, which keeps the state."""


class ModelTask(Task):
    """A model that trains on data; made by `from_flax_linen`, `from_flax_nnx`, `from_equinox`, `from_haiku`.

    Attributes:
      data: an object with `batch(split, key)`.
      network: the model.
      objective: what of a batch the model reads, and its loss.
    """

    name: str = eqx.field(static=True)
    data: Any
    network: Network = eqx.field(static=True)
    objective: Objective = eqx.field(static=True)

    def init(self, key: PRNGKeyArray) -> tuple[Params, ModelState]:
        """The model's initial values for inputs of this shape."""
        shapes = jax.eval_shape(lambda key: self.objective.read(self.batch("train", key)), key)
        inputs = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        with _as_others_compute():
            return self.network.init(inputs, key)

    def loss(self, params, state, batch, key):
        """The loss of what the model gives."""
        with _as_others_compute():
            outputs, state = self.network.apply(params, state, self.objective.read(batch), key)
            value, metrics = self.objective.score(outputs, batch)
        return jnp.asarray(value), (state, jax.tree.map(jnp.asarray, metrics))

    def batch(self, split: Split, key: PRNGKeyArray) -> Batch:
        """A batch of the given data."""
        return self.data.batch(split, key)


@contextlib.contextmanager
def _as_others_compute():
    """JAX' own rules, as other libraries' code mixes types and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def model_task(
    network: Network, loss: Loss, data: Any, inputs: Inputs, name: str, batch_size: int
) -> ModelTask:
    """The task of a network, from what every `from_...` takes."""
    return ModelTask(name, rows_of(data, batch_size), network, Objective(loss, inputs))


def rows_of(data: Any, batch_size: int) -> Any:
    """The given data as an object with `batch(split, key)`.

    Raises:
      ConfigError: there are none.
    """
    if data is None:
        raise ConfigError(
            "A model needs data to train on; give data=outeropt.data.images('digits') or your rows."
        )
    return batches(data, batch_size)
