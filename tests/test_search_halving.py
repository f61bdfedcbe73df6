"""Successive halving and Hyperband: who goes on, with which numbers, at what cost."""

import math

import numpy as np
import pytest

from outeropt import Space, Store, optimizers, sweep, tasks
from outeropt.errors import ConfigError
from outeropt.search import Grid, Halving, Hyperband, Sobol, search
from outeropt.search.found import scores
from outeropt.search.lanes import Lanes
from test_sweep import compilations


OPTIONS = {"steps": 160, "eval_every": 10, "tune": ["learning_rate", "b1"], "optimizer_name": "adam"}
# Two settings at a time on two devices, with two seeds: every block has the same width.
ONE_WIDTH = {"lanes": 2, "seeds": 2}


@pytest.fixture(scope="module")
def task():
    return tasks.get("UCI_Energy")


@pytest.fixture(scope="module")
def adam():
    return optimizers.get("adam")


def swept(task, optimizer, archive, **options):
    settings = [optimizer.replace(setting) for setting in archive.settings]
    return sweep(task, settings, seeds=len(archive.seeds), steps=160, eval_every=10, **options)


def same(a, b):
    assert a.settings == b.settings and (a.ids == b.ids).all()
    np.testing.assert_array_equal(a.diverged_at, b.diverged_at)
    assert a.curves.keys() == b.curves.keys()
    for name, curve in a.curves.items():
        np.testing.assert_array_equal(curve, b.curves[name], err_msg=name)


# The state of noisy_sgd holds a random key; a schedule knows how long the whole trial is.
@pytest.mark.parametrize("name", ["adam", "noisy_sgd", "clip:cosine:adam"])
def test_survivors_equal_whole_trials_bit_for_bit(name, task):
    optimizer = optimizers.get(name)
    options = OPTIONS | ONE_WIDTH | {"tune": None}
    found = search(task, optimizer, method="halving", trials=32, **options)
    assert [len(archive.settings) for archive in found.archives] == [2, 6, 24]
    assert [archive.num_steps for archive in found.archives] == [160, 40, 10]
    whole = swept(task, optimizer, found.archives[0], lanes=2)
    same(found.archives[0], whole)
    assert found.score == scores(whole).min()
    # Whoever was stopped was on the same way.
    stopped = found.archives[1].select([0, 1])
    longer = swept(task, optimizer, stopped, lanes=2)
    for curve, values in stopped.curves.items():
        np.testing.assert_array_equal(values, longer.curves[curve][:, :, :5], err_msg=curve)


def test_the_better_ones_go_on(task, adam):
    found = search(task, adam, method=Halving(sampler=Sobol), trials=32, **OPTIONS)
    at_ten = {tuple(t.setting.items()): t.score for t in found.trials if t.steps == 10}
    longer = [archive for archive in found.archives if archive.num_steps > 10]
    seen = np.concatenate([a.curves["valid/loss"][:, :, 1].mean(axis=1) for a in longer])
    assert len(at_ten) == 24 and len(seen) == 8
    assert seen.max() <= min(at_ten.values())
    at_forty = found.archives[1].final("valid/loss").mean(axis=1)
    assert found.archives[0].curves["valid/loss"][:, :, 4].mean(axis=1).max() <= at_forty.min()
    assert found.best[0].score == found.score == found.incumbent.score[-1]
    np.testing.assert_allclose(found.incumbent.trials, [2.0, 3.5, 5.0])


def test_widths_are_compiled_once_and_the_work_is_told(task, adam):
    options = OPTIONS | {"steps": 96, "eval_every": 8, "trials": 32, "parallel": 16}
    work = []
    with compilations() as built:
        found = search(task, optimizers.get("adamax"), method="halving", report=work.append, **options)
    # 32 settings in blocks of 16, then 8 in one of them, then 2 in a narrow one.
    assert len(built) == 2
    assert sum(work) == pytest.approx(32) and found.incumbent.trials[-1] == pytest.approx(5.5)
    with compilations() as built:
        search(task, optimizers.get("adamax"), method=Hyperband(), seed=1, **options)
    assert len(built) <= 1
    with compilations() as built:
        search(task, optimizers.get("adamax"), method="halving", seed=2, **options)
    assert built == []


