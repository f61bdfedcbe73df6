"""The contract of a task: an inner problem with initial parameters, a loss and data."""

import abc
from typing import Any, Literal

import equinox as eqx
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree


Params = PyTree
ModelState = PyTree
Batch = PyTree
Split = Literal["train", "valid", "test"]

SPLITS: tuple[Split, ...] = ("train", "valid", "test")


class Task(eqx.Module):
    """An inner problem. Its array leaves are data; everything else is static.

    Because the data are leaves, one compiled training program serves all tasks of equal shape.

    Attributes:
      name: the public name, as `outeropt.tasks.get` takes it.
    """

    name: eqx.AbstractVar[str]

    @abc.abstractmethod
    def init(self, key: PRNGKeyArray) -> tuple[Params, ModelState]:
        """Initial parameters and model state; the state is None for models without any."""

    @abc.abstractmethod
    def loss(
        self, params: Params, state: ModelState, batch: Batch, key: PRNGKeyArray | None
    ) -> tuple[Float[Array, ""], tuple[ModelState, dict[str, Array]]]:
        """Loss on one batch, with the next model state and metrics.

        Args:
          params: parameters, as `init` gave them.
          state: model state (running statistics), or None.
          batch: what `batch` gave.
          key: randomness for dropout and the like; None at evaluation, when dropout is off and running
            statistics are used.

        Returns:
          A scalar float32 loss, the next model state (same structure), and scalar metrics by name
          (`accuracy` where it has a meaning).
        """

    @abc.abstractmethod
    def batch(self, split: Split, key: PRNGKeyArray) -> Batch:
        """A minibatch of one split. Pure: the same key gives the same batch."""

    def rewound(self, state: ModelState, steps: Int[Array, ""]) -> ModelState:
        """The model state in which a loss of `steps` training steps ago can be computed again.

        By default the state of the moment, since training losses seldom depend on it: batch norm's only
        changes in training, and is used at evaluation.
        """
        del steps
        return state

    @property
    def minimum(self) -> float | None:
        """The smallest value the loss can take, where it is known."""
        return None

    @property
    def notes(self) -> str:
        """What the task is, in a sentence or two: the first paragraph of its class' description."""
        return " ".join((type(self).__doc__ or "").split("\n\n")[0].split())


class TaskFamily(eqx.Module):
    """A distribution over tasks of equal shape, so that lanes and particles can differ in task as well.

    `jax.vmap(lambda key: train(family.task(family.sample(key)), ...))` trains many of them in one program;
    data that the tasks share live in the family and are not copied.
    """

    name: eqx.AbstractVar[str]

    @abc.abstractmethod
    def sample(self, key: PRNGKeyArray) -> PyTree:
        """Draws the configuration of one task, a pytree of arrays of fixed shapes."""

    @abc.abstractmethod
    def task(self, config: PyTree) -> Task:
        """The task that a configuration describes."""


def metric_names(task: Task) -> tuple[str, ...]:
    """Names of the metrics that the task's loss reports, found without running it."""
    import jax

    def one(key):
        params, state = task.init(key)
        return task.loss(params, state, task.batch("train", key), None)[1][1]

    metrics: dict[str, Any] = eqx.filter_eval_shape(one, jax.random.key(0))
    return tuple(sorted(metrics))
