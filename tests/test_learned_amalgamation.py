"""The optimizers of "Optimizer Amalgamation": recordings, choices, warm-up, the weights that ship."""

import functools
import hashlib
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from outeropt import learned, tree
from outeropt.errors import ConfigError, OuteroptError, UnknownName
from outeropt.learned import Choice, ChoiceLarge, ChoicePool, CoordinateLSTM, RNNProp, RNNPropExtended
from outeropt.learned.choices.choice_pool import LARGE_POOL, SMALL_POOL
from outeropt.learned.choices.selection import select, softmax
from outeropt.optimizers import from_text


FOLDER = Path(__file__).parent / "golden" / "amalgamation"
PUBLISHED = {
    "rnnprop_min-max-1": (RNNProp(), 5141),
    "rnnprop_choice-large-3": (RNNProp(), 5141),
    "rnnprop_random": (RNNProp(), 5141),
    "adam_lr": (RNNProp(output="adam"), 5141),
    "rmsprop_lr": (RNNProp(output="rmsprop"), 5141),
    "rnnprop_ext": (RNNPropExtended(), 5464),
    "choice": (Choice(), 5162),
    "choice_large": (ChoiceLarge(), 5486),
    "less_choice": (ChoicePool(), 5482),
    "less_choice_hard": (ChoicePool(selection="hard"), 5482),
    "more_choice": (ChoicePool(pool=LARGE_POOL), 5886),
}
PARAMS = {"w": jnp.ones((3, 2)), "b": jnp.ones((2,)), "k": jnp.ones((1, 2, 1, 2))}
WARM = {"warmup_steps": 3, "warmup_rate": 0.25}
MNIST = Path(os.environ.get("OUTEROPT_DATA_DIR", "nowhere")) / "mnist.npz"

each = pytest.mark.parametrize("name", PUBLISHED)


@functools.cache
def load(name):
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def below(arrays, prefix):
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}


@jax.jit
def run(optimizer, state, params, grads):
    """The last state, all updates, and all diagnostics."""

    def step(state, grad):
        updates, state = optimizer.update(grad, state, params, key=jax.random.key(0))
        return state, (updates, optimizer.diagnostics(state))

    return lax.scan(step, state, grads)


@functools.cache
def replay(name):
    """The recording, our optimizer with its weights, and what it does on its gradients."""
    arrays, inputs = load(f"updates_{name}"), load("updates_inputs")
    optimizer = PUBLISHED[name][0].from_published(below(arrays, "weights/"))
    params = below(inputs, "params0/")
    state, (updates, told) = run(optimizer, optimizer.init(params), params, below(inputs, "grads/"))
    return arrays, optimizer, state, updates, told


def gradients(steps, seed=0):
    random = np.random.default_rng(seed)
    return {
        name: jnp.asarray(random.normal(size=(steps, *param.shape)), jnp.float32)
        for name, param in PARAMS.items()
    }


def assert_same(got, wanted, rtol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-7), got, wanted)


def equal(got, wanted):
    jax.tree.map(np.testing.assert_array_equal, got, wanted)


@each
def test_published_trajectories(name):
    arrays, _, _, updates, _ = replay(name)
    for tensor, wanted in below(arrays, "f64/delta/").items():
        got, axes = np.asarray(updates[tensor], np.float64), tuple(range(1, wanted.ndim))
        largest = np.abs(wanted).max(axis=axes)
        assert (np.abs(got + wanted).max(axis=axes) <= 1e-5 * largest).all(), tensor


def moments(state):
    """Averages as they are recorded, by name: vectors over coordinates, or trees."""
    if hasattr(state, "averages"):
        return {"m": state.averages.mean, "v": state.averages.square}
    found = {}
    for index, member in enumerate(state.members):
        # RMSProp is optax's, whose state is a chain's.
        square = getattr(member, "square", None) or getattr(member[0], "nu", None) if member else None
        found |= {f"child{index}.m": getattr(member, "mean", None), f"child{index}.v": square}
    return found


