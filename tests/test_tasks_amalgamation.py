"""The problems of the amalgamation study: sizes counted by hand, networks against numpy, names and data."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import task_fixtures
from image_fixtures import as_numpy, count, drawn, np_conv, np_norm, np_pool, run, small_data, some_images
from outeropt import tasks
from outeropt.data.arrays import ArrayData
from outeropt.errors import ConfigError, UnknownName
from outeropt.tasks import amalgamation
from outeropt.tasks.functions.random_squares import RandomSquares
from outeropt.tasks.images.branched_conv import BranchedConv, overlapping_average
from outeropt.tasks.images.plain_conv import PlainConv
from outeropt.tasks.images.pooled_resnet import PooledResNet
from outeropt.tasks.layers import glorot_uniform


blank = task_fixtures.blank


def convolutions(*widths, kernel=3):
    return sum((kernel**2 * a + 1) * b for a, b in itertools.pairwise(widths))


def residual(depth, width, classes=10):
    n, features = (depth - 4) // 6, 16
    total = convolutions(3, 16) + 2 * 16
    for channels in (16 * width, 32 * width, 64 * width):
        total += convolutions(features, channels) + (2 * n - 1) * convolutions(channels, channels)
        total += 4 * n * channels + (features != channels) * (features + 1) * channels
        features = channels
    return total + (features + 1) * classes


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("mlp_train", 785 * 20 + 210),
        # 28 -> 26 -> 13 -> 9 -> 4 pixels.
        ("conv_train", 18_122),
        ("conv_fmnist", 18_122),
        ("conv_smallbatch", 18_122),
        ("conv_avg", 160 + 12_832 + 289 * 10),
        # 32 -> 30 -> 15 -> 11 -> 5.
        ("conv_train_cifar10", convolutions(3, 16) + 12_832 + (25 * 32 + 1) * 10),
        ("conv_wider", 320 + convolutions(32, 64, kernel=5) + (16 * 64 + 1) * 10),
        ("conv_cifar10_wider", convolutions(3, 32) + convolutions(32, 64, kernel=5) + (25 * 64 + 1) * 10),
        # 28 -> 26 -> 12 -> 10 -> 4 -> 2.
        ("conv_deeper", convolutions(1, 16, 32, 32, 64, 64) + (4 * 64 + 1) * 10),
        # 28 -> 26 -> 24 -> 22 -> 11 -> 9 -> 7 -> 3.
        ("conv_deeper_pool", convolutions(1, 16, 32, 32, 64, 64) + (9 * 64 + 1) * 10),
        # 32 -> 30 -> 14 -> 12 -> 5 -> 3.
        ("conv_cifar10", convolutions(3, 16, 32, 32, 64, 64) + (9 * 64 + 1) * 10),
        # 32 -> 30 -> 28 -> 26 -> 13 -> 11 -> 9 -> 4.
        ("conv_cifar10_pool", convolutions(3, 16, 32, 32, 64, 64) + (16 * 64 + 1) * 10),
        ("conv_nas", convolutions(1, 16, 16, 16, 16, 16) + 170),
        ("conv_nas_cifar", convolutions(3, 16, 16, 16, 16, 16) + 170),
        ("resnet", residual(28, 1)),
        ("resnet_52", residual(52, 1)),
        ("wide_resnet", residual(28, 4)),
        ("rastrigin10", 10),
        ("quadratic100", 100),
    ],
)
def test_every_problem_has_its_published_size(name, parameters, blank):
    task = blank(name)
    assert count(eqx.filter_eval_shape(task.init, jax.random.key(0))[0]) == parameters
    if tasks.dataset(name):
        assert task.data.batch_size == (32 if name == "conv_smallbatch" else 128)


def test_names_tell_their_data():
    assert tasks.dataset("conv_cifar10_pool") == "cifar10" and tasks.dataset("conv_fmnist") == "fashion_mnist"
    assert tasks.dataset("conv_train_FixedBatch") == tasks.dataset("conv_train_TrainValid") == "mnist"
    assert tasks.dataset("rastrigin2") is None and tasks.family("resnet") == "amalgamation"


@pytest.mark.parametrize(
    ("name", "dataset"),
    [
        ("conv_kmnist", "kmnist"),
        ("conv_svhn", "svhn_cropped"),
        ("resnet_52_100", "cifar100"),
        ("resnet_100_100", "cifar100"),
    ],
)
def test_problems_without_data_name_them_and_take_a_copy(name, dataset):
    assert tasks.not_provided(name) == dataset and not tasks.known(name)
    with pytest.raises(UnknownName, match=f"the dataset {dataset}, which .*amalgamation.on_own_data"):
        tasks.get(name)
    rows = small_data((32, 32, 3))
    task = amalgamation.on_own_data(name, ArrayData(rows.splits, 7))
    assert task.name == name and task.data.batch_size == 128
    assert task.classes == (100 if dataset == "cifar100" else 10)
    assert tasks.not_provided("conv_train") is None
    with pytest.raises(UnknownName, match="Did you mean conv_svhn"):
        amalgamation.on_own_data("conv_svnh", rows)


def valid(x, w, b, stride=1):
    """Convolution without padding and ReLU, by loops over the kernel."""
    kernel, out = w.shape[0], (x.shape[1] - w.shape[0]) // stride + 1
    stop = (out - 1) * stride + 1
    y = sum(
        x[:, i : i + stop : stride, j : j + stop : stride] @ w[i, j]
        for i in range(kernel)
        for j in range(kernel)
    )
    return np.maximum(y + b, 0)


def test_plain_convolutions_against_numpy():
    task = PlainConv("mine", small_data((9, 9, 2)), ((3, 2, 1), 2, (4, 2, 2)))
    params, _ = drawn(task)
    images = some_images(task)
    logits, _ = run(task.logits, params, None, images, None)
    p = as_numpy(params)
    x = np_pool(valid(np.asarray(images, np.float64), p["w0"], p["b0"]))
    x = valid(x, p["w1"], p["b1"], 2).reshape(4, -1)
    np.testing.assert_allclose(logits, x @ p["w2"] + p["b2"], atol=1e-4)


def test_the_average_head_averages_probabilities():
    task = PlainConv("mine", small_data((7, 7, 1)), ((3, 3, 1),), head="average")
    params, _ = drawn(task)
    images = some_images(task)
    logits, _ = run(task.logits, params, None, images, None)
    p = as_numpy(params)
    x = valid(np.asarray(images, np.float64), p["w0"], p["b0"])
    scores = sum(x[:, i : i + 3, j : j + 3] @ p["w1"][i, j] for i in range(3) for j in range(3)) + p["b1"]
    probabilities = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    np.testing.assert_allclose(np.exp(logits), probabilities.mean((1, 2)), rtol=1e-4)


def test_the_branched_network_against_numpy():
    task = BranchedConv("mine", small_data((5, 5, 2)), channels=3)
    params, _ = drawn(task)
    images = some_images(task)
    logits, _ = run(task.logits, params, None, images, None)
    p = as_numpy(params)

    def c(x, w, b):
        return np.maximum(np_conv(x, w) + b, 0)

    n0 = c(np.asarray(images, np.float64), p["stem_w"], p["stem_b"])
    n1 = c(n0, p["w"][0], p["b"][0])
    pooled = np.zeros_like(n1)
    for i in range(5):
        for j in range(5):
            pooled[:, i, j] = n1[:, i : i + 2, j : j + 2].mean((1, 2))
    inner = c(c(n1, p["w"][2], p["b"][2]), p["w"][3], p["b"][3])
    n3 = n0 + inner + pooled + c(n0, p["w"][1], p["b"][1])
    np.testing.assert_allclose(logits, n3.mean((1, 2)) @ p["head_w"] + p["head_b"], atol=1e-3)
    np.testing.assert_allclose(overlapping_average(jnp.asarray(n1, jnp.float32)), pooled, atol=1e-5)


@pytest.mark.parametrize("width", [1, 2])
def test_the_pooled_residual_network_against_numpy(width):
    task = PooledResNet("mine", small_data(), depth=16, width=width)
    params, state = drawn(task)
    images = some_images(task)
    logits, new_state = run(task.logits, params, state, images, jax.random.key(2))
    p = as_numpy(params)

    def layer(x, part, i, index=...):
        w, b, scale, offset = (p[f"{part}_{leaf}{i}"][index] for leaf in ("w", "b", "scale", "offset"))
        return np.maximum(np_norm(np_conv(x, w) + b, (0, 1, 2), scale, offset), 0)

    x = layer(np.asarray(images, np.float64), "stem", 0)
    for g in range(3):
        x = np_pool(x) if g else x
        shortcut = x
        if f"entry{g}_shortcut_w" in p:
            shortcut = x @ p[f"entry{g}_shortcut_w"][0, 0] + p[f"entry{g}_shortcut_b"]
        x = shortcut + layer(layer(x, f"entry{g}", 0), f"entry{g}", 1)
        x = x + layer(layer(x, f"rest{g}", 0, 0), f"rest{g}", 1, 0)
    assert ("entry0_shortcut_w" in p) == (width > 1)
    expected = x.mean((1, 2)) @ p["head_w"] + p["head_b"]
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)
    assert jax.tree.structure(new_state) == jax.tree.structure(state)
    assert all(np.any(new_state[name] != state[name]) for name in state)


def test_glorot_weights_fill_their_interval():
    weights = np.asarray(run(lambda key: glorot_uniform(key, (5, 5, 16, 32)), jax.random.key(0)))
    bound = np.sqrt(6 / (25 * 16 + 25 * 32))
    assert 0.99 * bound < np.abs(weights).max() <= bound
    np.testing.assert_allclose(weights.std(), bound / np.sqrt(3), rtol=0.02)


def test_random_squares_differ_by_seed_and_not_by_step():
    task = RandomSquares("mine", 3, ripple=10.0)

    @jax.jit
    def values(key, point):
        start, state = task.init(key)
        loss, (after, _) = task.loss(point, state, None, key)
        return start, state, loss, after

    point = np.asarray([0.3, -1.0, 2.0], "f")
    start, state, loss, after = values(jax.random.key(0), point)
    assert not np.any(start) and eqx.tree_equal(after, state)
    a, b, c = (np.asarray(state[name], np.float64) for name in ("matrix", "target", "waves"))
    expected = ((a @ point - b) ** 2).sum() + 10 * (3 - (c * np.cos(2 * np.pi * point)).sum())
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert loss != values(jax.random.key(1), point)[2]
    assert task.minimum is None and tasks.get("quadratic10").minimum == 0.0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda d: PlainConv("m", d, ((3, 5, 1), (3, 5, 1))), r"nothing is left of images of 8 x 8 after"),
        (lambda d: PooledResNet("m", d, depth=8), "a depth of at least 10"),
    ],
)
def test_what_cannot_be_built_says_why(build, message):
    with pytest.raises(ConfigError, match=message):
        eqx.filter_eval_shape(lambda d: build(d).init(jax.random.key(0)), small_data())
