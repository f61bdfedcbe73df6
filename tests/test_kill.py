"""A sweep that is killed goes on where it was; two that run at once share a store."""

import contextlib
import io
import signal
import sqlite3
import subprocess
import sys

import numpy as np
import pytest

from outeropt import Store
from outeropt.cli.main import main


SETTINGS, SEEDS = 6, 4
GRID = f"learning_rate=log:1e-3:1e-1:{SETTINGS}"
WORDS = (
    *("sweep", "--task", "Quadratic_100", "--optimizer", "adam", "--grid", GRID, "--seeds", str(SEEDS)),
    *("--lanes", "1", "--steps", "1200", "--eval-every", "2", "--name", "killed"),
)

# The same command in a process that gets a signal when some trials are stored and the next chunk is on its
# way, with a checkpoint after every call of the compiled program.
STRUCK = """
import os, pathlib, signal, sqlite3, sys
from outeropt._sweep import runner
from outeropt.cli.main import main

def moment():
    with sqlite3.connect("file:runs.db?mode=ro", uri=True) as sql:
        (trials,) = sql.execute("SELECT count(*) FROM trials").fetchone()
    return trials >= {trials} and any(pathlib.Path("runs.db.partial").glob("*.safetensors"))

def call(self, *arguments):
    if moment():
        os.kill(os.getpid(), {signal})
    return real(self, *arguments)

# What a shell starts in the background is born deaf to interruptions.
signal.signal(signal.SIGINT, signal.default_int_handler)
real, runner.Runner._call = runner.Runner._call, call
runner._CALL_SECONDS, runner._CHECKPOINT_SECONDS = 1e9, 0.0
sys.exit(main({words!r}))
"""

# The same command in a process that tells how many trials it ran.
COUNTED = """
from outeropt._sweep import runner
from outeropt.cli.main import main

ran, real = [], runner.Runner.run
runner.Runner.run = lambda self, chunk, *rest: ran.append(chunk.lanes) or real(self, chunk, *rest)
assert main({words!r}) == 0
print("ran", sum(ran))
"""


def begin(folder, *words):
    words = [sys.executable, *words]
    return subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def command(folder):
    return begin(folder, "-m", "outeropt.cli.main", *WORDS)


def struck(folder, trials, by):
    code = STRUCK.format(trials=trials, signal=int(by), words=list(WORDS))
    child = begin(folder, "-c", code)
    _, told = child.communicate(timeout=300)
    return child.returncode, told


def finish(child):
    out, err = child.communicate(timeout=300)
    assert child.returncode == 0, err
    return out


def stored(path):
    with contextlib.closing(sqlite3.connect(path)) as sql:
        assert sql.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return [row[0] for row in sql.execute("SELECT id FROM trials ORDER BY rowid")]


def archive(path):
    with Store(path) as store:
        store.check()
        (found,) = store.archives()
        (status,) = store.status()
    assert status.finished == status.expected == SETTINGS * SEEDS == len(stored(path))
    return found


def same(a, b):
    assert a.settings == b.settings and a.seeds == b.seeds
    np.testing.assert_array_equal(a.ids, b.ids)
    np.testing.assert_array_equal(a.diverged_at, b.diverged_at)
    assert a.curves.keys() == b.curves.keys()
    for name, curve in a.curves.items():
        assert curve.tobytes() == b.curves[name].tobytes(), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The sweep without interruption, in this process."""
    folder = tmp_path_factory.mktemp("whole")
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
        assert main(list(WORDS)) == 0
    return archive(folder / "runs.db")


def test_a_killed_sweep_goes_on_and_ends_with_the_same_numbers(tmp_path, whole):
    store, partial = tmp_path / "runs.db", tmp_path / "runs.db.partial"
    kept = []
    for trials in (4, 12):
        # Killed twice, the second time on its way through what was missing.
        assert struck(tmp_path, trials, signal.SIGKILL)[0] == -signal.SIGKILL
        assert stored(store)[: len(kept)] == kept
        kept = stored(store)
        assert trials <= len(kept) < SETTINGS * SEEDS
        assert list(partial.glob("*.safetensors"))

    told = finish(begin(tmp_path, "-c", COUNTED.format(words=list(WORDS))))
    assert "killed, 4 seeds, 1200 steps" in told
    assert told.endswith(f"ran {SETTINGS * SEEDS - len(kept)}\n")
    same(archive(store), whole)
    assert stored(store)[: len(kept)] == kept
    assert not list(partial.glob("*"))


def test_an_interrupted_sweep_keeps_what_it_has(tmp_path, whole):
    told = "outeropt: interrupted; finished work is kept, the same command goes on\n"
    assert struck(tmp_path, 4, signal.SIGINT) == (130, told)
    with Store(tmp_path / "runs.db") as store:
        store.check()
        (status,) = store.status()
        found = store.get(stored(tmp_path / "runs.db"))
    assert 4 <= status.finished < status.expected == SETTINGS * SEEDS
    for i, setting in enumerate(whole.settings):
        for k, seed in enumerate(whole.seeds):
            trial = found.get(whole.ids[i, k])
            if trial is not None:
                assert trial.seed == seed and trial.setting == setting
                assert all(trial.curves[n].tobytes() == c[i, k].tobytes() for n, c in whole.curves.items())


def test_two_sweeps_at_once_share_a_store(tmp_path, whole):
    one, two = (finish(child) for child in [command(tmp_path) for _ in range(2)])
    assert one == two
    same(archive(tmp_path / "runs.db"), whole)
