"""Hypergradient descent: golden numbers, derivatives, what survives an episode, towers."""

import pathlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from outeropt import grid, optimizers, sweep, tasks, tree
from outeropt.errors import OuteroptError, UnknownName
from outeropt.optimizers.wrappers import DecoupledWeightDecay
from outeropt.selftuning import HypergradientDescent, sensitivity, tower


GOLDEN = pathlib.Path(__file__).parent / "golden" / "meta_opt"
PARAMS = {"w": jnp.array([[1.0, -0.5, 0.3], [0.7, 1.2, -0.9]]), "s": jnp.float32(-0.8)}


def loss(params):
    return sum(jnp.sum(jnp.square(leaf - 0.1)) for leaf in jax.tree.leaves(params)) + jnp.cos(params["s"])


def wide(pytree):
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float64), pytree)


def wide_sgd(learning_rate, **settings):
    """SGD whose learning rate is not rounded to float32."""
    made = optimizers.get("sgd", **settings)
    return eqx.tree_at(lambda made: made.values["learning_rate"], wide(made), jnp.float64(learning_rate))


class Golden:
    """One golden file and the problem in it."""

    def __init__(self, name):
        with np.load(GOLDEN / name) as arrays:
            self.arrays = {key: arrays[key] for key in arrays.files}
        self.steps = jnp.arange(40)
        self.start = self.split(jnp.asarray(self["problem.x0"]))

    def __getitem__(self, key):
        return self.arrays[key]

    def split(self, x):
        size = self["problem.leaf_sizes"][0]
        return {"a": x[:size], "b": x[size:]}

    def grad(self, params, t):
        def loss(params):
            error = jnp.asarray(self["problem.A"])[t] @ joined(params) - jnp.asarray(self["problem.b"])[t]
            return 0.5 * jnp.sum(error**2)

        return jax.grad(loss)(params)


def joined(params):
    return jnp.concatenate([params["a"], params["b"]])