@each
def test_published_final_states(name):
    arrays, _, state, _, _ = replay(name)
    tensors = sorted(below(arrays, "delta/"))
    parts = {
        f"lstm{layer}.{part}": half.T
        for layer, pair in enumerate(state.lstms)
        for part, half in zip("hc", pair)
    }
    for part, average in moments(state).items():
        if average is not None:
            flat = (
                average
                if isinstance(average, jax.Array)
                else np.concatenate([np.ravel(average[tensor]) for tensor in tensors])
            )
            parts[part] = np.asarray(flat)[:, None]
    recorded = {key.split("/")[2] for key in arrays if key.startswith("final/")} - {"time"}
    assert recorded == parts.keys()
    for part, got in parts.items():
        wanted = np.concatenate([arrays[f"final/{t}/{part}"].reshape(-1, got.shape[1]) for t in tensors])
        np.testing.assert_allclose(got, wanted, rtol=3e-5, atol=3e-5, err_msg=part)
    if "final/w/time" in arrays:
        assert state.time == arrays["final/w/time"]


@pytest.mark.parametrize("name", [name for name in PUBLISHED if "choice" in name and "rnnprop" not in name])
def test_published_choices(name):
    arrays, optimizer, _, _, told = replay(name)
    sums = sum(below(arrays, "choices/").values())
    count = sum(value.size for value in below(load("updates_inputs"), "params0/").values())
    got = np.stack([told[f"share.{member}"] for member in optimizer.members], axis=1)
    np.testing.assert_allclose(got, sums / count, atol=1e-6)


@each
def test_published_sizes(name):
    optimizer, count = PUBLISHED[name]
    assert sum(leaf.size for leaf in optimizer.hyperparameters.values()) == count


def test_a_fresh_extended_network_does_not_move():
    optimizer = RNNPropExtended()
    _, (updates, _) = run(optimizer, optimizer.init(PARAMS), PARAMS, gradients(2))
    assert not any(np.any(update) for update in updates.values())


def test_members_have_names():
    assert ChoicePool().members == ("root_rmsprop", "static_adam")
    pool = ("sgd", "clip:adam,max_value=1", "sgd,learning_rate=0.2", "learned:small_fc")
    optimizer = ChoicePool(pool=pool)
    assert optimizer.members == ("sgd_0", "clip:adam", "sgd_2", "learned:small_fc")
    told = optimizer.diagnostics(optimizer.init(PARAMS, num_steps=10))
    assert list(told) == ["share.sgd_0", "share.clip:adam", "share.sgd_2", "share.learned:small_fc"]
    assert tree.fingerprint(optimizer.children()[1]) == tree.fingerprint(from_text(pool[1]))


def test_a_pool_of_one_is_its_member():
    text = "clip_norm:static_adam,max_norm=0.1"
    grads = gradients(3)
    optimizer = ChoicePool(pool=(text,))
    _, (updates, told) = run(optimizer, optimizer.init(PARAMS), PARAMS, grads)
    alone = from_text(text)
    _, (wanted, _) = run(alone, alone.init(PARAMS), PARAMS, grads)
    assert_same(updates, wanted)
    np.testing.assert_allclose(told[f"share.{text.partition(',')[0]}"], 1.0, rtol=1e-6)


def test_members_hear_of_the_loss():
    optimizer = ChoicePool(pool=("sgd", "polyak_sgd"))
    state, grads = optimizer.init(PARAMS), jax.tree.map(jnp.ones_like, PARAMS)
    updates, _ = optimizer.update(grads, state, PARAMS, value=jnp.float32(2.0))
    assert tree.all_finite(updates)
    with pytest.raises(OuteroptError, match="needs `value`"):
        optimizer.update(grads, state, PARAMS)


