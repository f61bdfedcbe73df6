"""Scores by hand, by brute force and on simulated data."""

import dataclasses
import doctest
import itertools
import pathlib

import numpy as np
import pytest

from outeropt.bench import scores
from outeropt.bench.leaderboard import improvement, leaderboard
from outeropt.bench.normalizer import Envelope, Normalizer
from outeropt.bench.profiles import benchmark_score, profile, profiles, seconds_per_step, target
from outeropt.bench.statistics import (
    bootstrap_iqm,
    interquartile_mean,
    mean_interval,
    probability_of_improvement,
)
from outeropt.bench.tunability import (
    attempts_within,
    expected_best,
    expected_best_with_replacement,
    tunability,
)
from outeropt.errors import OuteroptError, UnknownName
from outeropt.store.archive import Archive


CURVES = ("train/loss", "valid/loss")

# The reference falls from 2 to 1 in a straight line of 1000 steps, so loss 1.5 is worth 500 steps.
REFERENCE = Normalizer(
    "r1",
    {
        (task, curve): Envelope(np.array([0.0, 1000.0]), np.array([2.0, 1.0]))
        for task in ("a", "b", "c")
        for curve in CURVES
    },
)


def archive(task, optimizer, final, *, valid=None, kind="lr", steps=(0, 250, 500), seconds=1.0, **fields):
    """Straight lines from 2 to `final` (settings, seeds); NaN diverges."""
    final = np.asarray(final, np.float32)
    line = np.linspace(0, 1, len(steps))
    curves = {
        name: np.asarray(2 + (end[..., None] - 2) * line, np.float32)
        for name, end in zip(CURVES, (final, final if valid is None else np.asarray(valid)))
    }
    return Archive(
        task=task,
        set=f"{optimizer}-{kind}",
        optimizer=optimizer,
        settings=tuple({"learning_rate": 10.0**-i} for i in range(final.shape[0])),
        seeds=tuple(range(final.shape[1])),
        steps=np.array(steps),
        curves=curves,
        diverged_at=np.where(np.isfinite(final), -1, 7).astype(np.int32),
        seconds=np.full(final.shape, seconds, np.float32),
        eval_every=steps[1],
        eval_batches=1,
        last_eval_batches=1,
        **fields,
    )


# Inter-quartile mean and intervals.


def test_iqm_by_hand():
    assert interquartile_mean(np.arange(1.0, 9.0)) == pytest.approx(4.5)
    assert interquartile_mean(np.array([0.0, 1.0, 5.0])) == pytest.approx(1.5)
    assert interquartile_mean(np.array([3.0])) == 3.0
    # Weights are worth copies.
    weighted = interquartile_mean(np.array([1.0, 2.0, 7.0]), np.array([1.0, 2.0, 5.0]))
    assert weighted == pytest.approx(interquartile_mean(np.array([1.0, 2, 2, 7, 7, 7, 7, 7])))


def test_iqm_is_the_trimmed_mean_of_rliable_where_quarters_are_whole():
    from scipy.stats import trim_mean

    values = np.random.default_rng(0).normal(size=(5, 40))
    np.testing.assert_allclose(interquartile_mean(values), trim_mean(values, 0.25, axis=1))


@pytest.mark.parametrize("count", [1, 2, 3, 5, 9, 30])
def test_iqm_properties(count):
    rng = np.random.default_rng(count)
    values = rng.lognormal(size=(50, count))
    found = interquartile_mean(values)
    np.testing.assert_allclose(interquartile_mean(np.full(count, 3.7)), 3.7)
    np.testing.assert_allclose(interquartile_mean(rng.permuted(values, axis=1)), found)
    np.testing.assert_allclose(interquartile_mean(2 * values + 1), 2 * found + 1)
    assert np.all(found >= values.min(axis=1) - 1e-12) and np.all(found <= values.max(axis=1) + 1e-12)
    if count >= 5:  # one lucky run does not move it
        lucky = values.copy()
        lucky[np.arange(50), values.argmax(axis=1)] = 1e9
        np.testing.assert_allclose(interquartile_mean(lucky), found)


def test_bootstrap_intervals_repeat_and_close_on_constants():
    tasks = list(np.random.default_rng(0).normal(size=(3, 6)))
    assert bootstrap_iqm(tasks, seed=3) == bootstrap_iqm(tasks, seed=3)
    assert bootstrap_iqm(tasks, seed=3) != bootstrap_iqm(tasks, seed=4)
    found = bootstrap_iqm(tasks)
    assert found.low < found.estimate < found.high
    constant = bootstrap_iqm([np.full(5, 2.0), np.full(3, 2.0)])
    assert constant.low == constant.estimate == constant.high == pytest.approx(2.0)


