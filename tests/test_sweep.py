"""The sweep engine: lanes equal single runs, programs are reused, nothing runs twice."""

import contextlib

import equinox as eqx
import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest

from outeropt import Store, grid, optimizers, sample, sweep, tasks, train
from outeropt._sweep import plan, runner
from outeropt._sweep.lanes import one_by_one, vectorized
from outeropt._sweep.settings import groups
from outeropt.errors import ConfigError, OutOfSpace, UnknownName
from toys import regression


RATES = (1e-3, 1e-2, 1e-1)


@pytest.fixture(scope="module")
def task():
    return regression()


@pytest.fixture(scope="module")
def adam():
    return optimizers.get("adam")


@contextlib.contextmanager
def compilations():
    """Names of the training programs that are built inside the block (not of stacking and slicing)."""
    built = []

    def listen(event, duration, fun_name="", **_):
        if event.endswith("backend_compile_duration") and "advance" in fun_name:
            built.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield built
    jax.monitoring.unregister_event_duration_listener(listen)


def same(a, b):
    assert a.curves.keys() == b.curves.keys()
    for name, curve in a.curves.items():
        np.testing.assert_array_equal(curve, b.curves[name], err_msg=name)
    np.testing.assert_array_equal(a.diverged_at, b.diverged_at)


def test_lanes_equal_single_runs(task, adam):
    archive = sweep(task, grid(adam, learning_rate=RATES), seeds=[3, 5], steps=40, eval_every=10)
    assert archive.curves["test/loss"].shape == (3, 2, 5)
    assert set(archive.curves) == {
        *(f"{split}/{name}" for split in ("train", "valid", "test") for name in ("loss", "within")),
        "inner/loss",
    }
    run = train(task, adam.replace(learning_rate=RATES[1]), steps=40, key=jax.random.key(5), eval_every=10)
    for name, curve in run.curves.items():
        np.testing.assert_allclose(archive.curves[name][1, 1], curve, rtol=2e-6, atol=1e-6, err_msg=name)
    assert (archive.final("train/loss")[2] < archive.curves["train/loss"][2, :, 0]).all()


def test_a_trial_does_not_depend_on_its_place_in_the_sweep(task, adam):
    whole = sweep(task, grid(adam, learning_rate=RATES), seeds=4, steps=20, eval_every=10, lanes=4)
    turned = sweep(task, grid(adam, learning_rate=RATES[::-1]), seeds=4, steps=20, eval_every=10, lanes=4)
    for name, curve in whole.curves.items():
        np.testing.assert_array_equal(curve, turned.curves[name][::-1], err_msg=name)


def test_one_program_serves_chunks_rates_lengths_and_cadences(task, adam):
    def go(rates, **changes):
        given = {"seeds": 2, "steps": 20, "eval_every": 10, "lanes": 2} | changes
        return sweep(task, grid(adam, learning_rate=rates), **given)

    go(np.logspace(-4, -1, 8))
    with compilations() as built:
        go(np.logspace(-3, -2, 8))
        go(np.logspace(-3, -2, 8), steps=60)
        go(np.logspace(-3, -2, 8), steps=60, eval_every=30, eval_batches=2, last_eval_batches=3)
        go(np.logspace(-3, -2, 24))  # three times the chunks of the same block
    assert built == []


def test_tasks_of_equal_shape_share_a_program(adam):
    options = {"seeds": 1, "steps": 4, "eval_every": 2}
    one, two = (tasks.get(name) for name in ("Quadratic_10", "Quadratic_10"))
    sweep(one, adam, **options)
    two = eqx.tree_at(lambda t: jax.tree.leaves(t), two, [leaf + 1 for leaf in jax.tree.leaves(two)])
    with compilations() as built:
        sweep(two, adam, **options)
    assert built == []
    with compilations() as built:
        sweep(tasks.get("Quadratic_100"), adam, **options)
    assert len(built) == 1


def test_divergence_harms_no_other_lane(task):
    sgd = optimizers.get("sgd")
    archive = sweep(task, grid(sgd, learning_rate=[1e-2, 100.0]), seeds=2, steps=60, eval_every=10)
    alone = sweep(task, grid(sgd, learning_rate=[1e-2, 1.1e-2]), seeds=2, steps=60, eval_every=10)
    assert (archive.diverged_at[0] == -1).all()
    assert (archive.diverged_at[1] > 0).all()
    for name, curve in archive.curves.items():
        np.testing.assert_array_equal(curve[0], alone.curves[name][0], err_msg=name)
        for k, step in enumerate(archive.diverged_at[1]):
            after = archive.steps > step
            assert np.isnan(curve[1, k, after]).all(), name
    assert archive.best() == 0


