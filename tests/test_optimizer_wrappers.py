"""Wrappers against optax's own and against arithmetic; the tuned list."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from outeropt import optimizers
from outeropt.errors import UnknownName
from outeropt.optimizers import (
    Accumulate,
    Averaged,
    Cautious,
    ClipByGlobalNorm,
    DecoupledWeightDecay,
    Graft,
    Lookahead,
    Mars,
    ScheduleFree,
    SharpnessAware,
    WeightDecay,
    from_optax,
    opt_list,
    own_table,
)
from outeropt.optimizers.opt_list import greedy


PARAMS = {"w": jnp.array([1.0, -2.0, 0.5]), "s": jnp.float32(0.7)}


def loss(params):
    return jnp.sum(jnp.square(params["w"])) + 2.0 * jnp.square(params["s"] - 0.2)


GRAD = jax.grad(loss)


def trajectory(optimizer, count=7, grad=GRAD):
    """Parameters after each step, and the evaluation points."""
    params, state, found, points = PARAMS, optimizer.init(PARAMS, num_steps=count), [], []
    for _ in range(count):
        updates, state = optimizer.update(grad(params), state, params, value=loss(params), value_fn=loss)
        params = jax.tree.map(jnp.add, params, updates)
        found.append(params)
        points.append(optimizer.eval_params(state, params))
    return stacked(found), stacked(points)


def stacked(trees):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def assert_close(found, expected, rtol=1e-5):
    for leaf in expected:
        np.testing.assert_allclose(found[leaf], expected[leaf], rtol=rtol, atol=1e-7, err_msg=leaf)


def sgd(learning_rate=0.1):
    return optimizers.get("sgd", learning_rate=learning_rate)


def by_optax(transformation):
    return from_optax(lambda: transformation)


def test_clipping_by_norm_equals_optax():
    ours = ClipByGlobalNorm(sgd(), 1.5)
    theirs = by_optax(optax.chain(optax.clip_by_global_norm(1.5), optax.sgd(0.1)))
    assert_close(trajectory(ours)[0], trajectory(theirs)[0])


def test_a_zero_gradient_is_not_clipped_to_nan():
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)

    def total(optimizer):
        updates, _ = optimizer.update(zeros, optimizer.init(PARAMS), PARAMS, value_fn=loss)
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(updates))

    for optimizer in (ClipByGlobalNorm(sgd()), Graft(sgd(), optimizers.get("momentum"))):
        value, grads = jax.value_and_grad(total)(optimizer)
        assert value == 0 and all(np.isfinite(leaf) for leaf in jax.tree.leaves(grads))


def test_accumulation_equals_optax():
    theirs = by_optax(optax.MultiSteps(optax.adam(0.1), 3).gradient_transformation())
    ours = Accumulate(optimizers.get("adam", learning_rate=0.1), 3)
    assert_close(trajectory(ours)[0], trajectory(theirs)[0])


def test_accumulation_shortens_the_schedule_inside():
    state = Accumulate(optimizers.get("cosine:sgd"), 4).init(PARAMS, num_steps=10)
    np.testing.assert_array_equal(state.inner.clock, [0, 3])


def test_cautious_updates_agree_with_the_gradient():
    plain, ours = trajectory(sgd()), trajectory(Cautious(sgd()))
    assert_close(ours[0], plain[0])
    inner = optimizers.get("momentum", learning_rate=0.4)
    params, state, trace, dropped = PARAMS, Cautious(inner).init(PARAMS), 0.0, 0
    for _ in range(7):
        grad = GRAD(params)["w"]
        updates, state = Cautious(inner).update(GRAD(params), state, params)
        trace = 0.9 * trace + grad
        agrees = np.asarray(trace) * np.asarray(grad) > 0
        expected = -0.4 * np.asarray(trace) * agrees / max(agrees.mean(), 1e-3)
        np.testing.assert_allclose(updates["w"], expected, rtol=1e-5, atol=1e-7)
        params = jax.tree.map(jnp.add, params, updates)
        dropped += np.sum(~agrees)
    assert dropped > 0


def test_mars_corrects_gradients():
    optimizer = Mars(sgd(), gamma=0.3, beta=0.8)
    params, state, last = PARAMS, optimizer.init(PARAMS), None
    clipped = set()
    for _ in range(12):
        grads = GRAD(params)
        updates, state = optimizer.update(grads, state, params)
        for name, grad in grads.items():
            corrected = grad if last is None else grad + 0.3 * 0.8 / 0.2 * (grad - last[name])
            size = np.linalg.norm(corrected)
            clipped.add((name, bool(size > 1)))
            np.testing.assert_allclose(updates[name], -0.1 * corrected / max(size, 1), rtol=1e-5, atol=1e-7)
        params, last = jax.tree.map(jnp.add, params, updates), grads
    assert clipped == {("w", True), ("s", True), ("s", False)}


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (
            ScheduleFree(sgd(0.3), b1=0.8, r=0.5),
            ("schedule_free_sgd", {"learning_rate": 0.3, "b1": 0.8, "r": 0.5}),
        ),
        (
            ScheduleFree(optimizers.get("adamw", learning_rate=0.3, b1=0.0), warmup_steps=3),
            ("schedule_free_adamw", {"learning_rate": 0.3, "warmup_steps": 3, "weight_decay": 1e-4}),
        ),
    ],
)
def test_schedule_free_around_an_optimizer(ours, theirs):
    name, hyperparameters = theirs
    for found, expected in zip(trajectory(ours), trajectory(optimizers.get(name, **hyperparameters))):
        assert_close(found, expected)


def test_weight_decay_is_part_of_the_loss():
    def regularised(params):
        squares = jnp.sum(jnp.square(params["w"])) + jnp.square(params["s"])
        return loss(params) + 0.15 * squares

    ours = WeightDecay(optimizers.get("adam", learning_rate=0.1), 0.3)
    plain = optimizers.get("adam", learning_rate=0.1)
    assert_close(trajectory(ours)[0], trajectory(plain, grad=jax.grad(regularised))[0])

    seen = {}

    def watch():
        def update(updates, state, params=None, **context):
            seen.update(context, params=params)
            return updates, state

        return optax.GradientTransformationExtraArgs(lambda params: (), update)

    grads = jax.grad(loss)(PARAMS)
    inner = WeightDecay(from_optax(watch), 0.3)
    inner.update(grads, (), PARAMS, value=loss(PARAMS), grad=grads, value_fn=loss)
    np.testing.assert_allclose(seen["value"], regularised(PARAMS), rtol=1e-6)
    np.testing.assert_allclose(seen["value_fn"](PARAMS), regularised(PARAMS), rtol=1e-6)
    np.testing.assert_allclose(seen["grad"]["w"], jax.grad(regularised)(PARAMS)["w"], rtol=1e-6)


def test_decoupled_weight_decay_shrinks_the_parameters():
    found, _ = trajectory(DecoupledWeightDecay(sgd(0.0), 0.01), count=2)
    assert_close(found, stacked([jax.tree.map(lambda p, k=k: p * 0.99**k, PARAMS) for k in (1, 2)]))


def test_graft_has_the_length_of_one_and_the_direction_of_the_other():
    magnitude, direction = sgd(0.3), optimizers.get("adam")
    graft = Graft(magnitude, direction)
    grads = jax.grad(loss)(PARAMS)
    found, long, right = (
        optimizer.update(grads, optimizer.init(PARAMS), PARAMS)[0]
        for optimizer in (graft, magnitude, direction)
    )
    np.testing.assert_allclose(optax.tree.norm(found), optax.tree.norm(long), rtol=1e-6)
    cosine = optax.tree.vdot(found, right) / (optax.tree.norm(found) * optax.tree.norm(right))
    np.testing.assert_allclose(cosine, 1.0, rtol=1e-6)
    assert graft.hyperparameters.keys() == graft.spaces.keys()


@pytest.mark.parametrize("decay, expected", [(1.0, "mean"), (0.0, "last")])
def test_averages(decay, expected):
    params, points = trajectory(Averaged(sgd(), decay))
    for leaf in params:
        means = np.stack([params[leaf][: k + 1].mean(axis=0) for k in range(len(params[leaf]))])
        np.testing.assert_allclose(points[leaf], means if expected == "mean" else params[leaf], rtol=1e-5)


def test_an_average_becomes_exponential():
    params, points = trajectory(Averaged(sgd(), 0.5))
    np.testing.assert_allclose(points["s"][6], 0.5 * points["s"][5] + 0.5 * params["s"][6], rtol=1e-5)


def test_averaging_asks_the_inner_optimizer_where_to_evaluate():
    inner = optimizers.get("schedule_free_sgd", learning_rate=0.1)
    _, inside = trajectory(inner)
    _, outside = trajectory(Averaged(inner, 0.0))
    assert_close(outside, inside)


def test_lookahead_equals_optax():
    _, points = trajectory(Lookahead(optimizers.get("adam", learning_rate=0.1), 3, 0.4))
    theirs = optax.lookahead(optax.adam(0.1), 3, 0.4)
    params = optax.LookaheadParams(PARAMS, PARAMS)
    slow = []
    with jax.numpy_dtype_promotion("standard"):
        state = theirs.init(params)
        for _ in range(7):
            updates, state = theirs.update(jax.grad(loss)(params.fast), state, params)
            params = optax.apply_updates(params, updates)
            slow.append(params.slow)
    assert_close(points, stacked(slow))


def test_sharpness_aware_equals_optax():
    adversary = optax.chain(optax.contrib.normalize(), optax.sgd(0.2))
    theirs = optax.contrib.sam(optax.sgd(0.1), adversary, opaque_mode=True)

    def only_grad_fn():
        def update(updates, state, params=None, **context):
            del context
            return theirs.update(updates, state, params, grad_fn=lambda p, _: jax.grad(loss)(p))

        return optax.GradientTransformationExtraArgs(theirs.init, update)

    assert_close(trajectory(SharpnessAware(sgd(), 0.2))[0], trajectory(from_optax(only_grad_fn))[0])


def test_greedy_takes_what_helps_most():
    losses = np.array([[0.5, 0.5, 0.5], [0.0, 0.9, 0.9], [0.9, 0.1, 0.9], [np.nan, 0.8, 0.0]])
    # Alone 0 is best (0.5); then 3 lowers the third task most; then 1 and 2 by 0.5 and 0.4.
    assert greedy(losses, 4) == [0, 3, 1, 2]


def test_the_tuned_list_is_what_its_file_says(tmp_path, monkeypatch):
    path = tmp_path / "opt_list.json"
    path.write_text(json.dumps({"configurations": [{"learning_rate": 0.25, "warmup_fraction": 0.125}]}))
    monkeypatch.setattr(own_table, "OPT_LIST", path)
    caches = own_table.configurations, own_table.aliases
    for cache in caches:
        cache.cache_clear()
    try:
        assert optimizers.names("opt_list*") == ["opt_list_0"]
        tuned = opt_list(0)
        assert tuned.hyperparameters["inner.learning_rate"] == 0.25
        assert tuned.hyperparameters["schedule.warmup_fraction"] == 0.125
        with pytest.raises(UnknownName, match="has 1 configurations"):
            opt_list(1)
    finally:
        for cache in caches:
            cache.cache_clear()
