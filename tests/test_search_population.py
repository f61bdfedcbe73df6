"""Population-based training over lanes."""

import math

import numpy as np
import pytest

from outeropt import Space, Store, optimizers, tasks
from outeropt.errors import ConfigError
from outeropt.search import PopulationBased, search
from outeropt.search.lanes import Lanes
from test_sweep import compilations


SPACES = {
    "rate": Space.log(1e-4, 1.0),
    "momentum": Space.logit(0.5, 0.999),
    "power": Space.linear(1.0, 3.0),
    "width": Space.choice(1.0, 4.0, 9.0),
}
OPTIONS = {
    "steps": 60,
    "eval_every": 5,
    "tune": ["learning_rate", "b1"],
    "seeds": 2,
    "optimizer_name": "adam",
}


@pytest.fixture(scope="module")
def task():
    return tasks.get("UCI_Energy")


@pytest.fixture(scope="module")
def adam():
    return optimizers.get("adam")


def test_exploration_moves_by_factors_or_draws_anew():
    point = {"rate": 0.01, "momentum": 0.9, "power": 2.0, "width": 4.0}
    rng = np.random.default_rng(0)
    near = [PopulationBased(resample=0.0).explored(SPACES, point, rng) for _ in range(20)]
    assert {round(p["rate"], 6) for p in near} == {0.008, 0.012}
    assert {round(p["power"], 6) for p in near} == {1.6, 2.4}
    assert {round(p["momentum"] / (1 - p["momentum"]), 2) for p in near} == {7.2, 10.8}
    assert {p["width"] for p in near} == {1.0, 9.0}
    ends = {"rate": 1.0, "momentum": 0.999, "power": 3.0, "width": 9.0}
    for p in [PopulationBased(resample=0.0).explored(SPACES, ends, rng) for _ in range(20)]:
        assert all(space.low <= p[name] <= space.high for name, space in SPACES.items())
    drawn = [PopulationBased(resample=1.0).explored(SPACES, point, rng) for _ in range(400)]
    assert np.mean([p["rate"] < 0.01 for p in drawn]) == pytest.approx(0.5, abs=0.1)
    mixed = [PopulationBased().explored(SPACES, point, rng) for _ in range(400)]
    stays = np.mean([round(p["rate"], 6) in (0.008, 0.012) for p in mixed])
    assert stays == pytest.approx(0.75, abs=0.07)


def test_selection_copies_the_best_over_the_worst():
    losses = np.array([3.0, 1.0, math.inf, 2.0, 0.5, 4.0, 2.5, 2.6])
    parents = PopulationBased().selected(losses, np.random.default_rng(0))
    assert {*parents[[2, 5]]} <= {4, 1}
    kept = [0, 1, 3, 4, 6, 7]
    assert parents[kept].tolist() == kept


def test_members_take_over_states_and_hyperparameters(task, adam, monkeypatch):
    seen, real = [], Lanes.advance

    def watched(self, lanes, *rest):
        seen.append(dict(lanes))
        return real(self, lanes, *rest)

    monkeypatch.setattr(Lanes, "advance", watched)
    with compilations() as built:
        found = search(task, adam, method=PopulationBased(intervals=4), trials=8, parallel=4, **OPTIONS)
    assert len(built) == 1
    history = found.history
    assert history["step"].tolist() == [15, 30, 45, 60]
    for k in range(3):
        parents = history["parent"][k]
        moved = np.flatnonzero(parents != np.arange(8))
        assert 1 <= len(moved) <= 2
        worst = np.argsort(history["score"][k])[-2:]
        assert {*moved} <= {*worst} and {*parents[moved]} <= {*np.argsort(history["score"][k])[:2]}
        for i in moved:
            for seed in (0, 1):
                heir, parent = seen[k + 1][i, seed], seen[k + 1][parents[i], seed]
                assert heir.carry is parent.carry
        if k:
            stay = np.setdiff1d(np.arange(8), moved)
            np.testing.assert_array_equal(history["b1"][k][stay], history["b1"][k - 1][stay])
    (archive,) = found.archives
    losses = archive.curves["valid/loss"].astype(np.float64).mean(axis=1)
    # A member keeps its own curve up to where it took over another's state.
    np.testing.assert_array_equal(losses[:, [3, 6, 9, 12]].T, history["score"])
    assert found.setting["b1"] == history["b1"][-1][np.argmin(history["score"][-1])]
    assert history["score"][-1].min() == found.score == found.incumbent.score[-1]


def test_it_is_not_run_again_and_resumes_exactly(task, adam, tmp_path, monkeypatch):
    options = OPTIONS | {"method": PopulationBased(intervals=4), "trials": 8, "parallel": 4}
    whole = search(task, adam, **options)
    real, calls = Lanes.advance, []

    def stops(self, lanes, *rest):
        calls.append(len(lanes))
        if len(calls) in (3, 5):
            raise KeyboardInterrupt
        return real(self, lanes, *rest)

    work = []
    with Store(tmp_path / "runs.db") as store:
        monkeypatch.setattr(Lanes, "advance", stops)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                search(task, adam, store=store, set="p", **options)
        again = search(task, adam, store=store, set="p", report=work.append, **options)
        assert len(calls) == 6 and sum(work) == pytest.approx(8)
        third = search(task, adam, store=store, set="p", **options)
        (kept,) = store.archives()
    assert len(calls) == 6 and not list((tmp_path / "runs.db.partial").glob("*"))
    for other in (again, third):
        assert [t[:3] for t in other.trials] == [t[:3] for t in whole.trials]
        for name, values in whole.history.items():
            np.testing.assert_array_equal(values, other.history[name], err_msg=name)
        for name, curve in whole.archives[0].curves.items():
            np.testing.assert_array_equal(curve, other.archives[0].curves[name], err_msg=name)
    np.testing.assert_array_equal(kept.ids, again.archives[0].ids)
    np.testing.assert_array_equal(third.incumbent.seconds, again.incumbent.seconds)


def test_who_diverged_takes_over_and_recovers(task, tmp_path):
    sgd = optimizers.get("sgd")
    options = OPTIONS | {"tune": {"learning_rate": Space.log(1e-2, 1e3)}}
    with Store(tmp_path / "runs.db") as store:
        found = search(task, sgd, method="pbt", trials=8, store=store, **options)
        again = search(task, sgd, method="pbt", trials=8, store=store, **options)
    diverged = np.isinf(found.history["score"]).sum(axis=1)
    assert diverged[0] > 2 and diverged[-1] < diverged[0] and math.isfinite(found.score)
    np.testing.assert_array_equal(again.history["score"], found.history["score"])


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"trials": 1}, "A population of 1 has nobody"),
        ({"method": PopulationBased(share=0.7)}, "share = 0.7"),
        ({"eval_every": 60}, "needs two evaluations"),
    ],
)
def test_errors(wrong, told, task, adam):
    with pytest.raises(ConfigError, match=told):
        search(task, adam, **OPTIONS | {"method": "pbt", "trials": 4} | wrong)
