"""Meta-training on several devices and in several processes: what they exchange, and that numbers agree."""

import math
import os
import re
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from estimator_runs import ANTITHETIC
from outeropt import checkpoint, optimizers, tasks
from outeropt.cli.config import parse
from outeropt.cli.joining import join
from outeropt.cli.main import main
from outeropt.cli.metatrain import Config
from outeropt.cli.metatraining import _training
from outeropt.errors import ConfigError
from outeropt.metatraining import (
    ESTIMATORS,
    PES,
    MetaTraining,
    PopulationTraining,
    Validation,
    lengths,
    program,
)
from outeropt.metatraining.devices import exactly, mesh_for
from outeropt.metatraining.estimators.sharing import everyone, over_shares
from outeropt.optimizer import Optimizer
from outeropt.space import Space


KEY = jax.random.key(3)
SGD = optimizers.get("sgd", learning_rate=0.01)
FAMILY = tasks.FAMILIES["QuadraticFamily_10"]()
EXCHANGES = r"= (\S.*?) (?:all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\("


def exchanged(run):
    """How many numbers each exchange between devices gives, in the program of a run."""
    fixed = (run._recipe, run.key, jnp.int32(1))
    compiled = program._program("cpu").lower(fixed, run._state, run._places._mesh, run._names).compile()
    shapes = re.findall(EXCHANGES, compiled.compiled.as_text())
    return [
        sum(
            math.prod(map(int, filter(None, of.split(",")))) for of in re.findall(r"\w\d+\[([\d,]*)\]", shape)
        )
        for shape in shapes
    ]


class Rates(Optimizer):
    """SGD at the mean of many learning rates: many meta-parameters, and little to compile."""

    rates: Float[Array, " many"]

    def init(self, params, *, num_steps=None, key=None):
        return ()

    def update(self, grads, state, params, **context):
        return jax.tree.map(lambda grad: -jnp.mean(self.rates) * grad, grads), state


@pytest.mark.parametrize("name", [*ANTITHETIC, "backprop"])
def test_only_losses_and_keys_cross_the_network(name):
    settings = {} if name == "full_es" else {"truncation": 2}
    estimator = ESTIMATORS[name](particles=4, lengths=lengths.Constant(4), **settings)
    start = Rates(jnp.full(50, 0.01))
    run = MetaTraining(start, tasks.get("Quadratic_10"), estimator=estimator, steps=1, key=KEY)
    assert run._places.size == 2
    size = start.rates.size
    found = exchanged(run)
    if name == "backprop":
        assert max(found) >= size, "gradients are summed over devices: if not, this test sees nothing"
    else:
        assert len(found) == 1 and found[0] <= 4 * 10 < size


def test_rows_arrive_as_they_were_sent():
    rows = {
        "float": jnp.array([[0.0, -0.0], [jnp.nan, jnp.inf], [1e-42, 3.0], [-1.0, 2.0]]),
        "bool": jnp.array([True, False, False, True]),
        "int": jnp.array([-1, 2, 3, 4], jnp.int32),
        "key": jax.random.split(KEY, 4),
    }
    mesh, own, whole = Mesh(np.asarray(jax.devices()[:2]), ("d",)), PartitionSpec("d"), PartitionSpec()
    gather = jax.shard_map(
        lambda rows: everyone(rows, "d"), mesh=mesh, in_specs=own, out_specs=whole, check_vma=False
    )
    for got, want in zip(jax.tree.leaves(jax.jit(gather)(rows)), jax.tree.leaves(rows)):
        assert got.dtype == want.dtype and got.shape == want.shape
        if jnp.issubdtype(got.dtype, jax.dtypes.prng_key):
            got, want = jax.random.key_data(got), jax.random.key_data(want)
        assert np.asarray(got).tobytes() == np.asarray(want).tobytes()

    def summed(rows):
        return over_shares(lambda share: (jnp.sum(share["int"]), share["int"] + 1), everyone(rows, "d"), "d")

    both = jax.shard_map(summed, mesh=mesh, in_specs=own, out_specs=whole, check_vma=False)
    total, made = jax.jit(both)(rows)
    assert int(total) == 8 and made.tolist() == [0, 3, 4, 5]


class Fake:
    """A device of some process."""

    def __init__(self, process_index):
        self.process_index = process_index


def test_devices_are_taken_of_each_process_alike():
    here, there = ([Fake(i) for _ in range(3)] for i in (0, 1))
    assert mesh_for(6, [*here, Fake(0)]).size == 3
    assert [device.process_index for device in mesh_for(8, [*there, *here]).devices.flat] == [0, 0, 1, 1]
    assert mesh_for(6, [*here, *there[:1]]).size == 2
    with pytest.raises(ConfigError, match="2 processes cannot share 3 particles equally"):
        mesh_for(3, [*here, *there])
    assert exactly("all", 4) == exactly(2, 4) == jax.devices()[:2]
    assert exactly(1, 3) == jax.devices()[:1]
    assert exactly(2, None) == jax.devices()[:2]
    with pytest.raises(ConfigError, match="2 devices cannot be used: there are 2 devices, and 3 particles"):
        exactly("all", 3)
    with pytest.raises(ConfigError, match=r"Possible: 1, 2\."):
        exactly(5, 4)


