"""HyperV2: trajectories and features of learned_optimization, gradients, lanes, what it cannot do without."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import toys
from learned_golden import FOLDER, assert_same_updates, below, load, replay
from outeropt import training, tree
from outeropt.errors import ConfigError
from outeropt.learned.features import normalize
from outeropt.learned.per_tensor.hyper import HyperV2
from outeropt.learned.per_tensor.hyper_features import (
    LossTrend,
    fraction_embedding,
    parameter_features,
    parameter_sources,
    tensor_inputs,
)


# Programs with derivatives run once here: compile them fast rather than well.
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
LEAVES = ("b1", "k", "s", "w1", "w2")
# Index of the first step whose loss features are neither 0 nor at a bound: the spike of the recorded losses.
SPIKE = 17


def published(name):
    """Our optimizer with a golden file's settings (over the original's defaults) and meta-parameters."""
    arrays, config = load(name)
    settings = {"use_bugged_loss_features": True, **config["kwargs"]}
    return HyperV2(**settings).from_published(below(arrays, "theta")), arrays


def small(**settings):
    """Untrained, with noise on all meta-parameters so that none is zero, and steps that move something."""
    optimizer = HyperV2(**{"lstm_hidden_size": 8, "param_inits": 3, "step_mult": 0.1, **settings})
    return shaken(optimizer, 0)


def stepped(optimizer, grads, state, params, **context):
    """One compiled step."""
    update = eqx.filter_jit(lambda o, *given, **context: o.update(*given, **context), compiler_options=QUICK)
    return update(optimizer, grads, state, params, **context)


def shaken(optimizer, seed):
    leaves, structure = jax.tree.flatten(optimizer)
    rng = np.random.default_rng(seed)
    noise = [jnp.asarray(rng.normal(size=leaf.shape), jnp.float32) for leaf in leaves]
    return structure.unflatten([leaf + 0.1 * x for leaf, x in zip(leaves, noise)])


# Against float64, 1e-5 of a tensor's largest update. Two things need more. After the spike, loss features are
# ratios of small differences of averages, which float32 gives to 2e-5. And the runs that exist in float32
# alone were computed with 1 - float32(0.999), which is 1e-5 off, and with roundings of their own.
@pytest.mark.parametrize(
    ("name", "relative"),
    [("defaults", 1e-5), ("unbugged", 2e-5)]
    + [(name, 6e-5) for name in ("bugged_lstm", "clip_param_scale", "options_harsh")],
)
def test_follows_the_original(name, relative):
    optimizer, arrays = published(f"learned/hyperv2_{name}")
    params, states, updates = replay(optimizer, arrays)
    assert_same_updates(updates, arrays, relative)
    if name == "unbugged":
        early = {k: v[:SPIKE] for k, v in arrays.items() if k.startswith("updates64/")}
        assert_same_updates({k: v[:SPIKE] for k, v in updates.items()}, early)
    for leaf in LEAVES:
        want = arrays[f"params/{leaf}"]
        np.testing.assert_allclose(params[leaf], want, rtol=0, atol=1e-4 * np.abs(want).max())
    for index, after in ((0, "state1"), (4, "state5"), (24, "final_state")):
        state = tree.take(states, index)
        np.testing.assert_allclose(state.hidden, arrays[f"{after}/lstm_hidden_state/hidden"], atol=1e-4)
        np.testing.assert_allclose(state.cell, arrays[f"{after}/lstm_hidden_state/cell"], atol=1e-4)
        same_trend(state.trend, below(arrays, f"{after}/loss_buffer"))
        for leaf, moments in zip(LEAVES, state.moments):
            same_moments(moments, arrays, after, leaf)


def same_moments(moments, arrays, after, leaf):
    factored = "v_diag" if leaf in ("b1", "s") else "v_row"
    pairs = [
        (moments.momentum, "mom_rolling/m"),
        (moments.rms, "rms_rolling/rms"),
        (moments.factored.row, f"fac_rolling/{factored}"),
    ]
    if moments.factored.col is not None:
        pairs.append((moments.factored.col, "fac_rolling/v_col"))
    for ours, theirs in pairs:
        want = np.moveaxis(arrays[f"{after}/{theirs}/{leaf}"], -1, 0)
        np.testing.assert_allclose(ours.reshape(want.shape), want, rtol=5e-5, atol=1e-12)


def same_trend(trend, want):
    np.testing.assert_allclose(np.exp(-trend.rates), want["decays"], rtol=2e-7)
    np.testing.assert_allclose(trend.means, want["means"], rtol=1e-5)
    np.testing.assert_allclose(trend.minima, want["running_min"], rtol=1e-5)


@pytest.mark.parametrize("name", ["default_flags", "unbugged"])
def test_sees_what_the_original_sees(name):
    optimizer, arrays = published(f"features/hyperv2_{name}")

    @jax.jit
    def step(params, state, grads, loss):
        updates, after = optimizer.update(grads, state, params, value=loss)
        ps, gs = ([jnp.atleast_1d(given[leaf]) for leaf in LEAVES] for given in (params, grads))
        elapsed = state.trend.count.astype(jnp.float32) / state.num_steps
        ranks = [int(np.sum(np.array(p.shape) > 1)) for p in (params[leaf] for leaf in LEAVES)]
        tensors = tensor_inputs(elapsed, after.trend, ps, state.moments, ranks)
        controls, steps, _ = optimizer.controller(tensors, (state.hidden, state.cell))
        parameters = [
            [jnp.broadcast_to(x, p.shape) for x in parameter_features(parameter_sources(g, p, m))]
            for g, p, m in zip(gs, ps, after.moments)
        ]
        parameters = [jnp.stack(features) for features in parameters]
        seen = (tensors, controls, steps, parameters, [normalize(x) for x in parameters])
        return jax.tree.map(jnp.add, params, updates), after, seen

    params = jax.tree.map(jnp.asarray, below(arrays, "params0"))
    state = optimizer.init(params, num_steps=100)
    compared = 0
    for t in range(6):
        grads = {leaf: jnp.asarray(grad[t]) for leaf, grad in below(arrays, "grads").items()}
        params, state, seen = step(params, state, grads, jnp.asarray(arrays["losses"][t]))
        want = below(arrays, f"step{t + 1}")
        if not want:
            continue
        compared += 1
        tensors, controls, steps, raw, normalized = seen
        rows = np.stack([want[f"lstm_input/{leaf}"] for leaf in LEAVES])
        np.testing.assert_allclose(tensors, rows, atol=1e-4)
        np.testing.assert_allclose(controls, want["control_params"], atol=2e-5)
        np.testing.assert_allclose(steps, want["lr_mult"], atol=2e-5)
        for i, leaf in enumerate(LEAVES):
            features = want[f"raw_features/{leaf}"]
            largest = np.abs(features).max(axis=tuple(range(features.ndim - 1)))
            assert np.all(np.abs(np.moveaxis(raw[i], 0, -1) - features) <= 5e-5 * largest), leaf
            got = np.moveaxis(normalized[i], 0, -1)
            np.testing.assert_allclose(got, want[f"normalised_features/{leaf}"], atol=1e-4)
            close = 1e-4 * np.abs(want[f"params_after/{leaf}"]).max()
            np.testing.assert_allclose(params[leaf], want[f"params_after/{leaf}"], rtol=0, atol=close)
        same_trend(state.trend, below(want, "loss_buffer_after"))
    assert compared == 4


def test_share_of_the_run_and_losses_follow_the_tables():
    with np.load(FOLDER / "features" / "tables.npz", allow_pickle=False) as file:
        tables = {name: file[name] for name in file.files}
    got = jax.vmap(fraction_embedding)(jnp.asarray(tables["fractional_tanh/fraction"], jnp.float32))
    np.testing.assert_allclose(got, tables["fractional_tanh/values"], atol=1e-6)

    def body(trend, loss):
        trend = trend.updated(loss)
        return trend, (trend, trend.features())

    losses = jnp.asarray(tables["loss_buffer/losses"])
    for num_steps in (10, 100):
        want = below(tables, f"loss_buffer/num_steps_{num_steps}")
        start = LossTrend.start(jnp.float32(num_steps))
        _, (trends, features) = jax.lax.scan(body, start, losses)
        decays = np.broadcast_to(want["decays"], (len(losses), 10))
        same_trend(trends, want | {"decays": decays})
        np.testing.assert_allclose(features, want["features"], atol=2e-4)


def test_a_trend_of_long_runs_and_its_gradient():
    """Where one step weighs less than float32 can tell from nothing; equal losses; a negative one."""
    losses = jnp.float32([2.0, 2.0, 2.0, 1.0, -0.5])

    def last(losses):
        trend = LossTrend.start(jnp.float32(1e9))
        for loss in losses:
            trend = trend.updated(loss)
        return trend.features(), trend

    features, trend = jax.jit(last)(losses)
    assert np.all(np.isfinite(features)) and np.all(np.abs(features) <= 1.0)
    np.testing.assert_allclose(trend.means[-1] / (5 * trend.rates[-1]), np.mean(losses), rtol=1e-5)
    jacobian = jax.jit(jax.jacrev(lambda losses: last(losses)[0]))(losses)
    assert np.all(np.isfinite(jacobian))


PARAMS = {
    "w": jnp.float32([[0.5, -0.4, 0.1], [0.3, 0.2, -0.6]]),
    "b": jnp.float32([0.3, -0.7, 0.5]),
}


def unrolled(optimizer, params, steps=5):
    """Loss of a small problem after some steps."""

    def loss_fn(params):
        out = params["w"].T @ params["w"] + jnp.outer(params["b"], params["b"])
        return jnp.sum(jnp.square(out - jnp.eye(3)))

    state = optimizer.init(params, num_steps=20)

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss_fn)(params)
        updates, state = optimizer.update(grads, state, params, value=value)
        return (jax.tree.map(jnp.add, params, updates), state), value

    (params, state), _ = jax.lax.scan(step, (params, state), length=steps)
    return loss_fn(params)


@pytest.fixture(scope="module")
def run():
    return jax.jit(unrolled, compiler_options=QUICK)


def test_gradients_through_five_steps(run):
    optimizer = small(step_mult=1e-4)
    both = jax.jit(jax.value_and_grad(unrolled, argnums=(0, 1)), compiler_options=QUICK)
    value, (by_theta, by_params) = both(optimizer, PARAMS)
    assert np.isfinite(value) and tree.all_finite(by_theta) and tree.all_finite(by_params)
    # What the published architecture never uses, and nothing else, has no gradient.
    without = {name for name, grad in by_theta.hyperparameters.items() if not np.any(grad)}
    assert without == {"controller.mixing.0.weight", "controller.mixing.0.bias"}
    out = by_theta.bank.layers[-1]
    for grad in (out.weight, out.bias):
        assert not np.any(grad[..., 2]) and np.any(grad[..., 0]) and np.any(grad[..., 1])
    # Along the gradient, a small step changes the loss by the gradient's square.
    norm = float(sum(np.sum(np.square(g)) for g in jax.tree.leaves(by_theta)) ** 0.5)
    h = 1e-3 / norm
    ahead, behind = (
        run(jax.tree.map(lambda x, g, h=h: x + h * g, optimizer, by_theta), PARAMS) for h in (h, -h)
    )
    np.testing.assert_allclose((ahead - behind) / (2 * h), norm**2, rtol=0.01)
    # Parameters that start at exactly zero, with gradients of exactly zero.
    assert tree.all_finite(both(optimizer, PARAMS | {"b": jnp.zeros(3)}))
    assert tree.all_finite(both(optimizer, jax.tree.map(jnp.zeros_like, PARAMS)))


def test_lanes_equal_a_loop(run):
    lanes = [small(), shaken(small(), 1), shaken(small(), 2)]
    lanewise = jax.jit(jax.vmap(unrolled, in_axes=(0, None)), compiler_options=QUICK)
    together = lanewise(tree.stack(lanes), PARAMS)
    np.testing.assert_allclose(together, [run(lane, PARAMS) for lane in lanes], rtol=1e-4)


def test_trains_a_task_and_lives_in_optax():
    task = toys.regression()
    run = training.train(task, small(), steps=20, key=jax.random.key(0), eval_every=10)
    assert np.all(np.isfinite(run.curves["train/loss"])) and run.state.diverged_at == -1

    # A label without parameters leaves it nothing to do.
    alone = small()
    parts = {"all": alone.as_optax(num_steps=5), "none": alone.as_optax(num_steps=5)}
    both = optax.multi_transform(parts, {"b": "all", "w": "all"})
    state, own = both.init(PARAMS), alone.init(PARAMS, num_steps=5)
    updates, _ = jax.jit(both.update, compiler_options=QUICK)(PARAMS, state, PARAMS, value=jnp.float32(2))
    want, _ = stepped(alone, PARAMS, own, PARAMS, value=jnp.float32(2))
    for name in PARAMS:
        np.testing.assert_allclose(updates[name], want[name], rtol=1e-5)


def test_any_parameters():
    """A lone scalar; six dimensions in half precision; a state of the same shapes at every step."""
    optimizer = small(precondition_output=True)
    given = [
        (jnp.float32(0.0),),
        {"deep": jnp.ones((2, 2, 1, 2, 2, 2), jnp.bfloat16), "none": None, "s": jnp.float32(1.0)},
    ]
    for params in given:
        state = optimizer.init(params, num_steps=jnp.int32(7))
        updates, after = stepped(optimizer, params, state, params, value=1.0, key=None, step=0)
        assert alike(updates, params) and tree.all_finite(updates)
        assert alike(after, state)


def alike(a, b):
    shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), each) for each in (a, b)]
    return shapes[0] == shapes[1]


def test_what_settings_do():
    """One step, then the state or the size of the step that each setting is about."""

    def step(**settings):
        optimizer = small(**settings)
        state = optimizer.init(PARAMS, num_steps=20)
        updates, after = stepped(optimizer, PARAMS, state, PARAMS, value=jnp.float32(1))
        return updates["w"], state, after

    plain, state, after = step()
    assert not np.array_equal(after.hidden, state.hidden)
    _, first, bugged = step(use_bugged_next_lstm_state=True, use_bugged_loss_features=True)
    assert np.array_equal(bugged.hidden, first.hidden) and np.array_equal(bugged.cell, first.cell)
    np.testing.assert_allclose(1 / bugged.trend.rates, 10 * np.ones(10), rtol=1e-6)
    np.testing.assert_allclose(1 / after.trend.rates, np.geomspace(10, 20, 10), rtol=1e-6)
    size, limit = np.sqrt(np.mean(np.square(PARAMS["w"]))), 0.1 * np.sqrt(6)
    assert limit < size
    np.testing.assert_allclose(step(clip_param_scale_amount=0.1)[0], limit / size * plain, rtol=1e-4)
    root = np.sqrt(1e-3 * np.square(PARAMS["w"]) + 1e-6)
    np.testing.assert_allclose(step(precondition_output=True)[0] * root, plain, rtol=1e-4)


def test_settings_build_it_again_and_sizes_are_the_originals():
    optimizer = small()
    again = HyperV2(**optimizer.settings)
    assert jax.tree.structure(again) == jax.tree.structure(optimizer)
    assert set(optimizer.published_names) == set(optimizer.hyperparameters)
    other = HyperV2(key=jax.random.key(1), **optimizer.settings)
    assert not np.array_equal(other.bank.layers[0].weight, again.bank.layers[0].weight)

    def size(**settings):
        shapes = eqx.filter_eval_shape(lambda: HyperV2(**settings))
        return sum(leaf.size for leaf in jax.tree.leaves(shapes))

    assert size() == 162_305
    assert size(lstm_hidden_size=512, param_inits=256) == 2_320_385
    assert (
        size(lstm_hidden_size=16, param_inits=8, mix_layers=False, with_validation_feature_dim=True) == 4529
    )


def test_what_it_cannot_do_without():
    optimizer = small()
    with pytest.raises(ConfigError, match=r"give num_steps, as in .* as_optax\(num_steps=10_000\)"):
        optimizer.init(PARAMS)
    with pytest.raises(ConfigError, match="give num_steps"):
        optimizer.as_optax().init(PARAMS)
    with pytest.raises(ConfigError, match="num_steps must be at least 1, not 0"):
        optimizer.init(PARAMS, num_steps=0)
    with pytest.raises(ConfigError, match=r"training loss: .* value=loss"):
        optimizer.update(PARAMS, optimizer.init(PARAMS, num_steps=3), PARAMS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lstm_hidden_size": 0}, "lstm_hidden_size must be at least 1, not 0"),
        ({"param_inits": 0}, "param_inits must be"),
        ({"rnn_state_decay": 1.5}, r"rnn_state_decay must lie in \[0, 1\], not be 1.5"),
        ({"validation_mode": True}, "with_validation_feature_dim=True"),
        ({"clip_param_scale_amount": 0.0}, "above 0, or None"),
        ({"clip_param_scale_amount": 0.1, "param_scale_mult": False}, "param_scale_mult=True"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(ConfigError, match=message):
        HyperV2(**settings)


def test_weights_that_do_not_fit():
    optimizer, arrays = published("learned/hyperv2_options_harsh")
    theta = below(arrays, "theta")
    with pytest.raises(ConfigError, match="'rnn_params/linear/w'"):
        HyperV2(**{**optimizer.settings, "mix_layers": True}).from_published(theta)
    with pytest.raises(ConfigError, match=r"rnn_to_controls/w' has shape \(16, 8\); .* needs \(16, 4\)"):
        HyperV2(**{**optimizer.settings, "param_inits": 4}).from_published(theta)
    del theta["ff_mod_stack/~/w0__7"]
    with pytest.raises(ConfigError, match="'ff_mod_stack/~/w0__7'"):
        optimizer.from_published(theta)
