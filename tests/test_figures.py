"""Figures: what they draw, in every awkward case, without a display and without warnings."""

import dataclasses
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from outeropt.bench.leaderboard import leaderboard
from outeropt.bench.normalizer import Normalizer
from outeropt.bench.pictures import figures, series, style
from outeropt.bench.pictures.contestants import contestants, order
from outeropt.bench.profiles import profiles as performance_profiles
from outeropt.errors import OuteroptError
from picture_fixtures import archive, archives


OF_ARCHIVES = {"learning_curves", "learning_curves_valid", "sensitivity", "tunability"}


def draw(figure: Figure) -> Figure:
    """Lays out and draws everything (warnings are errors)."""
    figure.draw_without_rendering()
    return figure


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


@pytest.fixture(scope="module")
def field():
    held = archives(optimizers=10, tasks=2)
    normalizer = Normalizer.from_archives([a for a in held if a.set == "opt_0-lr"], "the-reference")
    return held, leaderboard(held, normalizer, resamples=50), normalizer


def test_save_all_writes_every_figure(field, tmp_path):
    held, board, normalizer = field
    small = [a for a in held if a.optimizer in ("opt_0", "opt_1")]
    written = figures.save_all(small, board, tmp_path / "new" / "folder", normalizer)
    assert {path.stem for path in written} == {*OF_ARCHIVES, "ranking", "heat_map", "profiles"}
    for path in written:
        start = path.read_bytes()[:5]
        assert start == (b"\x89PNG\r" if path.suffix == ".png" else b"<?xml")
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_save_all_without_scores_leaves_score_figures_out(tmp_path):
    written = figures.save_all([archive(settings=1, seeds=1, points=2)], None, tmp_path)
    assert {path.stem for path in written} == OF_ARCHIVES


