"""Sweeps that run elsewhere: equal numbers, and nothing lost when something dies."""

import contextlib
import io
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from outeropt import Store, grid, optimizers, sweep, tasks
from outeropt._sweep import Executor, drive, planned
from outeropt._sweep.executors.base import Site
from outeropt._sweep.executors.resources import Resources, memory_of
from outeropt._sweep.job import perform
from outeropt.cli.main import main
from outeropt.errors import ConfigError, OuteroptError


GRID = "learning_rate=log:1e-3:1e-1:4"
WORDS = ["sweep", "--task", "ImageMLP_Digits_Relu32", "--optimizer", "adam", "--grid", GRID]
WORDS += ["--seeds", "2", "--steps", "40", "--eval-every", "10", "--lanes", "2"]


class Recorded(Executor):
    """Runs chunks in this process, the last one first, and keeps what it was given."""

    def __init__(self, width=3):
        self.devices, self.width = jax.local_devices()[:1], width
        self.waiting, self.most, self.jobs = [], 0, []

    def submit(self, job, report):
        self.jobs.append(job)
        self.waiting.append(job)
        self.most = max(self.most, len(self.waiting))
        return job.id

    def collect(self):
        job = self.waiting.pop()
        return job.id, perform(job)


@pytest.fixture(scope="module")
def options():
    settings = grid(optimizers.get("adam"), learning_rate=[1e-3, 1e-2, 1e-1, 1.0])
    return {"optimizers": settings, "seeds": 2, "steps": 20, "eval_every": 10, "lanes": 2}


@pytest.fixture(scope="module")
def task():
    return tasks.get("ImageMLP_Digits_Relu32")


def same(a, b):
    assert a.settings == b.settings and a.seeds == b.seeds and (a.ids == b.ids).all()
    for name, curve in a.curves.items():
        assert curve.tobytes() == b.curves[name].tobytes(), name


def test_a_class_of_two_methods_is_an_executor(task, options, tmp_path):
    here = sweep(task, devices=jax.local_devices()[:1], **options)
    executor, told = Recorded(), []
    with Store(tmp_path / "runs.db") as store:
        there = sweep(task, executor=executor, store=store, set="s", report=told.append, **options)
        (stored,) = store.archives()
        same(here, there)
        same(here, stored)
        assert len(executor.jobs) == 4 and executor.most == 3
        assert len({job.id for job in executor.jobs}) == 4
        assert sum(told) == pytest.approx(8)
        again = Recorded()
        same(here, sweep(task, executor=again, store=store, set="s", **options))
        assert not again.jobs


def test_sweeps_that_share_chunks_run_them_once(task, options, tmp_path):
    executor, told = Recorded(), []
    how = {"episodes": 1, "eval_batches": 1, "last_eval_batches": 1, "optimizer_name": "adam"}
    with Store(tmp_path / "runs.db") as store:
        sweeps = [
            planned(task, **options, **how, store=store, set=name, devices=executor.devices) for name in "ab"
        ]
        first, second = drive(sweeps, executor, told.append)
    same(first, second)
    assert len(executor.jobs) == 4 and sum(told) == pytest.approx(16)


def test_a_chunk_says_what_it_needs(task, options):
    executor = Recorded()
    sweep(task, executor=executor, **options)
    (work,) = {id(job.work): job.work for job in executor.jobs}.values()
    data = sum(leaf.nbytes for leaf in jax.tree.leaves(task))
    assert 2**30 + data < memory_of(work) < 2**30 + data + 2**20
    assert Resources(cores=4).devices == 4 and Resources(cores=4).platform == "cpu"
    assert Resources(gpus=0.5).devices == 1 and Resources(gpus=2).platform == "gpu"


def test_what_only_this_process_has_is_refused(task, options):
    with pytest.raises(ConfigError, match="keep and devices"):
        sweep(task, executor=Recorded(), keep=lambda *_: None, **options)


def test_a_chunk_for_more_devices_than_there_are_is_refused(task, options):
    executor = Recorded()
    executor.devices = jax.local_devices()[:1] * 64
    with pytest.raises(OuteroptError, match=r"planned for 64 devices|planned for 8 devices"):
        sweep(task, executor=executor, **{**options, "seeds": 16})


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--on", "moon"], "--on moon is no place to run; give here, processes, slurm, ray"),
        (["--on", "ray", "--slurm.partition", "gpu"], "--slurm.* options go with --on slurm"),
        (["--on", "slurm", "--slurm.cores", "many"], "--slurm.cores must be a whole number"),
        (["--on", "ray", "--ray.colour", "red"], "No option of --ray is called 'colour'"),
        (["--tasks", "ImageMLP_*"], "Give either --task NAME or --tasks"),
    ],
)
def test_wrong_words_are_one_line(words, line, tmp_path, monkeypatch, capsys):
    pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)
    assert main([*WORDS, *words]) == 2
    told = capsys.readouterr().err
    assert line in told and told.count("\n") == 1
    assert not Path("runs.db").exists()


