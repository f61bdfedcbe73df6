"""Coordinatewise and hierarchical recurrent optimizers: published trajectories, meta-gradients, shapes."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from outeropt import tree
from outeropt.errors import ConfigError
from outeropt.learned.choices.choice import Choice
from outeropt.learned.choices.choice_large import ChoiceLarge
from outeropt.learned.choices.choice_pool import ChoicePool
from outeropt.learned.coordinatewise import coordinates, keras_cells
from outeropt.learned.coordinatewise.coordinate_lstm import CoordinateLSTM, log_preprocess
from outeropt.learned.coordinatewise.rnnprop import RNNProp
from outeropt.learned.coordinatewise.rnnprop_extended import RNNPropExtended
from outeropt.learned.coordinatewise.scale_basic import ScaleBasic, ScaleBasicState
from outeropt.learned.coordinatewise.scale_hierarchical import ScaleHierarchical, ScaleHierarchicalState
from outeropt.training import inner
from toys import regression


FOLDER = Path(__file__).parent / "golden" / "amalgamation"
PUBLISHED = {
    "dmoptimizer": CoordinateLSTM,
    "scale_basic_state_advancing": ScaleBasic,
    "scale_hierarchical": ScaleHierarchical,
    "scale_hierarchical_random_lr": ScaleHierarchical,
}
POOL = ("sgd,learning_rate=0.3", "static_adam,learning_rate=0.3")
SMALL = {
    "lstm": (CoordinateLSTM, {"hidden_sizes": (4, 3), "output_scale": 0.5}),
    "lstm_log": (CoordinateLSTM, {"hidden_sizes": (4,), "preprocess": "log"}),
    "basic": (ScaleBasic, {"hidden_sizes": (4, 3), "initial_rates": (0.1, 1.0)}),
    "rnnprop": (RNNProp, {"hidden_sizes": (4, 3), "output_scale": 0.5}),
    "rnnprop_adam": (RNNProp, {"hidden_sizes": (4,), "output": "adam"}),
    "rnnprop_extended": (RNNPropExtended, {"hidden_sizes": (4, 3), "output_scale": 0.5}),
    "choice": (Choice, {"hidden_sizes": (4, 3), "rate": 0.3}),
    "choice_large": (ChoiceLarge, {"hidden_sizes": (4,)}),
    "choice_pool": (ChoicePool, {"hidden_sizes": (4,), "pool": POOL, "lr_multiplier_scale": 0.5}),
    "hierarchical": (ScaleHierarchical, {"param_units": 5, "global_units": 3, "timescales": 2}),
}
PARAMS = {
    f"rank{len(shape)}": np.ones(shape, np.float32) for shape in [(), (3,), (2, 3), (2, 1, 2), (1, 2, 2, 3)]
}

each = pytest.mark.parametrize("architecture", SMALL)


def load(name):
    with np.load(FOLDER / f"updates_{name}.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def below(arrays, prefix):
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}


def joined(arrays, when, part):
    """One part of the recorded state of all tensors, as rows in the order of our coordinates or tensors."""
    names = sorted(name.split("/")[1] for name in arrays if name.startswith("delta/"))
    width = arrays[f"{when}/w/{part}"].shape[1] if "gru" in part or "lstm" in part else 1
    return np.concatenate([arrays[f"{when}/{name}/{part}"].reshape(-1, width) for name in names])


def of_lstms(state):
    """Recorded names of the parts of an LSTM stack's state, whose coordinates are in the second axis."""
    return {
        f"lstm{layer}.{part}": half.T for layer, pair in enumerate(state) for part, half in zip("hc", pair)
    }


@functools.partial(jax.jit, static_argnames="restart")
def run(optimizer, state, params, grads, restart=False):
    """The last state and all updates; `restart` forgets the state after each step."""

    def step(carried, grad):
        updates, following = optimizer.update(grad, carried, params)
        return (carried if restart else following), updates

    return jax.lax.scan(step, state, grads)


@functools.cache
def replay(name, cls, restart=False):
    """The recording, and our last state and updates on its gradients."""
    arrays, inputs = load(name), load("inputs")
    params = below(inputs, "params0/")
    optimizer = cls().from_published(below(arrays, "weights/"))
    state = optimizer.init(params)
    if cls is ScaleHierarchical:
        # The recording drew its initial rates.
        state = state._replace(log_rate=jnp.asarray(joined(arrays, "initial", "eta_bar")[:, 0]))
    return arrays, *run(optimizer, state, params, below(inputs, "grads/"), restart)


