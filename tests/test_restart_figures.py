"""Figures and report section of restarts: what they draw, in every awkward case, without warnings."""

import dataclasses
import json
import re

import numpy as np
import pytest

from headless_browser import CHROMIUM, Browser
from outeropt.bench import reporting, restarts
from outeropt.bench.pictures import hyperparameter_figures, report, restart_figures, restart_series
from outeropt.bench.pictures.contestants import contestants
from outeropt.errors import OuteroptError
from outeropt.tasks.wrappers import train_valid
from picture_fixtures import archive


FIGURES = (
    restart_figures.final_distribution,
    restart_figures.median_curves,
    restart_figures.incumbents,
    hyperparameter_figures.trajectories,
    hyperparameter_figures.hyperparameter_bands,
)


def study(task="UCI_Energy", optimizer="ours", *, seeds=12, lost=2, moves=True):
    """One setting, many seeds, hyperparameters on their way, the last `lost` seeds diverged half-way."""
    made = archive(task, optimizer, settings=1, seeds=seeds)
    rng = np.random.default_rng(seeds)
    t = made.steps / made.steps[-1] * moves
    start = rng.uniform(size=(3, 1, seeds, 1))
    curves = {name: curve * rng.lognormal(size=(1, seeds, 1)) for name, curve in made.curves.items()}
    curves["optimizer/learning_rate"] = 10 ** (5 * start[0] - 6 + t * (4 - 5 * start[0]))
    curves["optimizer/weight_decay"] = 10 ** (5 * start[1] - 7) * np.ones_like(t)
    curves["optimizer/momentum"] = start[2] + t * (0.9 - start[2])
    diverged_at = made.diverged_at.copy()
    if lost:
        half = len(made.steps) // 2
        for curve in curves.values():
            curve[:, -lost:, half:] = np.nan
        diverged_at[:, -lost:] = made.steps[half]
    curves = {name: curve.astype(np.float32) for name, curve in curves.items()}
    return dataclasses.replace(made, curves=curves, diverged_at=diverged_at)


HELD = [
    study("UCI_Energy_TrainValid", "random", moves=False, lost=0),
    study("UCI_Energy", "ours"),
    study("UCI_Energy", "theirs", lost=11),
]


def draw(figure):
    figure.draw_without_rendering()
    return figure


def titles(figure):
    return [ax.get_title(loc="left") for ax in figure.axes]


@pytest.mark.parametrize("kind", FIGURES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    "held",
    [
        HELD,
        [*HELD, study("UCI_Yacht", "ours")],
        [study(lost=12), study(optimizer="ours $x$")],
        [study(f"UCI_Energy{more}", f"method {i}") for i, more in enumerate(["", "_TrainValid"] * 5)],
    ],
    ids=["few", "tasks", "all lost", "many"],
)
def test_every_figure_draws(kind, held):
    assert draw(kind(held)).axes


@pytest.mark.parametrize("kind", FIGURES, ids=lambda kind: kind.__name__)
def test_without_restarts_there_is_nothing_to_draw(kind):
    with pytest.raises(OuteroptError):
        kind([archive(settings=1, seeds=3)])
    with pytest.raises(OuteroptError):
        kind([])


def test_the_suffix_is_that_of_the_tasks():
    assert restart_series.TRAIN_VALID == train_valid.SUFFIX


def test_methods_share_a_panel_whatever_rows_they_train_on():
    assert titles(restart_figures.final_distribution(HELD)) == ["UCI_Energy"]
    two = [*HELD, study("UCI_Yacht", "ours")]
    assert titles(restart_figures.median_curves(two)) == ["UCI_Energy", "UCI_Yacht"]
    wide = archive("UCI_Energy", "grid", settings=3, seeds=12)
    assert restart_series.with_restarts([wide, *HELD]) == HELD


