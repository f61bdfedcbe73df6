"""NNAdam and RNNMLP: trajectories and features of learned_optimization, gradients, lanes, validation."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import toys
from learned_golden import FOLDER, assert_same_updates, below, load, replay
from outeropt import training, tree
from outeropt.errors import ConfigError, OuteroptError
from outeropt.learned import per_parameter
from outeropt.learned.networks import LSTM
from outeropt.learned.per_tensor import rnn_mlp
from outeropt.learned.per_tensor.loss_tracking import GradientRange, LossTracker
from outeropt.learned.per_tensor.nn_adam import NNAdam
from outeropt.learned.per_tensor.rnn_mlp import RNNMLP, sin_embedding


# These programs run once: compile them fast rather than well.
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
KINDS = {
    "nnadam": lambda: NNAdam(lstm_hidden_size=5, initial_learning_rate=0.01, output_scale=0.1),
    "rnnmlp": lambda: RNNMLP(hidden_size=10, lstm_hidden_size=5, from_mlp_size=2, step_multiplier=0.05),
}


def published(name):
    """Our optimizer with a golden file's settings and meta-parameters, and the file's arrays."""
    arrays, config = load(name)
    kind = {"NNAdam": NNAdam, "RNNMLPLOpt": RNNMLP}[config["optimizer"]]
    return kind(**config["kwargs"]).from_published(below(arrays, "theta")), arrays


def shaken(optimizer, seed=0):
    """With noise on all meta-parameters, so that none is zero."""
    leaves, structure = jax.tree.flatten(optimizer)
    rng = np.random.default_rng(seed)
    noise = [jnp.asarray(rng.normal(size=leaf.shape), jnp.float32) for leaf in leaves]
    return structure.unflatten([leaf + 0.1 * x for leaf, x in zip(leaves, noise)])


def close(got, want, tolerance):
    """Equal to a share of the largest entry."""
    want = np.asarray(want)
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * max(np.abs(want).max(), 1e-30))


def recorded(arrays):
    """The recorded states as (index into our states, the state's arrays)."""
    return [(0, below(arrays, "state1")), (4, below(arrays, "state5")), (24, below(arrays, "final_state"))]


@pytest.mark.parametrize("name", ["nnadam", "nnadam_default_h32", "nnadam_decay_harsh"])
def test_nnadam_follows_the_original(name):
    optimizer, arrays = published(f"learned/{name}")
    _, states, updates = replay(optimizer, arrays)
    # Closer than the original in float32 is to itself in float64.
    assert_same_updates(updates, arrays, 5e-6)
    leaves = sorted(updates)
    for index, state in recorded(arrays):
        for i, leaf in enumerate(leaves):
            close(states.mean[i][index], state[f"rolling_features/m/{leaf}"], 2e-4)
            close(states.square[i][index], state[f"rolling_features/rms/{leaf}"], 2e-4)
        hyper = ("lr", "beta1", "beta2", "epsilon")
        codes = [[state[f"per_layer_{name}/{leaf}"] for name in hyper] for leaf in leaves]
        # These records are the original's in float32, which takes 1 - (1 - x) of the decays.
        np.testing.assert_allclose(states.codes[index], codes, atol=1e-4)
        np.testing.assert_allclose(states.hidden[index], state["lstm_hidden_state/hidden"], atol=2e-4)
        close(states.cell[index], state["lstm_hidden_state/cell"], 5e-5)


@pytest.mark.parametrize("name", ["rnnmlp_default", "rnnmlp_small_harsh", "rnnmlp_small_valid_steps"])
def test_rnnmlp_follows_the_original(name, monkeypatch):
    if name == "rnnmlp_small_valid_steps":
        # Once is enough for sums of products, which take longer to compile than matrix products.
        monkeypatch.setattr(per_parameter, "NARROW", 0)
    optimizer, arrays = published(f"learned/{name}")
    params, states, updates = replay(optimizer, arrays)
    assert_same_updates(updates, arrays)
    leaves = sorted(updates)
    for leaf in leaves:
        np.testing.assert_allclose(params[leaf], arrays[f"params/{leaf}"], rtol=1e-6, atol=2e-6)
    for index, state in recorded(arrays):
        for i, leaf in enumerate(leaves):
            for ours, theirs in ((states.momenta, "mom_rolling/m"), (states.squares, "rms_rolling/rms")):
                want = np.moveaxis(state[f"{theirs}/{leaf}"], -1, 0)
                close(ours[i][index].reshape(want.shape), want, 2e-5)
            np.testing.assert_allclose(states.from_mlp[index][i], state[f"from_mlp/{leaf}"], atol=2e-5)
        np.testing.assert_allclose(states.from_lstm[index], state["from_lstm"], atol=1e-5)
        np.testing.assert_allclose(states.hidden[index], state["lstm_hidden_state/hidden"], atol=2e-5)
        close(states.cell[index], state["lstm_hidden_state/cell"], 5e-6)
        assert states.step[index] == state["iteration"]
        for ours, theirs, decay in (
            (states.train_loss, "train_loss_accum", 0.9),
            (states.valid_loss, "valid_loss_accum", 0.95),
        ):
            mean, var, updates_so_far = (state[f"{theirs}/{x}"] for x in ("mean", "var", "updates"))
            want = [mean, var, 1 - decay ** int(updates_so_far)]
            np.testing.assert_allclose(ours.moments[index], want, rtol=1e-5)
        want = [state["dynamic_clip/value"], 1 - 0.99 ** state["dynamic_clip/iteration"]]
        np.testing.assert_allclose(states.gradient_range.moments[index], want, rtol=1e-5)


def watched_steps(optimizer, arrays, monkeypatch):
    """Six steps on a golden file of features: what the LSTM and the per-parameter network saw in each."""
    seen = []
    cell, network = LSTM.__call__, rnn_mlp.per_parameter

    def watched_cell(self, x, state):
        seen.append(x)
        return cell(self, x, state)

    def watched_network(layers, features, sources, shape, shared):
        seen.append((jnp.stack(features(sources)), shared))
        return network(layers, features, sources, shape, shared)

    monkeypatch.setattr(per_parameter, "NARROW", 0)
    monkeypatch.setattr(LSTM, "__call__", watched_cell)
    monkeypatch.setattr(rnn_mlp, "per_parameter", watched_network)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def step(params, state, grads, loss):
        seen.clear()
        updates, state = optimizer.update(grads, state, params, value=loss)
        return jax.tree.map(jnp.add, params, updates), state, list(seen)

    params = jax.tree.map(jnp.asarray, below(arrays, "params0"))
    state = optimizer.init(params)
    for t in range(6):
        grads = {name: jnp.asarray(grad[t]) for name, grad in below(arrays, "grads").items()}
        params, state, inputs = step(params, state, grads, jnp.asarray(arrays["losses"][t]))
        if f"step{t + 1}/lstm_input/b1" in arrays:
            yield below(arrays, f"step{t + 1}"), state, inputs


def test_nnadam_sees_what_the_original_sees(monkeypatch):
    optimizer, arrays = published("features/nnadam")
    steps = list(watched_steps(optimizer, arrays, monkeypatch))
    assert len(steps) == 4
    for want, state, inputs in steps:
        features = np.stack([want[f"lstm_input/{leaf}"] for leaf in ("b1", "k", "s", "w1", "w2")])
        np.testing.assert_allclose(inputs[0], features, atol=1e-4)
        np.testing.assert_allclose(state.hidden, want["lstm_hidden_state_after/hidden"], atol=1e-5)


def test_rnnmlp_sees_what_the_original_sees(monkeypatch):
    optimizer, arrays = published("features/rnnmlp")
    leaves = ("b1", "k", "s", "w1", "w2")
    steps = list(watched_steps(optimizer, arrays, monkeypatch))
    assert len(steps) == 4
    for want, state, (of_tensors, *of_parameters) in steps:
        features = np.stack([want[f"lstm_input/{leaf}"] for leaf in leaves])
        np.testing.assert_allclose(of_tensors, features, atol=1e-4)
        for leaf, (own, shared) in zip(leaves, of_parameters):
            raw = want[f"raw_features/{leaf}"].T
            np.testing.assert_allclose(own.reshape(raw.shape), raw, rtol=2e-5, atol=2e-6)
            np.testing.assert_allclose(shared, want[f"mlp_input/{leaf}"][0, 23:], atol=2e-5)
        np.testing.assert_allclose(state.from_lstm, want["from_lstm_after"], atol=1e-5)


def test_time_and_losses_follow_the_tables():
    with np.load(FOLDER / "features" / "tables.npz", allow_pickle=False) as tables:
        steps, values = tables["sin_embedding/iterations"], tables["sin_embedding/values"]
        losses, decay = tables["loss_normalizer/losses"], float(tables["loss_normalizer/decay"])
        wanted = tables["loss_normalizer/mean_var_weighted_corrected"]
    # A float32 angle of up to step / pi radians has an absolute error of that times 6e-8, and a little more.
    got = jax.vmap(sin_embedding)(jnp.asarray(steps))
    tolerance = 2e-7 * (1 + steps[:, None])
    assert np.all(np.abs(got - values) <= tolerance)

    def body(tracker, loss):
        tracker = tracker.updated(loss)
        return tracker, jnp.append(tracker.moments[:2], jnp.stack([tracker.standardized(loss), tracker.mean]))

    _, got = jax.lax.scan(body, LossTracker(decay), jnp.asarray(losses))
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=2e-6)


