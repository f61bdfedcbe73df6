"""Schedules: the golden values, shapes, leaves, and schedules inside optimizers."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from outeropt import optimizers
from outeropt.errors import OuteroptError, UnknownName
from outeropt.optimizers import (
    Constant,
    Cosine,
    Exponential,
    InverseSqrt,
    Linear,
    NAdamW,
    PiecewiseLinear,
    Scheduled,
    Step,
    from_optax,
)


GOLDEN = np.load(pathlib.Path(__file__).parent / "golden" / "hand" / "schedules.npz")
CONFIG = json.loads(str(GOLDEN["config"]))


def values(schedule, steps, num_steps=None):
    return np.asarray(jax.vmap(lambda step: schedule(step, num_steps))(jnp.asarray(steps)))


def golden(case):
    return GOLDEN[f"{case}/steps"], int(GOLDEN[f"{case}/max_steps"]), GOLDEN[f"{case}/values"]


def cosine(arguments):
    return Cosine(
        peak=arguments["learning_rate"],
        end_fraction=arguments["min_learning_rate_mult"],
        warmup_fraction=arguments["warmup_fraction"],
        constant_fraction=arguments["constant_fraction"],
    )


@pytest.mark.parametrize("case", ["cosine_1", "cosine_2", "cosine_4"])
def test_cosine_without_warmup_is_the_original(case):
    steps, num_steps, expected = golden(case)
    peak = CONFIG[case][1]["learning_rate"]
    np.testing.assert_allclose(
        values(cosine(CONFIG[case][1]), steps, num_steps), expected, rtol=1e-5, atol=2e-6 * peak
    )


def test_cosine_warms_up_as_long_as_it_is_told():
    # The original ramps up for max(warmup, constant) of the run, so 1 % of warm-up became half the run.
    steps, num_steps, expected = golden("cosine_0")
    arguments = CONFIG["cosine_0"][1]
    as_there = cosine({**arguments, "warmup_fraction": arguments["constant_fraction"]})
    np.testing.assert_allclose(values(as_there, steps, num_steps), expected, rtol=1e-5, atol=1e-8)
    ours = values(cosine(arguments), jnp.array([0, 5, 10, 250, 500]), 1000)
    np.testing.assert_allclose(ours, [0.0, 0.005, 0.01, 0.01, 0.01], rtol=1e-6)


def test_cosine_decays_from_the_end_of_a_long_warmup():
    # With a warm-up beyond the constant phase the original jumps into the middle of its decay.
    steps, num_steps, expected = golden("cosine_3")
    arguments = CONFIG["cosine_3"][1]
    warmup = steps < arguments["warmup_fraction"] * num_steps
    ours = values(cosine(arguments), steps, num_steps)
    np.testing.assert_allclose(ours[warmup], expected[warmup], rtol=1e-5)
    no_warmup = values(cosine({**arguments, "warmup_fraction": 0.0}), steps, num_steps)
    np.testing.assert_allclose(no_warmup[~warmup], expected[~warmup], rtol=1e-5, atol=1e-7)
    dense = values(cosine(arguments), jnp.arange(num_steps + 1), num_steps)
    assert np.abs(np.diff(dense)).max() < 2 * dense.max() / (arguments["warmup_fraction"] * num_steps)


@pytest.mark.parametrize("case", sorted(case for case in CONFIG if case.startswith("exponential")))
def test_exponential_is_the_original(case):
    steps, _, expected = golden(case)
    schedule = Exponential(CONFIG[case][1]["base_lr"], CONFIG[case][1]["decay_amount"])
    exact = CONFIG[case][1]["base_lr"] * (1 - CONFIG[case][1]["decay_amount"]) ** steps.astype(np.float64)
    ours = values(schedule, steps)
    np.testing.assert_allclose(ours, exact, rtol=1e-4, atol=1e-30)
    drift = np.abs(expected / np.maximum(exact, 1e-300) - 1)
    np.testing.assert_allclose(ours[drift < 1e-5], expected[drift < 1e-5], rtol=2e-5)


@pytest.mark.parametrize("case", sorted(case for case in CONFIG if case.startswith("rampsqrt")))
def test_inverse_sqrt_is_the_original(case):
    steps, _, expected = golden(case)
    schedule = InverseSqrt(CONFIG[case][1]["peak_lr"], CONFIG[case][1]["warmup_steps"])
    np.testing.assert_allclose(values(schedule, steps), expected, rtol=1e-6)


@pytest.mark.parametrize("case", sorted(case for case in CONFIG if case.startswith("piecewise")))
def test_piecewise_linear_is_the_original(case):
    steps, _, expected = golden(case)
    times = CONFIG[case][1]["times"]
    ours = values(PiecewiseLinear(times, CONFIG[case][1]["vals"]), steps)
    # Beyond the last time one of the original's two versions gives NaN; ours stays at the last value.
    known = np.isfinite(expected)
    assert np.all(steps[~known] >= times[-1])
    np.testing.assert_allclose(ours[known], expected[known], rtol=1e-5)
    np.testing.assert_allclose(ours[~known], CONFIG[case][1]["vals"][-1], rtol=1e-6)


def test_shapes_of_the_others():
    steps = jnp.array([0, 1, 2, 3, 4])
    np.testing.assert_array_equal(values(Constant(0.5), steps), [0.5] * 5)
    np.testing.assert_array_equal(values(Step([1, 3], [1.0, 0.5, 0.25]), steps), [1, 0.5, 0.5, 0.25, 0.25])
    np.testing.assert_allclose(values(Linear(2.0), steps, 4), [2.0, 1.5, 1.0, 0.5, 0.0])
    np.testing.assert_allclose(values(Linear(warmup_fraction=0.5), steps, 4), [0.0, 0.5, 1.0, 0.5, 0.0])
    np.testing.assert_allclose(values(Cosine(2.0, 0.5), jnp.array([0, 2, 4, 9]), 4), [2.0, 1.5, 1.0, 1.0])


@pytest.mark.parametrize("kind", [Cosine, Linear])
def test_a_run_that_is_all_warmup_or_all_constant(kind):
    np.testing.assert_allclose(values(kind(1.0, 0.0, 1.0), jnp.array([0, 5, 10]), 10), [0.0, 0.5, 1.0])
    np.testing.assert_allclose(values(kind(1.0, 0.0, 0.0, 1.0), jnp.array([0, 10]), 10), [1.0, 1.0])


@pytest.mark.parametrize(
    "schedule",
    [Cosine(0.1, 0.2, 0.25, 0.5), Linear(0.1, 0.2, 0.25, 0.5), Exponential(0.1, 0.01), InverseSqrt(0.1, 3.0)],
    ids=lambda schedule: type(schedule).__name__,
)
def test_gradients_of_a_schedules_numbers_are_finite(schedule):
    def total(schedule):
        return jnp.sum(jax.vmap(lambda step: schedule(step, 8))(jnp.arange(9)))

    for leaf in jax.tree.leaves(jax.grad(total)(schedule)):
        assert np.isfinite(leaf) and leaf != 0


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Step([1, 2], [1.0, 0.5]), "needs 3 values, not 2"),
        (lambda: PiecewiseLinear([1, 2], [1.0]), "as many values as times"),
        (lambda: PiecewiseLinear([], []), "as many values as times"),
        (lambda: Step([3, 1], [1.0, 0.5, 0.2]), "must increase"),
        (lambda: NAdamW(Cosine(1e-3)).init({"w": jnp.zeros(2)}), "spans the run.*num_steps"),
        (
            lambda: from_optax(optax.adam, learning_rate=Linear(1e-3)).init({"w": jnp.zeros(2)}),
            "spans the run.*num_steps",
        ),
        (lambda: Cosine(1e-3)(0), "needs num_steps"),
    ],
)
def test_mistakes_are_told(make, message):
    with pytest.raises(OuteroptError, match=message):
        make()


def steps_of(optimizer, num_steps=6):
    params = {"w": jnp.array([1.0, -2.0]), "s": jnp.array(0.5)}
    state = optimizer.init(params, num_steps=num_steps)
    found = []
    for step in range(num_steps):
        grads = jax.tree.map(lambda leaf, step=step: leaf * (0.3 + step), params)
        updates, state = optimizer.update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        found.append(params)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *found)


def test_three_ways_to_schedule_agree_with_optax():
    schedule = optax.warmup_cosine_decay_schedule(0.0, 0.1, 3, 6, end_value=0.01)
    expected = steps_of(from_optax(optax.adam, learning_rate=schedule))
    ways = [
        from_optax(optax.adam, learning_rate=Cosine(0.1, 0.1, 0.5)),
        Scheduled(optimizers.get("adam", learning_rate=0.1), Cosine(None, 0.1, 0.5)),
        optimizers.get("cosine:adam", learning_rate=0.1, end_fraction=0.1, warmup_fraction=0.5),
    ]
    for way in ways:
        found = steps_of(way)
        for leaf in expected:
            np.testing.assert_allclose(found[leaf], expected[leaf], rtol=1e-5)


def test_leaves_and_spaces_have_names():
    inside = from_optax(optax.adam, learning_rate=Cosine(0.1))
    assert {"learning_rate.peak", "learning_rate.warmup_fraction"} <= inside.hyperparameters.keys()
    assert inside.spaces.keys() == inside.hyperparameters.keys()
    around = optimizers.get("nadamw_cosine", learning_rate=0.1)
    assert "schedule.peak" not in around.hyperparameters
    assert around.replace(learning_rate=0.2, warmup_fraction=0.1).hyperparameters[
        "inner.learning_rate"
    ] == np.float32(0.2)
    with pytest.raises(UnknownName, match="learning_rate"):
        Scheduled(optimizers.get("lbfgs"), Cosine())


def test_only_schedules_cost_state():
    params = {"w": jnp.zeros(3)}
    without = from_optax(optax.sgd, learning_rate=0.1).init(params)
    assert jax.tree.leaves(without) == []
    state = from_optax(optax.sgd, learning_rate=Cosine(0.1)).init(params, num_steps=7)
    np.testing.assert_array_equal(state.clock, [0, 7])
