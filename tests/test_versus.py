"""Contestants against baselines: differences, verdicts and standings, on made-up curves."""

import numpy as np
import pytest
from scipy import stats

from outeropt.bench import versus
from outeropt.errors import OuteroptError, UnknownName
from outeropt.store.archive import Archive


def archive(name, losses, *, task="task", optimizer=None, steps=(0, 50, 100), lost=(), seeds=None, start=4.0):
    """Curves that fall in straight lines from `start` to the last losses, one row for each setting."""
    last = np.atleast_2d(np.asarray(losses, np.float32))
    share = np.asarray(steps, np.float32) / steps[-1]
    curve = start + (last[:, :, None] - start) * share
    diverged = np.full(last.shape, -1, np.int32)
    for place in lost:
        curve[place][-1] = np.nan
        diverged[place] = steps[-1]
    return Archive(
        task=task,
        set=name,
        optimizer=optimizer or name,
        settings=tuple({"learning_rate": 0.1**i, "b1": 0.9} for i in range(len(last))),
        seeds=tuple(range(last.shape[1]) if seeds is None else seeds),
        steps=np.asarray(steps, np.int32),
        curves={f"{split}/loss": curve + i for i, split in enumerate(("test", "valid", "train"))},
        diverged_at=diverged,
        seconds=np.ones(last.shape, np.float32),
        eval_every=int(steps[1]),
        eval_batches=1,
        last_eval_batches=1,
    )


BASE = archive("base", [[3.0, 3.2, 3.1], [2.0, 2.4, 2.2], [2.1, 2.5, 2.3]])


def duel(other, base=BASE):
    (comparison,) = versus.compare([other, base], ["base"])
    (found,) = comparison.duels
    return found


def test_a_paired_win():
    found = duel(archive("ours", [1.9, 2.32, 2.08]))
    wanted = stats.ttest_1samp([-0.1, -0.08, -0.12], 0).confidence_interval()
    assert found.verdict == "wins" and found.paired
    assert found.ratio == pytest.approx(2.1 / 2.2)
    got = (found.difference.estimate, found.difference.low, found.difference.high)
    assert got == pytest.approx((-0.1, wanted.low, wanted.high), rel=1e-4)
    assert found.steps == np.inf  # the baseline never gets there
    assert found.ours == pytest.approx((1.9, 2.32, 2.08)) and found.theirs == pytest.approx((2.0, 2.4, 2.2))


def test_other_seeds_are_compared_unpaired():
    # The same losses as above: without pairs the difference is lost in the spread between seeds.
    found = duel(archive("ours", [1.9, 2.32, 2.08], seeds=(5, 6, 7)))
    assert found.verdict == "unclear" and not found.paired
    ours, theirs = np.array([1.0, 1.5, 1.1, 1.2]), np.array([2.0, 2.4, 2.2])
    wanted = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval()
    got = versus.unpaired_difference(ours, theirs)
    assert (got.low, got.high) == pytest.approx((wanted.low, wanted.high))
    assert versus.unpaired_difference(np.ones(3), np.zeros(2)) == versus.Interval(1.0, 1.0, 1.0)
    assert versus.unpaired_difference(np.ones(1), np.zeros(2)) == versus.Interval(1.0, -np.inf, np.inf)
    assert versus.paired_difference(np.ones(1), np.zeros(1)) == versus.Interval(1.0, -np.inf, np.inf)


def test_the_steps_that_the_baseline_needs():
    # The chosen baseline falls from 4 to 2.2 in a straight line over 100 steps.
    steps = np.arange(0, 101, 5)
    base = archive("base", [2.0, 2.4, 2.2], steps=steps)
    found = duel(archive("ours", [3.1, 3.1, 3.1], steps=steps), base)
    assert found.verdict == "loses" and found.steps == pytest.approx(50, rel=0.02)
    assert duel(archive("ours", [9.0, 9.0, 9.0], steps=steps), base).steps == 0


