"""Small images, parameters drawn at random, and plain numpy layers, for the tests of image tasks."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from outeropt.data.arrays import ArrayData, as_float


def small_data(shape=(8, 8, 1), rows=6, batch_size=4, seed=0):
    random = np.random.default_rng(seed)
    split = {
        "image": jnp.asarray(random.integers(0, 256, (rows, *shape)).astype(np.uint8)),
        "label": jnp.asarray(random.integers(0, 10, rows).astype(np.int32)),
    }
    return ArrayData({"train": split, "valid": split, "test": split}, batch_size)


def drawn(task, seed=0):
    """Parameters and state of the task's shapes with every entry drawn at random, scales around 1."""
    random = np.random.default_rng(seed)
    params, state = eqx.filter_eval_shape(task.init, jax.random.key(0))

    def draw(path, leaf):
        fan_in = math.prod(leaf.shape[-4:-1]) if len(leaf.shape) > 1 else 10
        values = random.standard_normal(leaf.shape) / np.sqrt(fan_in)
        return jnp.asarray(values + ("scale" in path[-1].key), jnp.float32)

    params = jax.tree_util.tree_map_with_path(draw, params)
    return params, jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), state)


def run(function, *args):
    return eqx.filter_jit(function)(*args)


def some_rows(task, rows=4):
    return {name: leaf[:rows] for name, leaf in task.data.splits["train"].items()}


def some_images(task):
    return as_float(some_rows(task)["image"])


def as_numpy(params):
    return {name: np.asarray(leaf, np.float64) for name, leaf in params.items()}


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def np_norm(x, axes, scale, offset):
    mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * scale + offset


def np_conv(x, w, stride=1):
    """Convolution with padding SAME, by loops over the kernel."""
    kernel = w.shape[0]
    out = -(-x.shape[1] // stride)
    pad = max((out - 1) * stride + kernel - x.shape[1], 0)
    x = np.pad(x, ((0, 0), (pad // 2, pad - pad // 2), (pad // 2, pad - pad // 2), (0, 0)))
    stop = (out - 1) * stride + 1
    return sum(
        x[:, i : i + stop : stride, j : j + stop : stride] @ w[i, j]
        for i in range(kernel)
        for j in range(kernel)
    )


def np_gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def np_softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def np_pool(x):
    rows, height, width, channels = x.shape
    return x.reshape(rows, height // 2, 2, width // 2, 2, channels).max((2, 4))
