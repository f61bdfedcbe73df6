"""Statistics of runs and of replicates: by hand, by the analysis of variance, on known deviations."""

import dataclasses

import numpy as np
import pytest
from scipy import ndimage, stats

from outeropt.bench import stability
from outeropt.bench.learned_names import label
from outeropt.bench.mixed_effects import fit
from picture_fixtures import archive


def run_of(valid, train=None, accuracy=None, task="task", optimizer="adam", diverged_at=None):
    """An archive of one setting whose curves after the first epoch are these, (seeds, epochs)."""
    valid = np.asarray(valid, "f")
    seeds, count = valid.shape
    made = archive(task, optimizer, settings=1, seeds=seeds, points=count + 1, steps=10 * count)

    def curve(values):
        return np.concatenate([np.full((seeds, 1), 99.0), values], axis=1).astype("f")[None]

    train = valid if train is None else np.asarray(train, "f")
    curves = {"train/loss": curve(2 * train), "inner/loss": curve(train), "valid/loss": curve(valid)}
    if accuracy is not None:
        curves["valid/accuracy"] = curve(np.asarray(accuracy, "f"))
    lost = np.full((1, seeds), -1, np.int32) if diverged_at is None else np.int32([diverged_at])
    return dataclasses.replace(made, curves=curves, diverged_at=lost)


# Runs -------------------------------------------------------------------------------------------------------

VALID = [[2.0, 1.0, 0.5, 0.7], [3.0, 2.5, 2.0, 1.0]]
TRAIN = [[1.0, 0.5, 0.25, 0.3], [2.0, 1.0, 0.5, 0.4]]


def test_statistics_by_hand():
    one = stability.run_statistics(run_of(VALID, TRAIN, [[0.2, 0.9, 0.8, 0.7], [0.1, 0.2, 0.3, 0.4]]))
    np.testing.assert_allclose(one.valid_best, np.log([0.5, 1.0]))
    np.testing.assert_array_equal(one.valid_best_epoch, [3, 4])
    np.testing.assert_allclose(one.valid_last, np.log([0.7, 1.0]), rtol=1e-6)
    np.testing.assert_allclose(one.valid_mean, np.log(VALID).mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(one.train_best, np.log([0.25, 0.4]), rtol=1e-6)
    np.testing.assert_allclose(one.train_last, np.log([0.3, 0.4]), rtol=1e-6)
    np.testing.assert_allclose(one.train_mean, np.log(TRAIN).mean(axis=1), rtol=1e-6)  # not of VALID
    np.testing.assert_allclose(one.accuracy_best, [0.9, 0.4])  # each repeat's own
    assert not one.diverged.any() and (one.method, one.task) == ("adam", "task")


def test_a_task_without_accuracy_or_epoch_losses_of_its_own():
    held = run_of(VALID, TRAIN)
    assert np.isnan(stability.run_statistics(held).accuracy_best).all()
    curves = {name: curve for name, curve in held.curves.items() if name != "inner/loss"}
    one = stability.run_statistics(dataclasses.replace(held, curves=curves))
    np.testing.assert_allclose(one.train_best, np.log([0.5, 0.8]), rtol=1e-6)


def weighted(loss, sigma=2.0):
    """The filter of the paper by its definition: a window of four deviations, edges continued."""
    places = np.arange(-8, 9)
    weights = np.exp(-0.5 * (places / sigma) ** 2)
    weights /= weights.sum()
    index = np.clip(np.arange(len(loss))[:, None] + places, 0, len(loss) - 1)
    return (loss[index] * weights).sum(axis=1)


def test_jitter_is_against_a_gaussian_filter():
    loss = np.exp(np.random.default_rng(0).normal(size=25)) + 0.1
    expected = (np.log(weighted(loss)) - np.log(loss)).std()
    np.testing.assert_allclose(stability.jitter(loss[None]), [expected])
    np.testing.assert_allclose(weighted(loss), ndimage.gaussian_filter1d(loss, 2, mode="nearest"))
    np.testing.assert_allclose(stability.jitter(np.full((1, 5), 3.0)), [0.0], atol=1e-12)


def test_runs_that_diverged_are_counted_and_keep_what_they_had():
    nan = np.nan
    valid = [[2.0, 1.0, nan, nan], [nan, nan, nan, nan], [1.0, 0.9, 0.8, 0.7]]
    one = stability.run_statistics(run_of(valid, diverged_at=[25, 3, -1]))
    np.testing.assert_array_equal(one.diverged, [True, True, False])
    np.testing.assert_allclose(one.valid_best, [0.0, nan, np.log(0.7)], rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(one.valid_best_epoch, [2, nan, 4])
    for of in ("valid_last", "valid_mean", "jitter", "train_last", "train_mean"):
        np.testing.assert_array_equal(np.isnan(getattr(one, of)), [True, True, False])


def test_losses_without_logarithm_are_no_numbers():
    one = stability.run_statistics(run_of([[1.0, -2.0, 0.5, 0.6]]))
    np.testing.assert_allclose(one.valid_best, np.log([0.5]))
    assert np.isnan(one.valid_mean).all() and not one.diverged.any()


# Replicates -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        ("learned:amalgam-min-max-3", ("amalgam-min-max", "3")),
        ("learned:rnnprop/min-max/12", ("rnnprop/min-max", "12")),
        ("clip_norm:learned:mine-1", ("clip_norm:mine", "1")),
        ("learned:small_fc", None),
        ("learned:12", None),
        ("adam-1", None),
    ],
)
def test_family_of(optimizer, expected):
    assert stability.family_of(optimizer) == expected