def test_a_diverged_seed_is_an_infinite_loss():
    lost = archive("ours", [1.0, 1.0, 1.0], lost=[(0, 1)])
    found = duel(lost)
    assert (found.verdict, found.ratio) == ("loses", np.inf)
    assert found.ours[1] == np.inf and np.isnan(found.difference.estimate) and np.isnan(found.steps)
    base = archive("base", [2.0, 2.4, 2.2], lost=[(0, 0)])
    won = duel(archive("ours", [3.0, 3.0, 3.0]), base)
    assert (won.verdict, won.ratio) == ("wins", 0.0)
    tie = duel(lost, base)
    assert tie.verdict == "unclear" and np.isnan(tie.ratio)
    (comparison,) = versus.compare([lost, base], ["base"])
    (final,) = comparison.contestants
    assert (final.diverged, final.seeds) == (1, 3)
    assert final.losses["test/loss"].estimate == pytest.approx(1.0)
    every = archive("ours", [1.0, 1.0, 1.0], lost=[(0, 0), (0, 1), (0, 2)])
    (comparison,) = versus.compare([every, BASE], ["base"])
    assert np.isnan(comparison.contestants[0].losses["test/loss"].estimate)


def test_settings_are_chosen_by_validation_and_judged_on_test():
    # The second setting has the lower test loss, the first the lower validation loss.
    base = archive("base", [[2.0, 2.1], [1.0, 1.1]])
    base.curves["valid/loss"][0] -= 5
    (comparison,) = versus.compare([archive("ours", [1.5, 1.6]), base], ["base"])
    assert comparison.baselines[0].setting == {"learning_rate": 1.0}  # b1, which all share, is not told
    assert comparison.duels[0].theirs == pytest.approx((2.0, 2.1)) and comparison.duels[0].verdict == "wins"
    assert comparison.contestants[0].setting == {}
    assert [*comparison.contestants[0].losses] == ["train/loss", "valid/loss", "test/loss"]


def test_labels_tell_sets_of_one_optimizer_apart():
    given = [
        archive("ours", [1.0, 1.1]),
        archive("a", [2.0, 2.1], optimizer="adam"),
        archive("b", [3.0, 3.1], optimizer="adam"),
    ]
    (comparison,) = versus.compare(given, ["b", "a"])
    assert [final.label for final in comparison.baselines] == ["adam (b)", "adam (a)"]
    assert [found.baseline for found in comparison.duels] == ["adam (b)", "adam (a)"]


def test_standings_over_tasks():
    given = [
        archive(name, losses, task=task, lost=lost)
        for task, ours, lost in [
            ("a", [1.0, 1.1, 1.2], []),
            ("b", [3.0, 3.1, 3.3], []),
            ("c", [2.5, 2.1, 2.2], []),
            ("d", [1.0, 1.0, 1.0], [(0, 2)]),
        ]
        for name, losses, lost in [("ours", ours, lost), ("base", [2.0, 2.2, 2.4], [])]
    ]
    (row,) = versus.standings(versus.compare(given, ["base"]))
    assert (row.tasks, row.wins, row.unclear, row.losses) == (4, 1, 1, 2)
    assert (row.diverged, row.trials) == (1, 12)
    assert row.ratio == pytest.approx((6.8 / 6.6 + 9.4 / 6.6) / 2)
    # On c: 2.5 loses to all three, 2.1 beats two, 2.2 beats one and ties one.
    assert row.better.estimate == pytest.approx((1 + 0 + 3.5 / 9 + 6 / 9) / 4)
    assert row.better.low < row.better.estimate < row.better.high


def test_what_cannot_be_compared_is_an_error():
    with pytest.raises(OuteroptError, match=r"No task has both a baseline \(base\) and another set"):
        versus.compare([BASE], ["base"])
    with pytest.raises(
        OuteroptError, match="ours ran 60 steps on task, base 100; only trials of equal length"
    ):
        versus.compare([archive("ours", [1.0], steps=(0, 30, 60)), BASE], ["base"])
    with pytest.raises(OuteroptError, match="two archives of base on task"):
        versus.compare([BASE, BASE], ["base"])
    bare = archive("ours", [1.0])
    del bare.curves["test/loss"]
    with pytest.raises(UnknownName, match="test/loss"):
        versus.compare([bare, BASE], ["base"])
