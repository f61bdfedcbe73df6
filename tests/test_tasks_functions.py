"""Test functions against their known minima, finite differences, and each other in several dimensions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from outeropt import tasks
from outeropt.errors import ConfigError, UnknownName
from outeropt.tasks.functions.named import SURFACES
from outeropt.tasks.functions.scalable import SCALABLE
from outeropt.tasks.functions.surface import FunctionTask
from task_fixtures import KEY


# The functions of two parameters and the one of four, and those of any size again with fifty.
EVERY = SURFACES | {f"{name}_50": entry.at(50) for name, entry in SCALABLE.items()}

# The suite that Meta-Optimization tests on, by the names here.
SUITE = (
    "Hypersphere", "Hyperellipsoid", "Rosenbrock", "Rastrigin", "Schwefel", "Griewank", "Ackley",
    "Michalewicz", "Eggholder", "Keane", "Rana", "DeJong3", "StyblinskiTang",
)  # fmt: skip
PLANE = (
    "Easom", "DeJong5", "GoldsteinPrice", "PichenyGoldsteinPrice", "McCormick", "MartinGaddy", "Schaffer2",
    "Himmelblau", "PitsAndHoles",
)  # fmt: skip


def minimisers(surface):
    return jnp.asarray(surface.minimisers, jnp.float32).reshape(-1, len(surface.domain))


def value_of(surface):
    task = FunctionTask("mine", surface)
    return lambda point: task.loss(point, None, None, None)[0]


@pytest.fixture(scope="module")
def evaluated():
    """Values and gradients of every function at its minimisers and at random points, in one program."""

    def one(surface):
        low, high = jnp.asarray(surface.domain, jnp.float32).T
        task = FunctionTask("mine", surface)
        starts = jax.vmap(lambda key: task.init(key)[0])(jax.random.split(KEY, 64))
        outside = low[None] + (starts - low[None]) * 4 - 1.5 * (high - low)[None]
        corners = jnp.stack([low, high, jnp.zeros_like(low), jnp.clip(0, low, high)])
        everywhere = jnp.concatenate([minimisers(surface), starts, corners, outside])
        return starts, *jax.vmap(jax.value_and_grad(value_of(surface)))(everywhere)

    return jax.jit(lambda: {name: one(surface) for name, surface in EVERY.items()})()


@pytest.mark.parametrize("name", EVERY)
def test_surface(evaluated, name):
    surface = EVERY[name]
    starts, values, grads = map(np.asarray, evaluated[name])
    known = len(surface.minimisers)
    assert np.isfinite(values).all() and np.isfinite(grads).all()
    low, high = np.asarray(surface.domain, np.float32).T
    assert (starts >= low).all() and (starts <= high).all() and np.ptp(starts, axis=0).min() > 0
    assert surface.source
    if surface.minimum is not None:
        scale = max(1.0, abs(surface.minimum), float(np.ptp(values[known : known + 64])) * 0.1)
        np.testing.assert_allclose(values[:known], surface.minimum, rtol=0, atol=2e-5 * scale)
        assert (values >= surface.minimum - 2e-5 * scale).all()


def test_there_are_many_surfaces_and_the_whole_suite():
    assert len(SURFACES) >= 55
    assert SCALABLE.keys() >= set(SUITE) and SURFACES.keys() >= {*SUITE, *PLANE, "Shekel"}
    assert {f"Function_{name}_50" for name in SUITE} <= set(tasks.names("Function_*_50"))


def test_gradients_agree_with_finite_differences():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for name in (*SUITE, *PLANE, "Shekel"):
            surface = SCALABLE[name].at(3) if name in SUITE else SURFACES[name]
            low, high = np.asarray(surface.domain).T
            points = np.random.default_rng(0).uniform(low, high, (8, len(low)))
            value = jax.jit(jax.vmap(surface.value))
            grads = jax.jit(jax.vmap(jax.grad(surface.value)))(points)
            for i in range(len(low)):
                step = 1e-7 * (high[i] - low[i]) * np.eye(len(low))[i]
                slope = (value(points + step) - value(points - step)) / (2 * step[i])
                np.testing.assert_allclose(
                    grads[:, i], slope, rtol=1e-3, atol=1e-5 * (1 + np.abs(grads).max()), err_msg=name
                )


def test_no_coordinatewise_share_of_michalewicz_is_lower():
    # Published: -1.8013034, -4.687658, -9.66015 for 2, 5 and 10 parameters.
    for dim, minimum in {2: -1.8013034, 5: -4.687658, 10: -9.6601517}.items():
        assert SCALABLE["Michalewicz"].at(dim).minimum == pytest.approx(minimum, abs=1e-6)


def test_the_lowest_points_of_the_plane_are_where_they_are_said_to_be():
    """A grid over the domain finds nothing lower, for the functions that the suite adds."""
    for name in ("Keane", "Rana", "PitsAndHoles", "PichenyGoldsteinPrice", "MartinGaddy"):
        surface = SURFACES[name]
        sides = [np.linspace(low, high, 801, dtype=np.float32) for low, high in surface.domain]
        points = jnp.asarray(np.stack(np.meshgrid(*sides), axis=-1).reshape(-1, 2))
        lowest = float(jax.jit(lambda points, f=surface.value: jax.vmap(f)(points).min())(points))
        span = max(1.0, abs(surface.minimum))
        assert surface.minimum - 1e-5 * span <= lowest <= surface.minimum + 0.02 * span, name


@pytest.mark.parametrize("dim", [1, 2, 3, 50, 200])
def test_a_number_behind_the_name_is_the_number_of_parameters(dim):
    for name, entry in SCALABLE.items():
        given = f"Function_{name}_{dim}"
        assert tasks.known(given) and tasks.family(given) == "functions"
        if dim < entry.least:
            with pytest.raises(ConfigError, match="needs at least 2 parameters"):
                tasks.get(given)
            continue
        task = tasks.get(given)
        tasks.check(task)
        assert task.name == given and jax.eval_shape(task.init, KEY)[0].shape == (dim,)
        assert jax.tree.structure(task) == jax.tree.structure(tasks.get(given))


def test_names_that_only_look_like_sized_functions():
    for name in ("Function_Ackley_0", "Function_Ackley_05", "Function_Ackley_-1", "Function_Beale_3"):
        assert not tasks.known(name)
        with pytest.raises(UnknownName):
            tasks.get(name)


def test_a_staircase_says_so():
    facts = tasks.describe("Function_DeJong3_7")
    assert facts["minimum"] == -28.0 and facts["parameters"] == 7
    assert "gradient is zero" in facts["notes"] and "De Jong" in facts["notes"]
    grads = jax.vmap(jax.grad(value_of(SCALABLE["DeJong3"].at(7))))(jax.random.uniform(KEY, (5, 7)))
    assert not np.asarray(grads).any()
