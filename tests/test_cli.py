"""The command line: every verb does its work, and prints what a person needs next."""

import contextlib
import dataclasses
import io
import os
import subprocess
import sys

import numpy as np
import pytest

from outeropt import Store, data, optimizers, tasks
from outeropt.bench import sets
from outeropt.bench.normalizer import Normalizer
from outeropt.cli.config import parse
from outeropt.cli.main import main
from outeropt.cli.sweep import Config as SweepConfig
from outeropt.cli.train import Config as TrainConfig


TASK = "ImageMLP_Digits_Relu32"
SHORT = ("--steps", "4", "--eval-every", "2")
OWN_TASK = """
import jax.numpy as jnp
import outeropt

def make():
    return outeropt.tasks.from_functions(
        init=lambda key: {"w": jnp.ones(3)}, loss=lambda params: jnp.sum(params["w"] ** 2), name="bowl"
    )

task = make()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Every test works in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(capsys):
    """Runs a command that must succeed, and gives what it printed."""

    def go(*words):
        capsys.readouterr()
        status = main([str(word) for word in words])
        told = capsys.readouterr()
        assert status == 0, told.err
        # On a busy machine anything may take over two seconds, and then it shows its progress.
        assert not [
            line for line in told.err.splitlines() if not re.search(r": \d+/\d+, .*(so far|left)$", line)
        ]
        return told.out

    return go


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A store with two sets on a task, one that is tuned and one that plays as is."""
    path = tmp_path_factory.mktemp("filled") / "runs.db"
    for words in (["--set", "adam-lr"], ["--set", "adam-default"]):
        with contextlib.redirect_stdout(io.StringIO()):
            common = ["--task", "Quadratic_10", "--steps", "40", "--eval-every", "10", "--seeds", "2"]
            assert main(["sweep", *common, *words, "--store", str(path)]) == 0
    return path


def stored(path="runs.db", **which):
    with Store(path, "read") as store:
        return store.archives(**which)


# list, describe, data ---------------------------------------------------------------------------------------


def test_list(run):
    assert run("list", "tasks").split() == tasks.names()
    found = run("list", "tasks", "ImageMLP_*").split()
    assert TASK in found and all(name.startswith("ImageMLP_") for name in found)
    assert run("list", "optimizers").split() == optimizers.names()
    assert run("list", "optimizers", "adam?").split() == optimizers.names("adam?") != []
    assert "AdamLR_10000_R5" in run("list", "sets", "AdamLR_*").split()
    assert run("list", "data").split() == list(data.names())
    assert run("list", "data", "*mnist").split() == ["mnist", "fashion_mnist"]


def test_describe(run):
    adam = run("describe", "adamw")
    assert adam.startswith("adamw\n") and "arXiv" in adam and "learning_rate = 0.001" in adam
    wrapped = run("describe", "clip:adam")
    assert wrapped.startswith("clip:adam\n") and "inner.learning_rate" in wrapped
    task = run("describe", TASK)
    assert task.startswith(f"{TASK}\n") and "dataset: digits" in task and "accuracy" in task
    published = run("describe", "AdamLR_10000_R5")
    assert "steps: 10000" in published and "seeds: 5" in published and "learning_rate" in published
    assert run("describe", "digits").startswith("digits")


def test_describe_files(run, folder):
    (folder / "my.py").write_text(OWN_TASK)
    assert "parameters: 3" in run("describe", "my.py:task")
    (folder / "mine.yaml").write_text("optimizer: lion\ngrid: {learning_rate: [1e-3, 1e-2]}\n")
    assert "optimizer: lion" in run("describe", "mine.yaml")


def test_data(run):
    listed = run("data", "list")
    assert all(f"{name}:" in listed for name in data.names())
    path = run("data", "get", "digits").strip()
    assert path.endswith("digits.npz") and os.path.isfile(path)


# train ------------------------------------------------------------------------------------------------------


def test_train_prints_a_curve_and_logs_it(run, folder):
    told = run(
        "train", "--task", TASK, "--optimizer", "sgd", *SHORT, "--log", "log", "--optimizer.learning-rate=0.3"
    )
    assert "learning_rate = 0.3" in told and "sgd" in told and "test/accuracy" in told
    rows = [line.split() for line in told.splitlines() if line.split() and line.split()[0].isdigit()]
    assert [row[0] for row in rows] == ["0", "2", "4"]
    assert rows[0][1] == "-"  # no training loss before the first step
    (events,) = (folder / "log").glob("events.*")
    assert b"test/accuracy" in events.read_bytes()
    assert not (folder / "runs.db").exists()  # only a sweep, or --store, keeps trials


