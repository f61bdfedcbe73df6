"""Learned optimizers against tuned baselines: the comparison, its tables, and every way to name weights."""

import contextlib
import dataclasses
import io
import re
import shlex

import jax
import numpy as np
import pytest
from scipy import stats

from outeropt import Store, checkpoint, metatraining, optimizers, tasks
from outeropt.bench import reporting, sets
from outeropt.bench.learned_names import label, shown
from outeropt.cli import evaluate
from outeropt.cli import list as listing
from outeropt.cli.main import main
from outeropt.errors import MissingData
from outeropt.learned import ARCHITECTURES, AdafacMLP


FEW = "optimizer: adam\ngrid: {learning_rate: [0.1, 1e-4]}\nseeds: 2\nsteps: 4\neval_every: 2\n"
WEIGHTS = "evaluate --weights runs/my_lopt"
EVALUATE = f"{WEIGHTS} --optimizers sgd --tasks Linear_2? Quadratic_10 --against few.yaml"


def learned(seed=1):
    return AdafacMLP(key=jax.random.key(seed), step_mult=0.01)


def fill(folder):
    """A baseline, a learned optimizer as meta-training leaves it, and files that are none."""
    about = {"tasks": ["Linear_20", "Quadratic_10"], "estimator": "pes", "weights": None, "settings": {}}
    learned().save(folder / "runs" / "my_lopt" / "optimizer.safetensors", about)
    learned(2).save(folder / "runs" / "other" / "my_lopt.safetensors")
    checkpoint.save(folder / "plain.safetensors", {"w": np.ones(3)})
    (folder / "text.safetensors").write_text("no weights")
    (folder / "empty").mkdir()
    (folder / "few.yaml").write_text(FEW)
    (folder / "learned.yaml").write_text("optimizer: learned:runs/my_lopt\nfixed: {learning_rate: 0.1}\n")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A folder in which `EVALUATE` has run, and what it printed."""
    folder = tmp_path_factory.mktemp("done")
    fill(folder)
    told = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(told):
        assert main(shlex.split(EVALUATE)) == 0
    return folder, told.getvalue()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    fill(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(capsys):
    """Runs a command that must succeed, and gives what it printed."""

    def go(words):
        capsys.readouterr()
        status = main(shlex.split(words))
        told = capsys.readouterr()
        assert (status, told.err) == (0, "")
        return told.out

    return go


def stored(path, **which):
    with Store(path, "read") as store:
        return store.archives(**which)


# evaluate ---------------------------------------------------------------------------------------------------


def cells(told, task):
    """The rows of one task's table, by optimizer."""
    table = told[told.index(f"{task}: 4 steps, 2 seeds") :]
    lines = table[: table.index("\n\n") if "\n\n" in table else None].splitlines()[4:]
    rows = [re.split(r"\s{2,}", line.strip()) for line in lines if line.strip()]
    return {row[0]: row[1:] for row in rows[:3]}


def test_the_tables_say_what_the_store_holds(done):
    folder, told = done
    for task in ("Linear_20", "Quadratic_10"):
        archives = {archive.optimizer: archive for archive in stored(folder / "runs.db", task=task)}
        assert archives.keys() == {"adam", "learned:my_lopt", "sgd"}
        best = archives["adam"].best("valid/loss")
        rate = archives["adam"].settings[best]["learning_rate"]
        rows = cells(told, task)
        assert rows.keys() == {f"adam, learning_rate {rate:g}", "learned:my_lopt", "sgd"}
        theirs = archives["adam"].final("test/loss")[best].astype(float)
        for name in ("learned:my_lopt", "sgd"):
            ours = archives[name].final("test/loss")[0].astype(float)
            train, _, test, ratio, difference, _, verdict = rows[name]
            trained = archives[name].final("train/loss").mean()
            assert float(train.split()[0]) == pytest.approx(trained, rel=1e-3)
            assert float(test.split()[0]) == pytest.approx(ours.mean(), rel=1e-3)
            assert float(ratio) == pytest.approx(ours.mean() / theirs.mean(), rel=1e-3)
            assert float(difference.split()[0]) == pytest.approx((ours - theirs).mean(), rel=1e-3)
            mean, half = (ours - theirs).mean(), stats.sem(ours - theirs) * stats.t.ppf(0.975, 1)
            assert verdict == ("unclear" if abs(mean) < half else "wins" if mean < 0 else "loses")
    summary = told[told.index("Over all tasks") :]
    assert re.search(r"learned:my_lopt +adam +2 ", summary) and re.search(r"sgd +adam +2 ", summary)
    assert told.splitlines()[-1] == "Trials: runs.db   next: outeropt report runs.db"


