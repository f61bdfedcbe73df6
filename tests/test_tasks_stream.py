"""Language models that read a text in order: where they are, what they carry on, and what lanes share."""

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

from outeropt import optimizers, tasks, training
from outeropt.errors import ConfigError, OuteroptError
from outeropt.optimizer import Optimizer
from outeropt.selftuning import OnePass, Unrolled
from outeropt.tasks.sequences.stream import NO_TOKEN, StreamLM, Streams, cut
from outeropt.tasks.wrappers import train_valid
from outeropt.tasks.wrappers.gradients import DelayedGradient
from task_fixtures import KEY, drawn


STREAMS, LENGTH, VOCABULARY = 3, 5, 11


def text(train=50, valid=22, test=31):
    random = np.random.default_rng(0)
    sizes = {"train": train, "valid": valid, "test": test}
    return {split: jnp.asarray(random.integers(VOCABULARY, size=n), jnp.int32) for split, n in sizes.items()}


def small(**sizes):
    return StreamLM("small", Streams(cut(text(**sizes), STREAMS), LENGTH), VOCABULARY, hidden=4, layers=2)


@pytest.fixture(scope="module")
def task():
    return small()


@pytest.fixture(scope="module")
def params(task):
    return drawn(task)


@pytest.fixture(scope="module")
def steps(task, params):
    """Model states before and losses of ten training steps at the same parameters: two epochs and more."""

    def step(state, _):
        loss, (after, _) = task.loss(params, state, {}, KEY)
        return after, (state, loss)

    states, losses = jax.jit(lambda: jax.lax.scan(step, task.init(KEY)[1], length=10)[1])()
    return [jax.tree.map(lambda leaf, i=i: leaf[i], states) for i in range(10)], losses


def test_streams_are_pieces_of_the_text_and_validation_is_their_tail():
    # 60 of 73 tokens are training: of 23 rows that predict another, 18.9.
    whole = {"train": jnp.arange(60), "valid": jnp.arange(60, 73), "test": jnp.arange(100, 110)}
    rows = cut(whole, 3)
    np.testing.assert_array_equal(np.concatenate([rows["train"], rows["valid"][1:]]).T.ravel(), np.arange(72))
    assert rows["train"].shape == (20, 3) and rows["valid"].shape == (5, 3)
    np.testing.assert_array_equal(rows["train"][-1], rows["valid"][0])
    np.testing.assert_array_equal(rows["test"].T, np.arange(100, 109).reshape(3, 3))
    with pytest.raises(ConfigError, match="streams = 0"):
        cut(whole, 0)
    with pytest.raises(OuteroptError, match="'test' has 1 rows of 9 streams, too few"):
        Streams(cut(whole, 9), 2)


def test_an_epoch_reads_every_row_in_order_and_begins_anew(task, steps):
    windows = task.data.windows("train")
    assert windows == 4 and task.data.splits["train"].shape == (17, 3), "16 rows in windows of 5"
    places = [int(state["window"]) for state in steps[0]]
    assert places == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    read = [task.data.window("train", jnp.int32(i)) for i in range(windows)]
    rows = np.asarray(task.data.splits["train"])
    for name, wanted in (("obs", rows[:-1]), ("target", rows[1:])):
        got = np.concatenate([window[name] for window in read], axis=1).T
        np.testing.assert_array_equal(got[:16], wanted)
    # The last window has one row, and what is behind it does not count.
    assert (np.asarray(read[-1]["target"])[:, 1:] == NO_TOKEN).all()
    for i in (0, 4, 8):
        assert (np.asarray(steps[0][i]["carries"][0]) == 0).all()
        np.testing.assert_array_equal(steps[1][i], steps[1][0])