def test_train_keeps_a_trial_and_does_not_run_it_again(run):
    words = ("train", "--task", "Quadratic_10", "--optimizer", "adam", *SHORT, "--store", "runs.db")
    first = run(*words)
    with Store("runs.db") as store:
        (row,) = store._select("SELECT id, created FROM trials")
        store._select("UPDATE trials SET created = 'then'")
    assert run(*words) == first
    run(*words, "--seed", "5")
    run(*words, "--optimizer.b1", "0.8")
    with Store("runs.db", "read") as store:
        rows = store._select("SELECT id, created FROM trials ORDER BY rowid")
    assert len(rows) == 3 and rows[0] == (row[0], "then")
    # Other hyperparameters are another set: one does not push the other out.
    assert {a.set: a.seeds for a in stored()} == {"adam-train": (0, 5), "adam-b1=0.8-train": (0,)}


def test_hyperparameters_of_every_kind(run):
    common = ("train", "--task", "Quadratic_10", *SHORT, "--optimizer")
    assert "momentum = 0.5" in run(*common, "sgd", "--optimizer.momentum", "0.5")
    assert "learning_rate = 1000" in run(*common, "sgd", "--optimizer.learning-rate", "1e3")
    assert "eps = 1e-05" in run(*common, "adam", "--optimizer.eps", "1e-5")
    assert "inner.learning_rate = 0.5" in run(*common, "clip:sgd", "--optimizer.inner.learning-rate", "0.5")
    plain = run(*common, "momentum", "--optimizer.learning_rate", "0.1")
    assert plain != run(
        *common, "momentum", "--optimizer.learning_rate", "0.1", "--optimizer.nesterov", "true"
    )


def test_a_run_that_diverges_is_a_result(run):
    told = run(
        "train",
        "--task",
        "Quadratic_10",
        "--optimizer",
        "sgd",
        "--steps",
        "40",
        "--optimizer.learning-rate",
        "1000",
    )
    assert "Diverged: the loss was not finite at step" in told


# sweep ------------------------------------------------------------------------------------------------------


def test_sweep_a_set(run):
    told = run("sweep", "--task", "Quadratic_10", "--set", "AdamLR_10000_R5", *SHORT, "--seeds", "2")
    assert "AdamLR_10000_R5@4, 2 seeds, 4 steps" in told and "outeropt report runs.db" in told
    (archive,) = stored()
    assert archive.optimizer == "adam" and archive.set == "AdamLR_10000_R5@4" and archive.seeds == (0, 1)
    wanted = [setting["learning_rate"] for setting in sets.get("AdamLR_10000_R5").settings()]
    np.testing.assert_allclose([setting["learning_rate"] for setting in archive.settings], wanted, rtol=1e-6)
    assert archive.steps.tolist() == [0, 2, 4]


def test_sweep_two_grids(run):
    told = run(
        *("sweep", "--task", TASK, "--optimizer", "lion", "--grid", "learning-rate=log:1e-4:1e-2:3"),
        *("--grid", "b1=0.8,0.9", "--optimizer.weight-decay", "0.01", "--seeds", "1", *SHORT, "--lanes", "2"),
    )
    (archive,) = stored()
    assert [(s["learning_rate"], s["b1"]) for s in archive.settings] == [
        (rate, b1) for rate in (1e-4, 1e-3, 1e-2) for b1 in (0.8, 0.9)
    ]
    assert {s["weight_decay"] for s in archive.settings} == {0.01}
    assert archive.set == "lion-weight_decay=0.01-learning-rate=log:1e-4:1e-2:3-b1=0.8,0.9"
    body = [line.split() for line in told.splitlines() if line.strip().startswith("*")]
    best = archive.settings[archive.best("valid/loss")]
    assert {float(word) for word in body[0][1:3]} == {best["learning_rate"], best["b1"]}


def test_sweep_a_sample(run):
    common = (
        "sweep",
        "--task",
        "Quadratic_10",
        "--optimizer",
        "adam",
        "--sample",
        "4",
        "--seeds",
        "1",
        *SHORT,
    )
    run(*common, "--optimizer.b1", "0.85", "--name", "mine")
    (archive,) = stored()
    assert archive.set == "mine" and {s["b1"] for s in archive.settings} == {0.85}
    assert len({s["learning_rate"] for s in archive.settings}) == 4
    again = run(*common)
    assert "adam-sample4" in again and len({s["b1"] for s in stored(set="adam-sample4")[0].settings}) == 4