def test_trackers_before_the_first_observation():
    tracker = LossTracker(0.95)
    assert tracker.mean == 0.0 and tracker.standardized(jnp.float32(0.0)) == 0.0
    grad = jax.grad(lambda loss: LossTracker(0.9).updated(loss).standardized(loss))(jnp.float32(2.0))
    assert np.isfinite(grad)
    np.testing.assert_allclose(GradientRange().limit, 10.0, rtol=1e-6)


def test_untrained_nnadam_is_adam():
    """Without bias correction, with 1e-10 under the root; the network changes nothing yet."""
    first = {"learning_rate": 0.02, "beta1": 0.8, "beta2": 0.99, "epsilon": 1e-3}
    optimizer = NNAdam(**{f"initial_{name}": value for name, value in first.items()})
    params = {"w": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3)}
    state = optimizer.init(params)
    rng = np.random.default_rng(0)
    m = v = np.zeros((2, 3))
    update = eqx.filter_jit(optimizer.update)
    for _ in range(4):
        g = rng.normal(size=(2, 3)) * 10.0 ** rng.integers(-2, 4)
        m, v = 0.8 * m + 0.2 * np.clip(g, -1e3, 1e3), 0.99 * v + 0.01 * np.clip(g, -1e3, 1e3) ** 2
        updates, state = update({"w": jnp.asarray(g, jnp.float32)}, state, params)
        want = -0.02 * (1 + 1e-3) * m / (1e-3 + np.sqrt(v + 1e-10))
        np.testing.assert_allclose(updates["w"], want, rtol=2e-5)


