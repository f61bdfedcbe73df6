"""Small tasks and blank datasets that the tests of tasks share."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from outeropt import tasks
from outeropt.data.registry import DATASETS
from outeropt.task import SPLITS


KEY = jax.random.key(0)


def on_all_splits(rows):
    """The same rows for train, valid and test."""
    return {split: rows for split in SPLITS}


@pytest.fixture
def blank(monkeypatch):
    """Builds any task on datasets of the right shapes with nothing in them."""

    def images(name, size=None, grey=False, train_rows=None):
        height, width, channels = DATASETS[name].shape
        shape = (2, size or height, size or width, 1 if grey else channels)
        return on_all_splits({"image": jnp.zeros(shape, jnp.uint8), "label": jnp.zeros(2, jnp.int32)})

    def table(name):
        (features,) = DATASETS[name].shape
        return on_all_splits({"x": jnp.zeros((3, features)), "y": jnp.zeros((3, 1))})

    def tokens(name):
        return on_all_splits(jnp.zeros(200, jnp.int32)), DATASETS[name].classes

    monkeypatch.setattr("outeropt.data.images", images)
    monkeypatch.setattr("outeropt.data.table", table)
    monkeypatch.setattr("outeropt.data.tokens", tokens)
    return tasks.get


def started(task, key=KEY):
    params, state = task.init(key)
    return params, state, task.batch("train", key)


def drawn(task):
    """Normal parameters of the right shapes by numpy, which compiles nothing."""
    random = np.random.default_rng(0)
    shapes = eqx.filter_eval_shape(task.init, KEY)[0]
    return jax.tree.map(
        lambda leaf: jnp.asarray(random.normal(size=leaf.shape, scale=0.5), leaf.dtype), shapes
    )


def small_task():
    """A quadratic bowl with rows: two parameter tensors and a batch that matters."""

    def init(key):
        return {"w": jax.random.normal(key, (3,)), "b": jnp.float32(0.5)}

    def loss(params, batch):
        return jnp.mean((batch["x"] @ params["w"] + params["b"] - batch["y"]) ** 2)

    random = np.random.default_rng(0)
    rows = {"x": random.normal(size=(40, 3)).astype("f"), "y": random.normal(size=40).astype("f")}
    data = on_all_splits(rows)
    return tasks.from_functions(init=init, loss=loss, data=data, name="small", batch_size=8)


def gradient(task, params, state, batch, key):
    return jax.grad(lambda p: task.loss(p, state, batch, key)[0])(params)