def test_bootstrap_never_mixes_tasks():
    # Seeds agree within each task, so no resample differs from the data, however far apart tasks are.
    found = bootstrap_iqm([np.full(4, 0.0), np.full(4, 1.0), np.full(4, 9.0)])
    assert found.low == found.high == pytest.approx(found.estimate)


def test_every_task_weighs_the_same():
    uneven = bootstrap_iqm([np.full(1, 0.0), np.full(99, 1.0)]).estimate
    assert uneven == pytest.approx(0.5)


def test_bootstrap_intervals_cover_the_truth():
    rng = np.random.default_rng(0)
    means = np.array([0.5, 1.0, 1.3, 2.0])
    truth = interquartile_mean((means[:, None] + rng.normal(0, 0.3, (4, 200_000))).ravel())
    covered = []
    for seed in range(200):
        found = bootstrap_iqm(list(means[:, None] + rng.normal(0, 0.3, (4, 10))), resamples=400, seed=seed)
        covered.append(found.low <= truth <= found.high)
    assert 0.88 <= np.mean(covered) <= 0.99


def test_mean_interval_by_hand():
    mean, low, high = mean_interval(np.array([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]))
    np.testing.assert_allclose(mean, [2, 5])
    np.testing.assert_allclose(high - mean, [4.302652730 / np.sqrt(3), 0], rtol=1e-8)
    np.testing.assert_allclose(mean - low, high - mean)
    assert [float(x) for x in mean_interval(np.array([4.0]))] == [4.0, 4.0, 4.0]


def test_probability_of_improvement_by_hand():
    ours = {"a": np.array([1.0, 3.0]), "b": np.array([2.0]), "only ours": np.array([9.0])}
    theirs = {"a": np.array([2.0, 3.0]), "b": np.array([1.0])}
    # a: 1<2, 1<3, 3>2, 3=3 -> 1.5/4; b: 1.
    assert probability_of_improvement(ours, theirs).estimate == pytest.approx((0.375 + 1) / 2)
    assert probability_of_improvement(theirs, ours).estimate == pytest.approx((0.625 + 0) / 2)
    same = probability_of_improvement(theirs, theirs)
    assert same.estimate == 0.5 and same.low <= 0.5 <= same.high
    with pytest.raises(OuteroptError, match="no task in common"):
        probability_of_improvement({"a": np.ones(1)}, {"b": np.ones(1)})


# Single trials.


def test_time_to_target():
    data = archive("a", "adam", [[1.0, 1.5], [1.9, np.nan]], seconds=10.0)
    np.testing.assert_array_equal(scores.steps_to_target(data, 1.5), [[250, 500], [np.inf, np.inf]])
    np.testing.assert_allclose(scores.seconds_to_target(data, 1.5), [[5, 10], [np.inf, np.inf]])
    accuracy = np.linspace(0, 0.9, 3, dtype=np.float32)[None, None] * np.ones((2, 2, 1), np.float32)
    data = dataclasses.replace(data, curves={**data.curves, "valid/accuracy": accuracy})
    np.testing.assert_array_equal(scores.steps_to_target(data, 0.45, "valid/accuracy"), np.full((2, 2), 250))


def test_normalised_curves_and_speedups():
    data = archive("a", "adam", [[1.5, 1.0], [np.nan, 2.5]])
    np.testing.assert_allclose(
        scores.normalised(data, REFERENCE), [[[0, 250, 500], [0, 500, 1000]], [[0, 0, 0], [0, 0, 0]]]
    )
    np.testing.assert_allclose(scores.speedups(data, REFERENCE), [[1.0, 2.0], [0.0, 0.0]])
    # A trial that diverged on the way is not saved by a finite last value.
    data = dataclasses.replace(data, diverged_at=np.array([[3, -1], [-1, -1]]))
    np.testing.assert_allclose(scores.speedups(data, REFERENCE), [[0.0, 2.0], [0.0, 0.0]])


def test_unknown_curves_are_named():
    with pytest.raises(UnknownName, match="adam-lr on a"):
        scores.speedups(archive("a", "adam", [[1.0]]), REFERENCE, "test/loss")


# Contestants.


def test_contestants_and_their_labels():
    one = archive("a", "rmsprop", [[1.0]])
    momentum = dataclasses.replace(one, set="RMSPropMomLR_10000_R5")
    found = scores.entries([one, momentum, archive("a", "rmsprop", [[1.0]], kind="default")])
    assert [(entry.optimizer, entry.ruleset) for entry in found] == [
        ("rmsprop (RMSPropMomLR_10000_R5)", "tuned"),
        ("rmsprop", "as is"),
        ("rmsprop (rmsprop-lr)", "tuned"),
    ]
    with pytest.raises(OuteroptError, match="two archives of rmsprop-lr on a"):
        scores.entries([one, one])


# The leaderboard.