def test_a_numbered_folder_is_called_by_those_above_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert label("results/rnnprop/min_max/3") == "rnnprop/min_max/3"
    assert label("results/rnnprop/min_max/3/optimizer.safetensors") == "rnnprop/min_max/3"
    assert label("results/rnnprop/min_max/3.safetensors") == "rnnprop/min_max/3"
    assert label("/7") == "7" and label("results/mine-7") == "mine-7"


def test_families_gather_replicates():
    rng = np.random.default_rng(0)

    def held(task, name):
        return run_of(np.exp(rng.normal(size=(3, 4))), task=task, optimizer=f"learned:{name}")

    archives = [
        held("a", "new-1"),
        held("a", "new-2"),
        held("b", "new-1"),
        held("a", "old"),
        held("b", "x/y/1"),
    ]
    archives.append(run_of([[np.nan] * 4, [1, 2, 3, 4], [2, 2, 1, 1]], task="a", optimizer="learned:new-3"))
    (family,) = stability.families(archives)
    assert (family.name, family.task, list(family.replicates)) == ("new", "a", ["1", "2", "3"])
    assert family.diverged == (1, 9) and family.fits.keys() == set(stability.STATISTICS)
    one = family.fits["valid_best"]
    assert (one.replicates, one.evaluations, one.left_out) == (3, 8, 1)
    expected = fit([runs.valid_best for runs in family.replicates.values()])
    assert one == expected


# The random intercept ---------------------------------------------------------------------------------------


def drawn(seed, sizes, between, within):
    rng = np.random.default_rng(seed)
    return [-3 + between * rng.normal() + within * rng.normal(size=size) for size in sizes]


@pytest.mark.parametrize(("between", "within"), [(0.3, 0.1), (0.1, 0.1), (5.0, 0.01)])
def test_equal_sizes_give_the_analysis_of_variance(between, within):
    values = np.array(drawn(0, [10] * 8, between, within))
    msb, msw = 10 * values.mean(axis=1).var(ddof=1), values.var(axis=1, ddof=1).mean()
    one = fit(list(values))
    np.testing.assert_allclose(one.residual_sd.estimate, msw**0.5, rtol=1e-5)
    np.testing.assert_allclose(one.replicate_sd.estimate, ((msb - msw) / 10) ** 0.5, rtol=1e-5)
    half = stats.t.ppf(0.975, 7) * (msb / 80) ** 0.5
    expected = values.mean() + half * np.array([0, -1, 1])
    np.testing.assert_allclose([one.mean.estimate, one.mean.low, one.mean.high], expected, rtol=1e-5)
    for sd in (one.replicate_sd, one.residual_sd):
        assert sd.low < sd.estimate < sd.high


