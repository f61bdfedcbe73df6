"""Tasks with another gradient than their own: noisy, normalised, along few directions, delayed, or by ES.

At evaluation (no key) every task here reports the loss of the task inside.
"""

import abc
import functools
from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from outeropt.errors import ConfigError
from outeropt.task import ModelState, Params, Task
from outeropt.tasks.images import image_mlp
from outeropt.tasks.wrappers.augment import Wrapped


@jax.custom_jvp
def with_gradient(value: Float[Array, ""], params: Params, gradient: Params) -> Float[Array, ""]:
    """`value`, with `gradient` as its gradient with respect to `params`.

    Higher derivatives are those of `gradient` as a function of `params`, so hypergradients stay right.
    """
    del params, gradient
    return value


@with_gradient.defjvp
def _with_gradient_jvp(primals, tangents):
    value, _, gradient = primals
    products = jax.tree.map(lambda g, d: jnp.sum(g * d, dtype=value.dtype), gradient, tangents[1])
    return value, sum(jax.tree.leaves(products), jnp.zeros((), value.dtype))


def normal_like(tree: PyTree, key: PRNGKeyArray) -> PyTree:
    """Independent standard normal numbers of the shapes of `tree`."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, max(1, len(leaves)))
    return structure.unflatten(
        [jax.random.normal(k, leaf.shape, leaf.dtype) for leaf, k in zip(leaves, keys)]
    )


class Modifier(eqx.Module):
    """What is done to a gradient before the optimizer sees it. Subclasses are final."""

    label: eqx.AbstractClassVar[str]

    @abc.abstractmethod
    def __call__(self, gradient: Params, key: PRNGKeyArray) -> Params:
        """The changed gradient."""


class Noise(Modifier):
    """Adds independent normal noise to every entry.

    Attributes:
      std: its standard deviation.
    """

    std: Float[Array, ""] = eqx.field(converter=jnp.float32)

    label: ClassVar[str] = "noise"

    def __call__(self, gradient: Params, key: PRNGKeyArray) -> Params:
        return jax.tree.map(lambda g, n: g + self.std * n, gradient, normal_like(gradient, key))


class Normalised(Modifier):
    """Divides by the norm over all parameters; only the direction is left."""

    label: ClassVar[str] = "normalised"

    def __call__(self, gradient: Params, key: PRNGKeyArray) -> Params:
        square = sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(gradient))
        return jax.tree.map(lambda g: g * jax.lax.rsqrt(square + 1e-20), gradient)


class RandomDirections(Modifier):
    """`mean_k (g . d_k) d_k` with standard normal d_k: unbiased, seen along few directions only.

    Forward gradients (Baydin et al. 2022, arXiv 2202.08587, definition 1).

    Attributes:
      directions: number of directions, at least 1.
    """

    directions: int = eqx.field(static=True, default=1)

    label: ClassVar[str] = "directions"

    def __call__(self, gradient: Params, key: PRNGKeyArray) -> Params:
        def along(k):
            direction = normal_like(gradient, k)
            products = jax.tree.map(lambda g, d: jnp.sum(g * d), gradient, direction)
            return jax.tree.map(lambda d: d * sum(jax.tree.leaves(products)), direction)

        seen = jax.vmap(along)(jax.random.split(key, self.directions))
        return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), seen)


class ModifiedGradient(Wrapped):
    """The task inside with a changed training gradient.

    Attributes:
      task: the task inside.
      modifier: the change.
    """

    name: str = eqx.field(static=True, init=False)
    task: Task
    modifier: Modifier

    def __post_init__(self):
        self.name = f"{self.task.name}+{self.modifier.label}"

    def loss(self, params, state, batch, key):
        """The loss inside, whose gradient is the modified one."""
        if key is None:
            return self.task.loss(params, state, batch, None)
        loss_key, own_key = jax.random.split(key)
        (value, aux), gradient = jax.value_and_grad(self.task.loss, has_aux=True)(
            params, state, batch, loss_key
        )
        return with_gradient(value, params, self.modifier(gradient, own_key)), aux


class DelayedGradient(Wrapped):
    """Every step gets the gradient computed `delay` steps before, as in asynchronous training; at first 0.

    The model state is `{"model": state inside, "past": the last gradients, oldest first}`.

    Attributes:
      task: the task inside.
      delay: steps, at least 1.

    Raises:
      ConfigError: the delay is below 1.
    """

    name: str = eqx.field(static=True, init=False)
    task: Task
    delay: int = eqx.field(static=True)

    def __check_init__(self):
        if self.delay < 1:
            raise ConfigError(f"delay = {self.delay} is not allowed; delay gradients by at least 1 step.")

    def __post_init__(self):
        self.name = f"{self.task.name}+delay{self.delay}"

    def init(self, key: PRNGKeyArray) -> tuple[Params, ModelState]:
        """As the task inside, with no past gradients."""
        params, state = self.task.init(key)
        past = jax.tree.map(lambda p: jnp.zeros((self.delay, *p.shape), p.dtype), params)
        return params, {"model": state, "past": past}

    def rewound(self, state: ModelState, steps: Int[Array, ""]) -> ModelState:
        """The task inside as it was; the gradient is the one that is due now."""
        return {**state, "model": self.task.rewound(state["model"], steps)}

    def loss(self, params, state, batch, key):
        """The loss inside, whose gradient is an old one."""
        inside, past = state["model"], state["past"]
        if key is None:
            value, (inside, metrics) = self.task.loss(params, inside, batch, None)
            return value, ({"model": inside, "past": past}, metrics)
        value_and_grad = jax.value_and_grad(self.task.loss, has_aux=True)
        (value, (inside, metrics)), gradient = value_and_grad(params, inside, batch, key)
        oldest = jax.tree.map(lambda queue: queue[0], past)
        past = jax.tree.map(lambda queue, g: jnp.concatenate([queue[1:], g[None]]), past, gradient)
        return with_gradient(value, params, oldest), ({"model": inside, "past": past}, metrics)


class ESGradient(Wrapped):
    """The gradient estimated by antithetic evolution strategies, without backpropagation.

    `mean_k (L(p + std e_k) - L(p - std e_k)) / (2 std) e_k` with standard normal e_k, all on the same batch
    (Salimans et al. 2017, arXiv 1703.03864, with mirrored sampling).

    Attributes:
      task: the task inside.
      pairs: pairs of perturbed evaluations in a step.
      std: standard deviation of the perturbations.
    """

    name: str = eqx.field(static=True, init=False)
    task: Task
    pairs: int = eqx.field(static=True, default=1)
    std: Float[Array, ""] = eqx.field(converter=jnp.float32, default=0.01)

    def __post_init__(self):
        self.name = f"ESWrapped_{self.pairs}pair_{self.task.name}"

    def loss(self, params, state, batch, key):
        """The loss inside at the parameters, whose gradient is estimated."""
        if key is None:
            return self.task.loss(params, state, batch, None)
        loss_key, noise_key = jax.random.split(key)

        def moved(noise, step):
            point = jax.tree.map(lambda p, e: p + step * e, params, noise)
            return self.task.loss(point, state, batch, loss_key)[0]

        def pair(k):
            noise = normal_like(params, k)
            slope = (moved(noise, self.std) - moved(noise, -self.std)) / (2 * self.std)
            return jax.tree.map(lambda e: slope * e, noise)

        estimates = jax.vmap(pair)(jax.random.split(noise_key, self.pairs))
        gradient = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), estimates)
        value, aux = self.task.loss(params, state, batch, loss_key)
        return with_gradient(value, params, gradient), aux


def _es(inner: str, pairs: int) -> ESGradient:
    return ESGradient(image_mlp.TASKS[inner](), pairs)


_ES = {
    # Published names.
    "ImageMLP_Cifar10_128x128x128_Relu": (1, 8),
    "ImageMLP_Mnist_128x128x128_Relu": (1, 8),
    "ImageMLP_FashionMnist8_Relu32": (1,),
    "ImageMLP_Cifar10BW8_Relu32": (1,),
    # Ours.
    "ImageMLP_Digits_Relu32": (1, 8),
}

TASKS: dict[str, Callable[[], Task]] = {
    f"ESWrapped_{pairs}pair_{inner}": functools.partial(_es, inner, pairs)
    for inner, counts in _ES.items()
    for pairs in counts
}
