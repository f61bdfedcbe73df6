"""The optimizers for Keras: the updates of the JAX optimizers, and what Keras does around an optimizer."""

import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from outeropt import optimizers


PROGRAM = Path(__file__).parent / "keras_program.py"
# Steps by name; the first 100 of one are a warm-up.
EQUAL = {name: 20 for name in ("prodigy", "learned:small_fc", "schedule_free_adamw", "adamw")}
EQUAL["amalgam-choice-large-7"] = 120
CHECKS = [name for name in re.findall(r"^def check_(\w+)", PROGRAM.read_text(), re.M) if name != "goes_on"]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A file with rows and initial weights."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, 5))
    y = 2 * x[:, :1] + np.sin(x[:, 1:2])
    shapes = [(5, 8), (8,), (8, 1), (1,)]
    arrays = {"x": x, "y": y, **{f"p{i}": 0.5 * rng.normal(size=shape) for i, shape in enumerate(shapes)}}
    path = tmp_path_factory.mktemp("keras") / "start.npz"
    np.savez(path, **{name: value.astype(np.float32) for name, value in arrays.items()})
    return path


@pytest.fixture(scope="module", params=["jax", "torch"])
def ran(request, start):
    """The backend, what each check printed, and weights after training."""
    for needed in ("keras", request.param):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"there is no {needed}")
    out = start.with_name(f"{request.param}.npz")
    ended = run(request.param, str(PROGRAM), str(start), str(out))
    assert ended.returncode == 0, ended.stderr
    return request.param, json.loads(ended.stdout.splitlines()[-1]), out


def run(backend: str, *words: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "KERAS_BACKEND": backend}
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=300, env=environment
    )


@pytest.mark.parametrize("check", CHECKS)
def test_keras(ran, check):
    _, results, _ = ran
    assert not results[check], results[check]


@pytest.mark.parametrize("name", EQUAL)
def test_updates_are_those_of_the_jax_optimizer(ran, start, name):
    backend, _, out = ran
    found = arrays(out)
    if f"{name}/0" not in found:
        assert (backend, name) == ("torch", "adamw")
        pytest.skip("PyTorch has its own")
    for index, value in enumerate(trained(start, name)):
        np.testing.assert_allclose(found[f"{name}/{index}"], value, rtol=1e-5, atol=1e-5)


def arrays(path):
    with np.load(path) as file:
        return dict(file)


@functools.cache
def trained(start, name):
    """The point to evaluate after training the same network by our own loop."""
    given = arrays(start)
    params = [jnp.asarray(given[f"p{index}"]) for index in range(4)]
    optimizer = optimizers.get(f"learned:{name}" if name.startswith("amalgam") else name)

    def loss(params):
        hidden = jnp.tanh(given["x"] @ params[0] + params[1][None])
        return jnp.mean(jnp.square(hidden @ params[2] + params[3][None] - given["y"]))

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return jax.tree.map(jnp.add, params, updates), state

    state = optimizer.init(params, num_steps=20, key=jax.random.key(0))
    for _ in range(EQUAL[name]):
        params, state = step(params, state)
    return optimizer.eval_params(state, params)


@pytest.mark.skipif(importlib.util.find_spec("keras") is None, reason="there is no keras")
def test_another_backend_is_one_clear_line():
    ended = run("tensorflow", "-c", "import outeropt.keras")
    assert ended.returncode == 1
    assert "jax and torch, not on tensorflow; set KERAS_BACKEND=jax" in ended.stderr.splitlines()[-1]


def test_naming_the_package_loads_no_keras():
    ended = run("jax", "-c", "import sys, outeropt; dir(outeropt); print('keras' in sys.modules)")
    assert ended.stdout.split() == ["False"]