def test_sweep_a_task_of_ones_own(run, folder):
    (folder / "my.py").write_text(OWN_TASK)
    for name in ("my.py:task", "my.py:make"):
        assert "bowl: sgd" in run("sweep", "--task", name, "--optimizer", "sgd", "--seeds", "1", *SHORT)
    (archive,) = stored()
    assert archive.task == "bowl" and archive.curves["train/loss"][0, 0, 0] == 3.0


def test_sweep_again_runs_nothing(run):
    words = (
        "sweep",
        "--task",
        "Quadratic_10",
        "--optimizer",
        "sgd",
        "--grid",
        "learning_rate=0.1,0.2",
        *SHORT,
    )
    first = run(*words, "--seeds", "2")
    with Store("runs.db") as store:
        store._select("UPDATE trials SET created = 'then'")
    assert run(*words, "--seeds", "2") == first
    run(*words, "--seeds", "3")
    with Store("runs.db", "read") as store:
        made = [created for (created,) in store._select("SELECT created FROM trials")]
    assert len(made) == 6 and made.count("then") == 4


# configuration files ----------------------------------------------------------------------------------------


def test_pieces_add_up_and_flags_override(run, folder):
    (folder / "a.yaml").write_text(
        "task: Quadratic_10\noptimizer: sgd\nsteps: 8\neval_every: 4\nseed: 3\n"
        "hyperparameters: {learning_rate: 1e-1, momentum: 0.5}\n"
    )
    (folder / "b.yaml").write_text(
        "steps: 4\nhyperparameters:\n  momentum: 0.6\nstore: b.db\n"
        "override: [steps, hyperparameters.momentum]\n"
    )
    run("train", "-c", "a.yaml", "b.yaml", "--eval-every", "2", "--optimizer.learning-rate", "0.2")
    (archive,) = stored("b.db")
    assert archive.settings == ({"learning_rate": 0.2, "momentum": 0.6},)
    assert archive.steps.tolist() == [0, 2, 4] and archive.seeds == (3,)


def test_files_may_come_one_by_one_and_anywhere(folder):
    (folder / "a.yaml").write_text("task: a\nsteps: 1\n")
    (folder / "b.yaml").write_text("steps: 2\noverride: [steps]\n")
    for words in (["-c", "a.yaml", "-c", "b.yaml"], ["--seed", "7", "--config", "a.yaml", "b.yaml"]):
        config = parse("train", TrainConfig, words)
        assert (config.task, config.steps) == ("a", 2)
    (folder / "same.yaml").write_text("steps: 2\ntask: a\n")
    assert parse("train", TrainConfig, ["-c", "b.yaml", "same.yaml"]).steps == 2
    (folder / "c.yaml").write_text("task: a\nhyperparameters: {x: 1, y: 2}\n")
    (folder / "d.yaml").write_text("hyperparameters: {y: 3}\noverride: [hyperparameters.y]\n")
    config = parse("train", TrainConfig, ["-c", "c.yaml", "d.yaml", "--optimizer.z", "4"])
    assert config.hyperparameters == {"x": 1, "y": 3, "z": 4}
    (folder / "empty.yaml").write_text("")
    assert parse("train", TrainConfig, ["-c", "empty.yaml", "--task", "t"]) == TrainConfig("t")


def test_flags_replace_what_a_file_lists(folder):
    (folder / "a.yaml").write_text(
        "task: t\noptimizer: adam\ngrid: [learning_rate=1]\nstore: x.db\nname: null\n"
    )
    config = parse("sweep", SweepConfig, ["-c", "a.yaml"])
    assert config.grid == ("learning_rate=1",) and config.name is None and config.store.name == "x.db"
    config = parse("sweep", SweepConfig, ["-c", "a.yaml", "--grid", "b1=1", "--grid", "b2=1"])
    assert config.grid == ("b1=1", "b2=1")