def test_the_store_shows_names_and_no_meta_parameters(done, run, monkeypatch):
    folder, _ = done
    monkeypatch.chdir(folder)
    (archive,) = stored("runs.db", task="Linear_20", set="LOpt_4_R2-my_lopt")
    assert archive.optimizer == "learned:my_lopt" and archive.settings == ({},) and archive.seeds == (0, 1)
    assert archive.steps.tolist() == [0, 2, 4]
    status = run("status runs.db")
    assert re.search(r"Linear_20 +LOpt_4_R2-my_lopt +2 ", status)
    run("export runs.db --out archive")
    for ending in ("npz", "parquet"):
        run(f"load archive/Linear_20/LOpt_4_R2-my_lopt.{ending} --store {ending}.db")
        (again,) = stored(f"{ending}.db")
        assert again.settings == ({},) and again.optimizer == "learned:my_lopt"
        np.testing.assert_array_equal(again.curves["test/loss"], archive.curves["test/loss"])


def test_the_report_shows_it_beside_the_baseline(done, run, monkeypatch):
    folder, _ = done
    monkeypatch.chdir(folder)
    archives = reporting.read("runs.db", sets="few")
    from outeropt.bench import Normalizer

    Normalizer.from_archives(archives, "mine").save("mine.npz")
    told = run("report runs.db --reference mine.npz")
    assert "learned:my_lopt" in told and "adam" in told
    page = (folder / "report" / "index.html").read_text()
    assert "learned:my_lopt" in page and "LOpt_4_R2-my_lopt" in page and "net.layers" not in page
    assert {"learning_curves.png", "sensitivity.png"} <= {
        p.name for p in (folder / "report/figures").iterdir()
    }


def test_the_same_command_runs_nothing_again(done, run, monkeypatch):
    folder, told = done
    monkeypatch.chdir(folder)
    with Store("runs.db") as store:
        store._select("UPDATE trials SET created = 'then'")
    assert run(EVALUATE) == told
    with Store("runs.db", "read") as store:
        made = [row[0] for row in store._select("SELECT created FROM trials")]
    assert made == ["then"] * 16  # 2 tasks, 2 seeds, and 4 settings


def test_weights_that_were_trained_on_take_the_place_of_the_older(folder, run):
    words = f"{WEIGHTS} --tasks Quadratic_10 --against few.yaml --seeds 1"
    before = run(words)
    (old,) = stored("runs.db", set="LOpt_4_R2-my_lopt")
    learned(3).save("runs/my_lopt/optimizer.safetensors")
    after = run(words)
    (new,) = stored("runs.db", set="LOpt_4_R2-my_lopt")
    assert before != after and new.ids.tolist() != old.ids.tolist()
    assert " ± " not in after.partition("Over all")[0] and "unclear" in after  # one seed tells nothing


def test_everyone_plays_by_the_first_baseline_s_protocol(folder):
    config = evaluate.Config(
        tasks=("x",),
        weights=("runs/my_lopt",),
        optimizers=("sgd",),
        against=("AdamLR_2000_R5", "SGDLR_10000_R5", "few.yaml"),
    )
    contestants, baselines = evaluate._sets(config)
    assert [item.name for item in contestants] == ["LOpt_2000_R5-my_lopt", "sgd-default"]
    assert [item.name for item in baselines] == ["AdamLR_2000_R5", "SGDLR_10000_R5@2000", "few"]
    published = sets.get("AdamLR_2000_R5").protocol
    assert all(item.protocol == published for item in (*contestants, *baselines))
    short = dataclasses.replace(config, steps=30, seeds=2)
    contestants, baselines = evaluate._sets(short)
    assert [item.name for item in contestants] == ["LOpt_2000_R5-my_lopt@30", "sgd-default"]
    assert [item.name for item in baselines] == ["AdamLR_2000_R5@30", "SGDLR_10000_R5@30", "few"]
    assert all(item.protocol == {**published, "steps": 30, "seeds": 2} for item in (*contestants, *baselines))


