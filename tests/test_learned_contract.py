"""The conformance suite of learned optimizers: every architecture keeps the contract."""

import functools
import json
import re
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from outeropt import Store, learned, metatraining, optimizers, sweep, tasks, train, tree
from outeropt.errors import ConfigError
from outeropt.learned import ARCHITECTURES


HERE = Path(__file__).parent

# Settings that keep each architecture small. An architecture that is not here fails.
SMALL = {
    "LearnableSGD": {},
    "LearnableSGDM": {},
    "LearnableAdam": {},
    "PerParameterMLP": {"hidden_size": 3},
    "AdafacMLP": {"hidden_size": 3, "hidden_layers": 1},
    "MLPNominal": {"hidden_size": 9, "hidden_layers": 1, "nominal_stepsize": 0.01, "weight_decay": 0.01},
    "NNAdam": {"lstm_hidden_size": 4},
    "RNNMLP": {
        **{"hidden_size": 3, "hidden_layers": 1, "lstm_hidden_size": 4},
        **{"from_mlp_size": 2, "from_lstm_size": 2, "lstm_to_ff": 2, "decays": (0.5, 0.99)},
    },
    "HyperV2": {"lstm_hidden_size": 4, "param_inits": 3, "ff_hidden_size": 3, "ff_hidden_layers": 1},
    "Celo2": {"hidden_size": 3, "hidden_layers": 1, "exp_mult": 0.1},
    "CoordinateLSTM": {"hidden_sizes": (4, 3)},
    "RNNProp": {"hidden_sizes": (4, 3)},
    "RNNPropExtended": {"hidden_sizes": (4, 3)},
    "Choice": {"hidden_sizes": (4, 3)},
    "ChoiceLarge": {"hidden_sizes": (4, 3)},
    "ChoicePool": {"hidden_sizes": (4, 3), "lr_multiplier_scale": 0.5},
    "ScaleBasic": {"hidden_sizes": (4, 3)},
    "ScaleHierarchical": {"param_units": 4, "tensor_units": 3, "global_units": 3, "timescales": 2},
}
# Their meta-parameters begin at given values.
NOT_RANDOM = {"LearnableSGD", "LearnableSGDM", "LearnableAdam"}

# Where the size of the published architecture is known from: a class of learned_optimization, or weights.
IN_TABLE = {
    "LearnableSGD": "LearnableSGD",
    "LearnableSGDM": "LearnableSGDM",
    "LearnableAdam": "LearnableAdam",
    "PerParameterMLP": "MLPLOpt",
    "AdafacMLP": "AdafacMLPLOpt",
    "MLPNominal": "MLPNomLOpt",
    "NNAdam": "NNAdam",
    "RNNMLP": "RNNMLPLOpt",
    "HyperV2": "HyperV2",
}
IN_FILES = {
    "Celo2": ("celo2/orthogonal.npz", "theta/"),
    "CoordinateLSTM": ("amalgamation/updates_dmoptimizer.npz", "weights/"),
    "RNNProp": ("amalgamation/updates_rnnprop_random.npz", "weights/"),
    "RNNPropExtended": ("amalgamation/updates_rnnprop_ext.npz", "weights/"),
    "Choice": ("amalgamation/updates_choice.npz", "weights/"),
    "ChoiceLarge": ("amalgamation/updates_choice_large.npz", "weights/"),
    "ChoicePool": ("amalgamation/updates_less_choice.npz", "weights/"),
    "ScaleBasic": ("amalgamation/updates_scale_basic_as_shipped.npz", "weights/"),
    "ScaleHierarchical": ("amalgamation/updates_scale_hierarchical.npz", "weights/"),
}

# These programs run once: compile them fast rather than well.
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
STEPS = 3
# What gradients and losses are multiplied with, lane by lane.
SCALES = {"ordinary": 1.0, "zero": 0.0, "tiny": 1e-30, "huge": 1e18}
SHAPES = {"kernel": (3, 1, 4, 2), "scalar": ()}

each = pytest.mark.parametrize("name", ARCHITECTURES)
# A sweep takes seconds to compile. These stand for the kinds of states that there are.
KINDS = ("AdafacMLP", "HyperV2", "ScaleBasic")
each_kind = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in KINDS else pytest.mark.slow) for name in ARCHITECTURES]
)


def normal(seed, *lead):
    """A tree like the parameters, with leading axes."""
    random = np.random.default_rng(seed)
    arrays = {
        key: jnp.asarray(random.normal(size=(*lead, *shape)), jnp.float32) for key, shape in SHAPES.items()
    }
    return {**arrays, "empty": {}}


@functools.cache
def small(name, seed=0, shaken=True):
    """An optimizer of one architecture; shaken, for some arrays begin as zeros and would hide mistakes."""
    optimizer = learned.build(name, SMALL[name], jax.random.key(seed))
    if not shaken:
        return optimizer
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: leaf + jnp.asarray(0.1 * random.normal(size=leaf.shape), jnp.float32), optimizer
    )


