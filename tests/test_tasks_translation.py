"""The made-up pair of languages, and the transformers that translate between them."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from outeropt import optimizers, tasks
from outeropt.errors import ConfigError
from outeropt.task import SPLITS
from outeropt.tasks.sequences import seq2seq
from outeropt.tasks.sequences.translation import BEGIN, CLASSES, END, GENDERS, PAD, language_pair
from task_fixtures import KEY, drawn


WORDS = (2, 4, 4, 12, 24, 12)
PAIR = language_pair(WORDS, 3, 256)


@functools.cache
def sentences(split="train", seed=0):
    """Source and target of 256 sentences."""
    batch = eqx.filter_jit(PAIR.batch)(split, jax.random.key(seed))
    return np.asarray(batch["source"]), np.asarray(batch["target"])


def classes():
    """Class of every source word, read off the counts."""
    return {
        word: name
        for name, start, count in zip(CLASSES, PAIR.starts, WORDS)
        for word in range(start, start + count)
    }


def translated(sentence):
    """The rules of the translation once more, word by word in plain Python."""
    kind, nouns = classes(), PAIR.starts[CLASSES.index("noun")]
    translation, gender, animate = (np.asarray(x) for x in (PAIR.translation, PAIR.gender, PAIR.animate))
    words, target = [int(word) for word in sentence], []
    while words[0] != END:
        if kind[words[0]] == "and":
            target.append(translation[words.pop(0)])
        phrases, verb, after = [], None, {}
        while words[0] != END and kind[words[0]] != "and":
            if kind[words[0]] == "verb":
                verb = words.pop(0)
            if kind.get(words[0]) == "preposition":
                after[len(phrases)] = words.pop(0)
            if kind.get(words[0]) == "article":
                article, adjective = words.pop(0), None
                if kind[words[0]] == "adjective":
                    adjective = words.pop(0)
                phrases.append((article, adjective, words.pop(0)))
        for i, (article, adjective, noun) in enumerate(phrases):
            of = gender[noun - nouns]
            if i in after:
                target.append(translation[after[i]])
            elif i and animate[noun - nouns]:
                target.append(3)
            target += [translation[article] + of, translation[noun]]
            target += [] if adjective is None else [translation[adjective] + of]
        target += [translation[verb], 4 + gender[phrases[0][2] - nouns]]
    return [*map(int, target), END]


def padded(words, length):
    return [*words, *[PAD] * (length - len(words))]


def test_sentences_are_translated_by_the_rules():
    sources, targets = sentences()
    assert sources.shape == (256, 36) and targets.shape == (256, 42)
    for source, target in zip(sources, targets):
        assert list(target) == padded(translated(source), 42)
    lengths = (sources != PAD).sum(axis=1)
    assert lengths.min() >= 4 and lengths.max() > 20 and len(set(lengths)) > 10


def test_everything_that_must_be_learned_occurs():
    source, target = sentences()
    assert set(range(3, PAIR.source_vocabulary)) <= set(source.ravel())
    assert source.max() < PAIR.source_vocabulary and target.max() < PAIR.target_vocabulary
    assert PAIR.target_vocabulary == 3 + 1 + GENDERS + 2 + 3 * 4 + 4 + 3 * 12 + 24 + 12
    assert set(range(3, 7)) <= set(target.ravel()), "the marker and three endings"
    assert BEGIN not in source and BEGIN not in target
    for rows in (source, target):
        ends = (rows == END).argmax(axis=1)
        assert ((rows == END).sum(axis=1) == 1).all()
        assert all((row[end + 1 :] == PAD).all() and (row[:end] > 2).all() for row, end in zip(rows, ends))


def test_counterparts_are_one_to_one_within_their_class():
    forms = {name: GENDERS if name in ("article", "adjective") else 1 for name in CLASSES}
    used = [
        int(PAIR.translation[word]) + form for word, name in classes().items() for form in range(forms[name])
    ]
    assert sorted(used) == list(range(4 + GENDERS, PAIR.target_vocabulary))


def test_same_key_same_sentences():
    def equal(one, other):
        return all(map(np.array_equal, one, other))

    again = eqx.filter_jit(PAIR.batch)("train", KEY)
    assert equal(sentences(), (again["source"], again["target"]))
    assert not equal(sentences(), sentences(seed=1))
    assert not any(equal(sentences(), sentences(split)) for split in SPLITS[1:])


def small(dropout=0.0):
    return seq2seq.Seq2SeqTransformer("small", language_pair(WORDS, 1, 3), 2, 8, 2, 12, dropout)


def test_no_word_is_predicted_from_later_ones_and_padding_is_not_seen():
    task = small()
    params, batch = drawn(task), task.batch("train", KEY)
    source, target = batch["source"], batch["target"]
    row = int(jnp.argmin(jnp.sum(source != PAD, axis=1)))
    assert source[row, -1] == PAD
    logits = eqx.filter_jit(task.logits)

    base = logits(params, source, target, None)
    later = logits(params, source, target.at[:, 3].set((target[:, 3] + 1) % 50), None)
    np.testing.assert_allclose(base[:, :4], later[:, :4], rtol=1e-5, atol=1e-5)
    assert np.abs(np.asarray(base[:, 4:] - later[:, 4:])).max() > 1e-3

    other = logits(params, source.at[row, 0].set(source[row, 0] + 1), target, None)
    assert np.abs(np.asarray(base[row] - other[row]))[0].max() > 1e-4, "the first word reads the source"
    moved = {**params, "source_embedding": params["source_embedding"].at[PAD].add(100.0)}
    np.testing.assert_allclose(base, logits(moved, source, target, None), rtol=1e-4, atol=1e-4)


def test_padding_does_not_count():
    task = small()
    target = task.batch("train", KEY)["target"]
    scores = 20.0 * jax.nn.one_hot(target, task.data.target_vocabulary)
    perfect, metrics = seq2seq.translation_loss(scores, target)
    assert perfect < 1e-3 and metrics["accuracy"] == 1 and metrics["exact"] == 1
    noise = jnp.where((target == PAD)[..., None], -scores, scores)
    assert seq2seq.translation_loss(noise, target)[0] == pytest.approx(float(perfect))
    wrong = noise.at[0, 0].set(-noise[0, 0])
    words = int((target != PAD).sum())
    _, metrics = seq2seq.translation_loss(wrong, target)
    assert metrics["accuracy"] == pytest.approx(1 - 1 / words) and metrics["exact"] == pytest.approx(2 / 3)


def test_dropout_acts_in_training_only():
    task, plain = small(0.5), small()
    params, batch = drawn(task), task.batch("train", KEY)

    @jax.jit
    def run(one, two):
        losses = [task.loss(params, None, batch, key)[0] for key in (one, two, None)]
        return *losses, plain.loss(params, None, batch, one)[0]

    one, two, none, without = map(float, run(*jax.random.split(KEY)))
    assert one != two and none == pytest.approx(without)
    with pytest.raises(ConfigError, match="3 heads do not divide"):
        seq2seq.Seq2SeqTransformer("x", task.data, 1, 8, 3, 12)


def test_the_large_one_has_the_original_size():
    params, _ = eqx.filter_eval_shape(tasks.get("Translation_Transformer_6L512").init, KEY)
    shapes = {name: leaf.shape for name, leaf in params.items()}
    assert shapes["encoder_qkv"] == (6, 512, 3 * 512) and shapes["decoder_up"] == (6, 512, 2048)
    assert shapes["decoder_told"] == (6, 512, 2 * 512) and shapes["head"][0] == 512
    blocks = sum(leaf.size for name, leaf in params.items() if "coder_" in name)
    assert blocks == 6 * (4 * 512**2 + 2 * 512 * 2048 + 4 * 512 + 8 * 512**2 + 2 * 512 * 2048 + 6 * 512)


def test_the_tiny_one_learns_to_translate():
    """Chance is 1 / 90 of the words and none of the sentences."""
    task, adam = tasks.get("Translation_Transformer_1L64"), optimizers.get("adam", learning_rate=3e-3)

    @eqx.filter_jit
    def run(task, adam):
        def step(carry, key):
            params, state = carry
            loss, grads = jax.value_and_grad(lambda p: task.loss(p, None, task.batch("train", key), None)[0])(
                params
            )
            updates, state = adam.update(grads, state, params)
            return (jax.tree.map(jnp.add, params, updates), state), loss

        params = task.init(KEY)[0]
        (params, _), losses = jax.lax.scan(step, (params, adam.init(params)), jax.random.split(KEY, 120))
        return losses, task.loss(params, None, task.batch("test", KEY), None)

    losses, (test_loss, (_, metrics)) = run(task, adam)
    assert losses[0] > 4 and test_loss < 1
    assert metrics["accuracy"] > 0.8 and metrics["exact"] > 0.1
