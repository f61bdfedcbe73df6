"""Tasks whose training loss has settings that can be tuned while it trains; evaluation does not know them.

`selftuning.OnePass(..., settings={"smoothing": (0.1, Space.log(1e-3, 0.5))})` tunes the leaf `smoothing`.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from outeropt.data.arrays import as_float
from outeropt.errors import ConfigError
from outeropt.task import Task
from outeropt.tasks.wrappers.augment import Wrapped


def _number(value: ArrayLike) -> Float[Array, ""]:
    """A leaf from a plain number."""
    return jnp.asarray(value, jnp.float32)


class SmoothedLabels(Wrapped):
    """Label smoothing: with weight `smoothing`, an example's label is any class, drawn uniformly.

    `(1 - smoothing) L(label) + smoothing L(drawn label)`, whose expectation is the cross entropy of smoothed
    labels (Szegedy and others, "Rethinking the Inception Architecture for Computer Vision", 2015, arXiv
    1512.00567). It costs two losses a step.

    Attributes:
      task: the task inside; its batches are dictionaries with `label`.
      classes: number of classes.
      smoothing: in [0, 1].
    """

    name: str = eqx.field(static=True, init=False)
    task: Task
    classes: int = eqx.field(static=True)
    smoothing: Float[Array, ""] = eqx.field(converter=_number, default=0.1)

    def __check_init__(self):
        if self.classes < 2:
            raise ConfigError(f"classes = {self.classes} is not allowed; labels need at least 2 classes.")

    def __post_init__(self):
        self.name = f"{self.task.name}+smoothed"

    def loss(self, params, state, batch, key):
        """The loss inside, with smoothed labels in training."""
        if key is None:
            return self.task.loss(params, state, batch, key)
        label_key, key = jax.random.split(key)
        label = batch["label"]
        drawn = jax.random.randint(label_key, label.shape, 0, self.classes, label.dtype)
        value, rest = self.task.loss(params, state, batch, key)
        other, _ = self.task.loss(params, state, {**batch, "label": drawn}, key)
        return (1.0 - self.smoothing) * value + self.smoothing * other, rest


class NoisyInputs(Wrapped):
    """Augmentation by normal noise of standard deviation `strength` on images or features, in training.

    Attributes:
      task: the task inside; its batches are dictionaries with `image` (bytes are fractions of 255) or `x`.
      strength: at least 0.
    """

    name: str = eqx.field(static=True, init=False)
    task: Task
    strength: Float[Array, ""] = eqx.field(converter=_number, default=0.1)

    def __post_init__(self):
        self.name = f"{self.task.name}+noise"

    def loss(self, params, state, batch, key):
        """The loss inside, of noisy inputs in training."""
        if key is None:
            return self.task.loss(params, state, batch, key)
        noise_key, key = jax.random.split(key)
        name = "image" if "image" in batch else "x"
        clean = as_float(batch[name])
        noisy = clean + self.strength * jax.random.normal(noise_key, clean.shape, clean.dtype)
        return self.task.loss(params, state, {**batch, name: noisy}, key)


class Penalised(Wrapped):
    """A penalty on the parameters: `weight / 2` times the sum of their squares is added to the training loss.

    Attributes:
      task: the task inside.
      weight: at least 0.
    """

    name: str = eqx.field(static=True, init=False)
    task: Task
    weight: Float[Array, ""] = eqx.field(converter=_number, default=1e-4)

    def __post_init__(self):
        self.name = f"{self.task.name}+penalised"

    def loss(self, params, state, batch, key):
        """The loss inside, and the penalty in training."""
        value, rest = self.task.loss(params, state, batch, key)
        if key is None:
            return value, rest
        squares = sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(params))
        return value + 0.5 * self.weight * squares, rest
