"""Stores that were filled apart come together by the content of their trials."""

import pytest

from outeropt import Store, grid, optimizers, sweep, tasks
from outeropt.cli.main import main
from outeropt.store import export, load
from outeropt.store.commands import Command


def swept(store, rates, seeds, name="s"):
    settings = grid(optimizers.get("sgd"), learning_rate=rates)
    task = tasks.get("Quadratic_10")
    return sweep(task, settings, seeds=seeds, steps=10, eval_every=5, lanes=1, store=store, set=name)


@pytest.fixture
def two(tmp_path):
    with Store(tmp_path / "one.db") as one, Store(tmp_path / "two.db") as other:
        yield one, other


def test_halves_make_a_whole(two, tmp_path):
    one, other = two
    swept(one, [0.01], [0, 1])
    swept(other, [0.01, 0.1], [1, 2])
    with Store(tmp_path / "whole.db") as whole:
        swept(whole, [0.01, 0.1], [0, 1, 2])
        assert one.merge(other) == 3
        assert one.merge(other) == 0
        (found,), (expected,) = one.archives(missing="nan"), whole.archives()
    assert found.settings == expected.settings and found.seeds == (0, 1, 2)
    # The setting that only the other knew has no seed 0 yet, and the store knows that.
    missing = [(i, j) for i in range(2) for j in range(3) if not found.ids[i, j]]
    assert missing == [(1, 0)]
    for i, j in [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2)]:
        assert found.ids[i, j] == expected.ids[i, j]
        assert (found.curves["train/loss"][i, j] == expected.curves["train/loss"][i, j]).all()


def test_a_set_that_means_something_else_stays(two):
    one, other = two
    swept(one, [0.01], [0])
    swept(other, [0.5], [0])
    swept(other, [0.5], [0], name="theirs")
    before = one.archives(set="s")
    assert one.merge(other) == 1
    (kept,) = one.archives(set="s")
    assert kept.settings == before[0].settings and one.sets() == ["s", "theirs"]


def test_commands_are_taken_over(two):
    one, other = two
    other.remember(Command("sweep", {"task": "Quadratic_10"}, [("Quadratic_10", "s")]))
    one.merge(other)
    assert one.commands() == other.commands()


def test_the_command_merges_stores(two, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    swept(two[1], [0.01, 0.1], [0])
    assert main(["load", "two.db", "--store", "three.db"]) == 0
    assert "two.db: 2 new trials" in capsys.readouterr().out
    assert main(["load", "none.db", "--store", "three.db"]) == 2
    assert "There is no store at none.db" in capsys.readouterr().err


def test_archives_go_to_any_address_of_fsspec(two, tmp_path):
    fsspec = pytest.importorskip("fsspec")
    swept(two[0], [0.01], [0, 1])
    (archive,) = two[0].archives()
    written = export([archive], "memory://bucket/archive")
    assert written[0] == "memory://bucket/archive/Quadratic_10/s.npz"
    with fsspec.open(written[0], "rb") as remote, (tmp_path / "copy.npz").open("wb") as local:
        local.write(remote.read())
    assert (load(tmp_path / "copy.npz").ids == archive.ids).all()