def field():
    return [
        # Tuned picks setting 1: it is best on validation though setting 0 is on training.
        archive("a", "adam", [[1.0, 1.0], [1.5, 1.7]], valid=[[1.8, 1.8], [1.4, 1.4]]),
        archive("b", "adam", [[1.2, 1.4], [np.nan, 1.0]]),
        archive("a", "adam", [[1.9, 1.9]], kind="default"),
        archive("b", "adam", [[1.8, 1.8]], kind="default"),
        archive("a", "sgd", [[1.75, 1.75]], seconds=3.0),
        archive("b", "sgd", [[0.9, 1.5]]),
    ]


def test_leaderboard_by_hand():
    board = leaderboard(field(), REFERENCE)
    assert (board.tasks, board.reference, board.curve) == (("a", "b"), "r1", "train/loss")
    assert [(row.optimizer, row.ruleset) for row in board.rows] == [
        ("adam", "tuned"),
        ("sgd", "tuned"),
        ("adam", "as is"),
    ]
    adam, sgd, plain = board.rows
    assert adam.trials["a"] == pytest.approx((1.0, 0.6), abs=1e-6)
    assert adam.trials["b"] == pytest.approx((1.6, 1.2), abs=1e-6)
    assert adam.per_task == pytest.approx({"a": 0.8, "b": 1.4}, abs=1e-6)
    assert adam.score == pytest.approx(1.1, abs=1e-6)  # the middle two of 0.6, 1.0, 1.2, 1.6
    assert adam.low < adam.score < adam.high
    assert adam.setting == {"a": {"learning_rate": 0.1}, "b": {"learning_rate": 1.0}}
    assert adam.diverged == pytest.approx(1 / 8)
    assert sgd.trials["b"] == pytest.approx((2.0, 1.0))  # 0.9 is below the reference: clipped at its horizon
    assert (adam.clipped, sgd.clipped, sgd.seconds) == (0.0, 0.25, 2.0)
    assert plain.score == pytest.approx(0.3, abs=1e-6)
    assert board.rows_of("as is") == (plain,) and board.rows_of("tuned") == (adam, sgd)
    assert improvement(adam, plain).estimate == 1.0


def test_adding_an_optimizer_changes_no_other_score():
    before = {(row.optimizer, row.ruleset): row for row in leaderboard(field(), REFERENCE).rows}
    newcomers = [
        archive("a", "lion", [[0.1, 0.1]], steps=(0, 10, 20)),
        archive("c", "lion", [[1.0, 1.0]]),
        archive("a", "aaa", [[np.nan, np.nan]]),
    ]
    after = {(row.optimizer, row.ruleset): row for row in leaderboard(newcomers + field(), REFERENCE).rows}
    assert set(after) - set(before) == {("lion", "tuned"), ("aaa", "tuned")}
    assert {name: after[name] for name in before} == before


def test_rows_that_miss_tasks_come_last_and_unknown_tasks_are_listed():
    archives = [*field(), archive("b", "lion", [[1.0, 1.0]]), archive("elsewhere", "sgd", [[1.0]])]
    board = leaderboard(archives, REFERENCE)
    lion = board.rows[-1]
    assert lion.optimizer == "lion" and lion.score > board.rows[0].score
    assert board.missing(lion) == ("a",) and board.missing(board.rows[0]) == ()
    assert board.unscored == ("elsewhere",)
    with pytest.raises(OuteroptError, match="nothing to score"):
        leaderboard(archives[-1:], REFERENCE)


def test_a_set_that_always_diverges_scores_nothing():
    (row,) = leaderboard([archive("a", "bad", [[np.nan, np.nan]])], REFERENCE).rows
    assert (row.score, row.low, row.high, row.diverged, row.clipped) == (0, 0, 0, 1, 0)


# Performance profiles.


@pytest.mark.parametrize(
    "ratios, expected",
    [
        ([1.0], 1),
        ([np.inf], 0),
        ([1.0, np.inf], 0.5),
        ([2.5], 0.5),
        ([0.2, 4.0], 0.5),
        ([5.0], 0),
        ([1, 2, 3, 4], 0.5),
    ],
)
def test_benchmark_score_of_known_profiles(ratios, expected):
    assert benchmark_score(np.array(ratios)) == pytest.approx(expected)


def test_benchmark_score_is_the_integral_of_the_profile():
    ratios = np.random.default_rng(1).lognormal(0.5, 1.0, size=13)
    tau = np.linspace(1, 4, 300_001)
    assert benchmark_score(ratios) == pytest.approx(np.trapezoid(profile(ratios, tau), tau) / 3, abs=1e-4)
    np.testing.assert_allclose(
        profile(np.array([1.0, 2.0, np.inf]), np.array([0.5, 1, 3])), [0, 1 / 3, 2 / 3]
    )