@functools.cache
def small(architecture, seed=0):
    """A small network with noise on all meta-parameters, so that no part of it is silent."""
    cls, settings = SMALL[architecture]
    leaves, structure = jax.tree.flatten(cls(**settings))
    rng = np.random.default_rng(seed)
    return structure.unflatten(
        [leaf + jnp.asarray(0.2 * rng.normal(size=leaf.shape), jnp.float32) for leaf in leaves]
    )


def gradients(steps=3, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=(steps, *param.shape)).astype(np.float32) for name, param in PARAMS.items()}


def close(got, wanted):
    np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=2e-6)


def assert_same_updates(updates, arrays):
    """Each update agrees to a share of the tensor's largest update in that step."""
    for name, wanted in below(arrays, "f64/delta/").items():
        got, axes = np.asarray(updates[name], np.float64), tuple(range(1, wanted.ndim))
        largest = np.abs(wanted).max(axis=axes)
        assert (np.abs(got + wanted).max(axis=axes) <= 1e-5 * largest).all(), name


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_trajectories(name):
    arrays, _, updates = replay(name, PUBLISHED[name])
    assert_same_updates(updates, arrays)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_final_states(name):
    arrays, state, _ = replay(name, PUBLISHED[name])
    if isinstance(state, ScaleHierarchicalState):
        parts = {
            "eta_bar": state.log_rate[:, None],
            "eta_rel": state.relative_rate,
            "param_gru.h": state.param_hidden,
            "tensor_gru.h": state.tensor_hidden,
            **{f"scaling{s}.g": state.mean[:, s : s + 1] for s in range(4)},
            **{f"scaling{s}.lambda": state.square[:, s : s + 1] for s in range(4)},
        }
        close(state.global_hidden[None], arrays["f64/final/global_gru.h"])
    elif isinstance(state, ScaleBasicState):
        columns = {"rms": state.square, "decay": state.decay, "learning_rate": state.rate}
        parts = {part: got[:, None] for part, got in columns.items()} | of_lstms(state.lstms)
    else:
        parts = of_lstms(state)
    when = "f64/final" if "f64/final/w/eta_bar" in arrays else "final"
    for part, got in parts.items():
        close(got, joined(arrays, when, part))


def test_the_published_code_of_scale_basic_forgets_its_state():
    arrays, _, updates = replay("scale_basic_as_shipped", ScaleBasic, restart=True)
    assert_same_updates(updates, arrays)
    advancing = load("scale_basic_state_advancing")
    assert np.abs(arrays["delta/w"] - advancing["delta/w"]).max() > 0.1


def test_sizes_are_the_published_ones():
    for cls, count in [(CoordinateLSTM, 5061), (ScaleBasic, 5103), (ScaleHierarchical, 5070)]:
        assert sum(leaf.size for leaf in cls().hyperparameters.values()) == count


def test_weights_that_do_not_fit_are_refused():
    weights = below(load("dmoptimizer"), "weights/")
    with pytest.raises(ConfigError, match=r"no array 'lstm2\.kernel'"):
        CoordinateLSTM(hidden_sizes=(20, 20, 20)).from_published(weights)
    with pytest.raises(ConfigError, match=r"no array 'delta\.bias'"):
        CoordinateLSTM().from_published({k: v for k, v in weights.items() if k != "delta.bias"})
    with pytest.raises(ConfigError, match=r"hidden_sizes.*10"):
        CoordinateLSTM(hidden_sizes=(10, 20)).from_published(weights)
    with pytest.raises(ConfigError, match="'preprocess': 'log'"):
        CoordinateLSTM(preprocess="log").from_published(weights)
    with pytest.raises(ConfigError, match=r"lstm0\.kernel.*\(1, 40\).*\(1, 80\)"):
        CoordinateLSTM().from_published({**weights, "lstm0.kernel": weights["lstm0.kernel"][:, :40]})


def test_cells_start_as_in_keras():
    stack = keras_cells.LSTMStack(3, (6, 5), jax.random.key(1))
    for inputs, hidden, layer in [(3, 6, stack.layers[0]), (6, 5, stack.layers[1])]:
        bound = (6 / (inputs + 4 * hidden)) ** 0.5
        assert 0.8 * bound < np.abs(layer.kernel).max() <= bound
        close(layer.recurrent_kernel @ layer.recurrent_kernel.T, np.eye(hidden))
    # Without input the forget gate is sigmoid(1) and lets that much of the cell through.
    zero, one = jnp.zeros((6, 1)), jnp.ones((6, 1))
    close(stack.layers[0](jnp.zeros((3, 1)), (zero, one))[1], np.full((6, 1), 1 / (1 + np.exp(-1))))

    gru = keras_cells.GRU(3, 6, jax.random.key(1))
    bound = (6 / 21) ** 0.5
    assert 0.8 * bound < np.abs(gru.kernel).max() <= bound
    close(gru.recurrent_kernel @ gru.recurrent_kernel.T, np.eye(6))
    assert not np.any(gru.bias)
    bound = (6 / 7) ** 0.5
    head = keras_cells.dense(6, 1, jax.random.key(1))
    assert 0.5 * bound < np.abs(head.weight).max() <= bound and not np.any(head.bias)