def test_replicates_alike_have_no_deviation():
    values = np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [2.0, 1.0, 3.0]])  # equal means
    one = fit(list(values))
    assert one.replicate_sd.estimate == one.replicate_sd.low == 0 < one.replicate_sd.high
    np.testing.assert_allclose(one.residual_sd.estimate, values.std(ddof=1), rtol=1e-6)


def test_unequal_sizes_maximise_the_restricted_likelihood():
    groups = drawn(3, [2, 9, 5, 1, 7], 0.5, 0.2)
    one = fit(groups)
    everything = np.concatenate(groups)
    member = np.repeat(np.arange(5), [2, 9, 5, 1, 7])

    def cost(a, e):
        """The definition, by matrices: Patterson and Thompson 1971."""
        v = e**2 * np.eye(24) + a**2 * (member[:, None] == member)
        x = np.ones((24, 1))
        inverse = np.linalg.inv(v)
        information = x.T @ inverse @ x
        mean = np.linalg.solve(information, x.T @ inverse @ everything)
        away = everything - mean[0]
        return np.linalg.slogdet(v)[1] + np.log(information[0, 0]) + away @ inverse @ away, mean[0]

    a, e = one.replicate_sd.estimate, one.residual_sd.estimate
    best, mean = cost(a, e)
    np.testing.assert_allclose(one.mean.estimate, mean, rtol=1e-6)
    for factor in (0.99, 1.01):
        assert cost(a * factor, e)[0] > best and cost(a, e * factor)[0] > best
    # At the ends of an interval the profile is 3.84 above its minimum.
    limit = best + stats.chi2.ppf(0.95, 1)
    for end in (one.replicate_sd.low, one.replicate_sd.high):
        assert min(cost(end, x)[0] for x in np.geomspace(e / 3, 3 * e, 400)) == pytest.approx(limit, abs=0.01)
    for end in (one.residual_sd.low, one.residual_sd.high):
        assert min(cost(x, end)[0] for x in np.geomspace(a / 9, 9 * a, 400)) == pytest.approx(limit, abs=0.01)


def test_known_deviations_are_inside_their_intervals():
    hits = np.zeros(3)
    for seed in range(100):
        one = fit(drawn(seed, [10] * 8, 0.2, 0.1))
        for i, (interval, truth) in enumerate(
            [(one.mean, -3.0), (one.replicate_sd, 0.2), (one.residual_sd, 0.1)]
        ):
            hits[i] += interval.low <= truth <= interval.high
    assert (hits >= 88).all()  # 95 of a hundred, and less than four deviations below


@pytest.mark.parametrize(
    ("groups", "replicates", "evaluations", "left_out"),
    [
        ([[1.0, 2.0, np.nan]], 1, 2, 1),
        ([[1.0], [2.0], [4.0]], 3, 3, 0),
        ([[1.0]], 1, 1, 0),
        ([[np.nan], []], 0, 0, 1),
        ([[2.0, 2.0], [2.0, 2.0]], 2, 4, 0),
    ],
)
def test_what_cannot_be_told_apart_is_no_number(groups, replicates, evaluations, left_out):
    one = fit([np.array(group) for group in groups])
    assert (one.replicates, one.evaluations, one.left_out) == (replicates, evaluations, left_out)
    assert np.isnan(one.replicate_sd.estimate) == (replicates < 2 or evaluations == replicates)
    assert np.isnan(one.residual_sd.estimate) == (evaluations <= replicates)
    assert np.isnan(one.mean.estimate) == (evaluations == 0)
    assert evaluations == 0 or one.mean.low <= one.mean.estimate <= one.mean.high


def test_one_replicate_has_the_usual_intervals():
    values = np.random.default_rng(0).normal(size=12)
    one = fit([values])
    low, high = stats.t.interval(0.95, 11, values.mean(), stats.sem(values))
    np.testing.assert_allclose([one.mean.low, one.mean.high], [low, high])
    sds = values.std(ddof=1) * np.sqrt(11 / stats.chi2.ppf([0.975, 0.025], 11))
    np.testing.assert_allclose([one.residual_sd.low, one.residual_sd.high], sds)