def test_one_by_one_equals_vectorized(task, adam, monkeypatch):
    options = {"seeds": 2, "steps": 20, "eval_every": 10}
    settings = grid(adam, learning_rate=RATES)
    wide = sweep(task, settings, **options)
    monkeypatch.setattr(plan, "_lane_map", lambda *_: one_by_one)
    narrow = sweep(task, settings, **options)
    for name, curve in wide.curves.items():
        np.testing.assert_allclose(curve, narrow.curves[name], rtol=2e-6, atol=1e-6, err_msg=name)


def test_what_gains_nothing_side_by_side_is_mapped_one_by_one(task):
    assert plan._lane_map(tasks.get("Conv_Digits_16x32"), "cpu") is one_by_one
    assert plan._lane_map(tasks.get("Conv_Digits_16x32"), "gpu") is vectorized
    assert plan._lane_map(task, "cpu") is vectorized
    assert plan._lane_map(tasks.get("RNNLM_Markov16_GRU64_seq32"), "cpu") is one_by_one


def test_a_list_may_mix_structures(task, adam):
    sgd = optimizers.get("sgd", learning_rate=0.01)
    mixed = sweep(
        task, [adam.replace(learning_rate=0.01), sgd, grid(adam, learning_rate=[0.1])], seeds=1, steps=10
    )
    assert [setting["learning_rate"] for setting in mixed.settings] == [0.01, 0.01, 0.1]
    single = sweep(task, sgd, seeds=1, steps=10)
    np.testing.assert_allclose(mixed.curves["train/loss"][1], single.curves["train/loss"][0], rtol=1e-6)
    assert [where for where, _ in groups([adam, sgd, adam])] == [[0, 2], [1]]


def test_nothing_runs_twice(task, adam, tmp_path, monkeypatch):
    calls = []
    real = runner.Runner.run
    monkeypatch.setattr(
        runner.Runner, "run", lambda self, chunk, partial: calls.append(chunk) or real(self, chunk, partial)
    )
    settings = grid(adam, learning_rate=RATES)
    options = {"steps": 20, "eval_every": 10, "set": "s", "lanes": 2}
    whole = sweep(task, settings, seeds=4, **options)
    calls.clear()
    with Store(tmp_path / "runs.db") as store:
        sweep(task, settings.select([0, 1]), seeds=[1], store=store, **options)
        first = sum(chunk.lanes for chunk in calls)
        reported = []
        again = sweep(task, settings, seeds=4, store=store, report=reported.append, **options)
        assert first == 2 and sum(chunk.lanes for chunk in calls) == 12
        assert sum(reported) == pytest.approx(12)
        calls.clear()
        third = sweep(task, settings, seeds=4, store=store, **options)
        assert calls == []
        (stored,) = store.archives(set="s")
    for other in (again, third, stored):
        for name, curve in whole.curves.items():
            np.testing.assert_allclose(curve, other.curves[name], rtol=2e-6, atol=1e-6)
    same(again, third)
    same(again, stored)


def test_a_setting_given_twice_runs_once(task, adam, monkeypatch):
    ran = []
    real = runner.Runner.run
    monkeypatch.setattr(
        runner.Runner,
        "run",
        lambda self, chunk, partial: ran.append((chunk, self.block)) or real(self, chunk, partial),
    )
    settings = grid(adam, learning_rate=[0.01, 0.1, 0.01])
    reported = []
    archive = sweep(task, settings, seeds=2, steps=10, report=reported.append)
    assert sum(chunk.lanes for chunk, _ in ran) == 4 and {block.settings for _, block in ran} == {2}
    assert sum(reported) == pytest.approx(6)
    np.testing.assert_array_equal(archive.curves["train/loss"][0], archive.curves["train/loss"][2])
    assert (archive.ids[0] == archive.ids[2]).all() and (archive.ids[0] != archive.ids[1]).all()


def test_identity_tells_trials_apart(task, adam):
    options = {"seeds": 1, "steps": 4, "eval_every": 2}

    def ids(task=task, optimizer=adam, **changes):
        return sweep(task, optimizer, **{**options, **changes}).ids.ravel().tolist()

    base = ids()
    assert ids() == base
    different = [
        ids(optimizer=adam.replace(b1=0.8)),
        ids(optimizer=optimizers.get("adamw")),
        ids(seeds=[1]),
        ids(steps=8),
        ids(eval_every=1),
        ids(last_eval_batches=11),
        ids(task=regression(rows=65)),
    ]
    assert len({*base, *(i for found in different for i in found)}) == 8


