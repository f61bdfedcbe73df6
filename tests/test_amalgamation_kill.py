"""An amalgamation that is killed goes on in the middle of its period, and ends with the same student."""

import csv
import os
import shlex
import signal
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

from outeropt import checkpoint


WORDS = shlex.split(
    "amalgamate --tasks Quadratic_10 --teachers static_adam --settings.hidden-sizes 2 --seed 3 "
    "--strategy.num-stages 2 --strategy.num-periods 1 --strategy.num-chances 1 --strategy.unroll 2 "
    "--strategy.depth 1,2 --strategy.epochs 2 --strategy.max-repeat 2 --strategy.threshold 0 "
    "--perturbation gaussian_rel --outer.learning-rate 0.3 --losses.mixture switch --scale-spread 1"
)

# The same command in a process that keeps its state after every unroll, and is killed inside one that is not
# the first of its period: the n-th of its kind.
STRUCK = """
import os, sys
from outeropt.amalgamation import period, run
from outeropt.cli.main import main

def program(*arguments):
    found = real(*arguments)
    calls.append(1)
    if len(calls) == {call}:
        os.kill(os.getpid(), 9)
    return found

run.SECONDS, calls = 0.0, []
real, period.{name} = period.{name}, program
sys.exit(main({words!r}))
"""


def ran(folder, *words):
    words = [sys.executable, *words]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=300, env=os.environ)


def command(folder, out):
    ended = ran(folder, "-m", "outeropt.cli.main", *WORDS, "--out", out)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def struck(folder, out, name, call):
    return ran(folder, "-c", STRUCK.format(name=name, call=call, words=[*WORDS, "--out", out]))


def rows(folder):
    with (folder / "summary.csv").open(newline="") as file:
        return [row | {"time": "", "duration": ""} for row in csv.DictReader(file)]


def under_way(folder):
    return checkpoint.metadata(folder / "checkpoint" / "unfinished.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The amalgamation without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    command(folder, "runs")
    return folder / "runs"


def test_a_killed_amalgamation_ends_with_the_same_student(whole, tmp_path):
    folder = tmp_path / "runs"
    # In the second training unroll of the first period; then in a validation, in a later process.
    for name, call, label, done in (("_learn", 2, "stage_0.0.0", 3), ("_watch", 6, "stage_0.1.0", 6)):
        killed = struck(tmp_path, "runs", name, call)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert under_way(folder)["label"] == label and under_way(folder)["done"] == done
        assert folder.joinpath("summary.csv").exists() == (label != "stage_0.0.0")
    before = rows(folder)
    assert before == rows(whole)[: len(before)] and 0 < len(before) < len(rows(whole))

    assert command(tmp_path, "runs").startswith("Student: runs/optimizer.safetensors")
    assert rows(folder) == rows(whole) and len(rows(whole)) >= 4
    for path in (path for path in whole.rglob("*") if path.is_file()):
        again = folder / path.relative_to(whole)
        if path.suffix == ".safetensors":
            one, other = safetensors.numpy.load_file(path), safetensors.numpy.load_file(again)
            assert one.keys() == other.keys() and checkpoint.metadata(path) == checkpoint.metadata(again)
            assert all(one[name].tobytes() == other[name].tobytes() for name in one), path.name
        elif path.suffix == ".npz":
            one, other = np.load(path), np.load(again)
            assert all(one[name].tobytes() == other[name].tobytes() for name in one.files), path.name
        elif path.name != "summary.csv":
            assert path.read_bytes() == again.read_bytes()
    assert {path.name for path in whole.rglob("*")} == {path.name for path in folder.rglob("*")}
