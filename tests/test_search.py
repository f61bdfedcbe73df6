"""Searches of full length: what samplers ask, what is stored, warm starts, the best of k."""

import itertools
import math

import numpy as np
import pytest

from outeropt import Space, Store, optimizers, sweep, tasks
from outeropt.errors import ConfigError, OutOfSpace, UnknownName
from outeropt.search import (
    CMAES,
    METHODS,
    Bayes,
    Domain,
    FullLength,
    Grid,
    Random,
    Sobol,
    domain,
    expected_best_of_k,
    search,
)
from outeropt.search.found import scores
from test_sweep import compilations


SPACES = {
    "rate": Space.log(1e-4, 1.0),
    "momentum": Space.logit(0.5, 0.999),
    "power": Space.linear(-1.0, 3.0),
    "width": Space.choice(1.0, 4.0, 9.0),
}
SAMPLERS = [method.sampler for method in METHODS.values() if isinstance(method, FullLength)]


@pytest.fixture(scope="module")
def task():
    return tasks.get("UCI_Energy")


@pytest.fixture(scope="module")
def adam():
    return optimizers.get("adam")


def bowl(point):
    """Lowest at a rate of 0.01, momentum 0.9 and width 4."""
    odds = math.log(point["momentum"] / (1 - point["momentum"])) - math.log(9)
    return (
        (math.log10(point["rate"]) + 2) ** 2 + odds**2 + (point["power"] - 1) ** 2 + abs(point["width"] - 4)
    )


def asked(sampler, seed=0, trials=48, parallel=8, score=bowl):
    one = sampler(Domain(SPACES), trials=trials, parallel=parallel, seed=seed)
    points = []
    while len(points) < trials and (batch := one.ask(min(parallel, trials - len(points)))):
        one.tell(batch, [score(point) for point in batch])
        points += batch
    return points


@pytest.mark.parametrize("space", SPACES.values(), ids=str)
def test_fractions_of_a_space_and_back(space):
    grid = space.choices or space.grid(7)
    for value in grid:
        assert space.at(space.fraction(value)) == pytest.approx(value, rel=1e-6)
    assert space.at(-1.0) == space.low and space.at(2.0) == space.high
    values = [space.at(u) for u in np.linspace(0, 1, 50)]
    assert values == sorted(values) and all(float(str(np.float32(v))) == v for v in values)
    if space.scale != "choice":
        assert space.at(0.5) == pytest.approx(space.grid(3)[1], rel=1e-6)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_respect_spaces_and_seeds(sampler):
    points = asked(sampler)
    assert len(points) == 48 or (sampler is Grid and 30 < len(points) < 48)
    for point in points:
        assert point.keys() == SPACES.keys()
        for name, space in SPACES.items():
            assert space.low <= point[name] <= space.high
        assert point["width"] in SPACES["width"].choices
    assert asked(sampler) == points
    assert (asked(sampler, seed=1) == points) == (sampler is Grid)


@pytest.mark.parametrize("sampler", [Random, Sobol])
def test_more_trials_begin_with_the_same_points(sampler):
    assert asked(sampler, trials=24) == asked(sampler, trials=48)[:24]


@pytest.mark.parametrize("sampler", [Bayes, CMAES])
def test_learning_samplers_learn_also_past_divergence(sampler):
    def score(point):
        return bowl(point) if point["rate"] < 0.1 else [math.nan, math.inf][point["rate"] < 0.3]

    found = [np.mean([score(p) < 3 for p in asked(sampler, seed, 96, score=score)[48:]]) for seed in range(3)]
    drawn = [np.mean([score(p) < 3 for p in asked(Random, seed, 96, score=score)[48:]]) for seed in range(3)]
    assert np.mean(found) > 2 * np.mean(drawn)


def test_a_grid_is_evenly_spread():
    points = asked(Grid, trials=50)
    axes = {name: sorted({point[name] for point in points}) for name in SPACES}
    assert [len(axis) for axis in axes.values()] == [4, 3, 2, 2]
    assert axes["rate"] == list(SPACES["rate"].grid(4)) and axes["width"] == [1.0, 4.0]
    assert len({tuple(point.values()) for point in points}) == len(points) == 48
    assert asked(Grid, trials=1) == [{name: space.at(0.5) for name, space in SPACES.items()}]