def test_a_chunk_goes_on_from_its_checkpoint(task, adam, tmp_path, monkeypatch):
    options = {"seeds": 2, "steps": 600, "eval_every": 1}
    settings = grid(adam, learning_rate=RATES)
    whole = sweep(task, settings, **options)
    monkeypatch.setattr(runner, "_CHECKPOINT_SECONDS", 0.0)

    class Killed(BaseException):
        pass

    reports = []

    def report(amount):
        reports.append(amount)
        if len(reports) == 3:
            raise Killed

    with Store(tmp_path / "runs.db") as store:
        with pytest.raises(Killed):
            sweep(task, settings, store=store, report=report, **options)
        assert list((tmp_path / "runs.db.partial").glob("*.safetensors"))
        reports.clear()
        resumed = sweep(task, settings, store=store, report=lambda amount: reports.append(amount), **options)
        assert reports[0] > 0.0 and sum(reports) == pytest.approx(6)
        assert not list((tmp_path / "runs.db.partial").glob("*"))
    same(whole, resumed)


def test_grid_and_sample(adam):
    settings = grid(adam, learning_rate=[0.1, 0.2], b1=[0.8, 0.9])
    assert [(s["learning_rate"], s["b1"]) for s in settings.describe()] == [
        (0.1, 0.8),
        (0.1, 0.9),
        (0.2, 0.8),
        (0.2, 0.9),
    ]
    assert len(grid(adam, learning_rate=5)) == 5
    drawn = sample(adam, 50, jax.random.key(0), ["learning_rate", "b2"])
    space = adam.spaces["learning_rate"]
    rates = np.array([s["learning_rate"] for s in drawn.describe()])
    assert ((rates >= space.low) & (rates <= space.high)).all() and len(set(rates)) == 50
    middle = np.sqrt(space.low * space.high)
    assert 10 < (rates < middle).sum() < 40
    assert len({s["b1"] for s in drawn.describe()}) == 1
    with pytest.raises(UnknownName, match="learning_rat"):
        grid(adam, learning_rat=[1.0])
    with pytest.raises(OutOfSpace, match=r"learning_rate = -1"):
        grid(adam, learning_rate=[-1.0])
    with pytest.raises(ConfigError, match="empty"):
        grid(adam, learning_rate=[])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval_every": 7}, "does not divide steps = 20; 5 would"),
        ({"steps": 0}, "steps = 0"),
        ({"seeds": 0}, "seeds = 0"),
        ({"seeds": [1, 1]}, "distinct"),
        ({"lanes": 0}, "lanes = 0"),
    ],
)
def test_wrong_arguments(task, adam, changes, message):
    with pytest.raises(ConfigError, match=message):
        sweep(task, adam, **({"seeds": 1, "steps": 20} | changes))


def test_padding_is_least():
    assert plan._fitting(15, 8, 2) == 8
    assert plan._fitting(15, 6, 1) == 5
    assert plan._fitting(3, 32, 2) == 4
    chunks = plan.chunks(
        [(0, [0, 1]), (1, [0, 1]), (2, [1])],
        plan.Block(2, 2, tuple(jax.devices()[:1]), vectorized, ()),
    )
    assert [(c.settings, c.seeds) for c in chunks] == [((0, 1), (0, 1)), ((2, 2), (1, 1))]
    assert [c.lanes for c in chunks] == [4, 1]


def test_an_optimizer_without_hyperparameters_can_be_swept():
    archive = sweep(tasks.get("Function_Booth"), optimizers.get("lbfgs"), seeds=3, steps=8, eval_every=8)
    assert archive.settings == ({},) and (archive.final("train/loss") < 1e-3).all()


def test_more_seeds_than_settings_share_devices_by_seed(task, adam):
    archive = sweep(task, adam, seeds=5, steps=10)
    assert archive.curves["train/loss"].shape == (1, 5, 11)
    assert len(np.unique(archive.final("train/loss"))) == 5


def test_seconds_are_recorded(task, adam):
    archive = sweep(task, adam, seeds=2, steps=10)
    assert (archive.seconds > 0).all() and jnp.isfinite(archive.seconds).all()