def test_the_carried_state_is_that_of_one_long_pass(task, params, steps):
    rows = task.data.splits["train"]
    cleared = jnp.zeros((2, 2, STREAMS, 4))
    read = jax.jit(lambda *given: task.read(*given))
    x, end = read(params, cleared, rows[:15].T)
    for i in (1, 2, 3):
        _, carry = read(params, cleared, rows[: LENGTH * i].T)
        np.testing.assert_allclose(steps[0][i]["carries"][0], carry, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(steps[0][3]["carries"][0], end, rtol=1e-5, atol=1e-6)
    logits = x @ params["head"] + params["head_bias"][None, None]
    costs = -jnp.take_along_axis(jax.nn.log_softmax(logits), rows[1:16][..., None], -1)[..., 0]
    np.testing.assert_allclose(steps[1][:3], costs.reshape(3, -1).mean(1), rtol=1e-5)


def test_two_batches_are_pytorch_s(task, params):
    torch = pytest.importorskip("torch")
    nn = torch.nn
    lstm, head = nn.LSTM(4, 4, num_layers=2), nn.Linear(4, VOCABULARY)
    embedding = nn.Embedding(VOCABULARY, 4)
    pairs = {"w_in": "weight_ih", "w_recurrent": "weight_hh", "b_in": "bias_ih", "b_recurrent": "bias_hh"}
    theirs = {
        (name, layer): getattr(lstm, f"{their}_l{layer}") for name, their in pairs.items() for layer in (0, 1)
    }
    alone = {"embedding": embedding.weight, "head": head.weight, "head_bias": head.bias}
    with torch.no_grad():
        for (name, layer), tensor in theirs.items():
            tensor.copy_(torch.tensor(np.asarray(params[name][layer]).T))
        for name, tensor in alone.items():
            leaf = np.asarray(params[name])
            tensor.copy_(torch.tensor(leaf.T if name == "head" else leaf))
    assert sum(p.numel() for m in (lstm, head, embedding) for p in m.parameters()) == sum(
        leaf.size for leaf in params.values()
    )
    step = jax.jit(jax.value_and_grad(lambda p, state: task.loss(p, state, {}, KEY), has_aux=True))
    state, hidden = task.init(KEY)[1], None
    for i in range(2):
        rows = {
            name: torch.tensor(leaf.T).long()
            for name, leaf in task.data.window("train", jnp.int32(i)).items()
        }
        for module in (lstm, head, embedding):
            module.zero_grad()
        out, hidden = lstm(embedding(rows["obs"]), hidden)
        hidden = [part.detach() for part in hidden]
        loss = nn.functional.cross_entropy(head(out).permute(0, 2, 1), rows["target"])
        loss.backward()
        (value, (state, _)), grads = step(params, state)
        np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
        for (name, layer), tensor in theirs.items():
            np.testing.assert_allclose(grads[name][layer].T, tensor.grad, rtol=1e-4, atol=1e-6)
        for name, tensor in alone.items():
            wanted = tensor.grad.T if name == "head" else tensor.grad
            np.testing.assert_allclose(grads[name], wanted, rtol=1e-4, atol=1e-6)
        carry = np.stack([part.numpy() for part in hidden], axis=1)
        np.testing.assert_allclose(state["carries"][0], carry, rtol=1e-5, atol=1e-6)


def test_evaluation_reads_the_window_before_and_leaves_training_where_it_is(task, params, steps):
    batches = [task.batch("train", jax.random.key(seed)) for seed in range(20)]
    loss = jax.jit(lambda batch, state: task.loss(params, state, batch, None))
    found = {}
    for batch in batches:
        value, (after, _) = loss(batch, steps[0][2])
        assert jax.tree.all(jax.tree.map(np.array_equal, after, steps[0][2]))
        places = [
            i
            for i in range(4)
            if np.array_equal(task.data.window("train", jnp.int32(i))["obs"], batch["obs"])
        ]
        assert len(places) == 1
        found[places[0]] = value
        known = np.asarray(batch["before"]) >= 0
        assert known.all() if places[0] else not known.any()
    assert sorted(found) == [0, 1, 2, 3]
    # The second window's hidden state is that of the first, which begins cleared: so does training.
    np.testing.assert_allclose([found[0], found[1]], steps[1][:2], rtol=1e-5)
    slope = jax.grad(lambda p: task.loss(p, steps[0][0], batches[0], None)[0])(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))