def run(folder, *words, **environment):
    return subprocess.run(
        [sys.executable, "-m", "outeropt.cli.main", *words],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def rows(path):
    """All trials of a store, with the bytes of their curves."""
    with contextlib.closing(sqlite3.connect(path)) as sql:
        return sql.execute("SELECT id, curve_names, curves, diverged_at FROM trials ORDER BY id").fetchall()


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """The store of the sweep in one process on one device."""
    folder = tmp_path_factory.mktemp("here")
    ended = run(folder, *WORDS, JAX_NUM_CPU_DEVICES="1")
    assert ended.returncode == 0, ended.stderr
    return folder / "runs.db"


@pytest.mark.parametrize(("place", "package"), [("ray", "ray"), ("processes", "submitit")])
def test_stores_from_elsewhere_are_equal_bit_for_bit(place, package, here, tmp_path):
    pytest.importorskip(package)
    ended = run(tmp_path, *WORDS, "--on", place)
    assert ended.returncode == 0, ended.stderr
    assert len(rows(here)) == 8 and rows(tmp_path / "runs.db") == rows(here)


OWN = """
import jax.numpy as jnp
from outeropt import tasks
from beside import power

bowl = tasks.from_functions(init=lambda key: jnp.ones(3), loss=lambda x: jnp.sum(x**power), name="bowl")
broken = tasks.from_functions(init=lambda key: jnp.ones(3), loss=lambda x: jnp.sum(x**power), name="broken")
"""


@pytest.mark.parametrize(("place", "package"), [("ray", "ray"), ("processes", "submitit")])
def test_a_users_own_code_travels(place, package, tmp_path):
    pytest.importorskip(package)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "mine.py").write_text(OWN)
    (tmp_path / "own" / "beside.py").write_text("power = 2")
    words = ["sweep", "--task", "own/mine.py:bowl", "--optimizer", "sgd", "--steps", "10", "--seeds", "1"]
    ended = run(tmp_path, *words, "--on", place)
    assert ended.returncode == 0, ended.stderr
    assert len(rows(tmp_path / "runs.db")) == 1


def test_resume_gives_the_sweep_again(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(OWN)
    (tmp_path / "beside.py").write_text("power = 2")
    words = ["--optimizer", "sgd", "--grid", "learning_rate=0.01,0.1", "--steps", "10", "--seeds", "2"]
    assert main(["sweep", "--tasks", "mine.py:bowl", "mine.py:broken", *words]) == 0
    whole = rows("runs.db")
    assert main(["resume"]) == 0 and "Nothing is missing" in capsys.readouterr().out
    with contextlib.closing(sqlite3.connect("runs.db")) as sql, sql:
        sql.execute("DELETE FROM trials WHERE task = 'broken' OR seed = 1")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["resume", "../runs.db"]) == 0
    assert rows("../runs.db") == whole
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["train", "--task", "Quadratic_10", "--optimizer", "sgd", "--store", "other.db"]) == 0
    assert main(["resume", "other.db"]) == 2 and "remembers no sweep" in capsys.readouterr().err


LONG = [*WORDS[:-6], "--steps", "4000", "--eval-every", "100", "--lanes", "1", "--seeds", "2"]


@pytest.mark.slow
@pytest.mark.parametrize(("place", "package"), [("ray", "ray"), ("processes", "submitit")])
def test_a_driver_that_is_killed_loses_and_repeats_nothing(place, package, tmp_path):
    pytest.importorskip(package)
    whole = tmp_path / "whole"
    whole.mkdir()
    assert run(whole, *LONG, JAX_NUM_CPU_DEVICES="1").returncode == 0
    words = [sys.executable, "-m", "outeropt.cli.main", *LONG, "--on", place]
    driver = subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        with contextlib.suppress(sqlite3.Error):
            if len(before := rows(tmp_path / "runs.db")) >= 2:
                break
        time.sleep(0.1)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.communicate()
    assert 2 <= len(before) < 8
    kept = dict(_created(tmp_path / "runs.db"))
    ended = run(tmp_path, "resume", "runs.db")
    assert ended.returncode == 0, ended.stderr
    after = dict(_created(tmp_path / "runs.db"))
    assert kept.items() <= after.items()  # what was there was not written again
    assert rows(tmp_path / "runs.db") == rows(whole / "runs.db")


def _created(path):
    with contextlib.closing(sqlite3.connect(path)) as sql:
        return sql.execute("SELECT id, created FROM trials").fetchall()


NODES = """
import sys, threading, time
import ray
from ray.cluster_utils import Cluster
from outeropt.cli.main import main

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
ray.init(cluster.address, log_to_driver=False)  # before there are others: the driver belongs to the head
second = cluster.add_node(num_cpus=1)

def strike():
    while not ready():
        time.sleep(0.05)
    cluster.remove_node(second, allow_graceful=False)
    print("struck", flush=True)

def ready():
    import contextlib, sqlite3
    with contextlib.suppress(sqlite3.Error):
        with sqlite3.connect("file:runs.db?mode=ro", uri=True) as sql:
            return sql.execute("SELECT count(*) FROM trials").fetchone()[0] >= 2
    return False

threading.Thread(target=strike, daemon=True).start()
sys.exit(main(%r + ["--on", "ray"]))
"""


@pytest.mark.slow
def test_a_node_that_dies_costs_its_running_chunks_only(tmp_path):
    pytest.importorskip("ray")
    whole = tmp_path / "whole"
    whole.mkdir()
    assert run(whole, *LONG, JAX_NUM_CPU_DEVICES="1").returncode == 0
    code = NODES % LONG
    words = [sys.executable, "-c", code]
    ended = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=400)
    assert ended.returncode == 0, ended.stderr
    assert "struck" in ended.stdout
    assert rows(tmp_path / "runs.db") == rows(whole / "runs.db")


def test_jobs_can_be_pickled(task, options):
    cloudpickle = pytest.importorskip("cloudpickle")
    executor = Recorded()
    executor.devices = [Site("cpu")]
    sweep(task, executor=executor, **options)
    outcome = perform(cloudpickle.loads(cloudpickle.dumps(executor.jobs[0])))
    here = perform(executor.jobs[0])
    for name, curve in here.curves.items():
        np.testing.assert_array_equal(curve, outcome.curves[name])
