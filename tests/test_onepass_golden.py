"""One-pass tuning and its rivals in float64, against tests/golden/clarke (see the README there)."""

import functools
import math
import pathlib

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest

from outeropt import optimizers, tree
from outeropt.selftuning import Baydin, OnePass, Stepped, Unrolled
from outeropt.selftuning.onepass.tuner import Step


GOLDEN = pathlib.Path(__file__).parent / "golden" / "clarke" / "one_pass.npz"
NAMES = ("learning_rate", "weight_decay", "momentum")
RANGES = {"learning_rate": (1e-10, 1.0), "weight_decay": (1e-40, 1e10), "momentum": (1e-12, 1 - 1e-12)}
STARTS = ("cold", "mid", "hot")
# These programs run once: compile them fast rather than well.
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
quickly = functools.partial(jax.jit, compiler_options=QUICK)


@functools.cache
def golden():
    with np.load(GOLDEN) as file:
        return dict(file)


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        yield


def exact(optimizer, values):
    """The optimizer with leaves of float64, those given with all their digits."""
    tuners = {"meta.learning_rate": 0.05, "meta.b1": 0.9, "meta.b2": 0.999, "meta.eps": 1e-8}
    values = tuners | {"step_size": 1e-3} | values

    def one(path, leaf):
        name = tree.leaf_name(path)
        ends = [value for given, value in values.items() if name == given or name.endswith("." + given)]
        return jnp.asarray(ends[0] if ends else leaf, jnp.float64)

    return jtu.tree_map_with_path(one, optimizer)


def method(name, *, every=10, lookback=5, ranges=RANGES, base="heavy_ball"):
    """A rival by the name of its released configuration."""
    plain = optimizers.get(base)

    def kept(*names):
        return names, {"ranges": {key: ranges[key] for key in names}}

    if name == "Baydin":
        return Baydin(plain, **kept("learning_rate")[1])
    if name == "Random_SteppedLR":
        return Stepped(plain)
    if name in ("DiffThroughOpt", "Medium_T40"):
        names, settings = kept(*NAMES)
        every, window = (40, 40) if name == "Medium_T40" else (every, 5)
        return Unrolled(plain, names, window=window, every=every, rescue=math.inf, **settings)
    tuned = {"Lorraine": NAMES[1:2], "Ours_LR": NAMES[:2]}.get(name, NAMES)
    names, settings = kept(*tuned)
    return OnePass(
        plain,
        names,
        rescue=math.inf,
        lookback=lookback,
        every=every,
        per_parameter=name == "Ours_HDLR_Momentum",
        **settings,
    )


def at(optimizer, raw, **values):
    """The optimizer at raw hyperparameters: log10 of rate and decay, logit of the momentum."""
    rate, decay, momentum = 10 ** raw[0], 10 ** raw[1], 1 / (1 + np.exp(-raw[2]))
    # The tuner has a learning rate too.
    given = {"inner.learning_rate": rate, "weight_decay": decay, "inner.momentum": momentum}
    return exact(optimizer, given | values)


def network(weights, sizes):
    inputs, hidden, outputs = (int(size) for size in sizes)
    shapes = (hidden, inputs), (hidden,), (outputs, hidden), (outputs,)
    ends = np.cumsum([np.prod(shape) for shape in shapes])[:-1]
    return [jnp.asarray(part).reshape(shape) for part, shape in zip(jnp.split(weights, ends), shapes)]


def flat(params):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])


def outputs(params, x):
    first, bias, second, last = params
    return jax.nn.relu(x @ first.T + bias[None]) @ second.T + last[None]


@functools.cache
def table(name):
    """Scaled rows: training, validation, and both together."""
    G = golden()
    order = G[f"{name}/permutation"]
    x, y = G[f"{name}/x"].astype(float)[order], G[f"{name}/y"].astype(float).reshape(-1, 1)[order]
    train, valid, _ = G[f"{name}/split_sizes"]
    both = slice(0, train + valid)
    x, y = (
        (z - z[both].mean(0)) / np.where(np.ptp(z[both], 0) == 0, 1, z[both].std(0, ddof=1)) for z in (x, y)
    )
    rows = {"train": slice(0, train), "valid": slice(train, train + valid), "both": both}
    return {part: (jnp.asarray(x[where]), jnp.asarray(y[where])) for part, where in rows.items()}


def regression(params, rows):
    return jnp.mean(jnp.square(outputs(params, rows[0]) - rows[1]))


