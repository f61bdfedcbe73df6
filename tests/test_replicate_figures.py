"""Figures of replicates: what they draw, in awkward cases, without warnings."""

import numpy as np
import pytest

from outeropt.bench import reporting
from outeropt.bench.pictures import replicate_figures
from outeropt.errors import OuteroptError
from test_stability import run_of


def losses(seed, lost=0, seeds=4, count=6):
    values = np.exp(
        np.random.default_rng(seed).normal(size=(seeds, count)) * 0.1 - np.arange(1, count + 1) / 3
    )
    values[:lost, 2:] = np.nan
    return values


def held(tasks=("a", "b"), lost=0, replicates=3):
    found = [
        run_of(losses(i, lost), losses(i + 50, lost), losses(i), task, f"learned:{family}-{i}")
        for task in tasks
        for family in ("mean", "min max $x$")
        for i in range(1, replicates + 1)
    ]
    return [*found, *(run_of(losses(7), task=task, optimizer="adam") for task in tasks)]


KINDS = {
    "boxes": replicate_figures.replicate_boxes,
    "jitter": lambda archives: replicate_figures.replicate_boxes(archives, "jitter"),
    "curves": replicate_figures.epoch_curves,
    "phases": replicate_figures.phases,
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize(
    "archives",
    [
        held(),
        held(("a",), lost=1),
        held(lost=4),
        held(("a",), replicates=1),
        [run_of([[2.0]]), run_of([[1.0]], optimizer="b")],
    ],
    ids=["tasks", "one lost", "all lost", "alone", "one epoch"],
)
def test_every_figure_draws(kind, archives):
    figure = kind(archives)
    figure.draw_without_rendering()
    assert len(figure.axes) == len({archive.task for archive in archives})


def test_replicates_share_a_colour_and_stand_in_order():
    groups = replicate_figures.groups(held(("a",), replicates=11))
    assert [group.name for group in groups] == ["mean", "min max $x$", "adam"]
    assert len({group.look.colour for group in groups}) == 3
    assert list(groups[0].archives["a"]) == [str(i) for i in range(1, 12)]
    figure = replicate_figures.replicate_boxes(held(("a",)))
    (ax,) = figure.axes
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1", "2", "3"] * 2


def test_a_ruler_is_the_mean_of_replicates_with_two_standard_errors():
    values = [np.array([1.0, 3.0]), np.array([4.0]), np.array([])]
    figure, (ax,) = replicate_figures.style.panels(1)
    replicate_figures._ruler(ax, 0, values, replicate_figures.groups(held(("a",)))[0])
    (line,) = ax.get_lines()
    np.testing.assert_allclose(line.get_ydata(), 3.0)
    low, high = ax.collections[0].get_datalim(ax.transData).intervaly
    np.testing.assert_allclose([low, high], [3 - 2, 3 + 2])
    assert figure.axes == [ax]


def test_what_is_not_there_is_not_drawn(tmp_path):
    with pytest.raises(OuteroptError, match="No archive has the curve 'test/accuracy'"):
        replicate_figures.epoch_curves(held(), "test/accuracy")
    with pytest.raises(OuteroptError, match="two archives of adam on task; give one of each"):
        replicate_figures.groups([run_of([[1.0]]), run_of([[1.0]])])
    assert replicate_figures.save_replicates(held(replicates=1), tmp_path) == []


def test_reports_have_the_figures_of_families(tmp_path):
    archives = held(("a",))
    reporting.write(archives, None, None, tmp_path, "title")
    written = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"replicates.png", "replicates_phases.svg", "replicates_valid_accuracy.png"} <= written