def test_the_hierarchy_starts_with_adams_decays_and_no_update():
    optimizer = ScaleHierarchical(key=jax.random.key(3))
    biases = np.concatenate([optimizer.mean_decay.bias, optimizer.square_decay.bias])
    close(1 / (1 + np.exp(-biases)), [0.9, 0.999])
    state, updates = run(optimizer, optimizer.init(PARAMS), PARAMS, gradients())
    assert not any(np.any(update) for update in updates.values())
    assert np.any(state.param_hidden) and np.any(state.global_hidden)


def test_log_preprocessing_is_the_papers():
    grad = np.float32([0, 1e-30, -1e-6, 5e-5, -2e-4, 0.5, -1, 3e4, -1e30])
    large = np.abs(grad) >= np.exp(-10)
    wanted = [
        np.where(large, np.log(np.where(large, np.abs(grad), 1)) / 10, -1),
        np.where(large, np.sign(grad), np.exp(10) * grad),
    ]
    values, slopes = jax.jvp(log_preprocess, (jnp.asarray(grad),), (jnp.ones(9),))
    close(values, np.stack(wanted))
    assert np.isfinite(slopes).all()


def test_log_preprocessing_is_what_the_network_reads():
    optimizer, grad = small("lstm_log"), jnp.asarray([3.0, -1e-3, 0.0])
    updates, _ = optimizer.update(grad, optimizer.init(grad), grad)
    out, _ = optimizer.lstms(log_preprocess(grad), optimizer.lstms.zeros(3))
    close(updates, -optimizer.output_scale * optimizer.head.by_features(out)[0])


@each
def test_meta_gradients_through_five_steps(architecture):
    optimizer, task, key = small(architecture), regression(), jax.random.key(0)

    def meta_loss(optimizer):
        state = inner.start(task, optimizer, key)
        return inner.unroll(task, optimizer, state, key, length=5)[1].mean()

    valued = jax.jit(jax.value_and_grad(meta_loss))
    gradient = valued(optimizer)[1]
    leaves = tree.named_leaves(gradient)
    assert tree.all_finite(gradient)
    assert {name for name, leaf in leaves.items() if not np.any(leaf)} == set()
    norm = np.sqrt(sum(float(np.sum(np.square(leaf))) for leaf in leaves.values()))
    distance = 3e-3

    def along(sign):
        moved = jax.tree.map(lambda leaf, slope: leaf + sign * distance / norm * slope, optimizer, gradient)
        return float(valued(moved)[0])

    assert (along(1.0) - along(-1.0)) / (2 * distance) == pytest.approx(norm, rel=0.02)


@each
def test_gradients_of_any_size_give_finite_meta_gradients(architecture):
    optimizer = small(architecture)

    @jax.jit
    @jax.value_and_grad
    def total(optimizer, state, grads):
        return sum(jnp.sum(update) for update in run(optimizer, state, PARAMS, grads)[1].values())

    for size in (0.0, 1e-30, 1e12):
        grads = {name: np.float32(size) * grad for name, grad in gradients().items()}
        value, gradient = total(optimizer, optimizer.init(PARAMS), grads)
        assert np.isfinite(value) and tree.all_finite(gradient), size


@each
def test_vmap_over_meta_parameters_equals_a_loop(architecture):
    optimizers = [small(architecture, seed) for seed in range(3)]

    def from_start(optimizer):
        return run(optimizer, optimizer.init(PARAMS), PARAMS, gradients())

    batched = jax.jit(jax.vmap(from_start))(tree.stack(optimizers))
    for index, optimizer in enumerate(optimizers):
        jax.tree.map(close, tree.take(batched, index), from_start(optimizer))


@each
def test_structure_shapes_and_dtypes_are_constant(architecture):
    optimizer = small(architecture)
    params = {**PARAMS, "narrow": jnp.ones((2, 2), jnp.bfloat16)}
    state = optimizer.init(params, num_steps=10, key=jax.random.key(0))
    grads = jax.tree.map(lambda param: param + param, params)
    updates, following = jax.jit(lambda *given: optimizer.update(*given, value=0.0))(grads, state, params)

    def kinds(values):
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), values)

    assert kinds(updates) == kinds(params)
    assert kinds(following) == kinds(state)
    assert jax.tree.structure(following) == jax.tree.structure(state)
    assert all(np.any(update) for update in updates.values())
    buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
    assert len(set(buffers)) == len(buffers), "a state with shared arrays cannot be donated"


