"""The study of one-pass tuning: what runs, what is kept, the tables, and the verb; with stand-in methods."""

import dataclasses

import equinox as eqx
import numpy as np
import pytest

from outeropt import Store, data, optimizers
from outeropt.bench import one_pass
from outeropt.bench.one_pass import problems, published, study, tables, writing
from outeropt.bench.restarts import Estimate
from outeropt.cli.main import main
from outeropt.errors import OuteroptError, UnknownName
from restart_fixtures import DrawnSGD, stand_ins


SMALL = ("Random", "Random_Validation", "Random_3Batched", "Ours_LR_Momentum")
SHORT = {"seeds": 9, "steps": 20, "eval_every": 10}


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    path = tmp_path_factory.mktemp("study") / "runs.db"
    with Store(path) as store:
        return path, study.run(store, "yacht", SMALL, optimizers=stand_ins(), **SHORT)


def test_methods_run_on_their_rows(stored):
    _, archives = stored
    assert {name: a.task for name, a in archives.items()} == {
        "Random": "UCI_Yacht_TrainValid",
        "Random_Validation": "UCI_Yacht",
        "Ours_LR_Momentum": "UCI_Yacht",
    }
    for name, archive in archives.items():
        assert len(archive.settings) == 1 and archive.seeds == tuple(range(9))
        assert archive.set == f"one-pass-{name}@20" and archive.optimizer == study.METHODS[name].label
    # A seed is a restart: methods share the initial network and the drawn hyperparameters.
    curves = [archive.curves for archive in archives.values()]
    for name in ("test/loss", "optimizer/learning_rate", "optimizer/momentum"):
        first = curves[0][name][0, :, 0]
        assert len(set(first.tolist())) == 9
        for other in curves[1:]:
            np.testing.assert_allclose(other[name][0, :, 0], first, rtol=1e-5)


def test_what_is_stored_is_not_run_again(stored):
    path, before = stored
    done = []
    with Store(path) as store:
        again = study.run(store, "yacht", SMALL, optimizers=stand_ins(), report=done.append, **SHORT)
        for name, archive in again.items():
            np.testing.assert_array_equal(archive.ids, before[name].ids)
            np.testing.assert_array_equal(archive.seconds, before[name].seconds)
        # More restarts add to those that are there.
        more = {**SHORT, "seeds": 10}
        wider = study.run(store, "yacht", ["Random"], optimizers=stand_ins(), **more)["Random"]
    np.testing.assert_array_equal(wider.ids[:, :9], before["Random"].ids)
    assert done == [9, 9, 9]


def test_a_stopped_study_goes_on(stored, tmp_path):
    class Stopped(Exception):
        pass

    told = []

    def stop(amount):
        told.append(amount)
        if sum(told) > 9:  # in the middle of the second method
            raise Stopped

    with Store(tmp_path / "runs.db") as store:
        with pytest.raises(Stopped):
            study.run(store, "yacht", SMALL, optimizers=stand_ins(), report=stop, **SHORT)
        assert store._select("SELECT count(*) FROM trials") == [(9,)]
        again = study.run(store, "yacht", SMALL, optimizers=stand_ins(), **SHORT)
    for name, archive in again.items():
        for curve, values in archive.curves.items():
            np.testing.assert_array_equal(values, stored[1][name].curves[curve])


def test_losses_are_in_the_target_s_units(stored):
    _, archives = stored
    runs = study.all_restarts(archives, "yacht")
    variance = data.target_deviation("uci_yacht") ** 2
    wanted = variance * archives["Random"].curves["test/loss"][0]
    np.testing.assert_allclose(runs["Random"].test, wanted, rtol=1e-6)
    assert list(runs) == list(SMALL)  # in the order of the methods, the derived one after its source
    assert len(runs["Random_3Batched"].final) == 3
    spent = runs["Random_Validation"].seconds
    np.testing.assert_allclose(runs["Random_3Batched"].seconds.sum(), spent.sum(), rtol=1e-5)
    assert np.median(runs["Random_3Batched"].final) <= np.median(runs["Random_Validation"].final)
    thousand = study.all_restarts(archives, "kin8nm")
    np.testing.assert_allclose(
        thousand["Random"].test,
        1000 * data.target_deviation("uci_kin8nm") ** 2 * archives["Random"].curves["test/loss"][0],
        rtol=1e-6,
    )