def unrolled(optimizer, params, steps=5):
    """Loss of a small problem after some steps; bias and scalar start at exactly zero."""

    def loss_fn(params):
        out = jnp.outer(params["w"], params["w"]) + jnp.broadcast_to(params["b"], (3, 3)) * params["s"]
        return jnp.sum(jnp.square(out - jnp.eye(3)))

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss_fn)(params)
        updates, state = optimizer.update(grads, state, params, value=value)
        return (jax.tree.map(jnp.add, params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), None, steps)
    return loss_fn(params)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_through_five_steps(kind):
    optimizer = shaken(KINDS[kind]())
    gradient = jax.jit(jax.grad(unrolled, argnums=(0, 1)), compiler_options=QUICK)
    run = jax.jit(unrolled, compiler_options=QUICK)
    zeros = {"w": jnp.float32([0.5, -0.4, 0.1]), "b": jnp.zeros(3), "s": jnp.zeros(())}
    assert tree.all_finite(gradient(optimizer, zeros))
    params = {**zeros, "b": jnp.float32([0.3, -0.2, 0.1]), "s": jnp.float32(0.2)}
    by_theta, by_params = gradient(optimizer, params)
    assert tree.all_finite(by_params)
    assert not [name for name, grad in by_theta.hyperparameters.items() if not np.any(grad)]
    # Along the gradient, a small step changes the loss by the gradient's square.
    norm = float(sum(np.sum(np.square(g)) for g in jax.tree.leaves(by_theta)) ** 0.5)
    h = 1e-3 / norm

    def moved(by):
        return run(jax.tree.map(lambda x, g: x + by * g, optimizer, by_theta), params)

    np.testing.assert_allclose((moved(h) - moved(-h)) / (2 * h), norm**2, rtol=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_lanes_equal_a_loop(kind):
    lanes = [shaken(KINDS[kind](), seed) for seed in range(3)]
    params = {"w": jnp.float32([0.5, -0.4, 0.1]), "b": jnp.float32([1.0, 2.0, -1.0]), "s": jnp.float32(0.3)}
    together = jax.jit(jax.vmap(unrolled, in_axes=(0, None)), compiler_options=QUICK)(
        tree.stack(lanes), params
    )
    run = jax.jit(unrolled, compiler_options=QUICK)
    np.testing.assert_allclose(together, [run(lane, params) for lane in lanes], rtol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_trains_a_task(kind):
    run = training.train(toys.regression(), KINDS[kind](), steps=20, key=jax.random.key(0), eval_every=10)
    loss = run.curves["train/loss"]
    assert np.all(np.isfinite(loss)) and run.state.diverged_at == -1
    if kind == "nnadam":
        assert loss[-1] < 0.95 * loss[0]


@pytest.mark.parametrize("kind", KINDS)
def test_any_parameters(kind):
    """A lone scalar, five dimensions, half precision; the run's length unknown."""
    optimizer = KINDS[kind]()
    params = [
        (jnp.float32(0.0),),
        {"deep": jnp.ones((1, 2, 1, 2, 3), jnp.bfloat16), "none": None, "s": jnp.float32(1.0)},
    ]
    for given in params:
        state = optimizer.init(given, num_steps=None)
        updates, after = eqx.filter_jit(optimizer.update)(given, state, given, value=jnp.float32(1.0), step=0)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), updates) == jax.tree.map(
            lambda x: (x.shape, x.dtype), given
        )
        assert tree.all_finite(updates)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
            lambda x: (x.shape, x.dtype), state
        )


