"""Tasks on one fixed batch, and the workloads of Meta-Optimization that are used so."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from outeropt import optimizers, tasks, train
from outeropt.errors import ConfigError
from outeropt.tasks.wrappers import fixed_batch
from task_fixtures import KEY, small_task, started


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other)))


def test_the_training_batch_is_the_same_at_every_step_and_no_other_is():
    task = tasks.get("Digits_MLP_FixedBatch")
    assert (task.name, tasks.family(task.name)) == ("Digits_MLP_FixedBatch", "fixed_batch")
    tasks.check(task)
    one, two = (task.batch("train", jax.random.key(i)) for i in (1, 2))
    assert same(one, two) and same(one, task.rows)
    for split in ("valid", "test"):
        assert not same(task.batch(split, jax.random.key(1)), task.batch(split, jax.random.key(2)))
        assert same(task.batch(split, KEY), task.task.batch(split, KEY))


def test_rows_of_a_dataset_are_its_first_ones():
    task = tasks.get("Digits_MLP_FixedBatch")
    train_rows = task.task.data.splits["train"]
    assert same(task.rows, jax.tree.map(lambda leaf: leaf[:512], train_rows))
    assert task.rows["image"].shape == (512, 8, 8, 1) and float(task.rows["image"].max()) == 1.0
    assert len({row.tobytes() for row in np.asarray(task.rows["image"])}) == 512


def test_too_few_rows_start_again_and_streams_are_drawn_by_the_seed():
    small = small_task()
    assert small.data.batch_size == 8
    assert fixed_batch.fixed(small).rows["x"].shape == (8, 3)
    short = eqx.tree_at(
        lambda task: task.data.splits["train"],
        small,
        jax.tree.map(lambda leaf: leaf[:3], small.data.splits["train"]),
    )
    rows = fixed_batch.fixed(short).rows["x"]
    np.testing.assert_array_equal(rows, small.data.splits["train"]["x"][jnp.asarray([0, 1, 2] * 2 + [0, 1])])

    stream = tasks.get("Linear_20_cond100")
    assert same(fixed_batch.fixed(stream, 3).rows, stream.batch("train", jax.random.key(3)))
    assert not same(fixed_batch.fixed(stream, 3).rows, fixed_batch.fixed(stream, 4).rows)
    with pytest.raises(ConfigError, match="has no batches"):
        tasks.get("Function_Ackley_FixedBatch")


def test_any_task_has_a_fixed_form_by_name():
    task = tasks.get("ImageMLP_Digits_Relu32_FixedBatch")
    assert task.name == "ImageMLP_Digits_Relu32_FixedBatch" and tasks.known(task.name)
    facts = tasks.describe(task.name)
    assert (facts["family"], facts["dataset"], facts["parameters"]) == ("fixed_batch", "digits", 2410)
    assert not tasks.known("ImageMLP_Digits_Relu31_FixedBatch")


def test_a_dropout_key_goes_through():
    task = tasks.get("ImageMLP_Digits_128x128_Dropout05_Relu_FixedBatch")
    params, state, batch = started(task)

    @jax.jit
    def run(task, one, two):
        return [task.loss(params, state, batch, key)[0] for key in (one, one, two, None)]

    same_key, again, other, none = map(float, run(task, jax.random.key(1), jax.random.key(2)))
    assert same_key == again != other and none not in (same_key, other)


def test_training_on_a_fixed_batch_descends_on_what_it_reports():
    task, adam = tasks.get("Digits_MLP_FixedBatch"), optimizers.get("adam", learning_rate=3e-2)

    @eqx.filter_jit
    def run(task, adam):
        return train(task, adam, steps=200, eval_every=50, eval_batches=1, last_eval_batches=2, key=KEY)

    result = run(task, adam)
    losses = np.asarray(result.curves["train/loss"])
    assert losses[0] > 2 and losses[-1] < 1e-3
    # All batches of an evaluation on the training split are the same one.
    expected = task.loss(result.state.params, None, task.rows, None)[0]
    assert losses[-1] == pytest.approx(float(expected), rel=1e-4)
    assert np.isfinite(result.curves["valid/loss"]).all() and result.curves["valid/accuracy"][-1] > 0.85


def test_digits_workload_is_that_of_the_published_protocol():
    """64-100-100-10, 17 610 parameters, pixels / 16, weights N(0, 1 / fan_in), biases 0."""
    params, _ = tasks.get("Digits_MLP").init(KEY)
    assert sum(leaf.size for leaf in params.values()) == 17610
    for i, fan_in in enumerate((64, 100, 100)):
        w = np.asarray(params[f"w{i}"])
        assert w.std() == pytest.approx(fan_in**-0.5, rel=0.05) and not np.asarray(params[f"b{i}"]).any()
    assert np.abs(np.asarray(params["w1"])).max() > 3 * 0.1, "tails are not cut off"
