"""Training as a pure function: what it is given, what it offers, what it measures, and its gradients."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from outeropt import Optimizer, optimizers, tasks, train, training, unroll
from outeropt.errors import ConfigError, OuteroptError
from outeropt.training import cadence, evaluate, inner_step, mask_diverged, start, window
from toys import regression


KEY = jax.random.key(7)
SHORT = {"steps": 20, "eval_every": 10}


@pytest.fixture(scope="module")
def task():
    return regression()


@pytest.fixture(scope="module")
def adam():
    return optimizers.get("adam", learning_rate=0.03)


def same(a, b, **tolerance):
    def compare(x, y):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        check = np.testing.assert_allclose if tolerance else np.testing.assert_array_equal
        check(np.asarray(x, np.float64), np.asarray(y, np.float64), **tolerance)

    jax.tree.map(compare, a, b)


class Descent(Optimizer):
    """Gradient descent that keeps in its state what the inner loop offered at the last step."""

    learning_rate: jax.Array

    def init(self, params, *, num_steps=None, key=None):
        seen = dict.fromkeys(("value", "value_fn", "valid_fn", "draw", "shift"), jnp.float32(jnp.nan))
        drawn = jax.random.uniform(key)
        return {**seen, "steps": jnp.int32(num_steps), "step": jnp.int32(-1), "init_draw": drawn}

    def update(self, grads, state, params, **context: Any):
        shift = sum(jnp.sum(jnp.abs(a - b)) for a, b in zip(*map(jax.tree.leaves, (grads, context["grad"]))))
        state = {
            **state,
            "value": context["value"],
            "value_fn": context["value_fn"](params),
            "valid_fn": context["valid_fn"](params),
            "draw": jax.random.uniform(context["key"]),
            "step": jnp.asarray(context["step"], jnp.int32),
            "shift": shift,
        }
        return jax.tree.map(lambda g: -self.learning_rate * g, grads), state


class AtZero(Optimizer):
    """Gradient descent whose answer is the origin, wherever it trains."""

    learning_rate: jax.Array

    def init(self, params, *, num_steps=None, key=None):
        return ()

    def update(self, grads, state, params, **context: Any):
        return jax.tree.map(lambda g: -self.learning_rate * g, grads), state

    def eval_params(self, state, params):
        return jax.tree.map(jnp.zeros_like, params)


# A task whose losses are the batches that it saw: the mean of row numbers, whatever the parameters.
ROWS, NOISE = 4096, 100_000


@functools.cache
def row_numbers():
    def loss(params, batch, key):
        mean = jnp.mean(batch["row"])
        noise = 0.0 if key is None else NOISE
        return mean + noise + 0.0 * params["w"], {"keyless": jnp.float32(key is None)}

    def rows(first):
        return {"row": (first + np.arange(ROWS)).astype(np.float32)}

    data = {"train": rows(0), "valid": rows(10_000), "test": rows(20_000)}
    return tasks.from_functions(
        init=lambda key: {"w": jax.random.uniform(key)}, loss=loss, data=data, batch_size=2, name="rows"
    )


def rows_run(optimizer=None, key=KEY, **changes):
    options = {"steps": 30, "eval_every": 1, "eval_batches": 1, "last_eval_batches": 1} | changes
    return train(row_numbers(), optimizer or Descent(jnp.float32(0.1)), key=key, **options)


# Purity -----------------------------------------------------------------------------------------------------


def test_the_key_decides_everything(task, adam):
    one, again = (train(task, adam, key=KEY, **SHORT) for _ in range(2))
    same(one, again)
    other = train(task, adam, key=jax.random.key(8), **SHORT)
    for name in ("train/loss", "valid/loss", "test/loss"):
        assert (np.asarray(one.curves[name]) != np.asarray(other.curves[name])).all()
    assert not np.array_equal(one.state.params["w"], other.state.params["w"])


def test_training_learns_and_says_when_it_measured(task, adam):
    run = train(task, adam, key=KEY, steps=60, eval_every=20)
    np.testing.assert_array_equal(run.steps, [0, 20, 40, 60])
    assert run.steps.dtype == jnp.int32
    assert set(run.curves) == {
        *(f"{split}/{name}" for split in ("train", "valid", "test") for name in ("loss", "within")),
        "inner/loss",
    }
    for name, curve in run.curves.items():
        assert curve.shape == (4,) and curve.dtype == jnp.float32
        assert np.isnan(curve[0]) == (name == "inner/loss") and np.isfinite(curve[1:]).all()
    assert float(run.curves["test/loss"][-1]) < 0.7 * float(run.curves["test/loss"][0])
    assert int(run.state.diverged_at) == -1


def test_training_works_inside_jit_and_vmap(task, adam):
    keys = jax.random.split(KEY, 2)
    rates = jnp.array([0.03, 0.1])

    def final(rate, key):
        run = train(task, adam.replace(learning_rate=rate), key=key, **SHORT)
        return run.curves["test/loss"], run.state.params

    alone = {(i, j): final(rates[i], keys[j]) for i in range(2) for j in range(2)}
    lanes = jax.jit(jax.vmap(jax.vmap(final, (None, 0)), (0, None)))(rates, keys)
    for (i, j), single in alone.items():
        same(jax.tree.map(lambda leaf, i=i, j=j: leaf[i, j], lanes), single, rtol=2e-6, atol=1e-6)
    assert len({float(curve[-1]) for curve, _ in alone.values()}) == 4


def test_lanes_over_whole_optimizers(task, adam):
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf * 0.5]), adam)
    curves = eqx.filter_vmap(lambda o: train(task, o, key=KEY, **SHORT).curves["train/loss"])(stacked)
    half = jax.tree.map(lambda leaf: leaf * 0.5, adam)
    for i, optimizer in enumerate((adam, half)):
        single = train(task, optimizer, key=KEY, **SHORT).curves["train/loss"]
        np.testing.assert_allclose(curves[i], single, rtol=2e-6, atol=1e-6)


# Gradients --------------------------------------------------------------------------------------------------


def test_the_hypergradient_is_that_of_the_closed_form():
    curvature, start_at, steps = np.array([0.5, 1.0, 2.0]), np.array([1.0, -2.0, 0.7]), 12

    def loss(params):
        return 0.5 * jnp.sum(jnp.asarray(curvature, jnp.float32) * params["w"] ** 2)

    quadratic = tasks.from_functions(
        init=lambda key: {"w": jnp.asarray(start_at, jnp.float32)}, loss=loss, name="bowl"
    )
    sgd = optimizers.get("sgd")

    def final(rate):
        run = train(quadratic, sgd.replace(learning_rate=rate), steps=steps, eval_every=4, key=KEY)
        return run.curves["train/loss"][-1]

    def exact(rate):
        return 0.5 * np.sum(curvature * (start_at * (1 - rate * curvature) ** steps) ** 2)

    value, slope = jax.value_and_grad(final)(jnp.float32(0.1))
    np.testing.assert_allclose(value, exact(0.1), rtol=1e-5)
    np.testing.assert_allclose(slope, (exact(0.1 + 1e-5) - exact(0.1 - 1e-5)) / 2e-5, rtol=1e-4)
    width = 1e-2
    difference = (final(jnp.float32(0.1 + width)) - final(jnp.float32(0.1 - width))) / (2 * width)
    np.testing.assert_allclose(slope, difference, rtol=0.05)


def test_the_hypergradient_agrees_with_finite_differences_on_noisy_data(task, adam):
    def final(rate):
        return train(task, adam.replace(learning_rate=rate), key=KEY, **SHORT).curves["train/loss"][-1]

    slope = jax.grad(final)(jnp.float32(0.05))
    low, high = final(jnp.float32(0.049)), final(jnp.float32(0.051))
    np.testing.assert_allclose(slope, (high - low) / 0.002, rtol=0.02)
    assert abs(float(slope)) > 0.1


# Steps ------------------------------------------------------------------------------------------------------


def test_an_unroll_equals_its_steps(task, adam):
    first = start(task, adam, KEY, 6)
    step = eqx.filter_jit(inner_step)
    state, losses = first, []
    for i in range(6):
        state, loss = step(task, adam, state, i, KEY)
        losses.append(loss)
    go = eqx.filter_jit(unroll)
    whole, together = go(task, adam, first, KEY, length=6)
    same(whole, state, rtol=2e-6, atol=1e-7)
    np.testing.assert_allclose(together, losses, rtol=2e-6)
    half, one = go(task, adam, first, KEY, length=3)
    half, two = go(task, adam, half, KEY, first=3, length=3)
    same(half, whole, rtol=2e-6, atol=1e-7)
    np.testing.assert_allclose(jnp.append(one, two), together, rtol=2e-6)
    # And so does the window that training is made of, whether its length is known or not.
    for length in (6, jnp.int32(6)):
        end, mean = window(task, adam, first, 0, length, KEY)
        same(end, whole, rtol=2e-6, atol=1e-7)
        np.testing.assert_allclose(mean, np.mean(losses), rtol=2e-6)


def test_a_run_is_its_unroll_and_reports_the_mean_training_loss(task, adam):
    run = train(task, adam, key=KEY, **SHORT)
    state, losses = unroll(task, adam, start(task, adam, KEY, 20), KEY, length=20)
    same(run.state, state, rtol=2e-6, atol=1e-6)
    inner = [np.nan, np.mean(losses[:10]), np.mean(losses[10:])]
    np.testing.assert_allclose(run.curves["inner/loss"], inner, rtol=1e-5)


def test_what_is_offered_to_the_optimizer():
    run = rows_run(steps=3)
    seen = {name: float(value) for name, value in run.state.opt.items()}
    assert seen["steps"] == 3 and seen["step"] == 2
    # Loss and closure see the minibatch of the step, with its dropout key; validation has none.
    assert seen["value"] == seen["value_fn"] == float(run.curves["inner/loss"][-1])
    assert NOISE <= seen["value"] < NOISE + ROWS
    assert 10_000 <= seen["valid_fn"] < 10_000 + ROWS
    assert seen["shift"] == 0.0  # `grad` is the gradient
    assert seen["init_draw"] != float(run.state.params["w"])  # the task draws from another key
    # Every step has randomness of its own, and so has every seed.
    optimizer, step, draws = Descent(jnp.float32(0.1)), eqx.filter_jit(inner_step), []
    state = start(row_numbers(), optimizer, KEY, 3)
    for i in range(3):
        state, _ = step(row_numbers(), optimizer, state, i, KEY)
        draws.append(float(state.opt["draw"]))
    assert len({*draws, seen["init_draw"]}) == 4 and draws[2] == seen["draw"]
    other = start(row_numbers(), optimizer, jax.random.key(9), 3)
    assert float(other.opt["init_draw"]) != seen["init_draw"]


class Wide(AtZero):
    """Gives float32 updates, whatever the parameters are."""

    def update(self, grads, state, params, **context: Any):
        return jax.tree.map(lambda g: -self.learning_rate * g.astype(jnp.float32), grads), state

    def eval_params(self, state, params):
        return params


def test_parameters_keep_their_type():
    def loss(params):
        return jnp.sum((params["w"] - 1).astype(jnp.float32) ** 2) + params["b"] ** 2

    narrow = tasks.from_functions(
        init=lambda key: {"w": jnp.zeros(3, jnp.bfloat16), "b": jnp.ones(())}, loss=loss, name="narrow"
    )
    run = train(narrow, Wide(jnp.float32(0.1)), key=KEY, steps=4)
    assert run.state.params["w"].dtype == jnp.bfloat16 and run.state.params["b"].dtype == jnp.float32
    assert float(run.curves["train/loss"][-1]) < 1.0


# Batches and evaluation -------------------------------------------------------------------------------------


def test_batches_depend_on_seed_and_step_alone():
    base = rows_run()
    for other in (Descent(jnp.float32(5.0)), optimizers.get("adam"), optimizers.get("noisy_sgd")):
        run = rows_run(other)
        for name, curve in base.curves.items():
            np.testing.assert_array_equal(curve, run.curves[name], err_msg=name)
    for name in ("inner/loss", "train/loss", "valid/loss", "test/loss"):
        changed = np.asarray(rows_run(key=jax.random.key(9)).curves[name])[1:]
        assert (changed != np.asarray(base.curves[name])[1:]).mean() > 0.9
        assert len(np.unique(base.curves[name][1:])) > 25  # every step and every evaluation draws anew


def test_training_batches_do_not_depend_on_the_cadence():
    dense, sparse = rows_run(), rows_run(eval_every=10, eval_batches=3)
    means = np.asarray(dense.curves["inner/loss"])[1:].reshape(3, 10).mean(1)
    np.testing.assert_allclose(sparse.curves["inner/loss"][1:], means, rtol=1e-6)
    same(sparse.state, dense.state)
    for name in ("train/loss", "valid/loss", "test/loss"):
        assert float(sparse.curves[name][-1]) == float(dense.curves[name][-1])


def test_evaluation_draws_its_own_batches_from_every_split():
    curves = rows_run().curves
    trained = np.asarray(curves["inner/loss"])[1:] - NOISE
    evaluated = {split: np.asarray(curves[f"{split}/loss"]) for split in ("train", "valid", "test")}
    assert np.isin(trained, evaluated["train"]).sum() <= 1
    for first, split in enumerate(("train", "valid", "test")):
        rows = evaluated[split] - 10_000 * first
        assert ((rows >= 0) & (rows < ROWS)).all()
    # The splits do not draw the same rows at a step either.
    assert (evaluated["train"] != evaluated["valid"] - 10_000).mean() > 0.9


def test_evaluation_has_no_key_and_training_has():
    curves = rows_run().curves
    for split in ("train", "valid", "test"):
        assert (np.asarray(curves[f"{split}/keyless"]) == 1).all()
        assert (np.asarray(curves[f"{split}/loss"]) % 10_000 < ROWS).all()  # no noise
    assert (np.asarray(curves["inner/loss"])[1:] >= NOISE).all()


def test_evaluation_averages_over_its_batches(task, adam):
    state = start(task, adam, KEY, 1)
    one = [evaluate(task, adam, state, 0, KEY, n) for n in (1, 2, 50)]
    whole = float(task.loss(state.params, None, task.data.splits["valid"], None)[0])
    distance = [abs(float(values["valid/loss"]) - whole) for values in one]
    assert distance[2] < 0.3 * max(distance[:2]) and one[0]["valid/loss"] != one[1]["valid/loss"]
    # The first batch of two is the only one of one.
    second = 2 * one[1]["valid/loss"] - one[0]["valid/loss"]
    assert float(second) > 0 and abs(float(second) - float(one[0]["valid/loss"])) > 1e-4
    run = train(task, adam, key=KEY, last_eval_batches=50, **SHORT)
    again = evaluate(task, adam, run.state, 20, KEY, 50)
    np.testing.assert_allclose(run.curves["test/loss"][-1], again["test/loss"], rtol=1e-5)


def test_evaluation_is_at_the_optimizers_own_point(task):
    run = train(task, AtZero(jnp.float32(0.05)), key=KEY, **SHORT)
    again = train(task, AtZero(jnp.float32(0.0)), key=KEY, **SHORT)
    assert np.abs(run.state.params["w"]).sum() > 0.5
    for name in ("train/loss", "valid/loss", "test/loss", "test/within"):
        np.testing.assert_array_equal(run.curves[name], again.curves[name])
    assert float(run.curves["inner/loss"][-1]) < float(again.curves["inner/loss"][-1])


def test_schedule_free_is_evaluated_at_its_average(task):
    optimizer = optimizers.get("schedule_free_sgd", learning_rate=0.05)
    run = train(task, optimizer, key=KEY, last_eval_batches=50, **SHORT)
    rows = task.data.splits["test"]

    def loss(params):
        return float(task.loss(params, None, rows, None)[0])

    average = optimizer.eval_params(run.state.opt, run.state.params)
    reported = float(run.curves["test/loss"][-1])
    gap = abs(loss(average) - loss(run.state.params))
    assert gap > 0.05 and abs(reported - loss(average)) < 0.5 * gap


def test_model_state_is_carried_through_training_only():
    def loss(params, state, batch, key):
        seen = {"seen": state["count"]}
        state = {"count": state["count"] + (0.0 if key is None else 1.0)}
        return params["w"] ** 2, state, seen

    counting = tasks.from_stateful_functions(
        init=lambda key: ({"w": jnp.ones(())}, {"count": jnp.zeros(())}), loss=loss, name="counting"
    )
    run = train(counting, Descent(jnp.float32(0.1)), steps=12, eval_every=4, key=KEY)
    assert float(run.state.model["count"]) == 12
    for split in ("train", "valid", "test"):
        np.testing.assert_array_equal(run.curves[f"{split}/seen"], [0, 4, 8, 12])


# Divergence -------------------------------------------------------------------------------------------------


def test_divergence_is_the_first_bad_step():
    def loss(params):
        return jnp.where(params["n"] < 4.5, params["n"], jnp.nan)

    counting = tasks.from_functions(init=lambda key: {"n": jnp.zeros(())}, loss=loss, name="until five")

    # Each step adds one, so the loss of step 5 is the first that is not a number.
    run = train(counting, Descent(jnp.float32(-1.0)), steps=8, eval_every=2, key=KEY)
    assert int(run.state.diverged_at) == 5
    masked = mask_diverged(run.curves, run.steps, run.state.diverged_at)
    np.testing.assert_array_equal(masked["train/loss"], [0, 2, 4, np.nan, np.nan])


def test_masking():
    curves = {"a": np.array([[1.0, 2.0, 3.0], [1.0, np.inf, 3.0]]), "b": jnp.ones((2, 3))}
    masked = mask_diverged(curves, np.array([0, 10, 20]), np.array([-1, 10]))
    np.testing.assert_array_equal(masked["a"], [[1, 2, 3], [1, np.nan, np.nan]])
    np.testing.assert_array_equal(masked["b"], [[1, 1, 1], [1, 1, np.nan]])  # the value at step 10 was good
    assert all(curve.dtype == np.float32 for curve in masked.values())
    early = mask_diverged({"a": np.ones(3)}, np.array([0, 10, 20]), 0)
    np.testing.assert_array_equal(early["a"], [1, np.nan, np.nan])
    infinite = mask_diverged({"a": np.array([-np.inf, 1.0])}, np.array([0, 1]), -1)
    np.testing.assert_array_equal(infinite["a"], [np.nan, 1])


# Arguments --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "every"), [(1, 1), (10, 1), (100, 1), (1000, 10), (10_000, 100), (150, 1), (250, 2), (997, 997)]
)
def test_the_default_cadence_gives_about_a_hundred_evaluations(steps, every):
    assert cadence(steps, None) == every and steps % every == 0


def test_a_cadence_that_is_given_is_kept():
    assert cadence(20, 20) == 20 and cadence(20, 1) == 1 and cadence(20, 5, 1, 1) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps = 0 is not allowed; train for at least 1 step"),
        ({"steps": -3}, "steps = -3"),
        ({"eval_every": 7}, "eval_every = 7 does not divide steps = 20; 5 would"),
        ({"eval_every": 0}, "eval_every = 0 does not divide steps = 20; 1 would"),
        ({"eval_every": 40}, "eval_every = 40 does not divide steps = 20; 20 would"),
        ({"eval_batches": 0}, "eval_batches = 0 is not allowed; evaluate on at least 1 batch"),
        ({"last_eval_batches": -1}, "last_eval_batches = -1"),
    ],
)
def test_arguments_that_cannot_be_used(task, adam, changes, message):
    with pytest.raises(ConfigError, match=message):
        train(task, adam, key=KEY, **({"steps": 20} | changes))


def test_check_finds_an_optimizer_that_cannot_train_a_task(task, adam):
    training.check(task, adam)

    class Broken(AtZero):
        def update(self, grads, state, params, **context: Any):
            raise ValueError("two\nlines")

    with pytest.raises(OuteroptError, match=r"^The optimizer cannot train toy: ValueError: two\.$"):
        training.check(task, Broken(jnp.float32(0.1)))