def profile_field():
    steps = tuple(range(0, 1001, 50))
    return [
        # Targets lie at a quarter of the reference's way: loss 1.75, 250 steps.
        archive("a", "twice", [[0.0, 0.0, 0.0]], steps=steps, seconds=100.0),  # 2 - 2t: at 125, seen at 150
        archive("a", "same", [[1.0, 1.0, 1.9]], steps=steps, seconds=50.0),  # median of 250, 250, never
        archive("a", "slow", [[1.5, 1.5, 1.5]], steps=steps),  # 500
        archive("a", "never", [[1.9, 1.9, 1.0]], steps=steps),
    ]


def test_targets_come_from_the_reference_alone():
    assert target(REFERENCE, "a", 250) == (1.75, 250.0)
    rows = profiles(profile_field(), REFERENCE)
    assert {row.optimizer: row.ratios["a"] for row in rows} == {
        "twice": 0.6,
        "same": 1.0,
        "slow": 2.0,
        "never": np.inf,
    }
    assert [row.score for row in rows] == pytest.approx([1, 1, 2 / 3, 0])
    np.testing.assert_array_equal(rows[2].rho(np.array([1.9, 2.0])), [0, 1])
    for one in profile_field():
        (alone,) = profiles([one], REFERENCE)
        assert alone in rows


def test_relative_to_the_best_a_newcomer_lowers_the_others():
    everyone = profile_field()
    score = {row.optimizer: row.score for row in profiles(everyone, REFERENCE, relative_to="best")}
    assert score["twice"] == 1 and score["same"] == pytest.approx((4 - 250 / 150) / 3)
    without = {row.optimizer: row.score for row in profiles(everyone[1:], REFERENCE, relative_to="best")}
    assert without["same"] == 1 and without["slow"] > score["slow"]
    with pytest.raises(OuteroptError, match="trials of one length"):
        profiles([*everyone, archive("a", "short", [[1.0]])], REFERENCE, relative_to="best")


def test_profiles_in_seconds():
    everyone = profile_field()
    unit = seconds_per_step([everyone[1]])
    assert unit == {"a": pytest.approx(0.05)}
    ratios = {row.optimizer: row.ratios["a"] for row in profiles(everyone, REFERENCE, reference_seconds=unit)}
    assert ratios["same"] == pytest.approx(1.0) and ratios["twice"] == pytest.approx(1.2)
    with pytest.raises(OuteroptError, match="seconds per step on a"):
        profiles(everyone, REFERENCE, reference_seconds={"b": 1.0})
    with pytest.raises(OuteroptError, match="has no test/loss"):
        profiles(everyone, REFERENCE, curve="test/loss")


# Tunability.


@pytest.mark.parametrize("count", [1, 2, 5, 7])
def test_expected_best_is_what_brute_force_says(count):
    values = np.random.default_rng(count).normal(size=count).round(1)
    for k, found in enumerate(expected_best(values), 1):
        assert found == pytest.approx(np.mean([max(draw) for draw in itertools.combinations(values, k)]))
    for k, found in enumerate(expected_best_with_replacement(values)[:5], 1):
        assert found == pytest.approx(np.mean([max(draw) for draw in itertools.product(values, repeat=k)]))


def test_expected_best_of_large_archives_is_finite_and_ordered():
    values = np.random.default_rng(0).normal(size=1000)
    without, with_ = expected_best(values), expected_best_with_replacement(values)
    assert without[0] == pytest.approx(values.mean()) and without[-1] == pytest.approx(values.max())
    assert np.all(np.diff(without) >= -1e-12) and np.all(without >= with_ - 1e-12)


def test_attempts_are_what_brute_force_says():
    values = np.array([1.0, 0.96, 0.5, 0.2, 0.0])
    first = [next(i for i, v in enumerate(order, 1) if v >= 0.95) for order in itertools.permutations(values)]
    assert attempts_within(values) == pytest.approx(np.mean(first)) == 2.0
    assert attempts_within(np.ones(9)) == 1.0


def test_tunability_of_an_archive():
    found = tunability(archive("a", "adam", [[1.0, 1.5], [1.5, 1.5], [np.nan, np.nan]]), REFERENCE)
    # Mean speed-ups 1.5, 1 and 0.
    np.testing.assert_allclose(found.expected, [2.5 / 3, (1.5 + 1.5 + 1) / 3, 1.5])
    assert (found.task, found.set, found.attempts) == ("a", "adam-lr", 2.0)
    assert found.ease == pytest.approx(2.5 / 4.5)
    assert tunability(archive("a", "bad", [[np.nan]]), REFERENCE).ease == 0.0


def test_the_examples_of_the_manual():
    path = pathlib.Path(__file__).parents[1] / "docs" / "scores.md"
    failed, tried = doctest.testfile(str(path), module_relative=False)
    assert tried > 20 and failed == 0