def test_too_few_runs_make_no_group(stored):
    _, archives = stored
    few = {"Random_Validation": archives["Random_Validation"]}
    assert "Random_3Batched" not in study.all_restarts(few, "yacht", threshold=1e-9)


def test_tables_side_by_side(stored):
    _, archives = stored
    runs = study.all_restarts(archives, "energy")
    averages, spread = tables.tables("energy", study.summaries(runs))
    assert averages.columns[1:4] == ("mean, paper ", "mean, released code ", "mean, ours ")
    rows = {row[0]: row for row in averages.rows}
    assert rows["Ours WD+LR+M"][1:3] == ("1.28 ± 0.08", "1.06 ± 0.08")
    assert rows["Random, train split"][1] == "-"
    assert (3, 1) in averages.bold  # of the methods shown, the paper's smallest mean
    assert {len(row) for row in averages.rows} == {len(averages.columns)}
    lost = dict(zip(spread.columns, spread.rows[-1]))
    assert lost["diverged, released "] == "1 of 200" and lost["runs "] == "9"
    # Where nothing was published there is nothing to compare with.
    assert tables.tables("yacht", study.summaries(runs))[0].columns == (
        "method",
        "mean, ours ",
        "median, ours ",
    )


def test_diverged_runs_are_in_the_table(stored):
    path, _ = stored
    # A learning rate that soon is 10^3.
    wild = {"Random": DrawnSGD((0.5, 0, 0), (3, 0, 0))}
    with Store(path) as store:
        archives = study.run(store, "yacht", ["Random"], optimizers=wild, seeds=8, steps=40, eval_every=20)
    spread = tables.tables("yacht", study.summaries(study.all_restarts(archives, "yacht")))[1]
    row = dict(zip(spread.columns, spread.rows[0]))
    assert row["diverged "] == "8 (100.0%)" and row["25 % "] == "diverged" and row["best "] == "-"


def test_leaders_are_those_within_the_error_of_the_best():
    def values(*pairs):
        return [Estimate(*pair) for pair in pairs]

    assert tables.leaders(values((1.0, 0.2), (1.2, 0.1), (1.3, 9), (np.nan, np.nan))) == [0, 1]
    assert tables.leaders(values((np.nan, np.nan))) == []


def test_published_numbers_belong_to_the_study():
    for source in (published.PAPER, published.RELEASED_CODE):
        assert source.keys() <= problems.PROBLEMS.keys()
        assert all(rows.keys() <= study.METHODS.keys() for rows in source.values())
    assert problems.LARGE.keys() <= published.PAPER.keys() and one_pass.__doc__


