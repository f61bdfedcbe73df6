"""Language models and what they read."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from outeropt import tasks
from outeropt.errors import OuteroptError
from outeropt.tasks.sequences import language, rnn, transformer
from task_fixtures import KEY, drawn, on_all_splits


def test_markov_source_has_the_entropy_it_claims():
    batch_size, length = 4096, 6
    data, minimum = language.markov(4, 2, batch_size, length)
    table, _ = language.markov_chain(4, 2)
    batch = jax.tree.map(np.asarray, data.batch("train", KEY))
    assert np.array_equal(batch["obs"][:, 1:], batch["target"][:, :-1])
    stream = np.concatenate([batch["obs"], batch["target"][:, -1:]], axis=1)
    assert stream.min() >= 0 and stream.max() <= 3
    context = 4 * stream[:, :-2] + stream[:, 1:-1]
    counts = np.zeros((16, 4))
    np.add.at(counts, (context.ravel(), stream[:, 2:].ravel()), 1)
    rows = counts.sum(axis=1) > 500
    frequencies = counts[rows] / counts[rows].sum(axis=1, keepdims=True)
    np.testing.assert_allclose(frequencies, table[rows], atol=0.05)
    # What the best model pays: the first target after one token, all others after two.
    pairs = np.zeros((4, 4))
    np.add.at(pairs, (stream[:, :-1].ravel(), stream[:, 1:].ravel()), 1)
    first = -np.log((pairs / pairs.sum(axis=1, keepdims=True))[stream[:, 0], stream[:, 1]])
    rest = -np.log(table[context, stream[:, 2:]])
    assert np.mean(np.concatenate([first[:, None], rest], axis=1)) == pytest.approx(minimum, rel=0.02)


def test_crops_are_consecutive_tokens():
    data = tasks.TokenData(on_all_splits(jnp.arange(20)), batch_size=64, length=5)
    batch = jax.tree.map(np.asarray, data.batch("valid", KEY))
    assert batch["obs"].shape == (64, 5)
    np.testing.assert_array_equal(batch["target"], batch["obs"] + 1)
    assert batch["obs"].min() == 0 and batch["target"].max() == 19
    with pytest.raises(OuteroptError, match="at least 21"):
        tasks.TokenData(on_all_splits(jnp.arange(20)), batch_size=1, length=20)


def test_embedding_by_product_and_by_gather_agree():
    table = jax.random.normal(KEY, (300, 5))
    ids = jnp.asarray([[0, 255, 3], [7, 9, 1]])
    np.testing.assert_array_equal(language.embed(table, ids), table[ids])
    np.testing.assert_allclose(language.embed(table[:256], ids), table[ids], rtol=1e-6)


def small_language_models():
    data, _ = language.markov(4, 2, 3, 6)
    cores = [rnn.RNNLM(core, data, 4, core, 5, 5) for core in rnn.CORES]
    deep = rnn.RNNLM("deep", data, 4, "GRU", 5, 5, layers=2)
    return [*cores, deep, transformer.TransformerLM("transformer", data, 4, 8, 2, 2)]


def test_language_models_never_look_ahead():
    obs = jnp.asarray(np.random.default_rng(0).integers(4, size=(3, 6)), jnp.int32)
    changed = obs.at[:, 4].set((obs[:, 4] + 1) % 4)
    models = small_language_models()

    @jax.jit
    def scores(parameters):
        results = []
        for model, params in zip(models, parameters):
            extra = () if isinstance(model, rnn.RNNLM) else (None,)
            results.append([model.logits(params, tokens, *extra) for tokens in (obs, changed)])
        return results

    for before, after in scores([drawn(model) for model in models]):
        assert before.shape == (3, 6, 4)
        np.testing.assert_allclose(before[:, :4], after[:, :4], rtol=1e-5, atol=1e-6)
        assert np.abs(np.asarray(before[:, 4:] - after[:, 4:])).max() > 1e-4


def test_lstm_equals_plain_numpy():
    model = small_language_models()[0]
    params, batch = drawn(model), model.batch("train", KEY)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    hidden, cell = (np.broadcast_to(row, (3, 5)) for row in p["initial"][0])
    expected = []
    for t in range(6):
        pre = p["embedding"][batch["obs"][:, t]] @ p["w_in"][0] + p["bias"][0] + hidden @ p["w_recurrent"][0]
        i, f, o, g = np.split(pre, 4, axis=1)
        cell = sigmoid(f + 1) * cell + sigmoid(i) * np.tanh(g)
        hidden = sigmoid(o) * np.tanh(cell)
        expected.append(hidden @ p["head"] + p["head_bias"])
    got = eqx.filter_jit(model.logits)(params, batch["obs"])
    np.testing.assert_allclose(got, np.stack(expected, axis=1), rtol=1e-4, atol=1e-5)


def test_language_models_check_their_shapes():
    data, _ = language.markov(4, 2, 3, 6)
    with pytest.raises(OuteroptError, match="as wide as"):
        rnn.RNNLM("x", data, 4, "GRU", 5, 4, 2)
    with pytest.raises(OuteroptError, match="LSTM"):
        rnn.RNNLM("x", data, 4, "LSMT", 5, 4)
    with pytest.raises(OuteroptError, match="heads"):
        transformer.TransformerLM("x", data, 4, 8, 3, 1)


def test_dropout_acts_in_training_only():
    data, _ = language.markov(4, 2, 3, 6)
    model = transformer.TransformerLM("x", data, 4, 8, 2, 1, dropout=0.5)

    tokens = jnp.zeros((3, 6), jnp.int32)

    params, batch = drawn(model), {"obs": tokens, "target": tokens}

    def loss(key):
        return model.loss(params, None, batch, key)[0]

    one, two = jax.jit(jax.vmap(loss))(jax.random.split(KEY, 2))
    assert one != two and "random" in str(jax.make_jaxpr(loss)(KEY))
    assert "random" not in str(jax.make_jaxpr(lambda: loss(None))())