def unrolled(transformation, grads, scale):
    """Parameters squashed and summed up, each step's updates, and the last state."""
    start = normal(0)

    def step(carry, given):
        params, state = carry
        grads, loss = given
        grads, loss = jax.tree.map(lambda x: scale * x, (grads, loss))
        updates, state = transformation.update(grads, state, params, value=loss)
        return (jax.tree.map(jnp.add, params, updates), state), updates

    losses = jnp.linspace(1.0, 0.5, STEPS, dtype=jnp.float32)
    (params, state), updates = jax.lax.scan(step, (start, transformation.init(start)), (grads, losses))
    return sum(jnp.sum(jnp.tanh(leaf)) for leaf in jax.tree.leaves(params)), (updates, state)


class Direct:
    """An optimizer as it is, with the length of the run told."""

    def __init__(self, optimizer):
        self.update = optimizer.update
        self.init = functools.partial(optimizer.init, num_steps=STEPS, key=jax.random.key(7))


def in_lane(optimizer, grads, scale):
    return unrolled(Direct(optimizer), grads, scale)


def in_chain(optimizer, grads, scale):
    inside = optimizer.as_optax(num_steps=STEPS, key=jax.random.key(7))
    _, (updates, state) = unrolled(optax.chain(inside, optax.identity()), grads, scale)
    return updates, state[0]


def assert_close(got, wanted):
    def close(a, b):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max(initial=1e-30))

    jax.tree.map(close, got, wanted)


@each
def test_lanes_gradients_and_optax(name):
    """Two optimizers and gradients of all sizes as lanes of one program, against one by one in a chain."""
    pairs = [(small(name), scale) for scale in SCALES.values()] + [(small(name, 1), 1.0)]
    grads = normal(1, STEPS)

    lanes = jax.jit(
        jax.vmap(jax.value_and_grad(in_lane, has_aux=True), in_axes=(0, None, 0)), compiler_options=QUICK
    )
    stacked = tree.stack([optimizer for optimizer, _ in pairs])
    results = lanes(stacked, grads, jnp.asarray([scale for _, scale in pairs], jnp.float32))
    (_, (updates, states)), meta_gradients = results
    for i, label in enumerate([*SCALES, "other"]):
        lane = tree.take((updates, states, meta_gradients), i)
        assert tree.all_finite(lane), f"{label} gradients give numbers that are not finite"
    assert any(np.any(leaf[0]) for leaf in jax.tree.leaves(meta_gradients))
    assert all(np.any(leaf[0]) for leaf in jax.tree.leaves(updates)), "a tensor does not move"

    # A function of its own, for programs are counted by function.
    alone = jax.jit(lambda *given: in_chain(*given), compiler_options=QUICK)
    for i in (0, len(SCALES)):
        optimizer, scale = pairs[i]
        one = alone(optimizer, grads, jnp.float32(scale))
        assert_close(one, tree.take((updates, states), i))
    assert alone._cache_size() == 1, "recompiled because a meta-parameter changed"


def kinds(values):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), values)


@each
def test_keeps_structure_shapes_and_types(name):
    ranks = {f"rank{n}": jnp.ones((2, 1, 3, 2)[:n]) for n in range(5)}
    narrow = {"narrow": jnp.ones((2, 3), jnp.bfloat16), "empty": {}, "deep": [(jnp.ones((1,)),), ()]}
    for params in (ranks, narrow, jnp.float32(0.5)):

        def once(optimizer, params):
            state = optimizer.init(params, num_steps=STEPS, key=jax.random.key(0))
            context = {"value": jnp.float32(1), "step": jnp.int32(0), "unheard_of": "ignored"}
            updates, new = optimizer.update(params, state, params, **context)
            return updates, state, new, optimizer.eval_params(new, params)

        updates, state, new, point = jax.eval_shape(once, small(name), params)
        wanted = kinds(jax.eval_shape(lambda params=params: params))
        assert kinds(updates) == wanted and kinds(point) == wanted
        assert kinds(state) == kinds(new)


def count(shapes):
    return sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(shapes, lambda leaf: hasattr(leaf, "shape"))))


@each
def test_has_the_published_meta_parameters(name):
    kind = ARCHITECTURES[name]
    if name in IN_TABLE:
        table = json.loads((HERE / "golden" / "tables" / "learned_optimizers.json").read_text())
        sizes = [
            (entry["kwargs"], entry["n_theta"])
            for entry in table.values()
            if entry["class_name"] == IN_TABLE[name]
        ]
    else:
        file, prefix = IN_FILES[name]
        with np.load(HERE / "golden" / file, allow_pickle=False) as arrays:
            sizes = [({}, sum(arrays[key].size for key in arrays if key.startswith(prefix)))]
    assert sizes
    for settings, size in sizes:
        assert count(eqx.filter_eval_shape(kind, **settings)) == size, settings