@functools.partial(eqx.filter_jit, compiler_options=QUICK)
def run(optimizer, params, train, valid, steps):
    """Full-batch training: end, losses before each step, diagnostics after it."""

    def loss(params):
        return regression(params, train)

    def body(carry, i):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(
            grads,
            state,
            params,
            value=value,
            grad=grads,
            value_fn=loss,
            value_at=lambda params, step: loss(params),
            valid_fn=lambda params: regression(params, valid),
            step=i,
        )
        params = jax.tree.map(jnp.add, params, updates)
        return (params, state), (value, optimizer.diagnostics(state))

    return jax.lax.scan(body, (params, optimizer.init(params)), jnp.arange(steps))


def assert_run(got, key, every, exactness):
    """Losses and raw hyperparameters as far as the original's are numbers, and the last weights."""
    (params, _), (losses, told) = got
    G = golden()
    raw, want = G[f"{key}/raw"], G[f"{key}/loss_train"]
    stride = len(losses) // (len(want) - 1)
    np.testing.assert_allclose(losses[::stride], want[:-1], rtol=exactness)
    for column, name in enumerate(NAMES):
        if np.ptp(raw[:, column]) > 0 and name in told:
            value = np.asarray(told[name])[every - 1 :: every]
            ours = np.log10(value) if column < 2 else np.log(value) - np.log1p(-value)
            np.testing.assert_allclose(ours, raw[: len(ours), column], atol=exactness, err_msg=name)
    np.testing.assert_allclose(flat(params), G[f"{key}/weights_after"], rtol=exactness, atol=exactness)


METHODS = {
    "Lorraine": STARTS,
    "Ours_LR": STARTS,
    "Ours_LR_Momentum": STARTS,
    "Ours_HDLR_Momentum": STARTS,
    "DiffThroughOpt": STARTS,
    "Baydin": STARTS,
    "Random_SteppedLR": STARTS,
    "Medium_T40": ("cold", "mid"),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("data", ["energy", "yacht"])
def test_trajectories(name, data):
    """400 steps of every method from every start, one program each."""
    G, rows = golden(), table(data)
    train = rows["both" if name in ("Baydin", "Random_SteppedLR") else "train"]
    checked = 0
    for start in METHODS[name]:
        key = f"{data}/{name}/{start}"
        if f"{key}/raw_init" not in G:
            continue
        factor = {"factor": G[f"{key}/lr_multiplier"]} if name == "Random_SteppedLR" else {}
        optimizer = at(method(name), G[f"{key}/raw_init"], **factor)
        params = network(G[f"{key}/weights_init"], G[f"{data}/layer_sizes"])
        got = run(optimizer, params, train, rows["valid"], 400)
        if name in ("Baydin", "Random_SteppedLR"):
            # They move the learning rate at the beginning of a step, and the original at the end.
            got[1][1].pop("learning_rate")
        assert_run(got, key, 40 if name == "Medium_T40" else 10, 1e-10)
        if name == "Ours_HDLR_Momentum":
            _, state = got[0]
            np.testing.assert_allclose(flat(state.point.own), G[f"{key}/lr_raw_after"], atol=1e-10)
        checked += 1
    assert checked


@pytest.mark.parametrize("every", [1, 10])
@pytest.mark.parametrize("lookback", [1, 2, 3, 5, 10])
def test_look_back(every, lookback):
    """Even look-backs of the original grow what diverges; ours stop that, and agree where nothing does."""
    G, rows = golden(), table("energy")
    tuner = method("Ours_LR_Momentum", every=every, lookback=lookback)
    for start in STARTS:
        key = f"lookback/T{every}_i{lookback}/{start}"
        params = network(G[f"{key}/weights_init"], G["lookback/layer_sizes"])
        got = run(at(tuner, G[f"{key}/raw_init"]), params, rows["train"], rows["valid"], 10 * every)
        if lookback % 2 == 0 and start == "hot":
            assert np.isfinite(flat(got[0][0])).all()
            assert got[1][1]["learning_rate"][-1] < 10 ** G[f"{key}/raw_init"][0]
        else:
            assert_run(got, key, every, 1e-10)


def test_a_range_of_the_learning_rate():
    G, rows = golden(), table("energy")
    key = "lookback/T10_i5_lr_clip_at_-1.375/mid"
    tuner = method("Ours_LR_Momentum", ranges=RANGES | {"learning_rate": (1e-10, 10**-1.375)})
    params = network(G[f"{key}/weights_init"], G["lookback/layer_sizes"])
    got = run(at(tuner, G[f"{key}/raw_init"]), params, rows["train"], rows["valid"], 100)
    assert_run(got, key, 10, 1e-10)


@pytest.mark.parametrize("name", ["cold_T10", "hot_T20", "mid_T10", "mid_T100"])
def test_hypergradients(name):
    """Of the first update: 1 to 10 terms, and exact through the last 1 to 10 steps."""
    G, rows = golden(), table("energy")
    key, every = f"hypergradient/{name}", int(name.rpartition("T")[2])
    params = network(G[f"{key}/weights_init"], G["hypergradient/layer_sizes"])

    def loss(params):
        return regression(params, rows["train"])

    context = {
        "value_fn": loss,
        "value_at": lambda params, step: loss(params),
        "valid_fn": lambda params: regression(params, rows["valid"]),
    }

    def first(tuner):
        tuner = at(tuner, G[f"{key}/raw_hyperparameters"])

        def body(carry, i):
            params, state, memory = carry
            grads = jax.grad(loss)(params)
            updates, inner = tuner.play(state.point, grads, state.base, params, context)
            moved = jax.tree.map(jnp.add, params, updates)
            step = Step(params, grads, state.base, moved, i, context)
            memory = tuner.remember(memory, step, state.point)
            h = jax.lax.cond(
                i == every - 1,
                lambda: tuner.hypergradient(state.point, step, memory).shared,
                lambda: jnp.zeros(3),
            )
            return (moved, state._replace(base=inner), memory), h

        state = tuner.init(params)
        return jax.jit(lambda: jax.lax.scan(body, (params, state, state.memory), jnp.arange(every))[1][-1])()

    for terms in (1, 5, 9):
        got = first(method("Ours_LR_Momentum", every=every, lookback=terms))
        np.testing.assert_allclose(got, G[f"{key}/approximate"][terms - 1], rtol=1e-9)
    names, settings = NAMES, {"ranges": RANGES}
    for window in (1, 2, 7, 10):
        got = first(
            Unrolled(
                optimizers.get("heavy_ball"), names, window=window, every=every, rescue=math.inf, **settings
            )
        )
        np.testing.assert_allclose(got, G[f"{key}/exact"][window - 1], rtol=1e-9)


def cross_entropy(params, rows):
    x, y = rows
    logits = outputs(params, x)
    return jnp.mean(jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, y[:, None], -1)[:, 0])