def test_figures_are_reproducible(tmp_path):
    for name in ("one.svg", "two.svg"):
        style.save(figures.learning_curves([archive()]), tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_learning_curves_draw_the_best_setting():
    one = archive(diverged=False)
    figure = draw(figures.learning_curves([one], "valid/loss", log_y=False))
    line = figure.axes[0].lines[0]
    best = one.best("valid/loss")
    np.testing.assert_allclose(line.get_ydata(), one.curves["valid/loss"][best].mean(axis=0), rtol=1e-6)
    assert figure.axes[0].get_yscale() == "linear"
    assert draw(figures.learning_curves([one], log_y=True)).axes[0].get_yscale() == "log"


@pytest.mark.parametrize(
    "held",
    [
        pytest.param([archive(seeds=1)], id="one seed"),
        pytest.param([archive(points=1, steps=0)], id="one step"),
        pytest.param([archive(settings=1, diverged=False)], id="one setting"),
        pytest.param([archive(task="$x_1$ <b>&amp;", optimizer="_hidden")], id="awkward names"),
        pytest.param([archive(), archive(optimizer="sgd", set="other")], id="two optimizers"),
        pytest.param([archive(set="a"), archive(set="b")], id="two sets of one optimizer"),
        pytest.param(archives(optimizers=9, tasks=2), id="many"),
    ],
)
def test_awkward_archives_draw(held):
    for figure in (figures.learning_curves(held), figures.sensitivity(held), figures.tunability(held)):
        draw(figure)
    names = {entry.name for entry in contestants(held)}
    assert names <= set(texts(figures.learning_curves(held)))


def test_a_set_that_diverged_altogether_draws():
    one = archive(diverged=False)
    for name in one.curves:
        one.curves[name][:, :, 1:] = np.nan
    both = [one, archive(optimizer="sgd")]
    for held in ([one], both):
        draw(figures.learning_curves(held))
        crosses = [text for text in texts(draw(figures.sensitivity(held))) if text == "×"]
        assert len(crosses) == 5 + (len(held) - 1) * 2
    draw(figures.tunability(both))
    with pytest.raises(OuteroptError, match="no tunability"):
        figures.tunability([one])


def test_unknown_curves_and_hyperparameters_are_named():
    with pytest.raises(OuteroptError, match=r"'loss'.*train/loss"):
        figures.learning_curves([archive()], "loss")
    with pytest.raises(OuteroptError, match="'momentum'"):
        figures.sensitivity([archive()], "momentum")
    with pytest.raises(OuteroptError, match="below 1"):
        figures.learning_curves([archive()], smoothing=1.0)


def test_scores_draw_both_rulesets(field):
    held, board, normalizer = field
    ranking = draw(figures.ranking(board))
    assert {"tuned", "as is"} <= set(texts(ranking))
    heat = draw(figures.heat_map(board, "as is"))
    row = board.rows_of("as is")[0]
    assert f"{row.per_task['task_0']:.2f}" in texts(heat)
    rows = performance_profiles(held, normalizer)
    assert len(draw(figures.profiles(rows)).axes[0].lines) == 10 + 1  # and the rule at 1
    draw(figures.tunability(held, normalizer))


def test_scores_with_one_row_or_a_missing_task(field):
    _, board, _ = field
    partial = dataclasses.replace(board.rows[0], per_task={"task_0": 0.0}, score=0.0, low=0.0, high=0.0)
    lonely = dataclasses.replace(board, rows=(partial,))
    draw(figures.ranking(lonely))
    assert "–" in texts(draw(figures.heat_map(lonely)))
    empty = dataclasses.replace(board, rows=())
    for job in (figures.ranking, figures.heat_map):
        with pytest.raises(OuteroptError, match="no rows"):
            job(empty)
    with pytest.raises(OuteroptError, match="no performance profiles"):
        figures.profiles([])


def test_band_ignores_diverged_seeds():
    values = np.array([[1.0, 2.0, np.nan], [3.0, np.nan, np.nan]])
    band = series.band(values)
    np.testing.assert_array_equal(band.centre, [2.0, 2.0, np.nan])
    np.testing.assert_array_equal(band.low, [1.0, 2.0, np.nan])
    np.testing.assert_array_equal(band.high, [3.0, 2.0, np.nan])
    half = 12.706204736 * np.std([1.0, 3.0], ddof=1) / np.sqrt(2)  # t(0.975, 1)
    interval = series.band(values, "interval")
    np.testing.assert_allclose(interval.high, [2 + half, 2.0, np.nan])


def test_smoothing_is_unbiased_and_keeps_divergence():
    values = np.array([np.nan, 1.0, 2.0, np.nan, np.nan])
    smooth = series.smoothed(values, 0.5)
    np.testing.assert_allclose(smooth, [np.nan, 1.0, (2 + 0.5) / 1.5, np.nan, np.nan])
    np.testing.assert_array_equal(series.smoothed(values, 0.0), values)
    constant = np.full((2, 7), 3.0)
    np.testing.assert_allclose(series.smoothed(constant, 0.9), constant)


def test_sensitivity_takes_the_best_of_settings_that_share_a_value():
    one = archive(settings=4, diverged=False)
    rates = (1e-3, 1e-2, 1e-3, 1e-2)
    one = dataclasses.replace(one, settings=tuple({"learning_rate": r} for r in rates))
    result = series.sensitivity(one, "learning_rate")
    assert result is not None
    final = one.final("valid/loss").mean(axis=1)
    np.testing.assert_array_equal(result.values, [1e-3, 1e-2])
    np.testing.assert_allclose(
        result.final.centre, [min(final[0], final[2]), min(final[1], final[3])], rtol=1e-6
    )


def test_sensitivity_of_a_random_search_is_grouped():
    one = archive(settings=200, seeds=2, points=3)
    result = series.sensitivity(one, "learning_rate")
    assert result is not None
    assert len(result.values) == 32
    assert (np.diff(result.values) > 0).all()
    assert result.diverged[-1] == 0  # the diverged settings of an interval lose against the others


def test_thinning_keeps_both_ends_and_the_beginning():
    steps = np.arange(0, 10_001)
    keep = series.thin(steps, 200)
    assert len(keep) <= 200 and keep[0] == 0 and keep[-1] == 10_000
    assert {0, 1, 2, 3} <= set(keep.tolist())
    np.testing.assert_array_equal(series.thin(steps[:50], 200), np.arange(50))


def test_labels_spread_without_overlap_and_stay_inside():
    places = style.spread([0.0, 0.01, 0.5, 0.99, 1.0], 0.1)
    assert (np.diff(places) >= 0.1 - 1e-9).all()
    assert min(places) >= 0 and max(places) <= 1 + 1e-9
    assert places[2] == 0.5


def test_looks_differ_for_up_to_32_optimizers():
    looks = {(style.look(i).colour, style.look(i).dash) for i in range(32)}
    assert len(looks) == 32


def test_labels_are_the_leaderboards():
    scored = [archive("known", "adam", "adam-lr"), archive("known", "sgd", "sgd-lr")]
    board = leaderboard(scored, Normalizer.from_archives(scored[:1]), resamples=20)
    held = [archive("unknown", "adam", "another"), *scored]
    labels = {entry.set: entry.label for entry in contestants(held, board)}
    assert labels == {"adam-lr": "adam", "sgd-lr": "sgd", "another": "adam (another)"}
    assert [entry.label for entry in contestants(held, board)][:2] == order(board)
    assert {entry.set: entry.label for entry in contestants(held)}["adam-lr"] == "adam (adam-lr)"


def test_a_wrapped_learning_rate_counts_as_the_learning_rate():
    wrapped = {"inner.learning_rate": 0.2, "inner.inner.b1": 0.8, "b1": 0.9}
    assert series._number({"learning_rate": 0.1}, "learning_rate") == 0.1
    assert series._number(wrapped, "learning_rate") == 0.2
    assert series._number(wrapped, "b1") == 0.9
    assert np.isnan(series._number({"a.x": 1.0, "b.x": 2.0}, "x"))
    rates = dataclasses.replace(
        archive(), settings=tuple({f"inner.{k}": v for k, v in s.items()} for s in archive().settings)
    )
    assert series.hyperparameters([rates]) == series.hyperparameters([archive()])
    assert series.sensitivity(rates, "learning_rate") is not None
