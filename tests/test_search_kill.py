"""A search that is killed goes on, and ends with the same answer."""

import json
import os
import signal
import subprocess
import sys

import pytest


# A search in a process that is killed when a compiled program is called for the n-th time, and otherwise
# tells what it found and how many trials it began to train.
CODE = """
import json, os, signal, sys
from outeropt import Store, optimizers, tasks
from outeropt._sweep import runner
from outeropt.search import METHODS, search

method, kill, options = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
calls, windows, real = [], [], runner.Runner._call

def call(self, stacked, keys, carry, done, count):
    calls.append(count)
    if len(calls) == kill:
        os.kill(os.getpid(), signal.SIGKILL)
    windows.append(count * len(keys) * self.block.settings)
    return real(self, stacked, keys, carry, done, count)

runner.Runner._call = call
# One window a call, and a checkpoint after each.
runner._CALL_SECONDS, runner._CHECKPOINT_SECONDS = 0.0, 0.0
with Store("runs.db") as store:
    found = search(
        tasks.get("UCI_Energy"), optimizers.get("adam"), method=method, store=store, set="killed", **options
    )
told = [found.setting, found.score, [[t.setting, t.score, t.steps] for t in found.trials]]
curves = [[n, c.tolist()] for a in found.archives for n, c in sorted(a.curves.items()) if n != "inner/loss"]
history = {name: values.tolist() for name, values in found.history.items()}
print(json.dumps({"found": told, "curves": curves, "history": history, "windows": sum(windows)}))
"""
OPTIONS = {"steps": 40, "eval_every": 5, "tune": ["learning_rate", "b1"]}
METHODS = {
    "bayes": {"trials": 12, "parallel": 4, "kills": (14,)},
    "halving": {"trials": 16, "parallel": 4, "kills": (6, 9)},
}


def ran(folder, method, kill=0):
    options = {name: value for name, value in METHODS[method].items() if name != "kills"} | OPTIONS
    words = [sys.executable, "-c", CODE, method, str(kill), json.dumps(options)]
    folder.mkdir(exist_ok=True)
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=300, env=os.environ)


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_search_ends_with_the_same_answer(method, tmp_path):
    child = ran(tmp_path / "whole", method)
    assert child.returncode == 0, child.stderr
    whole = json.loads(child.stdout)
    for kill in METHODS[method]["kills"]:
        # A second kill is on the way from where the first one was.
        assert ran(tmp_path / "killed", method, kill).returncode == -signal.SIGKILL
    child = ran(tmp_path / "killed", method)
    assert child.returncode == 0, child.stderr
    again = json.loads(child.stdout)
    assert 0 < again["windows"] < 0.7 * whole["windows"]
    assert {**again, "windows": 0} == {**whole, "windows": 0}
    assert not list((tmp_path / "killed" / "runs.db.partial").glob("*"))