@pytest.mark.parametrize("decay", ["delta0", "delta"])
def test_equals_the_equations(decay):
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        golden = Golden("identities.npz")
        inner, meta = (wide_sgd(golden[f"hypergradient.{name}"]) for name in ("initial_lr", "meta_lr"))
        tuned = HypergradientDescent(inner, meta, coordinates="plain", signal="gradient")
        delta = golden["hypergradient.delta_value"] if decay == "delta" else 0.0
        optimizer = eqx.tree_at(
            lambda made: made.weight_decay, DecoupledWeightDecay(tuned), jnp.float64(delta)
        )

        def body(carry, t):
            params, state = carry
            updates, state = optimizer.update(golden.grad(params, t), state, params)
            params = jax.tree.map(jnp.add, params, updates)
            return (params, state), (joined(params), optimizer.diagnostics(state)["learning_rate"])

        _, (params, rates) = jax.lax.scan(body, (golden.start, optimizer.init(golden.start)), golden.steps)
        np.testing.assert_allclose(params, golden[f"hypergradient.{decay}.params"], rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(rates, golden[f"hypergradient.{decay}.lr"], rtol=1e-12)


@pytest.mark.parametrize("meta", ["sgd", "adam"])
@pytest.mark.parametrize("inner", ["sgd", "nesterov"])
def test_the_parts_give_the_originals_numbers(inner, meta):
    """The original plays first and learns afterwards; else its SGD and Nesterov are what ours are."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        golden, name = Golden("original_hgd.npz"), f"{inner}.{meta}_meta"
        settings = {"momentum": float(golden["settings.momentum"]), "nesterov": True}
        base = wide_sgd(golden[f"{name}.initial_lr"], **(settings if inner == "nesterov" else {}))
        above = eqx.tree_at(
            lambda made: made.values["learning_rate"],
            wide(optimizers.get(meta)),
            jnp.float64(golden[f"{name}.meta_lr"]),
        )
        if inner == "nesterov":
            base = eqx.tree_at(lambda made: made.values["momentum"], base, jnp.float64(settings["momentum"]))
        if meta == "adam":
            betas = golden["settings.meta_adam_betas"]
            for key, value in {"b1": betas[0], "b2": betas[1], "eps": 1e-8}.items():
                above = eqx.tree_at(lambda made, key=key: made.values[key], above, jnp.float64(value))
        chart = sensitivity.chart(base, ["learning_rate"], "plain")

        def body(carry, t):
            params, state, coordinates, meta_state, tangents = carry
            grads = golden.grad(params, t)
            updates, state, new = sensitivity.step(base, chart, coordinates, grads, state, params, {})
            params = jax.tree.map(jnp.add, params, updates)
            signal = sensitivity.signals("gradient", grads, tangents, coordinates.dtype)
            coordinates, meta_state = sensitivity.learn(
                above, signal, meta_state, coordinates, jnp.array(True), {}
            )
            return (params, state, coordinates, meta_state, new), (joined(params), coordinates[0])

        coordinates = chart.read(base)
        carry = (golden.start, base.init(golden.start), coordinates, above.init(coordinates))
        still = sensitivity.still(chart, golden.start)
        _, (params, rates) = jax.lax.scan(body, (*carry, still), golden.steps)
        np.testing.assert_allclose(params, golden[f"{name}.params"], rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(rates, golden[f"{name}.lr"], rtol=1e-8)


EVERY_LEAF = [
    *(("adam", leaf) for leaf in ("learning_rate", "b1", "b2", "eps", "eps_root")),
    *(("adamw", leaf) for leaf in ("learning_rate", "b1", "b2", "eps", "weight_decay")),
    *(("momentum", leaf) for leaf in ("learning_rate", "momentum")),
    *(("nadamw_constant", leaf) for leaf in ("learning_rate", "b1", "weight_decay", "l2_weight_decay")),
]
VALUES = {"learning_rate": 0.05, "b1": 0.8, "b2": 0.9, "eps": 1e-3, "eps_root": 1e-3, "momentum": 0.8}


@pytest.mark.parametrize("coordinates", ["plain", "space"])
@pytest.mark.parametrize(("name", "leaf"), EVERY_LEAF)
def test_the_signal_is_the_derivative_of_the_lookahead(name, leaf, coordinates):
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        base = wide(optimizers.get(name))
        values = {**VALUES, "weight_decay": 0.02, "l2_weight_decay": 0.02}
        base = base.replace({key: values[key] for key in base.hyperparameters})
        chart = sensitivity.chart(base, [leaf], coordinates)
        point, params = chart.read(base), wide(PARAMS)
        state = base.init(params)
        for _ in range(3):
            updates, state = base.update(jax.grad(loss)(params), state, params)
            params = jax.tree.map(jnp.add, params, updates)
        grads = jax.grad(loss)(params)

        def ahead(point):
            moved, _ = chart.write(base, point).update(grads, state, params)
            return jax.tree.map(jnp.add, params, moved)

        updates, _, tangents = sensitivity.step(base, chart, point, grads, state, params, {})
        there = jax.tree.map(jnp.add, params, updates)
        found = sensitivity.signals("gradient", jax.grad(loss)(there), tangents, jnp.float64)
        width = 1e-5 * jnp.maximum(jnp.abs(point), 1e-3)
        rise = (loss(ahead(point + width)) - loss(ahead(point - width))) / (2 * width)
        np.testing.assert_allclose(found, rise, rtol=1e-5, atol=1e-12)
        assert jnp.abs(found[0]) > 0


def test_several_leaves_at_once_are_what_each_is_alone():
    base, names = optimizers.get("momentum"), ("learning_rate", "momentum")
    grads = jax.grad(loss)(PARAMS)
    state = base.update(grads, base.init(PARAMS), PARAMS)[1]

    def tangents(*names):
        chart = sensitivity.chart(base, names, "space")
        return sensitivity.step(base, chart, chart.read(base), grads, state, PARAMS, {})[2]

    for both, name in zip(tangents(*names), names):
        (alone,) = tangents(name)
        for a, b in zip(jax.tree.leaves(both), jax.tree.leaves(alone)):
            np.testing.assert_array_equal(a, b)


def test_a_tower_descends_on_the_derivative_of_two_levels():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        middle, top = wide_sgd(0.02), wide_sgd(0.001)
        whole = tower(wide_sgd(0.05), middle, top, coordinates="plain", signal="gradient")
        params, before = wide(PARAMS), None
        state = whole.init(params)
        for _ in range(3):
            before = params, state
            updates, state = whole.update(jax.grad(loss)(params), state, params)
            params = jax.tree.map(jnp.add, params, updates)

        def ahead(rate):
            """The loss after the last step, had the learning rate's own learning rate been this one."""
            params, state = before
            signal = sensitivity.signals("gradient", jax.grad(loss)(params), state.tangents, jnp.float64)
            lower = state.coordinates - rate * signal
            return loss(jax.tree.map(lambda p, g: p - lower[0] * g, params, jax.grad(loss)(params)))

        last = state.meta.coordinates[0]
        _, after = whole.update(jax.grad(loss)(params), state, params)
        rise = (ahead(last + 1e-5) - ahead(last - 1e-5)) / 2e-5
        np.testing.assert_allclose(after.meta.coordinates[0], last - 0.001 * rise, rtol=1e-9)
        assert abs(after.meta.coordinates[0] - last) > 1e-6


def test_a_tower_keeps_types_and_trains_alike_alone_and_in_lanes():
    high = tower(*(optimizers.get(name, learning_rate=0.01) for name in ("adam", "sgd", "sgd")))
    low = jax.tree.map(lambda leaf: leaf * jnp.float32(0.9), high)

    def final(optimizer, params=PARAMS):
        def body(carry, _):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params), state, params)
            return (jax.tree.map(jnp.add, params, updates), state), None

        # A scan refuses a state whose types drift.
        (params, state), _ = jax.lax.scan(body, (params, optimizer.init(params)), length=6)
        return params, state

    lanes, _ = jax.jit(jax.vmap(final))(tree.stack([high, low]))
    for index, optimizer in enumerate((high, low)):
        alone, _ = jax.jit(final)(optimizer)
        for lane, leaf in zip(jax.tree.leaves(lanes), jax.tree.leaves(alone)):
            np.testing.assert_allclose(lane[index], leaf, rtol=2e-5)
    narrow = {**PARAMS, "w": PARAMS["w"].astype(jnp.bfloat16)}

    def narrow_loss(params):
        return loss({**params, "w": params["w"].astype(jnp.float32)})

    updates, state = high.update(jax.grad(narrow_loss)(narrow), high.init(narrow), narrow)
    assert updates["w"].dtype == jnp.bfloat16
    assert state.tangents[0]["w"].dtype == state.coordinates.dtype == jnp.float32


