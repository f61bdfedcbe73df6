"""`outeropt tune`: what it prints and stores, and what it says about mistakes."""

import dataclasses
import sys

import numpy as np
import pytest

from outeropt import Store
from outeropt.bench.restarts import ended
from outeropt.cli.main import main
from outeropt.store import Archive


TASK = "ImageMLP_Digits_Relu32"
SHORT = ("--task", TASK, "--steps", "20", "--eval-every", "5")


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def tune(capsys, *words, status=0):
    assert main(["tune", *SHORT, *words]) == status, capsys.readouterr().err
    told = capsys.readouterr()
    return told.err if status else told.out


def test_a_search_prints_the_best_and_keeps_its_trials(capsys):
    words = ("--optimizer", "adam", "--method", "sobol", "--trials", "8", "--parallel", "4")
    words += ("--tune", "learning-rate,b1")
    told = tune(capsys, *words)
    assert "adam, 20 steps, 1 seed" in told and "Best so far" in told
    assert "learning_rate" in told and "b1" in told and "b2" not in told
    assert told.endswith("Trials: runs.db   next: outeropt report runs.db\n")
    assert tune(capsys, *words) == told
    with Store("runs.db") as store:
        (archive,) = store.archives()
    assert archive.set == "adam-sobol-learning_rate-b1" and archive.optimizer == "adam"
    assert len(archive.settings) == 8
    more = ("--optimizer", "adam", "--tune", "learning_rate,b1", "--method", "cmaes", "--trials", "4")
    tune(capsys, *more, "--warm-start", "runs.db", "--name", "mine", "--optimizer.b2", "0.99", "--seed", "3")
    with Store("runs.db") as store:
        assert store.sets() == ["adam-sobol-learning_rate-b1", "mine"]


def test_halving_is_the_default(capsys):
    told = tune(capsys, "--trials", "16", "--parallel", "8", "--seeds", "2")
    assert "adamw, 20 steps, 2 seeds" in " ".join(told.split())
    with Store("runs.db") as store:
        assert store.sets() == ["adamw-halving"]


def test_methods_that_tune_while_they_train(capsys):
    words = ("--optimizer", "sgd", "--method", "one-pass", "--restarts", "4")
    told = tune(capsys, *words, "--tune", "learning_rate,momentum")
    first, second, *_ = told.splitlines()
    assert first.startswith("sgd has no momentum") and second.startswith("one-pass: ")
    assert "4 restarts" in told and "diverged" in told and "Where they ended" in told
    with Store("runs.db") as store:
        (archive,) = store.archives()
    assert archive.set == "heavy_ball-one-pass-learning_rate-momentum" and len(archive.seeds) == 4
    assert archive.optimizer == "one-pass:heavy_ball" and "optimizer/momentum" in archive.curves


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--method", "halvign"), "No method is called 'halvign'. Did you mean halving?"),
        (("--method", "one-pas"), "Did you mean one-pass"),
        (("--trials", "0"), "--trials 0 is not allowed; give at least 1."),
        (("--restarts", "0"), "--restarts 0 is not allowed"),
        (
            ("--tune", "learning_rat"),
            "No hyperparameter is called 'learning_rat'. Did you mean learning_rate?",
        ),
        (("--tune", "b1,b1"), "b1 is to be tuned twice"),
        (("--method", "cmaes"), "CMAES needs at least 2 hyperparameters, and only learning_rate is tuned"),
        (("--steps", "7"), "eval_every = 5 does not divide steps = 7"),
        (("--seed", "-1"), "seed = -1 is not allowed"),
        (("--method", "hyperband", "--trials", "1"), "1 trial(s) are too few"),
        (("--warm-start", "no.db"), "no.db"),
        (("--method", "one-pass", "--warm-start", "no.db"), "--warm-start is for searches"),
        (("--optimizer", "learned:small_fc"), "There is nothing to tune"),
        (("--optimizer", "learned:small_fc", "--tune", "net.layers.0.weight"), "has no space to search"),
    ],
)
def test_mistakes_cost_nothing(words, told, capsys, tmp_path):
    err = tune(capsys, *words, status=2)
    assert told in err
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "optuna", None)
    err = tune(capsys, "--method", "bayes", status=2)
    assert 'pip install "outeropt[tune]"' in err and not list(tmp_path.iterdir())


def test_where_hyperparameters_ended():
    final = np.array([1.0, 2.0, np.nan, 4.0, 3.0], np.float32)
    curves = {"test/loss": final, "optimizer/rate": np.array([0.1, 0.2, 9.0, 0.4, 0.3], np.float32)}
    archive = Archive(
        task="t",
        set="s",
        optimizer="o",
        settings=({},),
        seeds=tuple(range(5)),
        steps=np.array([10]),
        curves={name: curve[None, :, None] for name, curve in curves.items()},
        diverged_at=np.array([[-1, -1, 4, -1, -1]]),
        seconds=np.ones((1, 5), np.float32),
        eval_every=10,
        eval_batches=1,
        last_eval_batches=1,
    )
    assert ended(archive) == {"rate": pytest.approx((0.175, 0.25, 0.325))}
    lost = dataclasses.replace(archive, curves={**archive.curves, "test/loss": np.full((1, 5, 1), np.nan)})
    assert ended(lost) == {}