@each
def test_a_bare_scalar_is_a_tree_of_parameters(architecture):
    optimizer, param = small(architecture), jnp.float32(2.0)
    update, _ = jax.jit(optimizer.__class__.update)(optimizer, jnp.float32(0.7), optimizer.init(param), param)
    assert update.shape == () and np.isfinite(update) and update != 0


@pytest.mark.parametrize("architecture", ["lstm", "lstm_log", "rnnprop", "choice", "basic"])
def test_coordinates_do_not_see_each_other(architecture):
    # Equal rates for all: those of another tree are another draw.
    optimizer = ScaleBasic(hidden_sizes=(4, 3)) if architecture == "basic" else small(architecture)
    together = run(optimizer, optimizer.init(PARAMS), PARAMS, gradients())[1]
    params, grads = ({"rank3": values["rank3"]} for values in (PARAMS, gradients()))
    close(run(optimizer, optimizer.init(params), params, grads)[1]["rank3"], together["rank3"])


def test_the_hierarchy_sees_tensors_but_not_the_order_in_them():
    optimizer, order = small("hierarchical"), np.array([2, 0, 1])

    def last(rearrange):
        grads = gradients()
        grads = {**grads, "rank1": rearrange(grads["rank1"])}
        return jax.tree.map(lambda leaf: leaf[-1], run(optimizer, optimizer.init(PARAMS), PARAMS, grads)[1])

    plain, shuffled = last(lambda grads: grads), last(lambda grads: grads[:, order])
    close(shuffled["rank1"], plain["rank1"][order])
    np.testing.assert_allclose(shuffled["rank2"], plain["rank2"], atol=1e-7)
    # What happens in one tensor reaches the others through the unit above them.
    assert np.abs(last(np.negative)["rank2"] - plain["rank2"]).max() > 1e-6


@pytest.mark.parametrize("architecture", ["basic", "hierarchical"])
def test_initial_rates_are_log_uniform_and_seeded(architecture):
    cls = SMALL[architecture][0]
    optimizer, params = cls(initial_rates=(1e-6, 1e-2)), {"w": jnp.zeros((40, 50))}

    def logs(key):
        state = optimizer.init(params, key=key)
        return np.asarray(jnp.log(state.rate) if cls is ScaleBasic else state.log_rate)

    drawn, bounds = logs(jax.random.key(1)), np.log([1e-6, 1e-2])
    np.testing.assert_allclose(np.quantile(drawn, [0, 0.25, 0.5, 0.75, 1]), np.linspace(*bounds, 5), atol=0.5)
    assert drawn.min() >= bounds[0] - 1e-5 and drawn.max() <= bounds[1] + 1e-5
    np.testing.assert_array_equal(logs(None), logs(None))
    assert (logs(jax.random.key(2)) != drawn).any()


@pytest.mark.parametrize("given", [(0.0, 1.0), (1e-2, 1e-3), (1.0,), (np.nan, 1.0), (1.0, np.inf)])
def test_rates_that_are_no_range_are_refused(given):
    for cls in (ScaleBasic, ScaleHierarchical):
        with pytest.raises(ConfigError, match="initial_rates"):
            cls(initial_rates=given)


def test_settings_that_make_no_network_are_refused():
    with pytest.raises(ConfigError, match="'log10'; give none or log"):
        CoordinateLSTM(preprocess="log10")
    for cls in (CoordinateLSTM, ScaleBasic):
        with pytest.raises(ConfigError, match="hidden_sizes"):
            cls(hidden_sizes=())
    with pytest.raises(ConfigError, match="timescales must be at least 1, not 0"):
        ScaleHierarchical(timescales=0)


@each
def test_settings_rebuild_the_optimizer(architecture):
    cls, settings = SMALL[architecture]
    optimizer = small(architecture)
    assert settings.items() <= optimizer.settings.items()
    again = cls(**json.loads(json.dumps(optimizer.settings)))
    assert jax.tree.structure(again) == jax.tree.structure(optimizer)


def test_coordinates_go_into_one_vector_and_back():
    values = {"b": jnp.arange(6.0).reshape(2, 3), "a": jnp.float32(7), "c": jnp.ones((0, 2))}
    vector = coordinates.flatten(values)
    np.testing.assert_array_equal(vector, [7, 0, 1, 2, 3, 4, 5])
    jax.tree.map(np.testing.assert_array_equal, coordinates.restore(vector, values), values)
    counts = coordinates.sizes(values)
    means = coordinates.tensor_means(jnp.stack([vector, -vector], axis=1), counts)
    close(means, [[7, -7], [2.5, -2.5], [0, 0]])
    close(coordinates.spread(means, counts)[:, 0], [7, *[2.5] * 6])