def test_hyperband_has_brackets(task, adam, tmp_path):
    with Store(tmp_path / "runs.db") as store:
        found = search(task, adam, method="hyperband", trials=25, store=store, set="h", **OPTIONS)
        (kept,) = store.archives()
    # 16 settings begin with 10 steps, 6 with 40, 3 with all.
    assert [len(archive.settings) for archive in found.archives] == [5, 8, 12]
    same(kept, found.archives[0])
    assert [trial.steps for trial in found.trials[-3:]] == [160] * 3
    assert found.score == min(trial.score for trial in found.trials if trial.steps == 160)
    with pytest.raises(ConfigError, match="too few for the 3 brackets"):
        search(task, adam, method="hyperband", trials=3, **OPTIONS)


def test_nothing_is_trained_twice(task, adam, tmp_path, monkeypatch):
    options = OPTIONS | ONE_WIDTH | {"method": "halving", "trials": 16}
    ran, real = [], Lanes.advance
    monkeypatch.setattr(
        Lanes, "advance", lambda self, lanes, *rest: ran.append(len(lanes)) or real(self, lanes, *rest)
    )
    with Store(tmp_path / "runs.db") as store:
        found = search(task, adam, store=store, set="h", **options)
        assert ran == [32, 8, 2]
        again = search(task, adam, store=store, set="h", **options)
        assert ran == [32, 8, 2]
        whole = swept(task, adam, found.archives[0], store=store)
    assert again.trials == found.trials
    for a, b in zip(again.archives, found.archives):
        same(a, b)
    same(whole, found.archives[0])
    assert not list((tmp_path / "runs.db.partial").glob("*"))
    # Whole trials of an earlier sweep are not trained again either.
    ran.clear()
    with Store(tmp_path / "other.db") as store:
        points = search(task, adam, **options | {"trials": 8}).trials
        sweep(
            task,
            [adam.replace(p.setting) for p in points],
            seeds=2,
            steps=160,
            eval_every=10,
            lanes=2,
            store=store,
        )
        ran.clear()
        search(task, adam, store=store, **options | {"trials": 8})
    assert ran == []


def test_lost_states_are_trained_again_to_the_same_numbers(task, adam, tmp_path, monkeypatch):
    options = OPTIONS | {"method": "halving", "trials": 32, "parallel": 16}
    whole = search(task, adam, **options)
    monkeypatch.setattr(Lanes, "save", lambda *_: None)
    real, calls = Lanes.advance, []

    def stops(self, lanes, *rest):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(len(lanes))
        return real(self, lanes, *rest)

    with Store(tmp_path / "runs.db") as store:
        monkeypatch.setattr(Lanes, "advance", stops)
        with pytest.raises(KeyboardInterrupt):
            search(task, adam, store=store, **options)
        monkeypatch.setattr(Lanes, "advance", real)
        again = search(task, adam, store=store, **options)
    for a, b in zip(again.archives, whole.archives):
        same(a, b)


def test_divergence_is_the_worst(task):
    sgd = optimizers.get("sgd")
    options = OPTIONS | {"tune": {"learning_rate": Space.log(1e-2, 1e3)}}
    found = search(task, sgd, method="halving", trials=16, **options)
    diverged = np.concatenate([(archive.diverged_at >= 0)[:, 0] for archive in found.archives])
    assert diverged.any() and math.isfinite(found.score)
    options["tune"] = {"learning_rate": Space.log(900.0, 1e3)}
    assert search(task, sgd, method="halving", trials=16, **options).score == math.inf


def test_the_best_earlier_setting_begins_too(task, adam):
    earlier = search(task, adam, method="sobol", trials=16, **OPTIONS)
    found = search(task, adam, method="halving", trials=8, warm_start=earlier.archives, **OPTIONS)
    assert found.trials[0].setting == earlier.best[0].setting
    alone = search(task, adam, method="halving", trials=1, warm_start=earlier.archives, **OPTIONS)
    assert alone.setting == pytest.approx(earlier.setting)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"method": Halving(eta=1)}, "eta = 1 and rungs = 3 stop nobody early"),
        ({"eval_every": 80}, r"Nobody can be stopped early with 2 evaluation\(s\)"),
        ({"method": Halving(sampler=Grid), "trials": 7}, "Grid has only 6 of 7 settings"),
    ],
)
def test_errors(wrong, told, task, adam):
    with pytest.raises(ConfigError, match=told):
        search(task, adam, **OPTIONS | {"method": "halving", "trials": 8} | wrong)
