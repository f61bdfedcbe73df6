"""The leaderboard command, its suites, and many small programs at once."""

import sqlite3

import pytest

from outeropt import Store, optimizers, tasks
from outeropt._sweep.runner import Runner
from outeropt.bench import suites
from outeropt.bench.normalizer import Normalizer
from outeropt.bench.run import run, run_all, trials
from outeropt.bench.suites import Suite
from outeropt.cli.main import main


SMALL = Suite("small", {"Function_Rosenbrock": 40, "Linear_100_cond1000": 40}, ("adam", "dog"), seeds=2)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(suites.SUITES, "small", SMALL)


@pytest.mark.parametrize("suite", suites.SUITES.values(), ids=lambda suite: suite.name)
def test_suites_can_be_run_and_scored(suite):
    shipped = Normalizer.shipped()
    assert set(suite.steps) <= set(tasks.names())
    assert set(suite.optimizers) <= set(optimizers.names())
    for task, steps in suite.steps.items():
        assert shipped.knows(task) and steps % 20 == 0
        assert shipped.envelope(task).horizon >= 2 * steps, "scores would be cut at the reference's horizon"


def test_every_contestant_plays_tuned_and_as_is_on_equal_terms():
    plan = SMALL.plan()
    assert list(plan) == list(SMALL.steps)
    names = [item.name for item in plan["Function_Rosenbrock"]]
    assert names == ["adam-lr", "adam-default", "dog-lr", "dog-default"]
    protocols = {(item.steps, item.eval_every, item.seeds) for item in plan["Function_Rosenbrock"]}
    assert protocols == {(40, 2, 2)}
    tuned, as_is = plan["Function_Rosenbrock"][:2]
    default = float(as_is.build({}).hyperparameters["learning_rate"])
    assert tuned.grid["learning_rate"][4] == pytest.approx(default)
    assert max(tuned.grid["learning_rate"]) == pytest.approx(100 * default)


def test_leaderboard_command(small, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["leaderboard", "--suite", "small"]) == 0
    out = capsys.readouterr().out
    assert "adam" in out and "dog" in out and "tuned" in out and "as is" in out
    assert (tmp_path / "leaderboard" / "index.html").stat().st_size > 50_000
    assert (tmp_path / "leaderboard" / "figures" / "ranking.png").exists()

    def forbidden(*_):
        raise AssertionError("a finished trial was run again")

    monkeypatch.setattr(Runner, "run", forbidden)
    assert main(["leaderboard", "--suite", "small"]) == 0
    assert capsys.readouterr().out == out


def test_leaderboard_wrong_input(small, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for words, message in (
        (["--suite", "smal"], "small"),
        (["--curve", "zzz"], "valid/loss"),
        (["--suite", "small", "--optimizers", "adan", "adma"], "adam"),
    ):
        assert main(["leaderboard", *words]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "leaderboard").exists()


def test_run_all_equals_run(small, tmp_path):
    plan = SMALL.plan(["adam"])
    with Store(tmp_path / "a.db") as one, Store(tmp_path / "b.db") as other:
        reported = []
        together = run_all(plan, one, reported.append)
        alone = [archive for name, sets in plan.items() for archive in run(tasks.get(name), sets, other)]
        assert [archive.set for archive in together] == [archive.set for archive in alone]
        for a, b in zip(together, alone):
            assert (a.ids == b.ids).all() and a.task == b.task
        assert sum(reported) == pytest.approx(sum(map(trials, plan.values())))
        stored = sqlite3.connect(tmp_path / "a.db").execute("SELECT count(*) FROM trials").fetchone()[0]
    # The default setting is one of the nine rates: it is run once and counts twice.
    assert stored == sum(map(trials, plan.values())) - 2 * SMALL.seeds


def test_an_error_in_one_job_stops_the_others(small, tmp_path):
    class Broken(Exception):
        pass

    def report(amount):
        raise Broken

    with Store(tmp_path / "a.db") as store, pytest.raises(Broken):
        run_all(SMALL.plan(), store, report)
