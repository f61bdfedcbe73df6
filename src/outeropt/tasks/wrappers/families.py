"""Distributions over tasks of equal shape, for meta-training."""

import functools
import math
from collections.abc import Callable
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from outeropt.data.arrays import ArrayData
from outeropt.errors import ConfigError
from outeropt.task import Task, TaskFamily
from outeropt.tasks.images.image_classifier import ImageClassifier, Images
from outeropt.tasks.layers import ACTIVATIONS, linear, mlp_init
from outeropt.tasks.losses import Criterion
from outeropt.tasks.quadratic import Quadratic
from outeropt.tasks.wrappers.augment import PermutedLabels, Reparametrised


Level = Literal["global", "tensor", "parameter"]


class SingleTask(TaskFamily):
    """The family of one task; its configuration is empty.

    Attributes:
      member: the task.
    """

    name: str = eqx.field(static=True, init=False)
    member: Task

    def __post_init__(self):
        self.name = self.member.name

    def sample(self, key: PRNGKeyArray) -> tuple[()]:
        """Nothing to draw."""
        return ()

    def task(self, config: tuple[()]) -> Task:
        """The task."""
        return self.member


def single(task: Task) -> SingleTask:
    """A task as a family, for code that trains on families."""
    return SingleTask(task)


class QuadraticFamily(TaskFamily):
    """Quadratics with random axes, a normal minimiser, and eigenvalues log-uniform in [1/condition, 1].

    Attributes:
      dim: number of parameters.
      condition: largest ratio of two eigenvalues.
    """

    name: str = eqx.field(static=True)
    dim: int = eqx.field(static=True)
    condition: float = eqx.field(static=True, default=100.0)

    def sample(self, key: PRNGKeyArray) -> dict[str, Array]:
        """Eigenvalues, eigenvectors and minimiser."""
        curvature_key, basis_key, center_key = jax.random.split(key, 3)
        return {
            "curvature": self.condition ** -jax.random.uniform(curvature_key, (self.dim,)),
            "basis": jnp.linalg.qr(jax.random.normal(basis_key, (self.dim, self.dim)))[0],
            "center": jax.random.normal(center_key, (self.dim,)),
        }

    def task(self, config: dict[str, Array]) -> Quadratic:
        """The quadratic with these eigenvalues, eigenvectors and minimiser."""
        return Quadratic(self.name, config["curvature"], config["basis"], config["center"])


class ChosenActivationMLP(ImageClassifier):
    """An image MLP whose activation and initial scale are numbers, so that one program serves all of them.

    Attributes:
      hidden: widths of the hidden layers.
      activation: position of the activation in `layers.ACTIVATIONS`.
      scale: factor of all initial weights.
    """

    name: str = eqx.field(static=True)
    data: ArrayData
    hidden: tuple[int, ...] = eqx.field(static=True)
    activation: Int[Array, ""]
    scale: Float[Array, ""]
    criterion: Criterion = eqx.field(static=True, default="softmax")
    classes: int = eqx.field(static=True, default=10)

    def init(self, key: PRNGKeyArray):
        """Weights by fan-in times `scale`, biases 0."""
        height, width, channels = self.image_shape
        params = mlp_init(key, (height * width * channels, *self.hidden, self.classes))
        return {name: value * self.scale for name, value in params.items()}, None

    def logits(self, params, state, images, key):
        """Scores of all classes."""
        x = images.reshape(images.shape[0], -1)
        for i in range(len(self.hidden) + 1):
            if i:
                # Every branch is computed: under vmap a switch would do the same, one small loop each.
                x = jax.lax.select_n(self.activation, *(function(x) for function in ACTIVATIONS.values()))
            x = linear(x, params[f"w{i}"], params[f"b{i}"])
        return x, state