EPOCHS = "--tasks ImageMLP_Digits_Relu32 --epochs 3 --against few.yaml"


def test_epochs_are_evaluated_one_by_one_on_whole_splits(folder, run, capsys):
    for i in (1, 2):
        learned(i).save(folder / "results/policy/mine" / str(i) / "optimizer.safetensors")
    words = f"evaluate --weights results/policy/mine/1 results/policy/mine/2 {EPOCHS}"
    assert main(shlex.split(words)) == 0  # on a busy machine long enough to tell how far it is
    told = capsys.readouterr().out
    task = "ImageMLP_Digits_Relu32_WholeSplits"
    assert f"{task}: 27 steps, 2 seeds" in told and f"{task}: 3 epochs" in told
    row = next(line for line in told[told.index(": 3 epochs") :].splitlines() if "mine/1" in line).split()
    (archive,) = stored("runs.db", task=task, set="LOpt_4_R2-policy/mine/1@3epochs")
    assert archive.steps.tolist() == [0, 9, 18, 27] and archive.optimizer == "learned:policy/mine/1"
    best = np.log(archive.curves["valid/loss"][0].astype(float))[:, 1:].min(axis=1).mean()
    assert row[0] == "learned:policy/mine/1" and float(row[1]) == pytest.approx(best, rel=0.01)
    (grid,) = stored("runs.db", set="few@3epochs")
    assert len(grid.settings) == 2 and grid.steps.tolist() == [0, 9, 18, 27]
    families = told[told.index("Replicates") :]
    assert re.search(rf"{task} +policy/mine +best log valid/loss +2 +4 ", families)
    for i in (1, 2):
        saved = folder / "results/policy/mine" / str(i) / "eval" / "ImageMLP_Digits_Relu32.npz"
        with np.load(saved, allow_pickle=False) as held:
            assert held["steps"].tolist() == [0, 9, 18, 27] and held["seeds"].tolist() == [0, 1]
            assert held["valid/loss"].shape == held["test/accuracy"].shape == (2, 4)
            assert held["diverged_at"].tolist() == [-1, -1]
        assert [path.name for path in saved.parent.iterdir()] == [saved.name]
    assert "policy/mine" in run("report runs.db")
    assert (folder / "report/figures/replicates.png").is_file()


