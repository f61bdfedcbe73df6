"""The gradient of differentially private SGD against an explicit loop, and its noise."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import task_fixtures
from image_fixtures import small_data
from outeropt import tasks
from outeropt.errors import ConfigError
from outeropt.tasks.images.conv import ConvNet
from outeropt.tasks.wrappers.private import PrivateGradient
from task_fixtures import KEY, gradient, small_task, started


blank = task_fixtures.blank


@eqx.filter_jit
def of(task, key=KEY):
    """Loss and flat gradient at the start."""
    params, state, batch = started(task)
    loss, grads = jax.value_and_grad(lambda p: task.loss(p, state, batch, key)[0])(params)
    return loss, ravel_pytree(grads)[0]


@pytest.mark.parametrize("chunk", [1, 3, 4, 100])
def test_rows_are_clipped_one_by_one(chunk):
    inner = small_task()
    params, state, batch = started(inner)
    total, norms = 0.0, []
    for i in range(8):
        row = jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], batch)
        flat = np.asarray(ravel_pytree(gradient(inner, params, state, row, None))[0], np.float64)
        norms.append(np.linalg.norm(flat))
        total += flat * min(1, 2.0 / norms[-1])
    assert min(norms) < 2 < max(norms)  # some are clipped, some are not
    loss, seen = of(PrivateGradient(inner, 2.0, 0.0, chunk))
    np.testing.assert_allclose(seen, total / 8, rtol=1e-4)
    assert loss == of(inner)[0]


def test_without_noise_and_limit_it_is_the_plain_gradient():
    inner = small_task()
    np.testing.assert_allclose(of(PrivateGradient(inner, 1e6, 0.0))[1], of(inner)[1], rtol=1e-5)


def test_the_noise_has_its_deviation_and_differs_by_step():
    task = PrivateGradient(small_task(), 0.5, 3.0)
    clean = of(PrivateGradient(small_task(), 0.5, 0.0))[1]
    keys = jax.random.split(KEY, 4000)
    noise = np.asarray(eqx.filter_jit(jax.vmap(lambda key: of(task, key)[1]))(keys)) - np.asarray(clean)
    np.testing.assert_allclose(noise.mean(axis=0), 0, atol=4 * 1.5 / 8 / 4000**0.5)
    np.testing.assert_allclose(noise.std(axis=0), 0.5 * 3.0 / 8, rtol=0.05)
    np.testing.assert_allclose(np.corrcoef(noise.T), np.eye(4), atol=0.07)


def test_zero_gradients_stay_zero():
    flat = tasks.from_functions(
        init=lambda key: jnp.ones(2),
        loss=lambda params, batch: 0.0 * jnp.sum(params * jnp.mean(batch["x"])),
        data={"x": np.ones((40, 1), "f")},
        batch_size=4,
        name="flat",
    )
    assert not np.any(of(PrivateGradient(flat, 1.0, 0.0))[1])


def test_evaluation_is_that_of_the_task_inside(blank):
    task = blank("conv_train_dp")
    tasks.check(task)
    assert task.name == "conv_train_dp" and (task.clip_norm, task.noise_multiplier) == (1.0, np.float32(1.1))
    inner = small_task()
    params, state, batch = started(inner)
    expected = inner.loss(params, state, batch, None)
    assert PrivateGradient(inner).loss(params, state, batch, None)[0] == expected[0]
    assert tasks.not_provided("conv_kmnist_dp") == "kmnist"


def test_rows_that_share_a_state_are_refused():
    net = ConvNet("mine", small_data(), (3,), norm="batch_norm")
    with pytest.raises(ConfigError, match="mine_dp cannot take gradients row by row: mine has a state"):
        eqx.filter_eval_shape(of, PrivateGradient(net))
    with pytest.raises(ConfigError, match="chunk = 0 is not allowed"):
        PrivateGradient(net, chunk=0)