DECADES = [1e-4, 1e-3, 1e-2, 1e-1, 1.0]


def sensitivity_to(leaf, optimizer):
    """How much the loss after training varies, in e-folds, over five decades of one learning rate."""
    settings = grid(optimizer, {leaf: DECADES})
    losses = sweep(tasks.get("Logistic_Digits"), settings, seeds=1, steps=200, eval_every=200).final(
        "train/loss"
    )
    return np.ptp(np.log(losses))


def test_towers_care_less_about_their_learning_rates():
    sgd = optimizers.get("sgd")
    above = [optimizers.get("sgd", learning_rate=0.05)] * 2
    alone = sensitivity_to("learning_rate", sgd)
    cosine = tower(sgd, *above)
    plain = tower(sgd, *above, signal="gradient", coordinates="plain")
    assert alone > 2
    for high in (cosine, plain):
        assert sensitivity_to("inner.learning_rate", high) < 0.25 * alone
    assert sensitivity_to("meta.meta.learning_rate", plain) < 0.25 * alone


def test_a_cosine_knows_no_scale():
    def rates(factor):
        optimizer = optimizers.get("hypergradient:sgd", learning_rate=0.03 / factor, meta_learning_rate=0.1)
        params, state, found = PARAMS, optimizer.init(PARAMS), []
        for _ in range(5):
            grads = jax.tree.map(lambda leaf: factor * leaf, jax.grad(loss)(params))
            updates, state = optimizer.update(grads, state, params)
            params = jax.tree.map(jnp.add, params, updates)
            found.append(factor * optimizer.diagnostics(state)["learning_rate"])
        return found

    np.testing.assert_allclose(rates(1.0), rates(64.0), rtol=1e-5)
    assert rates(1.0)[-1] > rates(1.0)[0]