class Probe(Optimizer):
    """Stays where it is, and remembers the losses of the last three steps by the loop's own functions."""

    def init(self, params, *, num_steps=None, key=None):
        return jnp.zeros(3), jnp.zeros(3)

    def update(self, grads, state, params, *, value, value_at, step, **context):
        past = jnp.stack([value, *state[0][:2]])
        again = jnp.stack([value_at(params, step - ago) for ago in range(3)])
        return jax.tree.map(jnp.zeros_like, params), (past, again)


def test_earlier_losses_are_of_earlier_rows_and_hidden_states(task, steps):
    # Into the second epoch.
    run = jax.jit(
        lambda: training.unroll(task, Probe(), training.start(task, Probe(), KEY), KEY, length=6)[0]
    )
    past, again = run().opt
    np.testing.assert_allclose(again, past, rtol=1e-6)
    assert len(set(np.round(np.asarray(past), 4).tolist())) == 3
    delayed = DelayedGradient(task, 1)
    wrapped = delayed.rewound({"model": steps[0][5], "past": 0}, jnp.int32(2))
    assert wrapped["model"]["window"] == 3 and wrapped["past"] == 0
    np.testing.assert_array_equal(wrapped["model"]["carries"][0], steps[0][3]["carries"][0])


def test_lanes_share_one_text(task):
    """Nothing in the program of several lanes has a copy of the text for each."""
    task, lanes = small(train=4000, valid=600, test=600), 7
    text_size = min(rows.size for rows in task.data.splits.values())
    names = ("learning_rate", "momentum")
    base = optimizers.get("clip_norm:heavy_ball", max_norm=0.25)
    keys = jax.random.split(KEY, lanes)
    for optimizer in (OnePass(base, names, every=2), Unrolled(base, names, window=2, every=2)):

        def start(key, optimizer=optimizer):
            return training.start(task, optimizer, key)

        def lane(state, key, optimizer=optimizer):
            state, loss = training.window(task, optimizer, state, 0, 2, key)
            return state, loss, training.evaluate(task, optimizer, state, 2, key, 1)

        # As in a sweep, states come in with an axis of lanes, and whatever they hold has one.
        states = jax.eval_shape(jax.vmap(start), keys)
        program = jax.make_jaxpr(jax.vmap(lane))(states, keys)
        sizes = [
            aval.size
            for aval in (*program.in_avals, *avals(program.jaxpr))
            if jnp.issubdtype(aval.dtype, jnp.integer) and aval.ndim > 1
        ]
        assert lanes * STREAMS * (LENGTH + 1) in sizes, "the tokens of a window, for each lane"
        assert max(sizes) < text_size * lanes


def avals(jaxpr):
    """What every variable of a program and of the programs inside it holds."""
    for equation in jaxpr.eqns:
        yield from (out.aval for out in equation.outvars if hasattr(out.aval, "dtype"))
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from avals(inner)


def test_training_on_validation_rows_reads_on_to_the_end(task):
    both = train_valid.train_valid(task)
    whole = cut(text(), STREAMS)
    rows = np.concatenate([whole["train"], whole["valid"][1:]])
    np.testing.assert_array_equal(both.data.splits["train"], rows)
    np.testing.assert_array_equal(both.data.splits["valid"], whole["valid"])
    assert rows.shape == (24, 3) and both.data.windows("train") == 5
    for name in (
        "StreamLM_Markov16_LSTM32_seq16_FixedBatch",
        "StreamLM_Markov16_LSTM32_seq16_TrainValid_FixedBatch",
    ):
        with pytest.raises(ConfigError, match="reads its text in order"):
            tasks.get(name)
    with pytest.raises(ConfigError, match="kept = 0"):
        StreamLM("x", task.data, VOCABULARY, 4, 2, kept=0)


def test_it_learns():
    task = tasks.get("StreamLM_Markov16_LSTM32_seq16")
    run = training.train(task, optimizers.get("adam", learning_rate=0.01), steps=200, eval_every=200, key=KEY)
    assert run.curves["test/loss"][-1] < 0.85 * run.curves["test/loss"][0]
    assert run.state.model["window"] == 200