@functools.partial(eqx.filter_jit, compiler_options=QUICK)
def run_minibatches(optimizer, params, data, drawn, held):
    """As `run`, on stored minibatches."""

    def loss(params, rows):
        return cross_entropy(params, (data[0][rows], data[1][rows]))

    def body(carry, i):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params, drawn[i])
        updates, state = optimizer.update(
            grads,
            state,
            params,
            value=value,
            grad=grads,
            value_fn=lambda params: loss(params, drawn[i]),
            value_at=lambda params, step: loss(params, drawn[step]),
            valid_fn=lambda params: loss(params, held[i]),
            step=i,
        )
        return (jax.tree.map(jnp.add, params, updates), state), (value, optimizer.diagnostics(state))

    return jax.lax.scan(body, (params, optimizer.init(params)), jnp.arange(150))


@pytest.mark.parametrize(
    "name",
    ["Ours_LR_Momentum", "Ours_HDLR_Momentum", "DiffThroughOpt", "Ours_LR_Momentum_gradnorm_clip_0.25"],
)
def test_minibatches(name):
    """The tuning's training batch is its block's last, and a window plays its own batches again."""
    G = golden()
    x, y = jnp.asarray(G["minibatch/x"]), jnp.asarray(G["minibatch/y"], jnp.int32)
    clipped = name.endswith("0.25")
    tuner = method(name, base="clip_norm:heavy_ball" if clipped else "heavy_ball")
    for start in ("mid", "hot"):
        key = f"minibatch/{name}/{start}"
        optimizer = at(tuner, G[f"{key}/raw_init"], **({"max_norm": 0.25} if clipped else {}))
        indices = [jnp.asarray(G[f"{key}/{part}_index"], jnp.int32) for part in ("train", "valid")]
        params = network(G[f"{key}/weights_init"], G["minibatch/layer_sizes"])
        # The original adds 1e-6 to the norm that it divides by.
        got = run_minibatches(optimizer, params, (x, y), *indices)
        assert_run(got, key, 10, 1e-3 if clipped else 1e-10)
