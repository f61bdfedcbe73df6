"""Losses and metrics of class scores, and the terms of a variational bound."""

import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from outeropt.errors import unknown_name


Criterion = Literal["softmax", "sigmoid", "squared"]

Logits = Float[Array, "rows classes"]
Labels = Int[Array, "rows"]


def softmax_cost(logits: Float[Array, "*rows classes"], labels: Int[Array, "*rows"]) -> Float[Array, "*rows"]:
    """Cross entropy of each row, `log sum_c exp(logit_c) - logit_label`, in nats.

    The label's logit is picked by a product with its one-hot vector: a gather's gradient is a scatter, slow
    on CPU.
    """
    picked = jnp.sum(logits * jax.nn.one_hot(labels, logits.shape[-1]), axis=-1)
    return jax.nn.logsumexp(logits, axis=-1) - picked


def softmax_cross_entropy(logits: Logits, labels: Labels) -> Float[Array, ""]:
    """Mean over rows of `softmax_cost`."""
    return jnp.mean(softmax_cost(logits, labels))


def sigmoid_cross_entropy(logits: Logits, labels: Labels) -> Float[Array, ""]:
    """Mean over rows and classes of the binary cross entropy of each class against all others, in nats."""
    return jnp.mean(bernoulli_cost(logits, jax.nn.one_hot(labels, logits.shape[-1])))


def one_hot_squared_error(logits: Logits, labels: Labels) -> Float[Array, ""]:
    """Mean over rows and classes of the squared difference between scores and one-hot labels."""
    return jnp.mean(jnp.square(logits - jax.nn.one_hot(labels, logits.shape[-1])))


CRITERIA: dict[str, Callable[[Logits, Labels], Float[Array, ""]]] = {
    "softmax": softmax_cross_entropy,
    "sigmoid": sigmoid_cross_entropy,
    "squared": one_hot_squared_error,
}


def criterion(name: str) -> Callable[[Logits, Labels], Float[Array, ""]]:
    """The classification loss of this name.

    Raises:
      UnknownName: there is none.
    """
    if name not in CRITERIA:
        raise unknown_name("criterion", name, CRITERIA, ", ".join(CRITERIA))
    return CRITERIA[name]


def accuracy(logits: Logits, labels: Labels) -> Float[Array, ""]:
    """Fraction of rows whose largest score is the label's."""
    return jnp.mean((jnp.argmax(logits, axis=-1).astype(labels.dtype) == labels).astype(jnp.float32))


def bernoulli_cost(logits: Float[Array, "*rows"], x: Float[Array, "*rows"]) -> Float[Array, "*rows"]:
    """`-x log s - (1 - x) log(1 - s)` with `s = sigmoid(logits)`, for `x` in [0, 1]; in nats, elementwise."""
    return jax.nn.softplus(logits) - x * logits


def quantized_normal_cost(
    mean: Float[Array, "*rows"],
    log_std: Float[Array, "*rows"],
    x: Float[Array, "*rows"],
    width: float,
) -> Float[Array, "*rows"]:
    """Upper bound, in nats, on the negative log probability of values that were rounded to a grid.

    A value x stands for its whole cell, so its probability is the integral of the normal density over `x -
    width/2 .. x + width/2`. By Jensen's inequality that is at least `width exp(E log N(x + u))` with u
    uniform over the cell (Theis et al. 2016, arXiv 1511.01844, section 3.1), and the expectation over u is
    exact: `E (x + u - mean)^2 = (x - mean)^2 + width^2 / 12`. No noise is drawn, and no standard deviation
    can collapse.

    Args:
      mean: of the normal.
      log_std: natural logarithm of its standard deviation.
      x: values on the grid.
      width: distance between neighbours of the grid.
    """
    squares = (jnp.square(x - mean) + width**2 / 12) * jnp.exp(-2 * log_std)
    return 0.5 * squares + log_std + 0.5 * math.log(2 * math.pi) - math.log(width)


def standard_normal_divergence(
    mean: Float[Array, "*rows"], log_std: Float[Array, "*rows"]
) -> Float[Array, "*rows"]:
    """Divergence of N(mean, std^2) from N(0, 1), in nats: `(mean^2 + std^2 - 1)/2 - log std`.

    Kingma and Welling 2014, arXiv 1312.6114, appendix B.
    """
    return 0.5 * (jnp.square(mean) + jnp.exp(2 * log_std) - 1) - log_std