def training(steps=6, **options):
    estimator = PES(particles=8, truncation=5, lengths=lengths.Constant(20), std=0.003, random_offset=20)
    return MetaTraining(SGD, FAMILY, estimator=estimator, steps=steps, key=KEY, **options)


# Runs on 1, 2, 4 and 8 devices, each with a checkpoint in the middle, from which runs on others go on.
EACH_FROM_EACH = """
import shutil, sys
from pathlib import Path
import jax
from test_many_devices import PAIRS, training

root = Path(sys.argv[1])
for count in (1, 2, 4, 8):
    run = training(devices=jax.devices()[:count])
    run.resume(root / str(count))
    run.advance_to(3)
    run._save(root / str(count))
for before, now in PAIRS:
    place = root / f"{before} to {now}"
    shutil.copytree(root / str(before), place)
    run = training(devices=jax.devices()[:now])
    assert run.resume(place) == 3 and run._places.size == now
    run.run()
"""
PAIRS = [(1, 1), (1, 4), (1, 8), (2, 1), (2, 2), (4, 2), (8, 1), (8, 4), (8, 8)]


def python(code, *words, devices, **how):
    """A process with this folder's modules."""
    folder = os.path.dirname(__file__)
    env = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "PYTHONUNBUFFERED": "1"}
    env["PYTHONPATH"] = os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.Popen(
        command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **how
    )


def kept(folder):
    path = checkpoint.latest(folder / "checkpoints")
    assert path, folder
    return safetensors.numpy.load_file(path)


def test_a_checkpoint_of_any_number_of_devices_goes_on_with_any_other(tmp_path):
    process = python(EACH_FROM_EACH, tmp_path, devices=8)
    told, _ = process.communicate()
    assert process.returncode == 0, told
    whole = training(devices=jax.devices()[:2])
    whole.resume(tmp_path / "whole")
    whole.run()
    want = kept(tmp_path / "whole")
    for before, now in PAIRS:
        got = kept(tmp_path / f"{before} to {now}")
        assert got.keys() == want.keys()
        for name in want:
            if before == now == 2 or want[name].dtype.kind != "f":
                # In one piece or in two, in this process or another.
                np.testing.assert_array_equal(got[name], want[name], name)
            else:
                np.testing.assert_allclose(got[name], want[name], 5e-4, 1e-5, err_msg=name)


def test_families_side_by_side_give_the_same_numbers(tmp_path):
    def learned_on_two(spread, **options):
        estimator = PES(particles=4, truncation=5, lengths=lengths.Constant(20), std=0.003, random_offset=20)
        families, validation = (
            [FAMILY, tasks.get("Linear_20")],
            Validation((tasks.get("Linear_20"),), 10, 2, 3),
        )
        given = {"estimator": estimator, "steps": 6, "key": KEY, "validation": validation} | options
        return MetaTraining(SGD, families, spread=spread, **given)

    shared, apart = learned_on_two("particles"), learned_on_two("families")
    where = [
        {device.id for leaf in jax.tree.leaves(own) for device in leaf.devices()}
        for own in (*apart._state.particles, apart._recipe.systems[1])
    ]
    assert where == [{0}, {1}, {1}] and apart._places.size == 2
    shared.run()
    apart.resume(tmp_path)
    apart.advance_to(3)
    apart._save(tmp_path)
    apart.run()
    for name, curve in shared.curves.items():
        np.testing.assert_allclose(apart.curves[name], curve, 1e-5, 1e-6, err_msg=name)
    np.testing.assert_allclose(apart.scores["mean"], shared.scores["mean"], 1e-5)
    # Resumed as it was, and with particles shared.
    for spread, relative in (("families", 0), ("particles", 1e-5)):
        last = tmp_path / "checkpoints" / f"{6:010}.safetensors"
        last.unlink(missing_ok=True)
        again = learned_on_two(spread)
        assert again.resume(tmp_path) == 3
        again.run()
        for name, curve in apart.curves.items():
            np.testing.assert_allclose(again.curves[name], curve, relative, relative, err_msg=name)
    rates = {"outer.inner.learning_rate": Space.log(1e-4, 0.1)}
    outer = optimizers.get("clip_norm:adam", learning_rate=1e-3)
    options = {"validation": shared.validation, "tuned": rates, "outer": outer, "steps": 6, "key": KEY}
    options |= {"estimator": shared._recipe.estimator, "members": 2, "spread": "families"}
    population = PopulationTraining(SGD, [FAMILY, tasks.get("Linear_20")], **options)
    population.run()
    assert np.isfinite(population.curves["meta/loss"]).all()
    with pytest.raises(ConfigError, match="2 families cannot have devices of their own, as there are 1"):
        learned_on_two("families", devices=jax.devices()[:1])
    with pytest.raises(ConfigError, match="Nothing can be spread by 'tasks'; give particles or families"):
        learned_on_two("tasks")