def test_the_suite_of_the_amalgamation_study(folder, capsys):
    from outeropt.bench import epochs

    config = evaluate.Config(tasks=("amalgamation-suite",), weights=("runs/my_lopt",), seeds=4)
    config.check()
    found = evaluate._tasks(config.tasks)
    assert len(found) == 9 and "conv_train_dp" in found and "conv_svhn" not in found
    assert capsys.readouterr().out == "Skipped conv_svhn: outeropt does not provide svhn_cropped\n"
    contestants, baselines = evaluate._sets(config)
    rates = {item.optimizer: item.fixed["learning_rate"] for item in baselines}
    assert rates.items() >= {"adam": 0.005, "rmsprop": 0.005, "sgd": 0.2, "momentum": 0.05}.items()
    assert evaluate._epochs(config) == 25
    assert evaluate._epochs(dataclasses.replace(config, epochs=3)) == 3
    assert evaluate._epochs(dataclasses.replace(config, steps=3)) is None
    plan = epochs.plan(["conv_train", "conv_smallbatch"], [*contestants, *baselines], 25)
    assert plan.keys() == {"conv_train_WholeSplits", "conv_smallbatch_WholeSplits"}
    for task, steps in (("conv_train", 9375), ("conv_smallbatch", 37500)):
        protocols = {tuple(item.protocol.values()) for item in plan[f"{task}_WholeSplits"]}
        assert protocols == {(4, steps, 1, steps // 25, 1, 10)}
        assert plan[f"{task}_WholeSplits"][0].name == "LOpt_10000_R10-my_lopt@25epochs"


def test_repeat_is_another_word_for_seeds(folder):
    from outeropt.cli.config import parse

    words = ["--tasks", "a", "b", "--weights", "w", "v", "--repeat", "7"]
    config = parse("evaluate", evaluate.Config, words)
    assert (config.tasks, config.weights, config.seeds) == (("a", "b"), ("w", "v"), 7)


def test_tasks_without_data_are_skipped_and_named(monkeypatch, capsys):
    real = tasks.get

    def get(name):
        if "UCI" in name:
            raise MissingData("not here")
        return real(name)

    monkeypatch.setattr(tasks, "get", get)
    assert evaluate._tasks(["Linear_2?", "Linear_UCI_[BW]*", "Linear_20"]) == ["Linear_20"]
    assert capsys.readouterr().out == (
        "Skipped Linear_UCI_Boston, Linear_UCI_Wine: the data are not here; "
        "outeropt data get uci_boston uci_wine\n"
    )
    with pytest.raises(
        MissingData, match="Linear_UCI_Wine: the data are not here; outeropt data get uci_wine"
    ):
        evaluate._tasks(["Linear_UCI_Wine"])


W = f"{WEIGHTS} --tasks Quadratic_10 --against few.yaml"
META = "all its numbers are meta-parameters, which meta-training finds."


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("evaluate --tasks Quadratic_10", "Nobody to evaluate: give --weights NAME ... or --optimizers NAME"),
        (WEIGHTS, "Missing from outeropt evaluate: --tasks"),
        (f"{WEIGHTS} --tasks a --against", "Nothing to compare with: give --against SET ..."),
        (f"{W} --epochs 0", "--epochs 0 is not allowed; give at least 1."),
        (f"{W} --epochs 2 --steps 2", "--epochs and --steps both say how long to train; give one of them."),
        (f"{W} --epochs 2", "Task 'Quadratic_10' has no rows to go through, and so no epochs; say how long"),
        (f"{W} --seeds 0", "--seeds 0 is not allowed; give at least 1."),
        (f"{W} --last-eval-batches 0", "--last-eval-batches 0 is not allowed; give at least 1."),
        (f"{W} --steps 0", "steps = 0 is not allowed; train for at least 1 step."),
        (
            f"{WEIGHTS} --tasks 'zzz*'",
            "No tasks match 'zzz*'; outeropt list tasks shows",
        ),
        (f"{WEIGHTS} --tasks Linear_2O", "No task is called 'Linear_2O'. Did you mean"),
        (W.replace("runs/my_lopt", "runs/mine"), "No learned optimizer or file is called 'runs/mine'."),
        (W.replace("runs/my_lopt", "empty"), "empty holds no optimizer.safetensors; metatrain writes it"),
        (W.replace("runs/my_lopt", "plain.safetensors"), "a checkpoint, but of no learned optimizer"),
        (
            W.replace("runs/my_lopt", "text.safetensors"),
            "Checkpoint text.safetensors is truncated or damaged",
        ),
        (f"{W} --against zzz", "No hyperparameter set is called 'zzz'."),
        (f"{W} --optimizers adm", "Did you mean adam-default"),
        (f"{W} --optimizers learned:mine", "No learned optimizer or file is called 'mine'."),
        (
            f"{W} --weights runs/my_lopt runs/other/my_lopt.safetensors",
            "learned:runs/my_lopt and learned:runs/other/my_lopt.safetensors would both be the set "
            "LOpt_4_R2-my_lopt in the store; give one of them, or a copy",
        ),
        (f"{W} --optimizers adam --against adam-default", "adam and adam would both be the set adam-default"),
        (
            "train --task Quadratic_10 --optimizer learned:runs/my_lopt --optimizer.learning-rate 1",
            f"learned:runs/my_lopt takes no hyperparameter learning_rate: {META} Leave it out.",
        ),
        (
            "train --task Quadratic_10 --optimizer clip_norm:learned:runs/my_lopt --optimizer.inner.b1 1",
            f"takes no hyperparameter inner.b1: {META} Its wrappers have: max_norm.",
        ),
        (
            "sweep --task Quadratic_10 --optimizer learned:runs/my_lopt --grid net.layers.0.bias=0,1",
            "learned:runs/my_lopt takes no hyperparameter net.layers.0.bias",
        ),
        ("sweep --task Quadratic_10 --set learned.yaml", "takes no hyperparameter learning_rate"),
        ("sweep --task Quadratic_10 --set LOpt_1000_R5", "Set LOpt_1000_R5 needs a learned optimizer: write"),
        ("sweep --task Quadratic_10 --set LOpt_1000_R5:no", "No learned optimizer or file is called 'no'."),
        ("describe learned:no", "No learned optimizer or file is called 'no'."),
        (
            "list architectures 'zzz*'",
            "No architectures match 'zzz*'; outeropt list architectures shows all.",
        ),
    ],
)
def test_a_mistake_is_told_in_one_line(words, line, folder, capsys):
    capsys.readouterr()
    assert main(shlex.split(words)) == 2
    told = capsys.readouterr()
    assert line in told.err and told.err.count("\n") == 1 and told.out == ""
    assert not (folder / "runs.db").exists()


