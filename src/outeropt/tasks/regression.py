"""Regression and linear classification: UCI tables, images, and endless streams of synthetic rows."""

import functools
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from outeropt import data
from outeropt.data.arrays import ArrayData
from outeropt.task import Split, Task
from outeropt.tasks.images.image_classifier import Images, builders
from outeropt.tasks.images.image_mlp import ImageMLP
from outeropt.tasks.layers import uniform_init
from outeropt.tasks.losses import bernoulli_cost


class WholeData(eqx.Module):
    """Full batches: every batch of a split is the whole split.

    Attributes:
      splits: for each of train, valid and test a dictionary of arrays whose last axis counts the rows, as the
        products of `TableRegression` take them: otherwise they would be transposed at every step.
    """

    splits: dict[str, dict[str, Array]]

    @classmethod
    def of(cls, splits: dict[str, dict[str, Array]]) -> "WholeData":
        """Data of tables with a row for each example."""
        return cls(jax.tree.map(jnp.transpose, splits))

    def batch(self, split: Split, key: PRNGKeyArray) -> dict[str, Array]:
        """All rows of a split, in order."""
        del key
        return jax.tree.map(jnp.transpose, self.splits[split])


class TableRegression(Task):
    """A ReLU network, or with no hidden layer a linear map, that predicts a table's target.

    Parameters `w{i}`, `b{i}`; all start uniform in `+-1/sqrt(inputs of the layer)`.

    Attributes:
      data: splits with `x` (rows, features) and `y` (rows, 1).
      hidden: widths of the hidden layers.
    """

    name: str = eqx.field(static=True)
    data: ArrayData | WholeData
    hidden: tuple[int, ...] = eqx.field(static=True)

    def init(self, key: PRNGKeyArray) -> tuple[dict[str, Array], None]:
        """Uniform weights and biases."""
        batch = jax.eval_shape(functools.partial(self.batch, "train"), key)
        return uniform_init(key, (batch["x"].shape[1], *self.hidden, 1)), None

    def loss(self, params, state, batch, key):
        """Mean squared error, in units of the target's variance; no metrics."""
        # Units first, rows last. Without the barriers XLA makes the transpositions part of the products,
        # which then are none that its CPU library for small ones takes: a step takes 1.6 times as long.
        units = batch["x"].T
        for i in range(len(self.hidden) + 1):
            units = jax.nn.relu(units) if i else jax.lax.optimization_barrier(units)
            weights = jax.lax.optimization_barrier(params[f"w{i}"].T)
            units = weights @ units + params[f"b{i}"][:, None]
        return jnp.mean(jnp.square(units[0] - batch["y"][:, 0])), (state, {})

    def batch(self, split: Split, key: PRNGKeyArray) -> PyTree[Array]:
        """Rows of one split."""
        return self.data.batch(split, key)


class LinearStream(Task):
    """Linear regression on fresh rows: `y = x . w + noise`, loss `1/2 mean (x . p - y)^2`, p from 0.

    Attributes:
      weights: the true weights w.
      scales: standard deviation of each feature.
      noise: standard deviation of the target's noise.
      batch_size: rows in a batch.
    """

    name: str = eqx.field(static=True)
    weights: Float[Array, " features"]
    scales: Float[Array, " features"]
    noise: float = eqx.field(static=True)
    batch_size: int = eqx.field(static=True, default=32)

    def init(self, key: PRNGKeyArray) -> tuple[Float[Array, " features"], None]:
        """Zeros: the loss is convex."""
        return jnp.zeros_like(self.weights), None

    def loss(self, params, state, batch, key):
        """Half the mean squared error; no metrics."""
        return 0.5 * jnp.mean(jnp.square(batch["x"] @ params - batch["y"])), (state, {})

    def batch(self, split: Split, key: PRNGKeyArray) -> dict[str, Array]:
        """Fresh rows; all splits are the same stream."""
        x, noise = _rows(key, self.batch_size, self.scales)
        return {"x": x, "y": x @ self.weights + self.noise * noise}

    @property
    def minimum(self) -> float:
        """Smallest value of the mean loss, `noise^2 / 2`."""
        return 0.5 * self.noise**2