def test_multipliers_start_at_one_and_are_bounded():
    plain = ChoicePool(key=jax.random.key(2))
    scaled = ChoicePool(key=jax.random.key(2), lr_multiplier_scale=0.7)
    assert scaled.hyperparameters.keys() - plain.hyperparameters.keys() == {
        "multipliers.weight",
        "multipliers.bias",
    }
    grads, results = gradients(2), {}
    for bias in (0.0, 100.0):
        moved = scaled.replace({"multipliers.bias": jnp.full((2,), bias, jnp.float32)})
        results[bias] = run(moved, moved.init(PARAMS), PARAMS, grads)[1][0]
    assert_same(results[0.0], run(plain, plain.init(PARAMS), PARAMS, grads)[1][0])
    assert_same(results[100.0], jax.tree.map(lambda u: np.exp(np.float32(0.7)) * u, results[0.0]), rtol=1e-5)


def test_the_intended_time_feature_differs_from_the_published_one():
    published, intended = (ChoicePool(time_feature=kind) for kind in ("linear", "decaying"))
    for optimizer, wanted in ((published, [0.0, 0.5]), (intended, [1.0, 0.5])):
        times = [optimizer._situation(jnp.int32(t), PARAMS, 12)[0] for t in (0, 1000)]
        scale = [1.0, 1.0] if optimizer is published else [1.0, 2000 / 3000 / 0.5]
        np.testing.assert_allclose(
            np.stack(times), np.outer(np.multiply(wanted, scale), np.ones(12)), rtol=1e-6
        )


def test_flags_say_the_rank():
    ranks = {f"rank{rank}": jnp.ones((2, 1, 1, 1)[:rank]) for rank in range(5)}
    flags = np.asarray(ChoicePool()._situation(jnp.int32(0), ranks, 9))[1:]
    columns = [(0, 0, 0), *2 * [(1, 0, 0)], *2 * [(0, 1, 0)], *2 * [(0, 0, 1)], *2 * [(0, 0, 0)]]
    np.testing.assert_array_equal(flags.T, columns)


def test_the_softmax_is_the_published_one_and_does_not_overflow():
    scores = jnp.asarray([[0.3, -40.0, -300.0, 95.0], [-2.0, -41.0, -301.0, 94.0]], jnp.float32)
    exact = np.exp(np.float64(scores))
    np.testing.assert_allclose(softmax(scores), exact / (exact.sum(0) + 1e-10), rtol=2e-6, atol=1e-30)
    slopes = jax.jacobian(softmax)(scores * 100.0)
    assert np.isfinite(slopes).all()
    exact = exact[:, 0] / (exact[:, 0].sum() + 1e-10)
    wanted = np.diag(exact) - np.outer(exact, exact)
    np.testing.assert_allclose(jax.jacobian(softmax)(scores[:, :1])[:, 0, :, 0], wanted, atol=1e-6)


def test_hard_choices_are_the_best_member_and_noisy_ones_draw():
    scores = jnp.broadcast_to(jnp.log(jnp.asarray([0.2, 0.5, 0.3]))[:, None], (3, 20_000))
    hard = select(scores, "hard", 10.0, None)
    np.testing.assert_array_equal(hard, np.broadcast_to([[0.0], [1.0], [0.0]], (3, 20_000)))
    noisy = select(scores, "gumbel", 30.0, jax.random.key(0))
    np.testing.assert_allclose(noisy.sum(0), 1.0, rtol=1e-5)
    drawn = np.bincount(np.argmax(noisy, axis=0), minlength=3) / 20_000
    np.testing.assert_allclose(drawn, [0.2, 0.5, 0.3], atol=0.02)
    assert np.mean(noisy.max(0)) > 0.95
    other = select(scores, "gumbel", 30.0, jax.random.key(1))
    assert np.any(noisy != other)


