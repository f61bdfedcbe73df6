"""Every task, by name, against the contract."""

import json
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import task_fixtures
from outeropt import tasks
from outeropt.data.registry import DATASETS
from outeropt.errors import MissingData, UnknownName
from outeropt.task import SPLITS
from outeropt.tasks.published import META_TRAINING, MISSING_DATA
from task_fixtures import KEY, started


blank = task_fixtures.blank


PUBLISHED = json.loads((Path(__file__).parent / "golden/tasks/published_names.json").read_text())

# One task of every kind of loss that needs no data but what is bundled, with a step size for plain descent.
REPRESENTATIVES = {
    "Function_Rosenbrock": 1e-5,
    "Function_McCormick": 1e-3,
    "Quadratic_100_cond100_rotated": 1e-2,
    "BatchQuadratic_10": 1e-2,
    "Saddle_10": 1e-1,
    "Linear_20_cond100": 1e-2,
    "Logistic_20_noisy": 1e-2,
    "Logistic_Digits": 1e-2,
    "ImageMLP_Digits_Relu32": 1e-2,
    "RNNLM_Markov16_LSTM64_seq32": 1e-2,
    "StreamLM_Markov16_LSTM32_seq16": 1e-1,
    "TransformerLM_Markov16_1layer_32width": 1e-2,
}


def total(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", tasks.names())
def test_contract(blank, name):
    task, again = blank(name), blank(name)
    assert task.name == name
    tasks.check(task)
    structure = jax.tree.structure(task)
    assert structure == jax.tree.structure(again) and hash(structure) == hash(jax.tree.structure(again))
    assert all(eqx.is_array(leaf) for leaf in jax.tree.leaves(task))
    assert task.minimum is None or isinstance(task.minimum, float)
    assert tasks.dataset(name) is None or tasks.dataset(name) in DATASETS


def test_a_task_needs_the_dataset_its_name_says(monkeypatch):
    def refuse(name, **options):
        raise MissingData(name)

    for loader in ("images", "table", "tokens"):
        monkeypatch.setattr(f"outeropt.data.{loader}", refuse)
    for name in tasks.names():
        if tasks.dataset(name) is None:
            tasks.get(name)
        else:
            with pytest.raises(MissingData) as error:
                tasks.get(name)
            assert str(error.value) == tasks.dataset(name)


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_batches_follow_the_key(name):
    task = tasks.get(name)
    for split in SPLITS:
        one, same, other = (task.batch(split, jax.random.key(seed)) for seed in (1, 1, 2))
        leaves = list(zip(*map(jax.tree.leaves, (one, same, other))))
        assert all(np.array_equal(a, b) for a, b, _ in leaves)
        assert not leaves or any(not np.array_equal(a, c) for a, _, c in leaves)


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_descent_reduces_the_loss(name):
    task = tasks.get(name)

    @eqx.filter_jit
    def run(task, rate):
        params, state, batch = started(task)
        value_and_grad = jax.value_and_grad(task.loss, has_aux=True)

        def step(params, _):
            (loss, (_, metrics)), grads = value_and_grad(params, state, batch, KEY)
            return jax.tree.map(lambda p, g: p - rate * g, params, grads), (loss, metrics)

        return jax.lax.scan(step, params, length=10)

    params, (losses, metrics) = run(task, jnp.float32(REPRESENTATIVES[name]))
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    assert all(np.isfinite(metric).all() for metric in metrics.values())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


@pytest.mark.slow
@pytest.mark.parametrize("name", tasks.names())
def test_loss_and_gradient_are_finite_at_the_start(name):
    try:
        task = tasks.get(name)
    except MissingData as error:
        pytest.skip(str(error))
    if total(eqx.filter_eval_shape(task.init, KEY)[0]) > 2_000_000:
        pytest.skip("over two million parameters")

    @eqx.filter_jit
    def run(task):
        params, state, batch = started(task)
        loss, grads = jax.value_and_grad(task.loss, has_aux=True)(params, state, batch, KEY)
        evaluations = [task.loss(params, state, task.batch(split, KEY), None)[0] for split in SPLITS]
        return loss, grads, evaluations

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run(task)))


def test_there_are_many_names_and_all_differ():
    names = tasks.names()
    assert len(names) >= 120 and len(set(names)) == len(names)
    assert set(tasks.names("RNNLM_Markov16_*")) == {
        name for name in names if name.startswith("RNNLM_Markov16_")
    }
    assert tasks.names("no such task") == []


def test_every_published_name_is_here_or_explained():
    here = set(tasks.names())
    absent = {name for name in PUBLISHED if name not in here}
    assert absent == MISSING_DATA.keys() | META_TRAINING
    assert not here & (MISSING_DATA.keys() | META_TRAINING)
    for name in absent:
        needed = PUBLISHED[name]
        with pytest.raises(UnknownName) as error:
            tasks.get(name)
        assert (MISSING_DATA[name] if needed else "meta-training") in str(error.value)
        assert needed is None or needed.startswith(MISSING_DATA[name])
    for name in here & PUBLISHED.keys():
        assert tasks.dataset(name) == PUBLISHED[name]


def test_layers_of_one_width_may_be_counted():
    assert tasks.get("ImageMLP_Digits_Tanh32x4").name == "ImageMLP_Digits_Tanh32x32x32x32"
    assert tasks.get("ImageMLP_Digits_Relu128x2").name == "ImageMLP_Digits_Relu128x128"
    with pytest.raises(UnknownName):
        tasks.get("ImageMLP_Digits_Relu128x3")


def test_an_unknown_name_gets_near_misses():
    with pytest.raises(UnknownName, match="Did you mean Function_Rosenbrock"):
        tasks.get("function_rosenbrok")
    with pytest.raises(UnknownName, match="outeropt list tasks"):
        tasks.family("nothing like it")


def test_describe(blank, monkeypatch):
    facts = tasks.describe("RNNLM_Markov16_LSTM64_seq32")
    embedding, core, readout = 16 * 32, (32 + 64 + 1) * 256 + 2 * 64, (64 + 1) * 16
    assert facts["parameters"] == embedding + core + readout and facts["tensors"] == 7
    assert facts["batch"] == {"obs": "int32[64, 32]", "target": "int32[64, 32]"}
    assert (facts["family"], facts["dataset"], facts["metrics"]) == ("rnn", None, ["accuracy"])
    assert json.dumps(facts)
    assert tasks.describe("Function_Beale")["batch"] == {}

    monkeypatch.delenv("OUTEROPT_DATA_DIR", raising=False)
    facts = tasks.describe("Logistic_Mnist")
    assert facts["dataset"] == "mnist" and facts["parameters"] is None
    assert facts["notes"] == "its data are not here: outeropt data get mnist"