class LogisticStream(Task):
    """Logistic regression on fresh rows: the label is 1 with probability `sigmoid(x . w / noise)`, p from 0.

    At noise 0 the classes are separable: the label is 1 where `x . w > 0`.

    Attributes:
      weights: the true weights w.
      scales: standard deviation of each feature.
      noise: how far labels depend on chance, at least 0.
      batch_size: rows in a batch.
    """

    name: str = eqx.field(static=True)
    weights: Float[Array, " features"]
    scales: Float[Array, " features"]
    noise: float = eqx.field(static=True)
    batch_size: int = eqx.field(static=True, default=32)

    def init(self, key: PRNGKeyArray) -> tuple[Float[Array, " features"], None]:
        """Zeros: the loss is convex."""
        return jnp.zeros_like(self.weights), None

    def loss(self, params, state, batch, key):
        """Mean binary cross entropy in nats, with `accuracy`."""
        logits = batch["x"] @ params
        right = (logits > 0) == (batch["y"] > 0.5)
        cost = jnp.mean(bernoulli_cost(logits, batch["y"]))
        return cost, (state, {"accuracy": jnp.mean(right.astype(jnp.float32))})

    def batch(self, split: Split, key: PRNGKeyArray) -> dict[str, Array]:
        """Fresh rows; all splits are the same stream."""
        x_key, label_key = jax.random.split(key)
        x, _ = _rows(x_key, self.batch_size, self.scales)
        chance = jax.random.logistic(label_key, (self.batch_size,))
        return {"x": x, "y": (x @ self.weights + self.noise * chance > 0).astype(jnp.float32)}

    @property
    def minimum(self) -> float:
        """Smallest mean loss: the entropy of a label given its row; without noise 0, in the limit."""
        if not self.noise:
            return 0.0
        spread = float(jnp.sqrt(jnp.sum((self.weights * self.scales) ** 2))) / self.noise
        # Expectation over the logit, N(0, spread^2), by Gauss-Hermite quadrature.
        nodes, weights = np.polynomial.hermite_e.hermegauss(64)
        logit = spread * nodes
        entropy = np.logaddexp(0, logit) - logit / (1 + np.exp(-logit))
        return float(weights @ entropy / weights.sum())


def _rows(key: PRNGKeyArray, rows: int, scales: Float[Array, " features"]) -> tuple[Array, Array]:
    draw = jax.random.normal(key, (rows, scales.shape[0] + 1))
    return draw[:, :-1] * scales[None], draw[:, -1]


def _uci(name: str, dataset: str, hidden: tuple[int, ...], batch_size: int | None) -> TableRegression:
    splits = data.table(f"uci_{dataset}")
    rows = WholeData.of(splits) if batch_size is None else ArrayData(splits, batch_size)
    return TableRegression(name, rows, hidden)


def _stream(
    kind: type[LinearStream] | type[LogisticStream], name: str, features: int, noise: float, condition: float
) -> Task:
    # RandomState's streams are frozen for good, so the task stays the same with every numpy.
    weights = np.random.RandomState(0).standard_normal(features)
    scales = np.geomspace(1, condition**-0.5, features)
    length = np.sqrt(np.sum((weights * scales) ** 2))
    return kind(name, jnp.asarray(3 * weights / length, jnp.float32), jnp.asarray(scales, jnp.float32), noise)


UCI = ("boston", "concrete", "energy", "kin8nm", "naval", "power", "wine", "yacht")
_LARGE = ("kin8nm", "naval", "power")

# Features, noise, and the ratio of the extreme eigenvalues of the features' covariance.
_STREAMS = {
    "Linear_20": (LinearStream, 20, 0.1, 1.0),
    "Linear_20_cond100": (LinearStream, 20, 0.1, 100.0),
    "Linear_100_cond1000": (LinearStream, 100, 0.1, 1000.0),
    "Logistic_20_noisy": (LogisticStream, 20, 1.0, 1.0),
    "Logistic_20_noisy_cond100": (LogisticStream, 20, 1.0, 100.0),
    "Logistic_20_separable": (LogisticStream, 20, 0.0, 1.0),
}

TASKS: dict[str, Callable[[], Task]] = {
    # The networks of Clarke, Oldewage and Hernandez-Lobato 2022 (arXiv 2110.10461): 50 ReLU units, full
    # batches.
    **{
        f"UCI_{d.capitalize()}": functools.partial(_uci, f"UCI_{d.capitalize()}", d, (50,), None) for d in UCI
    },
    **{
        f"UCI_{d.capitalize()}_BS128": functools.partial(_uci, f"UCI_{d.capitalize()}_BS128", d, (50,), 128)
        for d in _LARGE
    },
    **{
        f"Linear_UCI_{d.capitalize()}": functools.partial(_uci, f"Linear_UCI_{d.capitalize()}", d, (), None)
        for d in UCI
    },
    **{
        name: functools.partial(_stream, kind, name, features, noise, condition)
        for name, (kind, features, noise, condition) in _STREAMS.items()
    },
    **builders(
        ImageMLP,
        {
            "Logistic_Digits": (Images("digits"), {"hidden": ()}),
            "Logistic_Mnist": (Images("mnist"), {"hidden": ()}),
            "Logistic_FashionMnist": (Images("fashion_mnist"), {"hidden": ()}),
            "Logistic_FashionMnist8": (Images("fashion_mnist", 8), {"hidden": ()}),
            "Logistic_Cifar10": (Images("cifar10"), {"hidden": ()}),
        },
    ),
}
