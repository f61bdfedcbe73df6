"""Statistics over restarts: against the released code of one-pass tuning, and on small cases by hand."""

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from outeropt.bench import restarts
from outeropt.bench.restarts import Estimate, Restarts
from outeropt.errors import OuteroptError, UnknownName
from picture_fixtures import archive


GOLDEN = Path(__file__).parent / "golden" / "clarke"
CASES = json.loads((GOLDEN / "statistics.json").read_text())


def runs(test, valid=None, name="method"):
    test = np.atleast_2d(np.asarray(test, np.float64))
    valid = test if valid is None else np.atleast_2d(np.asarray(valid, np.float64))
    return Restarts(name, np.arange(test.shape[1]), test, valid, np.full(len(test), 2.0))


@pytest.mark.parametrize("case", CASES)
def test_the_paper_s_statistics(case):
    stored, wanted = np.load(GOLDEN / "statistics.npz"), CASES[case]
    scale, threshold = wanted["scale"], wanted["threshold"]
    rng = np.random.RandomState(wanted["seed"])
    unscaled = {
        name: runs(stored[f"{case}/test/{name}"], name=name)
        for name in ("Random", "Random_SteppedLR", "Ours_LR_Momentum")
    }
    validated = runs(stored[f"{case}/test/Random_Validation"], stored[f"{case}/valid/Random_Validation"])
    unscaled["Random_3Batched"] = validated.take(restarts.batched(validated, rng, 3, threshold)[0])
    for name in wanted["algorithms_in_order"]:
        one = unscaled[name]
        got = restarts.summary(dataclasses.replace(one, test=one.test * scale), rng, threshold=threshold)
        numbers = wanted["statistics"][name]
        assert got.runs - got.diverged == wanted["runs_kept"][name]
        assert got.mean.value == pytest.approx(numbers["mean_value"], rel=1e-12)
        assert got.mean.error == pytest.approx(numbers["mean_error"], rel=1e-12)
        assert got.median.value == pytest.approx(numbers["median_value"], rel=1e-12)
        assert got.median.error == pytest.approx(numbers["median_error"], rel=1e-12)
        assert got.best_anywhere == pytest.approx(numbers["best_value"], rel=1e-12)
        cells = wanted["table_cells"][name]
        for kind, estimate in (("mean", got.mean), ("median", got.median)):
            assert restarts.rounded(estimate) == f"{cells[kind]['text']} ± {cells[f'{kind}_error']}"


def test_diverged_runs_are_counted_and_are_the_worst():
    got = restarts.summary(runs([[3, 1], [3, 2], [3, 5], [3, np.nan]]), np.random.RandomState(0))
    assert (got.runs, got.diverged, got.diverged_rate) == (4, 1, 0.25)
    assert got.quantiles == (1.0, 5.0, np.inf)
    assert got.best == 1.0 and got.seconds == 2.0
    assert 1.0 < got.mean.value < 5.0
    limited = restarts.summary(runs([[3, 1], [3, 2], [3, 5]]), np.random.RandomState(0), threshold=5)
    assert limited.diverged == 1 and limited.quantiles[1:] == (np.inf, np.inf)


def test_when_all_diverge_there_is_a_rate_and_nothing_else():
    got = restarts.summary(runs([[1, np.nan], [1, np.inf]]), np.random.RandomState(0))
    assert got.diverged_rate == 1.0 and np.isnan(got.mean.value) and np.isnan(got.best)
    assert got.quantiles == (np.inf,) * 3 and restarts.rounded(got.median) == "-"
    with pytest.raises(OuteroptError, match="no runs"):
        restarts.summary(runs(np.zeros((0, 2))), np.random.RandomState(0))


def test_the_best_is_final_or_anywhere():
    got = restarts.summary(runs([[3, 0.5, 2], [3, 1, 1]]), np.random.RandomState(0))
    assert (got.best, got.best_anywhere) == (1.0, 0.5)


