"""Hyperparameter sets of several episodes, and collections of sets that are run together."""

import numpy as np
import pytest

from outeropt import Store, tasks
from outeropt._sweep.runner import Runner
from outeropt.bench import collections, sets
from outeropt.bench.collections import Collection
from outeropt.bench.run import run
from outeropt.cli.main import main
from outeropt.errors import ConfigError, UnknownName


SMALL = Collection(
    "small", ("metaopt-default", "dog-default", "sgd-lr"), seeds=2, steps=4, episodes=2, note="a test"
)


@pytest.fixture
def small(monkeypatch, tmp_path):
    monkeypatch.setitem(collections.COLLECTIONS, "small", SMALL)
    monkeypatch.chdir(tmp_path)


def test_sets_of_several_episodes(tmp_path):
    item = sets.get("adam-lr").adapted(steps=30, episodes=4)
    assert (item.name, item.steps, item.episodes, item.eval_every) == ("adam-lr", 30, 4, 10)
    assert item.protocol["episodes"] == 4 and item.adapted() == item
    assert sets.get("AdamLR_2000_R5").adapted(episodes=3).name == "AdamLR_2000_R5@3x2000"
    (tmp_path / "mine.yaml").write_text("optimizer: metaopt\nsteps: 20\nepisodes: 3\n")
    assert sets.get(str(tmp_path / "mine.yaml")).episodes == 3
    with pytest.raises(ConfigError, match="episodes = 0 is not allowed"):
        item.adapted(episodes=0)


def test_sets_of_several_episodes_run(tmp_path):
    items = [sets.get(f"adam-{kind}").adapted(steps=4, episodes=3, seeds=1) for kind in ("lr", "default")]
    with Store(tmp_path / "runs.db") as store:
        tuned, as_is = run(tasks.get("Quadratic_10"), items, store)
    assert tuned.episodes == as_is.episodes == 3 and tuned.num_steps == 12
    assert tuned.ends("train/loss").shape == (9, 1, 3) and as_is.ends().shape == (1, 1, 3)
    np.testing.assert_array_equal(tuned.ends()[..., -1], tuned.final())
    np.testing.assert_array_equal(tuned.ends()[..., 0], tuned.curves["train/loss"][..., 4])


@pytest.mark.parametrize("name", collections.names())
def test_members_share_their_protocol(name):
    found = collections.get(name)
    items = found.sets()
    assert [item.name for item in items] == list(found.members)
    (protocol,) = {tuple(item.protocol.items()) for item in items}
    assert dict(protocol) | {"seeds": found.seeds, "steps": found.steps} == dict(protocol)
    assert {(item.steps, item.eval_every) for item in found.sets(steps=50, episodes=1)} == {(50, 2)}
    assert {item.eval_every for item in found.sets(eval_every=50)} == {50}
    with pytest.raises(ConfigError, match="steps = 0"):
        found.sets(steps=0)
    with pytest.raises(UnknownName, match=f"Did you mean {name}"):
        collections.get(name[:-1])


def test_the_comparison_tunes_whom_it_says():
    items = {item.name: item for item in collections.get("self-tuning-vs-tuned").sets()}
    assert [len(items[f"{name}-lr"].settings()) for name in ("sgd", "momentum", "adam", "adamw")] == [9] * 4
    assert [len(item.settings()) for name, item in items.items() if name.endswith("-default")] == [1] * 12


def test_a_collection_is_swept_and_not_run_again(small, capsys, monkeypatch):
    words = ["sweep", "--task", "Quadratic_10", "--set", "small"]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "episode 2" in told and "metaopt" in told and "learning_rate" in told
    with Store("runs.db", "read") as store:
        archives = store.archives()
    assert {archive.set for archive in archives} == set(SMALL.members)
    assert {(archive.episodes, archive.num_steps, len(archive.seeds)) for archive in archives} == {(2, 8, 2)}

    def forbidden(*_):
        raise AssertionError("a finished trial was run again")

    monkeypatch.setattr(Runner, "run", forbidden)
    assert main(words) == 0 and capsys.readouterr().out == told
    assert main(["report", "runs.db"]) == 0


def test_an_interrupted_collection_goes_on(small, capsys, monkeypatch):
    real, calls = Runner.run, []

    def interrupted(self, *given):
        calls.append(self)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, *given)

    monkeypatch.setattr(Runner, "run", interrupted)
    words = ["sweep", "--task", "Quadratic_10", "--set", "small", "--seeds", "1"]
    assert main(words) == 130
    assert main(words) == 0 and len(calls) == 4


def test_collections_are_named_and_flags_override(small, capsys):
    assert main(["list", "sets", "small"]) == 0 and capsys.readouterr().out == "small\n"
    assert main(["describe", "small"]) == 0 and "episodes: 2" in capsys.readouterr().out
    flags = ["--steps", "6", "--episodes", "1", "--seeds", "1", "--eval-every", "3"]
    assert main(["sweep", "--task", "Quadratic_10", "--set", "small", *flags]) == 0
    assert "episode 1" in (told := capsys.readouterr().out) and "episode 2" not in told
    assert main(["sweep", "--task", "Quadratic_10", "--set", "small", "--name", "mine"]) == 2
    assert "--name names one set" in capsys.readouterr().err


def test_any_sweep_takes_episodes(small, capsys):
    words = ["sweep", "--task", "Quadratic_10", "--optimizer", "adam", "--steps", "4", "--seeds", "1"]
    assert main([*words, "--episodes", "2"]) == 0
    assert "2 episodes of 4 steps" in capsys.readouterr().out
    assert main([*words, "--episodes", "0"]) == 2
    assert "--episodes 0 is not allowed" in capsys.readouterr().err