def test_the_distribution_ends_at_the_share_that_did_not_diverge():
    (ax,) = restart_figures.final_distribution(HELD).axes
    ends = sorted(line.get_ydata()[-1] for line in ax.lines if len(line.get_ydata()) > 2)
    assert ends == pytest.approx([1 / 12, 10 / 12, 1.0])
    x, share = restart_series.distribution(np.array([3.0, 1.0, np.inf, 9.0]), 0.5, 5.0)
    assert x.tolist() == [0.5, 1.0, 3.0, 5.0] and share.tolist() == [0.0, 0.25, 0.5, 0.5]


def test_a_mostly_diverged_median_is_not_drawn():
    (ax,) = restart_figures.median_curves(HELD[2:]).axes
    values = ax.lines[0].get_ydata()
    half = len(values) // 2
    assert np.isfinite(values[:half]).all() and np.isnan(values[half:]).all()


def test_the_incumbent_starts_from_what_one_run_gives():
    (ax,) = restart_figures.incumbents(HELD[1:2]).axes
    test, valid = (HELD[1].final(f"{split}/loss")[0] for split in ("test", "valid"))
    start = HELD[1].curves["test/loss"][0, :, 0].mean()
    wanted = restarts.incumbent(np.where(np.isfinite(test), test, start), valid)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), wanted, rtol=1e-5)
    np.testing.assert_allclose(ax.lines[0].get_xdata(), 0.5 * np.arange(1, 13))


def test_fixed_hyperparameters_have_no_trajectory():
    assert titles(hyperparameter_figures.trajectories(HELD)) == ["ours", "theirs"]
    figure = hyperparameter_figures.hyperparameter_bands(HELD)
    assert titles(figure) == ["ours", "", "", "theirs", "", ""]
    with pytest.raises(OuteroptError, match="move"):
        hyperparameter_figures.trajectories(HELD[:1])


def test_marks_of_trajectories():
    (ax,) = hyperparameter_figures.trajectories(HELD[1:2]).axes
    marks = [line.get_marker() for line in ax.lines]
    assert (marks.count("o"), marks.count("x")) == (12 + 10, 2)
    many = study(seeds=200, lost=0)
    (ax,) = hyperparameter_figures.trajectories([many]).axes
    assert len(ax.collections) == hyperparameter_figures._MAX_PATHS


def test_files(tmp_path):
    assert restart_figures.save_restarts([archive()], tmp_path / "none") == []
    assert not (tmp_path / "none").exists()
    written = restart_figures.save_restarts(HELD, tmp_path)
    assert len(written) == 10 and all(path.stat().st_size > 1000 for path in written)


def test_the_report_has_a_section(tmp_path):
    page = reporting.write(HELD, None, None, tmp_path, "A study").read_text("utf-8")
    assert '<section id="restarts">' in page and "2 (17%)" in page
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    (panel,) = json.loads(text)["restarts"]
    assert panel["tasks"] == ["UCI_Energy", "UCI_Energy_TrainValid"]
    assert [len(line["x"]) for line in panel["ends"]] == [len(line["mid"]) for line in panel["ends"]]
    assert sorted(line["mid"][-1] for line in panel["ends"]) == [0.08333, 0.8333, 1]
    assert (tmp_path / "figures" / "restarts_final.png").exists()
    plain = report.render([archive()], None)
    assert '<section id="restarts">' not in plain


def test_rows_of_the_report_are_sorted_by_their_median():
    from outeropt.bench.pictures.report_tables import restart_rows

    rows = restart_rows(contestants([study(lost=12), study(optimizer="theirs", lost=0)]))
    assert [row["label"] for row in rows] == ["theirs", "ours"]
    assert rows[1]["numbers"] == [None] * 6 and rows[1]["diverged"] == 12


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path")
def test_the_section_in_a_browser(tmp_path):
    page = tmp_path / "page.html"
    page.write_text(report.render([*HELD, study("UCI_Yacht", "ours")], None), "utf-8")
    lines = "document.querySelectorAll('#chart-restarts g[clip-path] .series').length"
    with Browser(tmp_path / "profile") as browser:
        browser.open(page)
        assert browser.run(lines) == 2 * (3 + 1)
        browser.run("byId('task').value = 'UCI_Energy'; byId('task').dispatchEvent(new Event('change'))")
        assert browser.run(lines) == 2 * 3
        assert browser.problems == []
