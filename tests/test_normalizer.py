"""Normalizers: the original's stored numbers, hand-computed ones, files."""

import functools
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from outeropt.bench.normalizer import (
    Envelope,
    Normalizer,
    envelope,
    linear_grid,
    log_grid,
)
from outeropt.bench.smoothing import centred, ema, ema_holding
from outeropt.errors import OuteroptError, StoreError, UnknownName
from outeropt.store.archive import Archive


GOLDEN = pathlib.Path(__file__).parent / "golden" / "baselines"
REFERENCE_SETS = ("AdamLR", "AdamSqrtDecayLR", "AdamExpDecayLR", "RAdamLR")


@functools.cache
def golden(name):
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


def archive(loss, steps, task="t", set="adam-lr", **curves):
    loss = np.asarray(loss, np.float32)
    settings, seeds, _ = loss.shape
    return Archive(
        task=task,
        set=set,
        optimizer="adam",
        settings=tuple({"learning_rate": 10.0**-i} for i in range(settings)),
        seeds=tuple(range(seeds)),
        steps=np.asarray(steps),
        curves={"train/loss": loss, **curves},
        diverged_at=np.full((settings, seeds), -1, np.int32),
        seconds=np.ones((settings, seeds), np.float32),
        eval_every=10,
        eval_batches=1,
        last_eval_batches=1,
    )


SHIPPED_TASKS = sorted(
    name.rsplit("/", 1)[0] for name in golden("shipped_normaliser") if name.endswith("/ys")
)


@pytest.mark.parametrize("task", SHIPPED_TASKS)
def test_published_normalizers_give_their_stored_steps_bit_for_bit(task):
    stored = golden("shipped_normaliser")
    normalizer = Normalizer(
        "published", {(task, "train/loss"): Envelope(stored[f"{task}/xs"], stored[f"{task}/ys"])}
    )
    steps = normalizer(task, stored[f"{task}/losses"])
    assert steps.dtype == np.float32
    np.testing.assert_array_equal(steps, stored[f"{task}/normalised_steps"])


@pytest.mark.parametrize("which, sets", [("adam", REFERENCE_SETS[:1]), ("multiple", REFERENCE_SETS)])
def test_envelopes_equal_those_of_the_original(which, sets):
    stored = golden("envelope_synthetic")
    archives = [
        archive(
            stored[f"input/{name}_100000_R5/eval/train/loss"],
            stored[f"input/{name}_100000_R5/eval/xs"],
            set=name,
        )
        for name in sets
    ]
    normalizer = Normalizer.from_archives(
        archives, smooth=lambda values, steps: ema(values), grid=linear_grid, curves=["train/loss"]
    )
    found = normalizer.envelope("t")
    np.testing.assert_array_equal(found.steps, stored[f"{which}/xs"])
    np.testing.assert_array_equal(found.losses, stored[f"{which}/ys"])
    np.testing.assert_array_equal(
        normalizer("t", stored[f"{which}/losses"]), stored[f"{which}/normalised_steps"]
    )
    assert normalizer.made_from == tuple(sorted(sets))


@pytest.mark.parametrize("name", REFERENCE_SETS)
def test_ema_of_seed_means_equals_the_stored_one(name):
    stored = golden("envelope_synthetic")
    loss = stored[f"input/{name}_100000_R5/eval/train/loss"]
    np.testing.assert_array_equal(ema(loss.mean(axis=1)), stored[f"ema/{name}_100000_R5"])


def test_ema_variants_equal_the_stored_ones():
    stored = golden("envelope_synthetic")
    values, decay = stored["ema_demo/input"], float(stored["ema_demo/alpha"])
    np.testing.assert_array_equal(ema(np.nan_to_num(values, nan=0.0), decay), stored["ema_demo/plain"])
    np.testing.assert_array_equal(ema_holding(values, decay), stored["ema_demo/ignore_nan"])


def test_ema_by_hand():
    np.testing.assert_allclose(ema(np.array([1.0, 0.0, 2.0]), 0.5), [1.0, 0.5, 1.25])
    assert np.isnan(ema(np.array([1.0, np.nan, 2.0]), 0.5)[1:]).all()
    np.testing.assert_allclose(
        ema_holding(np.array([np.nan, 4.0, np.nan, 2.0]), 0.5), [np.nan, 4.0, 4.0, 3.0]
    )


def test_centred_mean_by_hand_and_without_lag():
    steps = np.array([0, 10, 20, 30, 40])
    # Half windows 0, 5, 10, 10 (half of the rest), 0.
    np.testing.assert_allclose(centred(np.array([9.0, 1.0, 3.0, 5.0, 2.0]), steps, 0.5), [9, 1, 3, 10 / 3, 2])
    steps = np.arange(0, 1001, 10)
    line = 5.0 - 0.004 * steps
    np.testing.assert_allclose(centred(line, steps), line)
    assert np.all(ema(line)[1:] > line[1:])


def test_centred_mean_is_nan_around_a_gap_and_whole_elsewhere():
    steps = np.arange(11)
    values = np.ones(11)
    values[6] = np.inf
    expected = np.ones(11)
    expected[5:8] = np.nan
    np.testing.assert_array_equal(centred(values, steps, 0.2), expected)