def test_losses_where_validation_is_lowest():
    found = runs([[3, 1, 2], [4, 5, 6], [7, 8, np.nan]], [[3, 2, 1], [1, 2, 3], [9, 1, np.nan]])
    assert found.at_best_validation().tolist() == [2, 4, 8]
    nothing = runs([[3, 1]], [[np.nan, np.nan]])
    assert np.isnan(nothing.at_best_validation()).all()


def test_groups_keep_the_best_by_validation():
    test = np.arange(7.0)[:, None]
    valid = -test
    chosen, groups = restarts.batched(runs(test, valid), np.random.RandomState(3))
    assert groups.tolist() == np.random.RandomState(3).permutation(7)[:6].reshape(2, 3).tolist()
    assert chosen.tolist() == groups.max(axis=1).tolist()
    lost = runs([[1.0], [np.nan], [2.0], [3.0]], [[1.0], [-9.0], [2.0], [3.0]])
    chosen, groups = restarts.batched(lost, np.random.RandomState(0))
    assert chosen.tolist() == [0] and sorted(groups[0]) == [0, 2, 3]


def test_the_median_s_band_is_that_of_resamples():
    values = np.random.default_rng(0).normal(size=(9, 4))
    middle, low, high = restarts.median_band(values, seed=5)
    ranks = np.random.default_rng(5).integers(9, size=(1000, 9))
    medians = np.median(np.sort(values, axis=0)[ranks], axis=1)
    np.testing.assert_allclose(middle, np.median(values, axis=0))
    np.testing.assert_allclose(low, np.quantile(medians, 0.025, axis=0, method="inverted_cdf"))
    np.testing.assert_allclose(high, np.quantile(medians, 0.975, axis=0, method="inverted_cdf"))
    values[:2, -1] = np.nan
    assert restarts.median_band(values)[0][-1] == np.sort(values[2:, -1])[4]


def test_the_incumbent_is_the_mean_over_all_choices():
    test, valid = np.array([3.0, 1.0, 2.0, 8.0]), np.array([0.1, 0.4, np.nan, 0.2])
    order = np.where(np.isnan(valid), np.inf, valid)
    for k, got in enumerate(restarts.incumbent(test, valid), 1):
        choices = [min(c, key=lambda i: order[i]) for c in itertools.combinations(range(4), k)]
        assert got == pytest.approx(test[choices].mean())


def test_an_archive_s_seeds_are_restarts():
    made = archive(settings=3, seeds=4)
    got = restarts.restarts(made, scale=10.0)
    assert got.method == "adam" and got.test.shape == (4, 21)
    np.testing.assert_allclose(got.test, 10.0 * made.curves["test/loss"][0])
    assert restarts.restarts(made, setting=2).diverged().all()
    with pytest.raises(OuteroptError, match="3 settings"):
        restarts.restarts(made, setting=3)
    with pytest.raises(UnknownName, match="test/loss"):
        restarts.restarts(dataclasses.replace(made, curves={"train/loss": made.curves["train/loss"]}))


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.4567, 0.0961, "0.5 ± 0.1"),
        (21.4, 2.2, "21 ± 2"),
        (10613.4, 1045.6, "11000 ± 1000"),
        (17.334, 0.0104, "17.33 ± 0.01"),
        (2.0, 0.0, "2"),
        (2.0, np.nan, "2"),
        (np.nan, 1.0, "-"),
        (9.99, 0.95, "10.0 ± 0.9"),
    ],
)
def test_rounding(value, error, text):
    assert restarts.rounded(Estimate(value, error)) == text


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [(0.4567, 0.0961, "0.457 ± 0.096"), (9.51, 1.1, "9.5 ± 1.1"), (10613.4, 1045.6, "10600 ± 1000")],
)
def test_rounding_to_two_digits(value, error, text):
    assert restarts.rounded(Estimate(value, error), 2) == text