def test_choices_with_noise_need_a_key_and_have_derivatives():
    optimizer = ChoicePool(selection="gumbel", hardness=3.0)
    state, grads = optimizer.init(PARAMS), jax.tree.map(jnp.ones_like, PARAMS)
    with pytest.raises(OuteroptError, match="needs `key`"):
        optimizer.update(grads, state, PARAMS)

    def total(optimizer):
        return sum(jnp.sum(u) for u in run(optimizer, state, PARAMS, gradients(3))[1][0].values())

    slopes = jax.grad(total)(optimizer)
    assert tree.all_finite(slopes) and np.any(slopes.hyperparameters["scores.weight"])
    chosen = optimizer.with_settings(selection="hard")
    updates, following = chosen.update(grads, state, PARAMS)
    assert tree.all_finite(updates)
    counts = np.asarray(following.shares) * sum(leaf.size for leaf in PARAMS.values())
    np.testing.assert_allclose(counts, np.round(counts), atol=1e-5)


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: RNNProp(output="sgd"), ConfigError, "no output = 'sgd'; give update, adam, rmsprop"),
        (lambda: RNNProp(eps=0.0), ConfigError, "eps must be above 0"),
        (lambda: RNNProp(decays=(0.9, 1.0)), ConfigError, "decays must be two numbers"),
        (lambda: RNNProp(decays=(0.9,)), ConfigError, "decays must be two numbers"),
        (lambda: RNNProp(hidden_sizes=()), ConfigError, "hidden_sizes"),
        (lambda: RNNPropExtended(hidden_sizes=(4, 0)), ConfigError, "hidden_sizes"),
        (lambda: CoordinateLSTM(warmup_steps=-1), ConfigError, "warmup_steps must be at least 0"),
        (lambda: RNNProp(warmup_rate=-0.1), ConfigError, "warmup_rate must be a number from 0 on"),
        (lambda: Choice(selection="best"), ConfigError, "no selection = 'best'; give soft, gumbel, hard"),
        (lambda: Choice(hardness=0.0), ConfigError, "hardness must be above 0"),
        (lambda: ChoiceLarge(rates=(0.1,)), ConfigError, "must be 6: sgd, momentum"),
        (lambda: ChoicePool(pool=()), ConfigError, "must be a list of optimizers"),
        (lambda: ChoicePool(pool="sgd"), ConfigError, "must be a list of optimizers"),
        (lambda: ChoicePool(pool=("sgd", "adm")), UnknownName, "'adm'. Did you mean adam"),
        (lambda: ChoicePool(time_feature="t"), ConfigError, "give linear or decaying"),
        (lambda: ChoicePool(lr_multiplier_scale=-1.0), ConfigError, "lr_multiplier_scale"),
    ],
)
def test_mistakes_are_told(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_pools_are_saved_with_the_optimizer(tmp_path):
    optimizer = ChoicePool(pool=LARGE_POOL, hidden_sizes=(3,), lr_multiplier_scale=0.1)
    optimizer.save(tmp_path / "pool.safetensors")
    again = learned.load(tmp_path / "pool.safetensors")
    assert again.settings == optimizer.settings and again.settings["pool"] == LARGE_POOL
    assert tree.fingerprint(again) == tree.fingerprint(optimizer)
    assert ChoicePool().pool == SMALL_POOL


def recurrent(state):
    """The part of a state that rests in a warm-up."""
    return getattr(state, "lstms", getattr(state, "param_hidden", state))


ALL = {
    "CoordinateLSTM": {},
    "ScaleBasic": {},
    "ScaleHierarchical": {},
    **{name: {} for name in ("RNNProp", "RNNPropExtended", "Choice", "ChoiceLarge", "ChoicePool")},
}
all_coordinatewise = pytest.mark.parametrize("architecture", ALL)


@all_coordinatewise
def test_the_warm_up_is_sgd_and_watches(architecture):
    fresh = learned.build(architecture, ALL[architecture])
    warm = fresh.with_settings(**WARM)
    grads = gradients(5)
    first, rest = (jax.tree.map(lambda g, part=part: g[part], grads) for part in (slice(3), slice(3, 5)))

    _, (updates, _) = run(warm, warm.init(PARAMS), PARAMS, grads)
    assert_same(jax.tree.map(lambda u: u[:3], updates), jax.tree.map(lambda g: -0.25 * g, first))

    # What comes after is what the optimizer does that has watched as long.
    state = fresh.init(PARAMS)
    for index in range(3):
        grad = jax.tree.map(lambda g, index=index: g[index], grads)
        watched = fresh.observe(grad, state, PARAMS)
        equal(recurrent(watched), recurrent(state))
        if architecture != "CoordinateLSTM":
            assert not all(map(np.array_equal, jax.tree.leaves(watched), jax.tree.leaves(state)))
        state = watched
    _, (later, _) = run(fresh, state, PARAMS, rest)
    assert_same(jax.tree.map(lambda u: u[3:], updates), later, rtol=1e-5)


@all_coordinatewise
def test_observed_steps_are_part_of_the_warm_up(architecture):
    warm = learned.build(architecture, {**ALL[architecture], **WARM})
    grads = gradients(4)
    by_update = by_observing = warm.init(PARAMS)
    for index in range(3):
        grad = jax.tree.map(lambda g, index=index: g[index], grads)
        _, by_update = warm.update(grad, by_update, PARAMS)
        by_observing = warm.observe(grad, by_observing, PARAMS)
    assert_same(by_observing, by_update)
    assert by_update.steps == 3


def test_without_a_warm_up_no_counter_is_kept():
    plain, warm = RNNProp(), RNNProp(warmup_steps=1)
    count = [len(jax.tree.leaves(each.init(PARAMS))) for each in (plain, warm)]
    assert count == [6, 7]
    choice = Choice(**WARM)
    assert choice.diagnostics(choice.init(PARAMS)).keys() == {"share.adam", "share.rmsprop"}


def test_a_warm_up_in_lanes_and_its_derivatives():
    optimizer, grads = RNNProp(**WARM), gradients(5)

    def total(optimizer, rate):
        grown = jax.tree.map(lambda g: rate * g, grads)
        updates = run(optimizer, optimizer.init(PARAMS), PARAMS, grown)[1][0]
        return sum(jnp.sum(update) for update in updates.values())

    value = jax.value_and_grad(total)
    lanes = jax.vmap(value, in_axes=(None, 0))(optimizer, jnp.asarray([1.0, 0.0, 3.0]))
    assert tree.all_finite(lanes)
    assert_same(tree.take(lanes, 2), value(optimizer, jnp.float32(3.0)), rtol=1e-4)


NAMES = [
    f"amalgam-{family}-{n}"
    for family in ("choice-large", "choice-small", "mean", "min-max")
    for n in range(1, 9)
]


def as_keras(optimizer):
    """The weights of an optimizer by their published names."""
    leaves = optimizer.hyperparameters
    return {path: np.asarray(leaves[name]) for name, path in optimizer.published_names.items()}


def test_all_published_optimizers_ship():
    assert set(NAMES) <= set(learned.names())
    blobs = set()
    for name in NAMES:
        optimizer, about = learned.load(name), learned.about(name)
        assert optimizer.settings == RNNProp(warmup_steps=100).settings
        assert about["licence"] == "MIT" and about["meta_iterations"] >= 330
        assert name == f"amalgam-{about['family']}-{about['replicate']}"
        assert about["source_path"] == f"pre-trained/{about['family']}/{about['replicate']}/weights"
        blobs.add(about["source_git_blob"])
    assert len(blobs) == len(NAMES)


@pytest.mark.parametrize("name", ["min-max-1", "choice-large-3"])
def test_shipped_weights_are_the_published_ones_bit_for_bit(name):
    equal(as_keras(learned.load(f"amalgam-{name}")), below(load(f"updates_rnnprop_{name}"), "weights/"))


def test_shipped_weights_have_the_published_digest():
    # Of the 5 141 numbers of `mean-1` in the order of their published names, as the authors' file holds them.
    weights = as_keras(learned.load("amalgam-mean-1"))
    digest = hashlib.sha256(b"".join(weights[name].tobytes() for name in sorted(weights)))
    assert digest.hexdigest() == "3a6b5e1e0b18b93ddade8ae4fd61437ccb71e6ceec021a242cfb3d70149e6d43"


def test_published_files_are_read(tmp_path):
    weights = below(load("updates_rnnprop_min-max-1"), "weights/")
    np.savez(tmp_path / "weights.npz", **weights)
    read = learned.load_published(tmp_path / "weights.npz", RNNProp, warmup_steps=100)
    equal(read, learned.load("amalgam-min-max-1"))
    assert read.settings == learned.load("amalgam-min-max-1").settings


def test_the_licence_is_beside_the_weights():
    folder = Path(learned.__file__).parent / "weights"
    licence = (folder / "LICENSE-amalgamation.txt").read_text("utf-8")
    assert licence.startswith("MIT License") and "Copyright (c) 2021 VITA" in licence
    assert "amalgam-FAMILY-N" in (folder / "README.md").read_text("utf-8")


def pooled(x):
    """The largest of each two by two, without the last row and column where they are odd."""
    n, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(n, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))