class ImageMLPFamily(TaskFamily):
    """Image MLPs of one shape on shared data, with a random activation and scale of the initial weights.

    Attributes:
      data: images and labels, shared by all tasks.
      hidden: widths of the hidden layers.
      low: smallest scale.
      high: largest scale; scales are log-uniform.
    """

    name: str = eqx.field(static=True)
    data: ArrayData
    hidden: tuple[int, ...] = eqx.field(static=True)
    low: float = eqx.field(static=True, default=0.5)
    high: float = eqx.field(static=True, default=2.0)

    def sample(self, key: PRNGKeyArray) -> dict[str, Array]:
        """Position of an activation and a scale."""
        activation_key, scale_key = jax.random.split(key)
        return {
            "activation": jax.random.randint(activation_key, (), 0, len(ACTIVATIONS)),
            "scale": _log_uniform(scale_key, (), self.low, self.high),
        }

    def task(self, config: dict[str, Array]) -> ChosenActivationMLP:
        """The MLP with this activation and scale."""
        return ChosenActivationMLP(
            name=self.name,
            data=self.data,
            hidden=self.hidden,
            activation=config["activation"],
            scale=config["scale"],
        )


class ReparametrisedFamily(TaskFamily):
    """One task in randomly scaled coordinates; see `Reparametrised`.

    Attributes:
      base: the task.
      level: one scale for all (`"global"`), one for each tensor, or one for each parameter.
      low: smallest scale.
      high: largest scale; scales are log-uniform.

    Raises:
      ConfigError: the level is unknown.
    """

    name: str = eqx.field(static=True, init=False)
    base: Task
    level: Level = eqx.field(static=True, default="tensor")
    low: float = eqx.field(static=True, default=0.01)
    high: float = eqx.field(static=True, default=100.0)

    def __check_init__(self):
        if self.level not in ("global", "tensor", "parameter"):
            raise ConfigError(f"Level {self.level!r} is unknown; scale by global, tensor or parameter.")

    def __post_init__(self):
        self.name = f"{self.base.name}+reparametrised_{self.level}"

    def sample(self, key: PRNGKeyArray) -> PyTree[Array]:
        """Scales at the chosen level."""
        if self.level == "global":
            return _log_uniform(key, (), self.low, self.high)
        leaves, structure = jax.tree.flatten(eqx.filter_eval_shape(self.base.init, key)[0])
        shapes = [leaf.shape if self.level == "parameter" else () for leaf in leaves]
        keys = jax.random.split(key, len(leaves))
        return structure.unflatten(
            [_log_uniform(k, shape, self.low, self.high) for k, shape in zip(keys, shapes)]
        )

    def task(self, config: PyTree[Array]) -> Reparametrised:
        """The task in these coordinates."""
        return Reparametrised(self.base, config)


class PermutedLabelsFamily(TaskFamily):
    """One classification task whose classes are numbered at random, so that nothing can be learned by heart.

    Attributes:
      base: the task; its batches are dictionaries with `label`.
      classes: number of classes.
    """

    name: str = eqx.field(static=True, init=False)
    base: Task
    classes: int = eqx.field(static=True, default=10)

    def __post_init__(self):
        self.name = f"{self.base.name}+permuted"

    def sample(self, key: PRNGKeyArray) -> Int[Array, " classes"]:
        """A permutation of the classes."""
        return jax.random.permutation(key, self.classes).astype(jnp.int32)

    def task(self, config: Int[Array, " classes"]) -> PermutedLabels:
        """The task with its classes numbered so."""
        return PermutedLabels(self.base, config)


def _log_uniform(key: PRNGKeyArray, shape: tuple[int, ...], low: float, high: float) -> Array:
    return jnp.exp(jax.random.uniform(key, shape, minval=math.log(low), maxval=math.log(high)))


def _images(name: str, images: Images, hidden: tuple[int, ...]) -> ImageMLPFamily:
    return ImageMLPFamily(name, images.load(), hidden)


FAMILIES: dict[str, Callable[[], TaskFamily]] = {
    "QuadraticFamily_10": functools.partial(QuadraticFamily, "QuadraticFamily_10", 10),
    "QuadraticFamily_100": functools.partial(QuadraticFamily, "QuadraticFamily_100", 100),
    **{
        name: functools.partial(_images, name, images, hidden)
        for name, (images, hidden) in {
            "ImageMLPFamily_Digits_32": (Images("digits"), (32,)),
            "ImageMLPFamily_Digits_32x32": (Images("digits"), (32, 32)),
            "ImageMLPFamily_FashionMnist8_32": (Images("fashion_mnist", 8), (32,)),
            "ImageMLPFamily_Cifar10_8_32": (Images("cifar10", 8), (32,)),
        }.items()
    },
}