# names ------------------------------------------------------------------------------------------------------


def test_what_readers_see_of_weights(folder, monkeypatch):
    for path in ("runs/my_lopt", "runs/my_lopt/", "./runs/my_lopt/optimizer.safetensors"):
        assert label(path) == "my_lopt"
    assert label("runs/other/my_lopt.safetensors") == "my_lopt" and label("small_fc") == "small_fc"
    monkeypatch.chdir("runs/my_lopt")
    assert label(".") == label("optimizer.safetensors") == "my_lopt"
    assert shown("clip:learned:../my_lopt") == "clip:learned:my_lopt"
    assert shown("clip:adam") == "clip:adam" and shown("unlearned:adam/x") == "unlearned:adam/x"


def test_train_and_sweep_take_learned_optimizers(folder, run):
    common = "--task Quadratic_10 --steps 4 --eval-every 2 --store"
    told = run(f"train --optimizer learned:runs/my_lopt {common} one.db")
    assert told.splitlines()[0].strip() == "Quadratic_10: learned:my_lopt"
    run(f"sweep --set LOpt_1000_R5:runs/my_lopt --seeds 1 {common} two.db")
    (one,), (two,) = stored("one.db"), stored("two.db")
    assert two.set == "LOpt_1000_R5-my_lopt@4" and one.optimizer == two.optimizer == "learned:my_lopt"
    np.testing.assert_array_equal(one.curves["test/loss"][0], two.curves["test/loss"][0])
    assert (one.ids == two.ids).all()


def test_describe(folder, run):
    told = run("describe learned:runs/my_lopt").splitlines()
    assert told[0] == "learned:runs/my_lopt" and "arXiv 2203.11860" in told[1]
    assert told[2:] == [
        "  architecture: AdafacMLP",
        "  settings: hidden_size = 4, hidden_layers = 2, step_mult = 0.01, exp_mult = 0.001, "
        "schedule = constant",
        f"  meta-parameters: 197 in {len(learned().hyperparameters)} arrays",
        "  made with tasks: Linear_20, Quadratic_10",
        "  made with estimator: pes",
    ]
    assert "LOpt_1000_R5-my_lopt\n  optimizer: learned:runs/my_lopt\n" in run(
        "describe LOpt_1000_R5:runs/my_lopt"
    )


def test_list(run, monkeypatch, folder):
    assert run("list architectures").split() == list(ARCHITECTURES)
    assert run("list architectures 'Adafac*'").split() == ["AdafacMLP"]
    assert run("list estimators").split() == list(metatraining.ESTIMATORS)
    from outeropt import weight_files

    shipped = weight_files.names()
    assert run("list weights").split() == shipped
    for name in shipped:
        assert f"learned:{name}" in run("list optimizers 'learned:*'").split()
        assert f"LOpt_2000_R5:{name}" in run("list sets 'LOpt_2000*'").split()


def test_weights_that_ship_are_listed_everywhere(monkeypatch, folder):
    from outeropt import weight_files

    monkeypatch.setattr(weight_files, "shipped", lambda: folder / "runs" / "other")
    assert list(listing._weights()) == ["my_lopt"]
    assert "learned:my_lopt" in listing._optimizers()
    names = set(listing._sets())
    assert {"LOpt_2000_R5:my_lopt", "GradAccum_LOpt_16384_R5:my_lopt", "learned:my_lopt-default"} <= names
    assert "learned:my_lopt-lr" not in names
    found = sets.get("learned:my_lopt-default")
    assert found.settings() == ({},) and found.shown == "learned:my_lopt"
    assert sets.get("LOpt_2000_R5:my_lopt").name == "LOpt_2000_R5-my_lopt"
    assert label("my_lopt") == "my_lopt" and optimizers.get("learned:my_lopt").settings == learned().settings