def test_a_sobol_sequence_fills_every_cell():
    points = asked(Sobol, trials=16)
    unit = np.array([Domain(SPACES).fractions(point) for point in points])
    for i in range(3):
        assert sorted((unit[:, i] * 16).astype(int)) == list(range(16))


def test_what_is_tuned(adam):
    assert list(domain(adam).spaces) == ["learning_rate"]
    assert list(domain(optimizers.get("clip:adam")).spaces) == ["inner.learning_rate"]
    assert list(domain(optimizers.get("clip:adam"), ["b1"]).spaces) == ["inner.b1"]
    narrow = Space.log(1e-3, 1e-2)
    assert domain(adam, {"learning_rate": narrow}).spaces == {"learning_rate": narrow}
    assert len(domain(optimizers.get("polyak_sgd"))) > 0
    with pytest.raises(UnknownName, match="learning_rate"):
        domain(adam, ["learning_rat"])
    with pytest.raises(
        ConfigError, match=r"weight has no space to search; no leaf of this optimizer has one"
    ):
        domain(optimizers.get("learned:small_fc"), ["net.layers.0.weight"])
    with pytest.raises(ConfigError, match="There is nothing to tune"):
        domain(optimizers.get("learned:small_fc"))
    with pytest.raises(ConfigError, match="tuned twice"):
        domain(adam, ["b1", "b1"])
    with pytest.raises(OutOfSpace, match="learning_rate = 1e"):
        domain(adam, {"learning_rate": Space.log(1e-3, 1e6)})


@pytest.mark.parametrize("method", [name for name, m in METHODS.items() if isinstance(m, FullLength)])
def test_a_search_is_a_sweep_of_what_was_asked(method, task, adam, tmp_path):
    options = {"trials": 8, "parallel": 4, "steps": 20, "eval_every": 10, "seeds": 2}
    options |= {"tune": ["learning_rate", "b1"], "optimizer_name": "adam"}
    work = []
    with Store(tmp_path / "runs.db") as store:
        found = search(task, adam, method=method, store=store, set="mine", report=work.append, **options)
        (kept,) = store.archives()
    count = len(found.trials)
    assert count == 8 or method == "grid"
    assert sum(work) == pytest.approx(count)
    (archive,) = found.archives
    assert kept.set == "mine" and kept.settings == archive.settings and (kept.ids == archive.ids).all()
    final = scores(archive)
    assert found.score == final.min() and found.best[0].score == found.score
    assert [trial.score for trial in found.trials] == list(final)
    assert found.incumbent.trials[-1] == count and found.incumbent.score[-1] == found.score
    assert (np.diff(found.incumbent.score) <= 0).all() and (np.diff(found.incumbent.seconds) > 0).all()
    alone = sweep(task, found.optimizer, seeds=2, steps=20, eval_every=10)
    assert alone.ids[0, 0] in archive.ids
    # Another width of lanes may round differently.
    assert scores(alone)[0] == pytest.approx(found.score, rel=1e-4)


def test_batches_share_a_program_and_trials_are_not_run_again(task, adam, tmp_path):
    options = {"method": "bayes", "trials": 12, "parallel": 4, "steps": 20, "eval_every": 10}
    search(task, adam, **options)
    with compilations() as built, Store(tmp_path / "runs.db") as store:
        first = search(task, adam, store=store, **options)
        seconds = first.incumbent.seconds
        again = search(task, adam, store=store, **options)
    assert built == []
    assert again.trials == first.trials and again.setting == first.setting
    np.testing.assert_array_equal(again.incumbent.seconds, seconds)