@pytest.mark.parametrize("kind", KINDS)
def test_settings_build_it_again(kind):
    optimizer = KINDS[kind]()
    again = type(optimizer)(**optimizer.settings)
    assert jax.tree.structure(again) == jax.tree.structure(optimizer)
    assert set(optimizer.published_names) == set(optimizer.hyperparameters)
    other = type(optimizer)(key=jax.random.key(1), **optimizer.settings)
    name = "lstm.gates.weight"
    assert np.array_equal(again.hyperparameters[name], optimizer.hyperparameters[name])
    assert not np.array_equal(other.hyperparameters[name], optimizer.hyperparameters[name])


def test_sizes_are_the_originals():
    count = {type(o): sum(x.size for x in jax.tree.leaves(o)) for o in (NNAdam(), RNNMLP())}
    assert count == {NNAdam: 6856, RNNMLP: 35799}


def test_a_validation_step_only_tells_the_validation_loss():
    optimizer = KINDS["rnnmlp"]()
    params = {"w": jnp.float32([1.0, 2.0])}

    @functools.partial(jax.jit, compiler_options=QUICK)
    def update(state, is_valid):
        return optimizer.update(params, state, params, value=2.0, is_valid=is_valid)

    _, state = update(optimizer.init(params), False)
    updates, after = update(state, True)
    assert not np.any(updates["w"]) and state.valid_loss.mean == 0.0
    np.testing.assert_allclose(after.valid_loss.mean, 2.0, rtol=1e-5)
    assert after.step == state.step + 1
    same = after._replace(valid_loss=state.valid_loss, step=state.step)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(same), jax.tree.leaves(state)))
    # It is heard at the next step on a training loss.
    told, untold = (update(s, False)[1].hidden for s in (after._replace(step=state.step), state))
    assert not np.allclose(told, untold)


def test_what_cannot_be():
    params = {"w": jnp.ones(2)}
    optimizer = KINDS["rnnmlp"]()
    with pytest.raises(OuteroptError, match="value=loss"):
        optimizer.update(params, optimizer.init(params), params)
    with pytest.raises(ConfigError, match="hidden_layers must be at least 1, not 0"):
        RNNMLP(hidden_layers=0)
    with pytest.raises(ConfigError, match="decays"):
        RNNMLP(decays=(0.9, 1.0))
    with pytest.raises(ConfigError, match=r"initial_beta2 is 1; .* from 0 to 0\.99995"):
        NNAdam(initial_beta2=1.0)
    with pytest.raises(ConfigError, match="initial_learning_rate is 0;"):
        NNAdam(initial_learning_rate=0.0)
    with pytest.raises(ConfigError, match="decay_strength"):
        NNAdam(decay_strength=1.5)
    with pytest.raises(ConfigError, match="lstm_hidden_size"):
        NNAdam(lstm_hidden_size=0)
    arrays, _ = load("learned/rnnmlp_small_harsh")
    with pytest.raises(ConfigError, match="shape"):
        RNNMLP().from_published(below(arrays, "theta"))