def run(optimizer, state, params, count):
    for _ in range(count):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return params, state


def made(meta="adam"):
    return HypergradientDescent(
        optimizers.get("momentum", learning_rate=0.01),
        optimizers.get(meta, learning_rate=0.05),
        tuned=("learning_rate", "momentum"),
    )


def test_the_first_step_learns_nothing():
    optimizer = made()
    state = optimizer.init(PARAMS)
    _, after = run(optimizer, state, PARAMS, 1)
    np.testing.assert_array_equal(after.coordinates, state.coordinates)
    assert same(after.meta, state.meta)
    assert not same(run(optimizer, after, PARAMS, 1)[1].meta, state.meta)


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_a_restart_keeps_what_was_learned():
    optimizer = made()
    _, state = run(optimizer, optimizer.init(PARAMS), PARAMS, 6)
    again = optimizer.restart(state, PARAMS)
    fresh = optimizer.init(PARAMS)
    np.testing.assert_array_equal(again.coordinates, state.mean)
    assert not same(state.mean, state.coordinates) and again.count == 0
    assert (
        same(again.meta, state.meta) and same(again.inner, fresh.inner) and not same(state.inner, fresh.inner)
    )
    assert same(again.tangents, fresh.tangents) and not again.known
    np.testing.assert_array_equal(run(optimizer, again, PARAMS, 1)[1].coordinates, state.mean)


def test_the_mean_is_geometric_and_early_steps_count_more():
    optimizer, state, rates = made(), made().init(PARAMS), []
    params = PARAMS
    for _ in range(4):
        params, state = run(optimizer, state, params, 1)
        rates.append(optimizer.diagnostics(state)["learning_rate"])
    learned = optimizer.after(state).hyperparameters["inner.learning_rate"]
    np.testing.assert_allclose(
        learned, np.exp(np.average(np.log(rates), weights=1 / np.arange(1, 5))), rtol=1e-5
    )


def test_limits_narrow_the_range():
    optimizer = optimizers.get("hypergradient:sgd", learning_rate=1e-3, meta_learning_rate=10.0, most=2e-3)
    _, state = run(optimizer, optimizer.init(PARAMS), PARAMS, 6)
    np.testing.assert_allclose(optimizer.diagnostics(state)["learning_rate"], 2e-3, rtol=1e-5)


def test_after_a_run_the_leaves_are_those_it_spent_its_time_at():
    optimizer = tower(optimizers.get("adam"), optimizers.get("sgd"), optimizers.get("sgd"))
    _, state = run(optimizer, optimizer.init(PARAMS), PARAMS, 6)
    values, learned = optimizer.diagnostics(state), optimizer.after(state)
    assert set(values) == {"learning_rate", "meta.learning_rate"}
    assert values["learning_rate"] != np.float32(1e-3)
    for name, leaf in {
        "learning_rate": "inner.learning_rate",
        "meta.learning_rate": "meta.inner.learning_rate",
    }.items():
        start = optimizer.hyperparameters[leaf]
        found = learned.hyperparameters[leaf]
        assert min(start, values[name]) <= found <= max(start, values[name]) and found != start
    assert jax.tree.structure(learned) == jax.tree.structure(optimizer)