def test_divergence_is_recorded_and_never_fatal(task):
    sgd = optimizers.get("sgd")
    wild = {"learning_rate": Space.log(1e-3, 1e3)}
    for method in ("bayes", "sobol"):
        found = search(task, sgd, method=method, trials=16, parallel=8, steps=50, eval_every=50, tune=wild)
        diverged = (found.archives[0].diverged_at >= 0)[:, 0]
        assert diverged.any() and not diverged.all()
        assert all((trial.score == math.inf) == bad for trial, bad in zip(found.trials, diverged))
        assert math.isfinite(found.score) and found.best[-1].score == math.inf
    wild = {"learning_rate": Space.log(900.0, 1e3)}
    found = search(task, sgd, method="bayes", trials=4, parallel=2, steps=50, eval_every=50, tune=wild)
    assert found.score == math.inf and 900 <= found.setting["learning_rate"] <= 1e3


@pytest.mark.parametrize("method", ["bayes", "cmaes"])
def test_a_warm_start_is_heard_first(method, task, adam):
    options = {"steps": 20, "eval_every": 20, "tune": ["learning_rate", "b1"], "optimizer_name": "adam"}
    earlier = search(task, adam, method="sobol", trials=32, parallel=32, **options).archives
    options |= {"trials": 4, "parallel": 4, "method": method}
    cold, warm = search(task, adam, **options), search(task, adam, warm_start=earlier, **options)
    assert warm.setting != cold.setting
    assert np.median([t.score for t in warm.trials]) < np.median([t.score for t in cold.trials])
    with pytest.raises(ConfigError, match="Nothing to start from: wanted adam on UCI_Energy with 40"):
        search(task, adam, warm_start=earlier, **options | {"steps": 40})


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"method": "bayse"}, r"No method of search is called 'bayse'. Did you mean bayes"),
        ({"trials": 0}, "trials = 0 is not allowed"),
        ({"parallel": 0}, "parallel = 0 is not allowed"),
        ({"seeds": 0}, "seeds = 0 is not allowed"),
        ({"seed": -1}, "seed = -1 is not allowed"),
        ({"steps": 0}, "steps = 0 is not allowed"),
        ({"eval_every": 7}, "does not divide"),
        ({"method": "cmaes"}, "CMAES needs at least 2 hyperparameters"),
    ],
)
def test_errors(wrong, told, task, adam):
    with pytest.raises((ConfigError, UnknownName), match=told):
        search(task, adam, **{"trials": 4, "steps": 20} | wrong)


def test_a_missing_package_is_named(task, adam, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r'pip install "outeropt\[tune\]"'):
        search(task, adam, method="bayes", trials=4, steps=20)


@pytest.mark.parametrize("bad", [[], [math.nan], [math.inf, math.nan]])
def test_the_best_of_k_by_enumeration(bad):
    given = np.array([3.0, -1.0, 2.0, 2.0, 7.0, *bad])
    worst = np.where(np.isfinite(given), given, 7.0)
    found = expected_best_of_k(given)
    for k, estimate in zip(found.ks, found.estimate):
        drawn = [min(some) for some in itertools.combinations(worst, int(k))]
        assert estimate == pytest.approx(np.mean(drawn), rel=1e-12)
    assert found.estimate[0] == pytest.approx(worst.mean()) and found.estimate[-1] == -1.0
    assert (found.low <= found.estimate + 1e-12).all() and (found.estimate <= found.high + 1e-12).all()
    some = expected_best_of_k(given, [2])
    assert some.estimate == pytest.approx(found.estimate[1:2])


def test_the_interval_of_the_best_of_k_covers():
    rng = np.random.default_rng(0)
    truth = 1 / 6  # of the lowest of 5 uniform draws
    hits = [
        b.low[0] <= truth <= b.high[0] for b in (expected_best_of_k(rng.random(60), [5]) for _ in range(200))
    ]
    assert 0.85 < np.mean(hits) < 0.99


def test_the_best_of_nothing():
    with pytest.raises(ConfigError, match="all diverged"):
        expected_best_of_k([math.nan])
    with pytest.raises(ConfigError, match="of 2 trials is not defined"):
        expected_best_of_k([1.0, 2.0], [3])
