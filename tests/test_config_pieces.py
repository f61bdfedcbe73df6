"""Configuration pieces: those that ship, what they may not do to each other, and folders of logs."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from outeropt import tasks
from outeropt.bench.one_pass import study
from outeropt.bench.one_pass.problems import LARGE, TABLES
from outeropt.cli.config import parse
from outeropt.cli.main import main
from outeropt.cli.sweep import Config as SweepConfig
from outeropt.cli.train import Config as TrainConfig
from outeropt.errors import ConfigError, OuteroptError
from outeropt.progress import read_scalars, scalars
from outeropt.selftuning.onepass import methods
from restart_fixtures import stand_ins


CONFIGS = Path(__file__).parents[1] / "configs"
DATA = sorted((CONFIGS / "data").glob("*.yaml"))
ALGORITHMS = sorted((CONFIGS / "algorithm").glob("*.yaml"))
ENERGY, HDLR = CONFIGS / "data" / "uci_energy.yaml", CONFIGS / "algorithm" / "one_pass_hdlr.yaml"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(methods, "study_methods", stand_ins)
    return tmp_path


def both(data, algorithm, *flags):
    return parse("train", TrainConfig, ["-c", str(data), str(algorithm), *flags])


def test_every_piece_fits_every_other():
    tables = {f"uci_{name}": problem for name, problem in TABLES.items()}
    assert {path.stem for path in DATA} == {*tables, *LARGE, "fashion_mnist_batch_norm"}
    for data, algorithm in itertools.product(DATA, ALGORITHMS):
        one, other = both(data, algorithm), both(algorithm, data)
        assert one == other, "the order of pieces decides nothing"
        assert one.steps % one.eval_every == 0 and tasks.known(one.task)
        swept = parse("sweep", SweepConfig, ["-c", str(data), str(algorithm), "--seeds", "20"])
        assert (swept.task, swept.optimizer, swept.train_on) == (one.task, one.optimizer, one.train_on)


def test_pieces_are_the_problems_of_the_study():
    problems = {f"uci_{name}": problem for name, problem in TABLES.items()} | LARGE
    for path in DATA:
        if problem := problems.get(path.stem):
            one = both(path, ALGORITHMS[0])
            for name in ("task", "steps", "eval_every", "eval_batches", "last_eval_batches"):
                assert getattr(one, name) == getattr(problem, name), path


def test_pieces_are_the_methods_of_the_study():
    rows = {True: "train+valid", False: "train"}
    wanted = {(f"study:{m.optimizer}", rows[m.whole]) for m in study.METHODS.values() if m.optimizer}
    found = [both(ENERGY, algorithm) for algorithm in ALGORITHMS]
    assert {(one.optimizer, one.train_on) for one in found} == wanted and len(found) == len(wanted)
    assert {(one.optimizer.removeprefix("study:")) for one in found} == stand_ins().keys()


def test_data_cannot_undo_an_algorithm(folder):
    # The defect of the paper's scripts: there the data's file came last, and undid what Random trains on.
    (folder / "data.yaml").write_text("task: UCI_Energy\ntrain_on: train\n")
    words = ["-c", str(CONFIGS / "algorithm" / "random.yaml"), "data.yaml"]
    with pytest.raises(ConfigError) as error:
        parse("train", TrainConfig, words)
    for part in (
        "train_on is train+valid",
        "random.yaml and train in data.yaml",
        "--train-on",
        "`override:`",
    ):
        assert part in str(error.value)
    assert parse("train", TrainConfig, [*words, "--train-on", "train"]).train_on == "train"
    (folder / "data.yaml").write_text("task: UCI_Energy\ntrain_on: train\noverride: [train_on]\n")
    assert parse("train", TrainConfig, words).train_on == "train"


def test_disagreement_is_told_by_entry(folder):
    (folder / "a.yaml").write_text("task: t\nhyperparameters: {learning_rate: 0.1, momentum: 0.9}\n")
    (folder / "b.yaml").write_text("hyperparameters: {learning_rate: 1e-1, momentum: 0.8}\n")
    (folder / "c.yaml").write_text("hyperparameters: {weight_decay: 0.5}\n")
    with pytest.raises(ConfigError, match=r"hyperparameters.momentum is 0.9 .*--optimizer.momentum\.$"):
        parse("train", TrainConfig, ["-c", "a.yaml", "b.yaml"])
    config = parse("train", TrainConfig, ["-c", "a.yaml", "b.yaml", "--optimizer.momentum", "0.7"])
    assert config.hyperparameters["momentum"] == 0.7
    config = parse("train", TrainConfig, ["-c", "a.yaml", "c.yaml"])
    assert config.hyperparameters == {"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: 3\noverride: [stpes]\n", "override in b.yaml lists 'stpes', which the file does not set"),
        ("steps: 3\noverride: steps\n", "override in b.yaml must be a list, not 'steps'"),
    ],
)
def test_mistakes_in_override(folder, capsys, text, message):
    (folder / "b.yaml").write_text(text)
    assert main(["train", "--task", "Quadratic_10", "-c", "b.yaml"]) == 2
    assert message in capsys.readouterr().err


def test_a_run_from_pieces_has_a_folder_of_logs(folder, capsys):
    words = ["-c", str(ENERGY), str(HDLR), "--steps", "20", "--eval-every", "10"]
    assert main(["train", *words, "-n", "first try", "-g", "energy", "-l", "logs"]) == 0
    (run,) = (folder / "logs" / "energy").iterdir()
    assert (
        run.name.endswith(" first try")
        and f"TensorBoard scalars: logs/energy/{run.name}" in capsys.readouterr().out
    )
    found = read_scalars(run)
    steps, losses = found["test/loss"]
    assert steps == [0, 10, 20] and np.isfinite(losses).all()
    assert found["optimizer/learning_rate"][1][0] != found["optimizer/learning_rate"][1][-1]
    # What it wrote is a configuration: the same run again, in a folder of its own.
    config = str(run / "config.yaml")
    assert parse("train", TrainConfig, ["-c", config]) == parse(
        "train", TrainConfig, [*words, "-n", "first try", "-g", "energy", "-l", "logs"]
    )
    assert main(["train", "-c", config]) == 0
    assert len(list((folder / "logs" / "energy").iterdir())) == 2


def test_methods_of_the_study_can_be_described(folder, capsys):
    assert main(["describe", "study:Ours_LR"]) == 0
    assert "2110.10461" in capsys.readouterr().out


def test_restarts_are_seeds(folder, capsys):
    algorithm = CONFIGS / "algorithm" / "random.yaml"
    words = ["-c", str(CONFIGS / "data" / "uci_yacht.yaml"), str(algorithm), "--seeds", "3"]
    assert main(["sweep", *words, "--steps", "20", "--eval-every", "10"]) == 0
    assert "UCI_Yacht_TrainValid: study:Random, 3 seeds, 20 steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("-n x", "--name names a folder of logs; say where with --log-dir LOGS."),
        ("-g x", "--group names a folder of logs"),
        ("-l logs -n a/b", "--name a/b must be a folder's name"),
        ("-l logs -g ..", "--group .. must be a folder's name"),
        ("-l logs --train-on train+valid", "no training and validation rows"),
        ("-l logs --eval-every 7", "eval_every"),
        ("-l logs --optimizer study:Our_LR", "Ours_LR"),
        ("-l logs --optimizer study:Ours_LR --optimizer.momentum 1", "takes no hyperparameter momentum"),
    ],
)
def test_nothing_is_written_on_a_mistake(folder, capsys, words, message):
    assert main(["train", "--task", "Quadratic_10", "--steps", "20", *words.split()]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(folder.iterdir())


def test_scalars_are_read_back(tmp_path):
    with scalars(tmp_path) as log:
        for step in range(3):
            log.log(step, {"a/b": step / 2, "c": 1})
    assert read_scalars(tmp_path) == {"a/b": ([0, 1, 2], [0.0, 0.5, 1.0]), "c": ([0, 1, 2], [1.0] * 3)}
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-3])  # killed in the middle of the last record
    assert read_scalars(tmp_path)["c"][0] == [0, 1]
    with pytest.raises(OuteroptError, match="no TensorBoard logs"):
        read_scalars(tmp_path / "none")
