"""Tasks evaluated on whole splits: every row once, no randomness, training as it was."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from image_fixtures import small_data
from outeropt import optimizers, tasks
from outeropt.errors import ConfigError
from outeropt.tasks.images.conv import ConvNet
from outeropt.tasks.wrappers import whole_splits
from outeropt.tasks.wrappers.private import PrivateGradient
from outeropt.training import train


KEY = jax.random.key(0)


def mean_of_all(task, params, state, split):
    """The loss over the rows that fill batches, by one call."""
    data = task.data
    rows = data.splits[split]
    count = len(rows["label"]) // data.batch_size * data.batch_size
    return task.loss(params, state, {name: leaf[:count] for name, leaf in rows.items()}, None)


def test_an_evaluation_is_of_all_rows():
    inner = tasks.get("ImageMLP_Digits_Relu32")
    task = whole_splits.WholeSplits(inner)
    tasks.check(task)
    params, state = inner.init(KEY)
    for split in ("valid", "test"):
        batch = task.batch(split, KEY)
        assert eqx.tree_equal(batch, task.batch(split, jax.random.key(1)))
        value, (_, metrics) = eqx.filter_jit(task.loss)(params, state, batch, None)
        expected, (_, theirs) = eqx.filter_jit(mean_of_all)(inner, params, state, split)
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        np.testing.assert_allclose(metrics["accuracy"], theirs["accuracy"], rtol=1e-5)
    train_batch = task.batch("train", KEY)
    assert eqx.tree_equal(train_batch, inner.batch("train", KEY))
    assert task.loss(params, state, train_batch, KEY)[0] == inner.loss(params, state, train_batch, KEY)[0]


def test_training_is_as_it_was():
    inner = tasks.get("ImageMLP_Digits_Relu32")
    sgd = optimizers.get("sgd", learning_rate=0.1)
    runs = [
        train(task, sgd, steps=6, key=KEY, eval_every=3, eval_batches=1, last_eval_batches=1)
        for task in (inner, tasks.get("ImageMLP_Digits_Relu32_WholeSplits"))
    ]
    np.testing.assert_array_equal(*(run.curves["inner/loss"] for run in runs))
    assert eqx.tree_equal(runs[0].state.params, runs[1].state.params)
    expected = mean_of_all(inner, runs[0].state.params, None, "test")[0]
    np.testing.assert_allclose(runs[1].curves["test/loss"][-1], expected, rtol=1e-5)


def test_running_statistics_and_private_gradients():
    net = ConvNet("mine", small_data(batch_size=3), (4,), norm="batch_norm")
    task = whole_splits.WholeSplits(net)
    tasks.check(task)
    params, state = net.init(KEY)
    value, (after, _) = task.loss(params, state, task.batch("test", KEY), None)
    np.testing.assert_allclose(value, mean_of_all(net, params, state, "test")[0], rtol=1e-5)
    assert eqx.tree_equal(after, state)
    private = PrivateGradient(ConvNet("mine", small_data(batch_size=3), (4,)))
    assert whole_splits.WholeSplits(private).name == "mine_dp_WholeSplits"
    assert whole_splits.steps_per_epoch(private) == 2


def test_names(tmp_path):
    assert tasks.family("conv_train_WholeSplits") == "whole_splits"
    assert tasks.dataset("conv_train_dp_WholeSplits") == "mnist"
    (tmp_path / "mine.py").write_text(
        "from outeropt import tasks\nmine = tasks.get('ImageMLP_Digits_Relu32')\n"
    )
    task = tasks.get(f"{tmp_path}/mine.py:mine_WholeSplits")
    assert isinstance(task, whole_splits.WholeSplits) and task.name == "ImageMLP_Digits_Relu32_WholeSplits"


def test_a_task_without_enough_rows_is_refused():
    with pytest.raises(ConfigError, match="Task 'Quadratic_10' has no rows to go through"):
        tasks.get("Quadratic_10_WholeSplits")
    few = small_data(rows=3, batch_size=4)
    with pytest.raises(ConfigError, match="Task 'mine': 3 valid rows fill no batch of 4"):
        whole_splits.WholeSplits(ConvNet("mine", few, (2,)))
    with pytest.raises(ConfigError, match="fewer training rows than a batch"):
        whole_splits.steps_per_epoch(ConvNet("mine", few, (2,)))


def test_memory_is_that_of_a_batch():
    task = tasks.get("ImageMLP_Digits_Relu32")
    whole = whole_splits.WholeSplits(task)
    params, _ = task.init(KEY)
    jaxpr = jax.make_jaxpr(lambda p, b: whole.loss(p, None, b, None)[0])(params, whole.batch("test", KEY))
    hidden = [v.aval.shape for e in jaxpr.eqns if e.primitive.name == "dot_general" for v in e.outvars]
    assert not hidden and "scan" in str(jaxpr) and jnp.size(params["w0"]) == 64 * 32