def loss(params, image, label):
    x = image / 255.0
    for name in ("conv0", "conv1"):
        kernel = params[f"{name}.kernel"]
        x = lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = pooled(jax.nn.relu(x + params[f"{name}.bias"].reshape(1, 1, 1, -1)))
    x = x.reshape(len(x), -1) @ params["dense.kernel"] + params["dense.bias"][None]
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(x), label[:, None], axis=1))


@jax.jit
def trained(optimizer, params, state, image, label):
    value, grads = jax.value_and_grad(loss)(params, image, label)
    updates, state = optimizer.update(grads, state, params)
    return jax.tree.map(jnp.add, params, updates), state, value


def curve(optimizer, params, images, labels):
    """The loss before each step. Not a scan: in a loop, XLA's convolutions on CPU take ten times as long."""
    params = jax.tree.map(jnp.asarray, params)
    state, values = optimizer.init(params), []
    for batch in zip(images, labels):
        params, state, value = trained(optimizer, params, state, *batch)
        values.append(value)
    return np.stack(values)


@functools.cache
def mnist():
    with np.load(MNIST, allow_pickle=False) as file:
        chosen = load("eval_rnnprop_min-max-2")["batch_indices"]
        return np.float32(file["x_train"][chosen]), file["y_train"][chosen].astype(np.int32)