@each
def test_leaves_are_meta_parameters_and_all_else_is_static(name):
    optimizer = small(name, shaken=False)
    leaves = jax.tree.leaves(optimizer)
    assert leaves and all(leaf.dtype == jnp.float32 and not leaf.weak_type for leaf in leaves)
    assert len(optimizer.hyperparameters) == len(leaves), "two leaves of one name"
    assert optimizer.published_names.keys() == optimizer.hyperparameters.keys()
    assert learned.paper(optimizer).title
    json.dumps(optimizer.settings)


@each
def test_the_key_decides_the_meta_parameters(name):
    kind = ARCHITECTURES[name]
    first = small(name, shaken=False)
    again = kind(key=jax.random.key(0), **SMALL[name])
    assert tree.fingerprint(again) == tree.fingerprint(first)
    assert tree.fingerprint(kind(**SMALL[name])) == tree.fingerprint(first), "no key is not key 0"
    other = kind(key=jax.random.key(1), **SMALL[name])
    assert (tree.fingerprint(other) == tree.fingerprint(first)) == (name in NOT_RANDOM)


@each
def test_saves_and_comes_back(name, tmp_path):
    optimizer = small(name)
    path = tmp_path / "mine.safetensors"
    optimizer.save(path)
    for again in (learned.load(path), optimizers.get(f"learned:{path}")):
        assert type(again) is type(optimizer) and again.settings == optimizer.settings
        assert jax.tree.structure(again) == jax.tree.structure(optimizer)
        jax.tree.map(np.testing.assert_array_equal, again, optimizer)
        assert tree.fingerprint(again) == tree.fingerprint(optimizer)


@each_kind
def test_is_swept_and_its_trials_are_known_again(name, tmp_path):
    optimizer = small(name)
    optimizer.save(tmp_path / "mine.safetensors")
    again = learned.load(tmp_path / "mine.safetensors")
    options = {"steps": 2, "eval_every": 1, "eval_batches": 1, "last_eval_batches": 1}
    task, first, second = tasks.get("Quadratic_10"), [], []
    with Store(tmp_path / "runs.db") as store:
        options |= {"seeds": 2, "store": store, "devices": jax.devices()[:1]}
        archive = sweep(task, optimizer, report=first.append, **options)
        known = sweep(task, again, report=second.append, **options)
    assert sum(first) == pytest.approx(2) and len(first) > 1
    assert second == [2], "trials of the loaded optimizer were run again"
    losses = archive.curves["train/loss"]
    assert losses.shape == (1, 2, 3) and np.isfinite(losses).all()
    np.testing.assert_array_equal(losses, known.curves["train/loss"])


@each
def test_trains(name):
    run = jax.eval_shape(
        lambda optimizer: train(tasks.get("Quadratic_10"), optimizer, steps=4, key=jax.random.key(0)),
        small(name),
    )
    assert run.curves["train/loss"].shape == (5,)


@each
def test_sizes_that_make_no_network_are_refused(name):
    kind = ARCHITECTURES[name]
    settings = learned.build(name, {}).settings
    counts = {key for key, value in settings.items() if type(value) is int} - {"warmup_steps"}
    for setting in sorted(counts):
        with pytest.raises(ConfigError, match=f"^{setting} must be at least 1, not 0"):
            kind(**{setting: 0})


@each
def test_is_meta_trained(name):
    system = metatraining.InnerTraining(tasks.FAMILIES["QuadraticFamily_10"]())
    estimator = metatraining.PES(particles=2, truncation=2, lengths=metatraining.lengths.Constant(4))

    def estimate(theta, key):
        state = estimator.init(system, theta, key, 0)
        return estimator.estimate(system, theta, state, key, 0)[0].grad

    theta = small(name)
    grad = jax.eval_shape(estimate, theta, jax.random.key(0))
    assert jax.tree.map(jnp.shape, grad) == jax.tree.map(jnp.shape, theta)


def test_every_architecture_is_in_the_suite_and_in_the_guide():
    assert ARCHITECTURES.keys() == SMALL.keys() == IN_TABLE.keys() | IN_FILES.keys()
    guide = (HERE.parent / "docs" / "learned.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \| ([\d ]+) \| (\d+) \|", guide, re.MULTILINE)
    told = {name: (int(size.replace(" ", "")), int(arrays)) for name, size, arrays in rows}
    matrix = jax.ShapeDtypeStruct((1000, 1000), jnp.float32)
    for name, kind in ARCHITECTURES.items():
        state = eqx.filter_eval_shape(lambda matrix, kind=kind: kind().init(matrix, num_steps=1), matrix)
        assert told.pop(name) == (count(eqx.filter_eval_shape(kind)), count(state) // 1000**2), name
    assert not told
    for name in ARCHITECTURES:
        (row,) = (line for line in guide.splitlines() if line.startswith(f"| `{name}` |"))
        assert learned.paper(small(name)).arxiv in row