COMMAND = [
    *("metatrain", "--tasks", "Quadratic_10", "--architecture", "LearnableAdam", "--estimator.std", "0.1"),
    *("--estimator.particles", "4", "--estimator.truncation", "5", "--estimator.length", "20"),
    *("--estimator.random-offset", "20", "--validation-steps", "10", "--validation-every", "5"),
    *("--steps", "10"),
]

# One of two processes: the command, then a run that goes on from a checkpoint of another number of processes.
ONE_OF_TWO = """
import os, sys
from outeropt.cli.config import parse
from outeropt.cli.main import main
from outeropt.cli.metatrain import Config
from outeropt.cli.metatraining import _training
from outeropt.errors import OuteroptError

folder, port, number, *words = sys.argv[1:]
os.chdir(folder)
joined = ["--coordinator", f"127.0.0.1:{port}", "--processes", "2", "--process", number]
assert main([*words, *joined, "--out", "two", "--devices", "all"]) == 0
def training(*more):
    return _training(parse("metatrain", Config, [*words[1:], "--out", "unused", *more]))

run = training()
assert run.resume("half") == 4 and run._places.size == 2
run.run()

population = training("--population", "2")
population.resume("population")
population.run()
again = training("--population", "2")
assert again.resume("population") == 20

for wrong in (lambda: training("--seed", number), lambda: training("--steps", "9").resume("half")):
    try:
        wrong()
    except OuteroptError as error:
        print(error)
    else:
        raise AssertionError("both processes have to see this")
"""


def configured(out, *more):
    return _training(parse("metatrain", Config, [*COMMAND[1:], "--out", out, *more]))


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def test_two_processes_give_the_numbers_of_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*COMMAND, "--out", "one"]) == 0
    half = configured("half")
    half.resume("half")
    half.advance_to(4)
    half._save(tmp_path / "half")
    port = free_port()
    two = [python(ONE_OF_TWO, tmp_path, port, i, *COMMAND, devices=1) for i in range(2)]
    told = [process.communicate()[0] for process in two]
    assert [process.returncode for process in two] == [0, 0], "\n".join(told)
    assert "Learned optimizer: two/optimizer.safetensors" in told[0] and "Learned" not in told[1]
    assert len(list((tmp_path / "two" / "log").iterdir())) == 1, "written by the first alone"
    for process in told:
        assert "Processes were given different recipes" in process
        assert "half holds a run of another recipe" in process
    population = configured("members", "--population", "2")
    population.resume("members")
    population.run()
    gradients = half._names.index("meta/gradient")
    for name, like in (("two", "one"), ("half", "one"), ("population", "members")):
        got, want = kept(tmp_path / name), kept(tmp_path / like)
        assert got.keys() == want.keys()
        for leaf in want:
            np.testing.assert_allclose(got[leaf], want[leaf], 2e-4, 1e-6, err_msg=f"{name} {leaf}")
    assert (kept(tmp_path / "two")["[2]"][:, gradients] > 0).all(), "ten gradients were compared"
    assert capsys.readouterr().out.count("Learned optimizer") == 1


def test_how_processes_are_joined(monkeypatch):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **how: calls.append(how))
    join(None, None, None)
    join(None, 1, None)
    assert not calls
    explicit = {"coordinator_address": "a:1", "num_processes": 2, "process_id": 1}
    join("a:1", 2, 1)
    for variable, value in {"COORDINATOR_ADDRESS": "a:1", "NUM_PROCESSES": "2", "PROCESS_ID": "1"}.items():
        monkeypatch.setenv(f"JAX_{variable}", value)
    join(None, None, None)
    assert [call | {"cluster_detection_method": None} for call in calls] == [
        explicit | {"cluster_detection_method": None}
    ] * 2
    monkeypatch.setenv("JAX_PROCESS_ID", "x")
    with pytest.raises(ConfigError, match="JAX_PROCESS_ID=x must be a whole number"):
        join(None, None, None)
    for variable in ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID"):
        monkeypatch.delenv(f"JAX_{variable}")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    join(None, None, None)
    assert len(calls) == 2
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "3")
    join(None, 1, None)
    join(None, None, None)
    assert calls[2:] == [{"cluster_detection_method": "slurm"}]
    for given, message in [
        (("a:1", 2, None), r"give --process \(or JAX_PROCESS_ID\) as well, or --processes 1"),
        (("a", 2, 0), "--coordinator a is no address; give HOST:PORT"),
        (("a:1", 2, 2), "processes count from 0 to 1"),
    ]:
        with pytest.raises(ConfigError, match=message):
            join(*given)
