"""Tasks that train on one and the same batch: the deterministic ("full batch") form of a workload."""

import functools
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from outeropt.data.arrays import ArrayData
from outeropt.errors import ConfigError
from outeropt.task import Batch, Split, Task
from outeropt.tasks.images import conv, image_mlp, resnet, vgg
from outeropt.tasks.sequences import seq2seq
from outeropt.tasks.sequences.stream import Streams
from outeropt.tasks.wrappers.augment import Wrapped
from outeropt.tree import size


# `get("<any task>_FixedBatch")` is that task on its fixed batch.
SUFFIX = "_FixedBatch"


class FixedBatch(Wrapped):
    """The task inside, whose training batch is the same at every step; other splits are as they were.

    An evaluation on the training split sees that batch too, so training loss is the loss descended on.
    Dropout stays random from step to step.

    Attributes:
      task: the task inside.
      rows: the training batch, of the form of the task's batches.
    """

    name: str = eqx.field(static=True, init=False)
    task: Task
    rows: Batch

    def __post_init__(self):
        self.name = f"{self.task.name}{SUFFIX}"

    def loss(self, params, state, batch, key):
        """The loss inside."""
        return self.task.loss(params, state, batch, key)

    def batch(self, split: Split, key: PRNGKeyArray) -> Batch:
        """The fixed rows for training, a batch of the task inside otherwise."""
        return self.rows if split == "train" else self.task.batch(split, key)


def fixed(task: Task, seed: int = 0) -> FixedBatch:
    """A task on one batch of its own.

    Where the task's data are rows (an `ArrayData` called `data`) these are the first training rows, as many
    as a batch has: all different, and from the front again should there be too few. Any other task draws
    its batch by a key.

    Args:
      task: the task.
      seed: of that key.

    Raises:
      ConfigError: the task has no batches, or reads its text in order.
    """
    # Concrete arrays even while a caller is being traced: they outlive the trace.
    with jax.ensure_compile_time_eval():
        data = getattr(task, "data", None)
        if isinstance(data, Streams):
            raise ConfigError(f"Task {task.name!r} reads its text in order; no batch of it can be fixed.")
        if isinstance(data, ArrayData):
            train = data.splits["train"]
            index = jnp.arange(data.batch_size) % size(train)
            rows = jax.tree.map(lambda leaf: leaf[index], train)
        else:
            rows = _drawn(task, jax.random.key(seed))
    if not jax.tree.leaves(rows):
        raise ConfigError(f"Task {task.name!r} has no batches, so none can be fixed; use it as it is.")
    return FixedBatch(task, rows)


@eqx.filter_jit
def _drawn(task: Task, key: PRNGKeyArray) -> Batch:
    return task.batch("train", key)


def build(inner: Callable[[], Task]) -> FixedBatch:
    """The fixed form of the task that a builder gives."""
    return fixed(inner())


_LISTED = {
    image_mlp: ("Digits_MLP", "MNIST_MLP", "FashionMNIST_MLP"),
    conv: ("MNIST_Conv",),
    vgg: ("VGG16_Cifar10_batchnorm_Dropout05_BS512",),
    resnet: ("ResNet18_Cifar10",),
    seq2seq: ("Translation_Transformer_1L64", "Translation_Transformer_6L512"),
}

TASKS: dict[str, Callable[[], Task]] = {
    f"{name}{SUFFIX}": functools.partial(build, module.TASKS[name])
    for module, names in _LISTED.items()
    for name in names
}