# Up to which step, and by how much, a run may differ: ten times as much as the original's own runs in float32
# do, which after a warm-up is little, and with SGD, at the edge of its stability, soon everything.
BY_STEP = {10: 1e-4, 20: 5e-3, 60: 1e-1}
CURVES = {
    "rnnprop": ("learned:amalgam-min-max-2", 0, BY_STEP),
    "rnnprop_warmup20": ("learned:amalgam-min-max-2", 20, {60: 1e-4}),
    "sgd": ("sgd,learning_rate=0.2", 0, {10: 1e-4, 20: 1e-2}),
    "adam": ("static_adam", 0, BY_STEP),
}


@pytest.mark.skipif(not MNIST.exists(), reason="MNIST is not in OUTEROPT_DATA_DIR")
@pytest.mark.parametrize("name", CURVES)
def test_the_published_curves_on_mnist(name):
    text, warmup, allowed = CURVES[name]
    recorded, optimizer = load("eval_rnnprop_min-max-2"), from_text(text)
    if isinstance(optimizer, RNNProp):
        optimizer = optimizer.with_settings(warmup_steps=warmup)
    got = curve(optimizer, below(recorded, "network/"), *mnist())
    difference = np.abs(np.asarray(got, np.float64) - recorded[f"f64/loss/{name}"])
    for steps, most in allowed.items():
        assert difference[:steps].max() < most, steps
