"""What every image classification task has in common: its images, its loss, its accuracy."""

import abc
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
from jaxtyping import Array, Float, PRNGKeyArray

from outeropt import data
from outeropt.data.arrays import ArrayData, as_float
from outeropt.task import Batch, ModelState, Params, Split, Task
from outeropt.tasks.losses import accuracy, criterion


class Images(NamedTuple):
    """The images of a task.

    Attributes:
      dataset: a name that `outeropt.data.images` takes.
      size: side in pixels to which they are resized; None keeps their own.
      grey: whether colours are averaged.
      batch_size: images in a batch.
      train_rows: how many of the published training images to train on; None for 80 %.
    """

    dataset: str
    size: int | None = None
    grey: bool = False
    batch_size: int = 128
    train_rows: int | None = None

    def load(self) -> ArrayData:
        """The arrays of all splits, shared with other tasks that use them."""
        splits = data.images(self.dataset, size=self.size, grey=self.grey, train_rows=self.train_rows)
        return ArrayData(splits, self.batch_size)


Table = Mapping[str, tuple[Images, dict[str, Any]]]


def build(kind: Callable[..., Task], name: str, images: Images, architecture: dict[str, Any]) -> Task:
    """One task of a table: loads its images and fills in its architecture."""
    return kind(name=name, data=images.load(), **architecture)


def builders(kind: Callable[..., Task], table: Table) -> dict[str, Callable[[], Task]]:
    """Zero-argument builders by public name; no data is touched before one is called."""
    return {name: partial(build, kind, name, *row) for name, row in table.items()}


class ImageClassifier(Task):
    """A task that scores the classes of images. Subclasses are final: they fill in `init` and `logits`.

    Attributes:
      data: splits of `image` (rows, height, width, channels), bytes or floats in [0, 1], and `label` (rows,).
      classes: number of classes.
      criterion: name of the loss, one of `losses.CRITERIA`.
    """

    data: eqx.AbstractVar[ArrayData]
    classes: eqx.AbstractVar[int]
    criterion: eqx.AbstractVar[str]

    @abc.abstractmethod
    def logits(
        self,
        params: Params,
        state: ModelState,
        images: Float[Array, "rows height width channels"],
        key: PRNGKeyArray | None,
    ) -> tuple[Float[Array, "rows classes"], ModelState]:
        """Scores of all classes and the next model state; without a key the network is evaluated."""

    def loss(
        self, params: Params, state: ModelState, batch: Batch, key: PRNGKeyArray | None
    ) -> tuple[Float[Array, ""], tuple[ModelState, dict[str, Array]]]:
        """The criterion of the scores, with `accuracy`."""
        logits, state = self.logits(params, state, as_float(batch["image"]), key)
        labels = batch["label"]
        return criterion(self.criterion)(logits, labels), (state, {"accuracy": accuracy(logits, labels)})

    def batch(self, split: Split, key: PRNGKeyArray) -> Batch:
        """Random images of one split with their labels."""
        return self.data.batch(split, key)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        return image_shape(self.data)


def image_shape(images: ArrayData) -> tuple[int, int, int]:
    """Height, width and channels of the images of a dataset."""
    _, height, width, channels = images.splits["train"]["image"].shape
    return height, width, channels