def test_everything_is_written(stored, tmp_path):
    _, archives = stored
    made, page = writing.write({"yacht": archives}, tmp_path / "out", methods=SMALL[::2])
    text = page.read_text("utf-8")
    assert "9 restarts of 20 steps" in text and "| Random (3-batched) |" in text
    assert "WD+LR+M" not in text and len(made) == 2
    assert not list((tmp_path / "out" / "figures").glob("*trajectories*")), "nothing of these moves"
    writing.write({"yacht": archives}, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out" / "figures").glob("*.png")}
    assert names == {
        "restarts_final.png",
        "restarts_median.png",
        "restarts_incumbent.png",
        "restarts_trajectories_UCI_Yacht.png",
        "restarts_hyperparameters_UCI_Yacht.png",
    }


def test_names_and_missing_optimizers(stored):
    names = tuple(problems.TABLES)
    assert study.chosen(["all"], names, "dataset") == names
    assert study.chosen(["yacht", "energy"], names, "dataset") == ("energy", "yacht")
    assert study.run_names(["Random_3Batched"]) == ("Random_Validation",)
    with pytest.raises(UnknownName, match=r"yatch.*yacht"):
        study.chosen(["yatch"], names, "dataset of the study")
    with Store(stored[0]) as store, pytest.raises(OuteroptError, match="Baydin needs the optimizer"):
        study.run(store, "yacht", ["Baydin"], optimizers={"Random": DrawnSGD()}, **SHORT)


def test_the_verb(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "study_methods", stand_ins)
    words = "reproduce one-pass-uci --datasets yacht --restarts 9 --steps 20 --eval-every 10 --store s.db"
    assert main([*words.split(), "--methods", "Random", "Ours_LR_Momentum"]) == 0
    shown = capsys.readouterr().out
    assert "yacht: final test MSE" in shown and "Ours WD+LR+M" in shown and "tables.md" in shown
    assert (tmp_path / "reproduction" / "tables.md").exists()


@pytest.fixture
def small_treebank(monkeypatch):
    """The Penn Treebank of the study on a quadratic, in two steps and three starts."""
    small = dataclasses.replace(
        problems.LARGE["penn_treebank"],
        task="Quadratic_10",
        steps=2,
        restarts=3,
        eval_every=1,
        last_eval_batches=2,
    )
    for known in (problems.LARGE, problems.PROBLEMS):
        monkeypatch.setitem(known, "penn_treebank", small)
    return small


def test_the_large_problems_by_the_verb(small_treebank, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = "reproduce one-pass-large --datasets penn_treebank --store s.db --lanes 3 --methods"
    methods = ("Random_Validation", "Random_3Batched", "Ours_LR_Momentum")
    assert main([*words.split(), *methods]) == 0
    shown = capsys.readouterr().out
    for part in (
        "penn_treebank: final test perplexity",
        "290 ± 50",  # the paper's, beside ours
        "x Random",
        "penn_treebank: 3 restarts of 2 steps, evaluated every 1; a final test loss of 100000 or more",
    ):
        assert part in shown
    with Store(tmp_path / "s.db") as store:
        archives = study.run(store, "penn_treebank", methods, optimizers=stand_ins())
    assert {archive.set for archive in archives.values()} == {
        "one-pass-Random_Validation",
        "one-pass-Ours_LR_Momentum",
    }
    runs = study.all_restarts(archives, "penn_treebank")
    one = archives["Ours_LR_Momentum"]
    np.testing.assert_allclose(runs["Ours_LR_Momentum"].test, np.exp(one.curves["test/loss"][0]), rtol=1e-6)
    assert not np.isfinite(small_treebank.runs(_of_loss(one, 1e4)).final).any()  # and no warning


def _of_loss(archive, loss):
    curves = {name: np.full_like(curve, loss) for name, curve in archive.curves.items()}
    return dataclasses.replace(archive, curves=curves)


def test_gradients_are_clipped_on_the_treebank_alone():
    for name in study.METHODS:
        if optimizer := study.METHODS[name].optimizer:
            norms = {
                dataset: [
                    float(value)
                    for leaf, value in study.study_methods(dataset)[optimizer].hyperparameters.items()
                    if leaf.endswith("max_norm")
                ]
                for dataset in ("energy", "cifar10", "penn_treebank")
            }
            assert norms == {"energy": [], "cifar10": [], "penn_treebank": [0.25]}, name
    named = optimizers.get("study:clipped:Ours_LR")
    assert eqx.tree_equal(named, study.study_methods("penn_treebank")["Ours_LR"])
    with pytest.raises(UnknownName, match="Ours_LR"):
        optimizers.get("study:clipped:Our_LR")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("one-pass-uci --datasets enrgy", "energy"),
        ("one-pass-uci --methods Our_LR", "Ours_LR"),
        ("one-pass-uci --restarts 0", "--restarts 0"),
        ("one-pass-large --lanes 0", "--lanes 0"),
        ("one-pass-large --datasets energy", "fashion_mnist, penn_treebank, cifar10"),
        ("one-pass-uci --steps 100 --eval-every 30", "30"),
        ("one-pass-uck", "one-pass-uc"),
    ],
)
def test_mistakes_are_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "study_methods", stand_ins)
    assert main(["reproduce", *words.split()]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_optimizers_of_the_study_are_there():
    found = study.study_methods("energy")
    assert {m.optimizer for m in study.METHODS.values() if m.optimizer} <= found.keys()
    assert stand_ins().keys() <= found.keys()
