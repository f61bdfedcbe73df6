"""Quadratics and regressions against known minima and shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from outeropt import tasks
from outeropt.errors import MissingData
from outeropt.task import SPLITS
from task_fixtures import KEY


def test_quadratic_has_the_spectrum_of_its_name():
    task = tasks.get("Quadratic_100_cond1000_rotated")
    hessian = np.asarray(jax.hessian(lambda p: task.loss(p, None, None, None)[0])(jnp.ones(100)))
    spectrum = np.linalg.eigvalsh(hessian)
    assert spectrum[-1] / spectrum[0] == pytest.approx(1000, rel=1e-3)
    assert np.abs(hessian - np.diag(np.diag(hessian))).max() > 0.01


def test_noisy_quadratic_reaches_its_minimum_in_the_mean():
    task = tasks.get("NoisyQuadratic_100_cond100")
    losses = jax.vmap(lambda key: task.loss(jnp.zeros(100), None, task.batch("train", key), None)[0])(
        jax.random.split(KEY, 4000)
    )
    assert float(losses.mean()) == pytest.approx(task.minimum, rel=0.02)


def test_saddle_starts_at_a_saddle():
    task = tasks.get("Saddle_10")
    gradient_at_0 = jax.grad(lambda p: task.loss(p, None, None, None)[0])(jnp.zeros(10))
    hessian = jax.hessian(lambda p: task.loss(p, None, None, None)[0])(jnp.zeros(10))
    assert not np.any(gradient_at_0) and (np.linalg.eigvalsh(hessian) < 0).all()
    assert task.loss(jnp.ones(10), None, None, None)[0] == task.minimum


def test_bilinear_game_spirals_and_damped_game_converges():
    def run(name, steps=300):
        task = tasks.get(name)

        def step(params, _):
            loss, grads = jax.value_and_grad(lambda p: task.loss(p, None, None, None)[0])(params)
            return jax.tree.map(lambda p, g: p - 0.05 * g, params, grads), loss

        return jax.jit(lambda: jax.lax.scan(step, task.init(KEY)[0], length=steps)[1])()

    spiral, damped = run("MinMaxBilinear_10"), run("MinMaxQuadratic_10")
    assert spiral[-1] > 1.5 * spiral[0] and damped[-1] < 0.5 * damped[0]


def test_logistic_stream_reaches_its_minimum_at_the_true_weights():
    task = tasks.get("Logistic_20_noisy_cond100")
    losses = jax.vmap(lambda key: task.loss(task.weights, None, task.batch("train", key), None)[0])(
        jax.random.split(KEY, 2000)
    )
    assert float(losses.mean()) == pytest.approx(task.minimum, rel=0.02)
    separable = tasks.get("Logistic_20_separable")
    _, (_, metrics) = separable.loss(separable.weights, None, separable.batch("test", KEY), None)
    assert separable.minimum == 0 and metrics["accuracy"] == 1


def test_linear_stream_reaches_its_minimum_at_the_true_weights():
    task = tasks.get("Linear_20_cond100")
    losses = jax.vmap(lambda key: task.loss(task.weights, None, task.batch("train", key), None)[0])(
        jax.random.split(KEY, 1000)
    )
    assert float(losses.mean()) == pytest.approx(task.minimum, rel=0.02)


def test_uci_tasks_see_the_whole_table():
    try:
        task = tasks.get("UCI_Energy")
    except MissingData as error:
        pytest.skip(str(error))
    for split, count in zip(SPLITS, (614, 78, 76)):
        rows = jax.tree.map(np.asarray, task.batch(split, KEY))
        assert rows["x"].shape == (count, 8) and rows["y"].shape == (count, 1)
    params, state = task.init(KEY)
    assert {name: leaf.shape for name, leaf in params.items()} == {
        "w0": (8, 50), "b0": (50,), "w1": (50, 1), "b1": (1,)
    }  # fmt: skip
    assert float(jnp.abs(params["w0"]).max()) <= 8**-0.5 and float(jnp.abs(params["b1"]).max()) <= 50**-0.5
    p = jax.tree.map(np.asarray, params)
    for split in ("train", "valid"):
        batch = task.batch(split, KEY)
        x, y = (np.asarray(batch[name]) for name in ("x", "y"))
        expected = np.mean((np.maximum(x @ p["w0"] + p["b0"], 0) @ p["w1"] + p["b1"] - y) ** 2)
        assert float(task.loss(params, state, batch, None)[0]) == pytest.approx(expected, rel=1e-5)