def test_words_are_read_alike_with_hyphens_and_underscores():
    both = [
        parse(
            "train",
            TrainConfig,
            ["--task", "t", f"--eval{_}every", "5", f"--optimizer.learning{_}rate", "1e-3"],
        )
        for _ in "-_"
    ]
    assert both[0] == both[1] and both[0].hyperparameters == {"learning_rate": 1e-3}


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("1e-3", 1e-3),
        ("1e9", 1e9),
        ("3", 3),
        ("-2", -2),
        (".5", 0.5),
        ("true", True),
        ("False", False),
        ("sps", "sps"),
    ],
)
def test_hyperparameters_are_read_as_people_write_them(word, value, folder):
    for words in (["--optimizer.x", word], [f"--optimizer.x={word}"]):
        (found,) = parse("train", TrainConfig, ["--task", "t", *words]).hyperparameters.values()
        assert found == value and type(found) is type(value)
    (folder / "a.yaml").write_text(f"task: t\nhyperparameters: {{x: {word}}}\n")
    (found,) = parse("train", TrainConfig, ["-c", "a.yaml"]).hyperparameters.values()
    assert found == value and type(found) is type(value)


# report, export, load, status -------------------------------------------------------------------------------


def test_report_with_a_reference(run, filled, folder):
    Normalizer.from_archives(stored(filled, set="adam-lr"), "mine").save("reference.npz")
    told = run("report", filled, "--reference", "reference.npz", "--out", "report", "--title", "A & B")
    assert "tuned" in told and "as is" in told and "adam" in told and "mine" in told
    page = (folder / "report" / "index.html").read_text()
    assert "A &amp; B" in page and "Quadratic_10" in page
    assert 'src="http' not in page and 'href="http' not in page  # works offline
    pictures = {path.suffix for path in (folder / "report" / "figures").rglob("*") if path.is_file()}
    assert pictures and pictures <= {".png", ".svg", ".pdf"}
    assert f"Report: {os.path.join('report', 'index.html')}" in told


def test_report_makes_its_own_reference(run, filled, folder):
    told = run("report", filled)
    assert "adam-lr of these archives" in told
    assert (folder / "report" / "index.html").exists()


def test_report_on_a_folder_of_archives(run, filled, folder):
    run("export", filled, "--sets", "adam-lr", "--out", "archive")
    told = run("report", "archive", "--out", "page")
    assert "tuned" in told and "as is" not in told
    assert (folder / "page" / "index.html").exists()


def test_export_and_load_round_trip(run, filled, folder):
    written = run("export", filled, "--out", "archive").split()
    assert len(written) == 4 and {os.path.basename(path) for path in written} == {
        f"{name}.{ending}" for name in ("adam-lr", "adam-default") for ending in ("npz", "parquet")
    }
    told = run("load", "archive", "--store", "again.db")
    assert "Quadratic_10: adam-default, 2 trials, 2 new" in told
    assert ", 0 new" in run("load", "archive/Quadratic_10/adam-lr.parquet", "--store", "again.db")
    for before, after in zip(stored(filled), stored("again.db"), strict=True):
        for field in dataclasses.fields(before):
            one, two = getattr(before, field.name), getattr(after, field.name)
            if field.name == "curves":
                assert one.keys() == two.keys()
                for name in one:
                    np.testing.assert_array_equal(one[name], two[name])
            elif isinstance(one, np.ndarray):
                np.testing.assert_array_equal(one, two)
            else:
                assert one == two, field.name
    run("export", filled, "--out", "some", "--sets", "*-default")
    assert [path.name for path in (folder / "some").rglob("*.npz")] == ["adam-default.npz"]


def test_status(run, filled):
    rows = [line.split() for line in run("status", filled).splitlines() if "adam" in line]
    assert [row[:3] for row in rows] == [
        ["Quadratic_10", "adam-default", "2"],
        ["Quadratic_10", "adam-lr", "18"],
    ]
    with Store("part.db") as store:
        (archive,) = stored(filled, set="adam-lr")
        store.add_archive(archive)
        store._select(f"DELETE FROM trials WHERE id = '{archive.ids[0, 0]}'")
    (row,) = [line.split() for line in run("status", "part.db").splitlines() if "adam" in line]
    assert row[2:4] == ["17", "1"]


# the process ------------------------------------------------------------------------------------------------


def test_an_interrupted_command_says_how_to_go_on(capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("outeropt.cli.running.swept", interrupt)
    assert main(["sweep", "--task", "Quadratic_10", "--optimizer", "sgd"]) == 130
    assert "the same command goes on" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["list sets", "list data", ""])  # more than a buffer holds, and less
def test_a_reader_may_stop_reading(given):
    words = [sys.executable, "-m", "outeropt.cli.main", *given.split()]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        child.stdout.close()  # as `| head` does
        told = child.stderr.read()
    assert (child.returncode, told) == (0, b"")
