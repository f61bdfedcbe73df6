"""Layers, norms and losses that tasks share, against plain numpy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from image_fixtures import np_conv, np_norm, np_softmax
from outeropt.tasks import layers, losses, norms


def test_initial_weights_are_cut_normals_of_the_fan_in():
    w = np.asarray(layers.fan_in_normal(jax.random.key(0), (5, 5, 4, 400)))
    assert np.abs(w).max() <= 2 / 10 + 1e-6
    np.testing.assert_allclose(w.std(), 0.87962566 / 10, rtol=0.02)
    np.testing.assert_allclose(w.mean(), 0.0, atol=2e-3)


@pytest.mark.parametrize(("shape", "size"), [((2, 8, 8, 3), 2), ((1, 7, 9, 2), 2), ((1, 9, 9, 1), 3)])
def test_max_pool_equals_reduce_window(shape, size):
    x = jax.random.normal(jax.random.key(0), shape)
    window = (1, size, size, 1)

    def by_window(x):
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")

    np.testing.assert_array_equal(layers.max_pool(x, size), by_window(x))
    ours = jax.grad(lambda x: jnp.sum(jnp.sin(layers.max_pool(x, size))))(x)
    theirs = jax.grad(lambda x: jnp.sum(jnp.sin(by_window(x))))(x)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [4, 5])
def test_conv_pads_same(stride, side):
    random = np.random.default_rng(0)
    x = random.standard_normal((2, side, side, 3)).astype(np.float32)
    w = random.standard_normal((3, 3, 3, 2)).astype(np.float32)
    np.testing.assert_allclose(layers.conv(x, w, stride), np_conv(x, w, stride), atol=1e-5)


def test_patches_are_squares_row_by_row():
    x = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3).astype(np.float32)
    got = np.asarray(layers.patches(jnp.asarray(x), 2))
    expected = [x[:, i : i + 2, j : j + 2].reshape(2, -1) for i in (0, 2) for j in (0, 2, 4)]
    np.testing.assert_array_equal(got, np.stack(expected, axis=1))


def test_dropout_keeps_the_mean_and_is_off_without_a_key():
    x = jnp.full((100, 100), 3.0)
    dropped = np.asarray(layers.dropout(x, 0.8, jax.random.key(0)))
    assert set(np.unique(dropped.round(4))) == {0.0, 15.0}
    np.testing.assert_allclose(dropped.mean(), 3.0, rtol=0.05)
    assert layers.dropout(x, 0.8, None) is x
    assert layers.dropout(x, 0.0, jax.random.key(0)) is x


def test_layer_norm_against_numpy():
    random = np.random.default_rng(0)
    x, scale, offset = (random.standard_normal(s).astype(np.float32) for s in ((4, 3, 5), 5, 5))
    got = norms.layer_norm(jnp.asarray(x), jnp.asarray(scale), jnp.asarray(offset))
    np.testing.assert_allclose(got, np_norm(x, -1, scale, offset), atol=1e-5)


def test_batch_norm_against_numpy_with_bias_corrected_running_averages():
    random = np.random.default_rng(0)
    scale, offset = random.standard_normal((2, 5)).astype(np.float32)
    statistics = norms.fresh_statistics(5)
    np.testing.assert_array_equal(statistics, [[0.0] * 5, [1.0] * 5, [0.0] * 5])
    hidden = np.zeros((2, 5))
    for step in range(1, 4):
        x = (3 + 2 * random.standard_normal((6, 4, 5))).astype(np.float32)
        y, statistics = norms.batch_norm(
            jnp.asarray(x), jnp.asarray(scale), jnp.asarray(offset), statistics, training=True
        )
        np.testing.assert_allclose(y, np_norm(x, (0, 1), scale, offset), atol=1e-4)
        hidden = 0.9 * hidden + 0.1 * np.stack([x.mean((0, 1)), x.var((0, 1))])
        mean, variance = hidden / (1 - 0.9**step)
        np.testing.assert_allclose(statistics[:2], [mean, variance], rtol=1e-5)
    y, same = norms.batch_norm(
        jnp.asarray(x), jnp.asarray(scale), jnp.asarray(offset), statistics, training=False
    )
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(variance + 1e-5) * scale + offset, atol=1e-4)
    np.testing.assert_array_equal(same, statistics)


# Losses


def test_criteria_against_numpy():
    random = np.random.default_rng(0)
    logits = random.standard_normal((6, 4)).astype(np.float32)
    labels = np.array([0, 1, 2, 3, 0, 1], np.int32)
    one_hot = np.eye(4)[labels]
    p = np_softmax(logits.astype(np.float64))
    s = 1 / (1 + np.exp(-logits.astype(np.float64)))
    expected = {
        "softmax": -np.log(p[np.arange(6), labels]).mean(),
        "sigmoid": -(one_hot * np.log(s) + (1 - one_hot) * np.log(1 - s)).mean(),
        "squared": ((logits - one_hot) ** 2).mean(),
    }
    assert expected.keys() == losses.CRITERIA.keys()
    for name, value in expected.items():
        got = losses.criterion(name)(jnp.asarray(logits), jnp.asarray(labels))
        np.testing.assert_allclose(got, value, rtol=1e-5)
    accuracy = losses.accuracy(jnp.asarray(logits), jnp.asarray(labels))
    np.testing.assert_allclose(accuracy, (logits.argmax(1) == labels).mean())


def test_quantized_normal_bounds_the_probability_of_a_cell():
    width, x = 1 / 16, np.linspace(0, 1, 17)
    mean, std = 0.4, 0.2
    cost = losses.quantized_normal_cost(
        jnp.float32(mean), jnp.log(jnp.float32(std)), jnp.asarray(x, jnp.float32), width
    )
    cdf = np.vectorize(lambda z: 0.5 * (1 + math.erf((z - mean) / (std * math.sqrt(2)))))
    exact = -np.log(cdf(x + width / 2) - cdf(x - width / 2))
    assert np.all(np.asarray(cost) >= exact - 1e-5)
    np.testing.assert_allclose(cost, exact, atol=0.05)
    # The expectation over the cell, by quadrature.
    u = (np.arange(1000) + 0.5) / 1000 * width - width / 2
    density = -0.5 * ((x[:, None] + u - mean) / std) ** 2 - np.log(std * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(cost, -density.mean(1) - np.log(width), rtol=1e-4)
