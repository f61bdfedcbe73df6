"""Pictures and tables of trials that have several episodes."""

import dataclasses
import json
import re

import numpy as np
import pytest

from outeropt.bench import scores
from outeropt.bench.normalizer import Normalizer
from outeropt.bench.pictures import episodes, figures, report, series
from outeropt.bench.statistics import mean_interval
from outeropt.errors import OuteroptError
from picture_fixtures import archive


def held(count=2, **options):
    return dataclasses.replace(archive(diverged=False, **options), details={"episodes": count})


def test_the_table_is_of_episode_ends():
    one, other = held(optimizer="adam"), held(optimizer="sgd", settings=1)
    found = episodes.episode_table([one, other])
    assert sorted(row.contestant.name for row in found) == ["adam", "sgd"]
    assert found[0].ends.centre[-1] <= found[1].ends.centre[-1]
    (row,) = [row for row in found if row.contestant.name == "adam"]
    best = int(np.argmin(one.final("train/loss").mean(axis=1)))
    mean, low, high = mean_interval(one.curves["train/loss"][best][:, [10, 20]].T)
    for ours, theirs in ((row.ends.centre, mean), (row.ends.low, low), (row.ends.high, high)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert row.setting == {"learning_rate": one.settings[best]["learning_rate"]}
    assert (row.steps, row.seconds, row.seeds, row.diverged) == (200, 0.5, 3, 0)
    assert [row.setting for row in found if row.contestant.name == "sgd"] == [{}]


def test_the_figure_has_a_line_for_each_optimizer():
    figure = episodes.episode_figure(
        [held(optimizer="adam"), held(optimizer="sgd"), archive(optimizer="dog")]
    )
    (ax,) = figure.axes
    assert [line.get_xdata().tolist() for line in ax.lines[:2]] == [[1, 2]] * 2 and ax.get_yscale() == "log"
    several = episodes.episode_figure([held(task=task) for task in ("a", "b")])
    assert len(several.axes) == 2
    with pytest.raises(OuteroptError, match="No archive has several episodes"):
        episodes.episode_figure([archive()])


def test_a_diverged_optimizer_comes_last_and_draws():
    lost = held(optimizer="sgd", settings=1)
    curves = {name: np.full_like(curve, np.nan) for name, curve in lost.curves.items()}
    lost = dataclasses.replace(lost, curves=curves)
    found = episodes.episode_table([lost, held(optimizer="adam")])
    assert [(row.contestant.name, row.diverged) for row in found] == [("adam", 0), ("sgd", 3)]
    episodes.episode_figure([lost, held(optimizer="adam")])
    episodes.episode_figure([lost])


def test_rules_where_all_episodes_end():
    same, other = [held(4), held(4, optimizer="sgd")], held(2, optimizer="dog")
    assert series.boundaries(same) == [50, 100, 150] and series.boundaries([*same, other]) == []
    assert series.boundaries([archive()]) == series.boundaries([]) == []

    def rules(archives):
        (ax,) = figures.learning_curves(archives).axes
        return [line.get_xdata()[0] for line in ax.lines if len(set(line.get_xdata())) == 1]

    assert rules(same) == [50, 100, 150] and rules([*same, other]) == []


def test_save_all_has_the_figure(tmp_path):
    assert "episodes" in {path.stem for path in figures.save_all([held()], None, tmp_path)}


def test_the_page_has_a_section():
    text = report.render([held(optimizer="adam"), held(optimizer="sgd", settings=1)], None)
    assert '<section id="episodes">' in text and " ± " in text
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])
    assert [line["x"] for line in data["episodes"][0]] == [[1, 2]] * 2 and data["boundaries"] == [[100]]
    assert '<section id="episodes">' not in report.render([archive()], None)


def test_the_last_episode_is_scored_over_its_own_steps():
    single = archive(diverged=False)
    reference = Normalizer.from_archives([single])
    halves = scores.speedups(held(2), reference) / scores.speedups(single, reference)
    np.testing.assert_allclose(halves, 2.0)
    with pytest.raises(OuteroptError, match="has 2 episodes; a normalizer is made from single"):
        Normalizer.from_archives([held(2)])