def test_envelope_by_hand():
    steps = np.array([0, 1, 2, 3])
    curves = [np.array([[4.0, 2.0, np.nan, np.nan]]), np.array([[4.0, 3.0, 3.0, 1.0], [5.0, 5.0, 5.0, 5.0]])]
    found = envelope(curves, steps, grid=lambda steps: np.array([0.0, 0.5, 1.0, 2.0, 3.0]))
    np.testing.assert_allclose(found.losses, [4, 3, 2, 2, 1])
    # Halfway, the first step of the flat part, below it, and both ends.
    at = [3.0, 2.0, 1.5, 1.0, 0.5, 4.0, 9.0, np.nan]
    np.testing.assert_allclose(found.steps_to(np.array(at)), [0.5, 1.0, 2.5, 3.0, 3.0, 0.0, 0.0, 0.0])


def test_clipping_is_flagged():
    normalizer = Normalizer("v", {("t", "train/loss"): Envelope(np.array([0.0, 10.0]), np.array([2.0, 1.0]))})
    losses = np.array([2.5, 2.0, 1.5, 1.0, 0.9, np.nan])
    np.testing.assert_array_equal(normalizer.clipped("t", losses), [-1, 0, 0, 0, 1, -1])
    np.testing.assert_allclose(normalizer("t", losses), [0, 0, 5, 10, 10, 0])
    assert normalizer.loss_at("t", 2.5) == 1.75
    assert normalizer.envelope("t").horizon == 10.0


def test_log_grid_resolves_short_runs():
    points = log_grid(np.arange(0, 100_001, 10), 256)
    assert points[0] == 0 and points[1] == 10 and points[-1] == pytest.approx(100_000)
    assert np.count_nonzero(points < 195) > 50
    assert np.all(np.diff(points) > 0)


def test_a_power_law_is_inverted():
    steps = np.arange(0, 5001, 10)
    loss = 2.0 * (1 + steps / 10.0) ** -0.5
    normalizer = Normalizer.from_archives([archive(np.tile(loss, (1, 3, 1)), steps)])
    wanted = np.array([60.0, 333.0, 1234.0, 4321.0])
    np.testing.assert_allclose(normalizer("t", 2.0 * (1 + wanted / 10) ** -0.5), wanted, rtol=0.01)


def test_every_curve_that_is_there_is_covered():
    steps = np.arange(0, 101, 10)
    loss = np.tile(np.linspace(2, 1, 11), (2, 2, 1)).astype(np.float32)
    nothing = np.full_like(loss, np.nan)
    data = archive(loss, steps, **{"valid/loss": loss + 1, "test/loss": nothing})
    normalizer = Normalizer.from_archives([data, archive(loss, steps, task="u")])
    assert normalizer.tasks == ("t", "u")
    assert normalizer.knows("t", "valid/loss") and not normalizer.knows("u", "valid/loss")
    assert not normalizer.knows("t", "test/loss")
    assert normalizer("t", np.array(2.5), "valid/loss") == pytest.approx(50)


def test_files_come_back_exactly_and_without_pickles(tmp_path):
    steps = np.arange(0, 101, 10)
    data = archive(np.tile(np.linspace(2, 1, 11), (2, 2, 1)), steps, task="my/task.py:a")
    normalizer = Normalizer.from_archives([data], version="v7")
    path = tmp_path / "v7.npz"
    normalizer.save(path)
    again = Normalizer.load(path)
    assert (again.version, again.made_from, again.tasks) == ("v7", ("adam-lr",), ("my/task.py:a",))
    for name, one in normalizer.envelopes.items():
        np.testing.assert_array_equal(again.envelopes[name].steps, one.steps)
        np.testing.assert_array_equal(again.envelopes[name].losses, one.losses)


def test_what_cannot_be_used_is_said_in_one_line(tmp_path):
    steps = np.arange(0, 101, 10)
    loss = np.ones((1, 1, 11))
    normalizer = Normalizer.from_archives([archive(loss, steps, task="ImageMLP")])
    with pytest.raises(UnknownName, match="Did you mean ImageMLP"):
        normalizer("ImageMLPP", np.array(1.0))
    with pytest.raises(UnknownName, match="train/loss"):
        normalizer("ImageMLP", np.array(1.0), "train/los")
    with pytest.raises(OuteroptError, match="different steps of t"):
        Normalizer.from_archives([archive(loss, steps, set="a"), archive(loss, steps * 2, set="b")])
    with pytest.raises(OuteroptError, match="at least one"):
        Normalizer.from_archives([])
    with pytest.raises(StoreError, match="There is no normalizer"):
        Normalizer.load(tmp_path / "none.npz")
    (tmp_path / "bad.npz").write_bytes(b"not a zip")
    with pytest.raises(StoreError, match="not a normalizer file"):
        Normalizer.load(tmp_path / "bad.npz")
    np.savez(tmp_path / "other.npz", x=np.ones(3))
    with pytest.raises(StoreError, match="not a normalizer file"):
        Normalizer.load(tmp_path / "other.npz")
    with pytest.raises(UnknownName, match="shipped normalizer"):
        Normalizer.shipped("no-such-version")


def test_scores_need_no_jax():
    modules = "normalizer, statistics, scores, leaderboard, profiles, tunability, sets"
    code = f"import sys; from outeropt.bench import {modules}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