def test_what_is_not_finite_teaches_nothing():
    optimizer = made()
    params, state = run(optimizer, optimizer.init(PARAMS), PARAMS, 3)
    bad = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), PARAMS)
    _, after = optimizer.update(bad, state, params)
    np.testing.assert_array_equal(after.coordinates, state.coordinates)
    assert same(after.meta, state.meta)
    # The next gradient says nothing about a step that was lost; the one after it does.
    fresh = after._replace(inner=state.inner)
    _, then = run(optimizer, fresh, params, 1)
    np.testing.assert_array_equal(then.coordinates, state.coordinates)
    _, later = run(optimizer, fresh, params, 2)
    assert tree.all_finite((later.coordinates, later.meta)) and not same(later.coordinates, then.coordinates)


def test_leaves_stay_in_their_spaces():
    rising = HypergradientDescent(
        optimizers.get("momentum", learning_rate=1e-4),
        optimizers.get("sgd", learning_rate=1e3),
        tuned=("learning_rate", "momentum"),
    )
    params, state, seen = PARAMS, rising.init(PARAMS), []
    for _ in range(4):
        _, state = rising.update(jax.grad(loss)(params), state, params)
        seen.append(rising.diagnostics(state))
    for name, space in rising.inner.spaces.items():
        for values in seen:
            space.check(name, values[name])
    assert max(float(values["learning_rate"]) for values in seen) > 999
    assert max(float(values["momentum"]) for values in seen) < 1


def test_a_zero_in_a_log_space_starts_where_the_search_does():
    optimizer = HypergradientDescent(optimizers.get("adamw", weight_decay=0.0), tuned="weight_decay")
    np.testing.assert_allclose(optimizer.diagnostics(optimizer.init(PARAMS))["weight_decay"], 1e-7, rtol=1e-4)


def test_inputs_that_are_always_zero_do_no_harm():
    def dead(params):
        return loss(params) - jnp.sum(jnp.square(params["w"][0] - 0.1))

    optimizer = HypergradientDescent(optimizers.get("adam"), tuned=("learning_rate", "b2"))
    state, params = optimizer.init(PARAMS), PARAMS
    for _ in range(4):
        updates, state = optimizer.update(jax.grad(dead)(params), state, params)
        params = jax.tree.map(jnp.add, params, updates)
    assert all(value != start for value, start in zip(state.coordinates, optimizer.init(PARAMS).coordinates))


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: HypergradientDescent(optimizers.get("adam"), tuned="lr"), UnknownName, "'lr'.*has: b1"),
        (lambda: HypergradientDescent(optimizers.get("adam"), tuned=()), OuteroptError, "No leaf is named"),
        (
            lambda: HypergradientDescent(optimizers.get("adam"), coordinates="log"),  # pyright: ignore
            OuteroptError,
            "plain, space, decades, not 'log'",
        ),
        (
            lambda: HypergradientDescent(optimizers.get("adam"), signal="sign"),  # pyright: ignore
            OuteroptError,
            "gradient or cosine, not 'sign'",
        ),
        (
            lambda: (
                made().init(PARAMS)
                and HypergradientDescent(
                    jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), optimizers.get("sgd"))
                ).init(PARAMS)
            ),
            OuteroptError,
            r"shape \(2,\); only single numbers",
        ),
        (lambda: tower(), OuteroptError, "at least one"),
        (
            lambda: optimizers.get("hypergradient:adam", meta_learning=1),
            UnknownName,
            "hypergradient has: meta_learning_rate",
        ),
    ],
)
def test_mistakes_are_told(make, error, message):
    with pytest.raises(error, match=message):
        make()
