"""Meta-training: it learns, resumes exactly, shares particles among devices, keeps the best."""

import inspect
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy

from outeropt import checkpoint, optimizers, tasks
from outeropt.errors import ConfigError
from outeropt.learned import ARCHITECTURES, AdafacMLP, load
from outeropt.metatraining import (
    ESTIMATORS,
    PES,
    FullES,
    InnerTraining,
    MetaTraining,
    Validation,
    lengths,
    metatrain,
)
from outeropt.task import Task


KEY = jax.random.key(3)
FAMILY = tasks.FAMILIES["QuadraticFamily_10"]()
SGD = optimizers.get("sgd", learning_rate=0.01)


def estimator(**settings):
    given = {"particles": 4, "truncation": 5, "lengths": lengths.Constant(20), "std": 0.003} | settings
    return PES(**given)


def training(steps=12, **options):
    given = {"optimizer": SGD, "estimator": estimator(), "steps": steps, "key": KEY} | options
    return MetaTraining(given.pop("optimizer"), FAMILY, **given)


def same(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_the_learning_rate_of_sgd_is_learned():
    outer = optimizers.get("adam", learning_rate=0.01)
    run = training(150, estimator=estimator(particles=16, std=0.01), outer=outer)
    told = []
    run.run(lambda count, values: told.append((count, values)))
    assert float(run.optimizer.hyperparameters["learning_rate"]) > 0.1
    curve = run.curves["meta/loss"]
    assert curve.shape == (150,) and curve[-30:].mean() < 0.7 * curve[:30].mean()
    assert sum(count for count, _ in told) == 150 and "meta/gradient" in told[-1][1]


def test_a_run_in_pieces_equals_a_run_in_one(tmp_path):
    validation = Validation((tasks.get("Linear_20"),), steps=10, seeds=2, every=5)
    whole = training(validation=validation)
    whole.run()

    class Interrupted(Exception):
        pass

    def stop(count, values):
        raise Interrupted

    pieces = 0
    while True:
        run = training(validation=validation)
        before = run.resume(tmp_path)
        try:
            run.run(stop)
            break
        except Interrupted:
            pieces += 1
            assert run.done > before
            run._save(tmp_path)
    assert pieces > 2
    same(
        (run.last, run.optimizer, run.curves, run.scores),
        (whole.last, whole.optimizer, whole.curves, whole.scores),
    )
    assert not np.isnan(run.scores["mean"]).any() and run.scores["step"].tolist() == [0, 5, 10, 12]
    # A log that goes on hides what a killed process logged, but not the validation that it kept.
    assert (training(validation=validation).logs_from, run.logs_from) == (0, 13)


def test_a_folder_of_another_recipe_is_refused(tmp_path):
    run = training(1)
    run.resume(tmp_path)
    run.run()
    with pytest.raises(ConfigError, match="run of another recipe"):
        training(2).resume(tmp_path)
    again = training(1)
    assert again.resume(tmp_path) == 1 == again.logs_from


def test_the_best_optimizer_by_validation_is_kept():
    validation = Validation((tasks.get("Linear_20"),), steps=10, seeds=2, every=2)
    uphill = optimizers.from_optax(optax.sgd, learning_rate=-1.0)
    run = training(6, validation=validation, outer=uphill)
    run.run()
    assert np.argmin(run.scores["mean"]) == 0
    same(run.optimizer, SGD)
    assert float(run.last.hyperparameters["learning_rate"]) != pytest.approx(0.01)


def test_particles_shared_by_devices_give_the_same_numbers():
    one, two = training(devices=jax.devices()[:1]), training(devices=jax.devices()[:2])
    one.run()
    two.run()
    for name, curve in one.curves.items():
        np.testing.assert_allclose(two.curves[name], curve, rtol=2e-4, atol=1e-7, err_msg=name)


def test_eight_devices_give_the_same_numbers(tmp_path):
    code = (
        "import jax, numpy as np, sys\n"
        "from outeropt import optimizers, tasks\n"
        "from outeropt.metatraining import *\n"
        "sgd, family = optimizers.get('sgd', learning_rate=0.01), tasks.FAMILIES['QuadraticFamily_10']()\n"
        "run = MetaTraining(sgd, family,\n"
        "  estimator=PES(particles=8, truncation=5, lengths=lengths.Constant(20), std=0.003), steps=8,\n"
        "  key=jax.random.key(3))\n"
        "run.run()\n"
        "print(run._places.size); np.save(sys.argv[1], run.curves['meta/loss'])\n"
    )
    curves = []
    for devices in (1, 8):
        path = tmp_path / f"{devices}.npy"
        env = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}
        told = subprocess.run(
            [sys.executable, "-c", code, str(path)], env=env, capture_output=True, text=True
        )
        assert told.stdout.strip() == str(devices), told.stderr
        curves.append(np.load(path))
    np.testing.assert_allclose(curves[1], curves[0], rtol=2e-4)


def test_several_families_share_a_step():
    families = [FAMILY, tasks.get("Linear_20")]
    run = MetaTraining(
        SGD, families, estimator=FullES(particles=2, lengths=lengths.Constant(3)), steps=2, key=KEY
    )
    run.run()
    parts = (run.curves["loss/0"] + run.curves["loss/1"]) / 2
    np.testing.assert_allclose(run.curves["meta/loss"], parts, rtol=1e-6)


class Explosive(Task):
    """A parabola whose loss is not a number where its key says so."""

    name: str = eqx.field(static=True, default="explosive")

    def init(self, key):
        return jnp.float32(1.0) + jax.random.uniform(key), None

    def loss(self, params, state, batch, key):
        return jnp.where(batch, jnp.nan, jnp.square(params)), (state, {})

    def batch(self, split, key):
        return jax.random.bernoulli(key, 0.3)


def test_a_loss_that_is_no_number_counts_as_the_limit():
    system = InnerTraining(tasks.single(Explosive()))
    state = system.init(SGD, (), jnp.int32(3), jax.random.key(0))
    losses = []
    for i in range(12):
        state, outcome = system.step(SGD, (), state, jnp.int32(i), jax.random.key(i))
        losses.append(float(outcome.loss))
    assert np.isfinite(losses).all() and losses.count(1.5) == 5
    assert losses[-1] < 0.8, "a step without a loss does not end the run"


@pytest.mark.parametrize("meta_loss", ["train", "valid"])
def test_the_meta_loss_is_a_share_of_the_first_loss(meta_loss):
    task = tasks.get("Quadratic_10")
    system = InnerTraining(tasks.single(task), meta_loss)
    state = system.init(SGD, (), jnp.int32(3), jax.random.key(0))
    _, share = system.step(SGD, (), state, jnp.int32(0), jax.random.key(1))
    _, log = InnerTraining(tasks.single(task), meta_loss, "log").step(
        SGD, (), state, jnp.int32(0), jax.random.key(1)
    )
    assert 0.3 < float(share.loss) <= 1.5
    np.testing.assert_allclose(float(log.loss), np.log(float(share.loss)), rtol=1e-5)


@pytest.mark.parametrize("length, first", [(8, 6), (5, 3), (1, 0)])
def test_losses_count_since_a_share_of_the_trajectory(length, first):
    system = InnerTraining(tasks.single(tasks.get("Linear_20")), since=0.75)
    state = system.init(SGD, (), jnp.int32(length), jax.random.key(0))
    counts = []
    for i in range(length):
        state, outcome = system.step(SGD, (), state, jnp.int32(i), jax.random.key(i))
        counts.append(bool(outcome.counts))
    assert counts == [i >= first for i in range(length)]


def test_what_counts_late_is_learned_from_the_beginning():
    # Only the last quarter counts: the truncations before it give no gradient.
    run = training(8, since=0.75, estimator=estimator(lengths=lengths.Constant(20), random_offset=0))
    run.run()
    losses, gradients = run.curves["meta/loss"], run.curves["meta/gradient"]
    assert np.isnan(losses[[0, 1, 2, 4, 5, 6]]).all() and np.isfinite(losses[[3, 7]]).all()
    assert (gradients[[0, 1, 2, 4, 5, 6]] == 0).all() and (gradients[[3, 7]] > 0).all()


def test_wrong_options_are_told():
    with pytest.raises(ConfigError, match="at least one task"):
        MetaTraining(SGD, [], estimator=estimator(), steps=1, key=KEY)
    with pytest.raises(ConfigError, match="0 outer steps"):
        training(0)
    with pytest.raises(ConfigError, match=r"outer loop .* has no value_fn"):
        training(1, outer=optimizers.get("sam:adam"))
    with pytest.raises(ConfigError, match="Meta-loss 'loss' is unknown"):
        training(1, meta_loss="loss")
    with pytest.raises(ConfigError, match="'shares' of the meta-loss is unknown"):
        training(1, unit="shares")
    with pytest.raises(ConfigError, match=r"cannot count since 1\.0 of a trajectory"):
        training(1, since=1.0)
    with pytest.raises(ConfigError, match="needs at least one task"):
        Validation(())
    with pytest.raises(ConfigError, match="Two validation tasks are called Linear_20"):
        Validation((tasks.get("Linear_20"), tasks.get("Linear_20")))
    with pytest.raises(ConfigError, match=r"validation\.seeds = 0"):
        Validation((tasks.get("Linear_20"),), seeds=0)


def test_metatrain_returns_an_optimizer_that_saves_and_loads(tmp_path):
    start = AdafacMLP(key=KEY, hidden_size=2, hidden_layers=1)
    options = {"estimator": estimator(particles=2), "steps": 2, "key": KEY}
    lopt = metatrain(start, tasks.get("Linear_20"), folder=tmp_path, **options)
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(lopt), jax.tree.leaves(start)))
    lopt.save(tmp_path / "mine.safetensors")
    again = load(tmp_path / "mine.safetensors")
    same(again, lopt)
    assert again.settings == start.settings
    params = {"w": jnp.ones((3, 2))}
    tx = again.as_optax()
    updates, _ = tx.update({"w": jnp.ones((3, 2))}, tx.init(params), params)
    assert updates["w"].shape == (3, 2)


COMMAND = [
    *("metatrain", "--tasks", "Linear_20", "--settings.hidden-size", "2", "--estimator.particles", "2"),
    *("--estimator.truncation", "5", "--estimator.length", "20", "--validation-steps", "20"),
    *("--validation-every", "20", "--steps", "60"),
]


def cli(*words, folder):
    script = Path(sys.executable).with_name("outeropt")
    return subprocess.run([str(script), *words], cwd=folder, capture_output=True, text=True)


# The command in a process that checkpoints after every call of the program, and is killed inside a call after
# its fourth checkpoint.
STRUCK = """
import os, sys
from outeropt import checkpoint
from outeropt.cli.main import main
from outeropt.metatraining import checkpoints, places, run

def save(*arguments):
    saved.append(arguments)
    real_save(*arguments)

def advance(*arguments):
    found = real_advance(*arguments)
    if len(saved) >= 4:
        os.kill(os.getpid(), 9)
    return found

saved, real_save, checkpoint.save = [], checkpoint.save, save
real_advance, places.advance = places.advance, advance
run._CALL_SECONDS = checkpoints.SECONDS = 0.0
sys.exit(main({words!r}))
"""


@pytest.mark.parametrize("members", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_and_resumed_equals_uninterrupted(members, tmp_path):
    words = [*COMMAND, "--steps", "12", "--validation-every", "5", "--population", str(members)]
    whole = cli(*words, "--out", "whole", folder=tmp_path)
    assert whole.returncode == 0, whole.stderr
    code = STRUCK.format(words=[*words, "--out", "killed"])
    killed = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = checkpoint.latest(tmp_path / "killed" / "checkpoints")
    assert done and 0 < int(done.stem) < 12 * members
    assert not (tmp_path / "killed" / "optimizer.safetensors").exists()
    again = cli(*words, "--out", "killed", folder=tmp_path)
    assert again.returncode == 0, again.stderr
    for name in ("optimizer.safetensors", f"checkpoints/{12 * members:010}.safetensors"):
        one, other = (safetensors.numpy.load_file(tmp_path / run / name) for run in ("whole", "killed"))
        same(one, other)


def test_the_command_learns_an_optimizer(tmp_path):
    made = cli(*COMMAND, "--out", "runs/mine", folder=tmp_path)
    assert made.returncode == 0, made.stderr
    assert "runs/mine/optimizer.safetensors" in made.stdout
    assert isinstance(load(tmp_path / "runs" / "mine"), AdafacMLP)
    assert list((tmp_path / "runs" / "mine" / "log").iterdir())


def test_estimators_by_name_and_settings():
    from outeropt.cli.metatraining import estimator_from

    drawn = estimator_from("pes", {"low": 50, "high": 90, "std": 1, "clip": 2})
    assert (drawn.truncation, drawn.lengths.multiple) == (20, 20), "whole truncations, whoever set them"
    assert (drawn.std, drawn.clip) == (1.0, 2.0)
    assert estimator_from("full_es", {"low": 5, "high": 9}).lengths.multiple == 1
    assert estimator_from("forward_mode", {"length": 5, "tangents": "all"}).tangents == "all"
    with pytest.raises(ConfigError, match=r"full_backprop needs --estimator\.length"):
        estimator_from("full_backprop", {})


@pytest.mark.parametrize("name", [*ARCHITECTURES, *ESTIMATORS])
def test_what_is_listed_is_described(name, capsys):
    from outeropt.cli.main import main

    assert main(["describe", name]) == 0
    told = capsys.readouterr().out
    known = {*inspect.signature((ARCHITECTURES | ESTIMATORS)[name]).parameters} - {"key"}
    assert all(re.search(rf"\b{setting}\b", told) for setting in known)
    assert told.startswith(f"{name}\n  ") and "what:" in told
    assert "settings:" in told and (name in ESTIMATORS or re.search(r"meta-parameters: [1-9]", told))


CONFIGURATIONS = sorted((Path(__file__).parents[1] / "configs" / "metatrain").glob("*.yaml"))


@pytest.mark.parametrize("file", CONFIGURATIONS, ids=lambda file: file.stem)
def test_configurations_that_ship_can_be_run(file):
    from outeropt.cli.config import parse
    from outeropt.cli.learners import start
    from outeropt.cli.metatrain import Config
    from outeropt.cli.metatraining import estimator_from
    from outeropt.cli.running import optimizer_from

    config = parse("metatrain", Config, ["-c", str(file), "--out", "runs"])
    assert {*config.tasks} <= {*tasks.names(), *tasks.FAMILIES}
    assert {*config.validation_tasks} <= {*tasks.names()}
    assert estimator_from(config.estimator, config.estimator_settings).particles > 1
    theta = start(config)
    optimizer_from(config.outer, config.outer_hyperparameters).init(theta, num_steps=config.steps)
    told = re.search(r"of (\d+) meta-parameters", file.read_text())
    assert told is None or int(told[1]) == sum(leaf.size for leaf in theta.hyperparameters.values())


def test_settings_that_are_lists(tmp_path):
    from outeropt.cli.config import parse
    from outeropt.cli.learners import start
    from outeropt.cli.metatrain import Config

    file = tmp_path / "mine.yaml"
    file.write_text("settings: {exp_mult: [0.1, 0.2, 1e-3]}")
    words = ["--out", "runs", "--tasks", "Quadratic_10", "--architecture"]
    for given in (["MLPNominal", "-c", str(file)], ["MLPNominal", "--settings.exp-mult", "0.1,0.2,1e-3"]):
        assert start(parse("metatrain", Config, [*words, *given])).settings["exp_mult"] == (0.1, 0.2, 1e-3)
    lstm = start(parse("metatrain", Config, [*words, "CoordinateLSTM", "--settings.hidden-sizes", "3"]))
    assert lstm.settings["hidden_sizes"] == (3,)


def test_an_optimizer_can_be_used_with_other_settings_than_it_is_learned_with(tmp_path):
    words = [*COMMAND, "--settings.schedule", "linear", "--settings-learning.schedule", "constant"]
    made = cli(*words, "--steps", "2", "--out", "mine", folder=tmp_path)
    assert made.returncode == 0, made.stderr
    assert load(tmp_path / "mine").settings["schedule"] == "linear"

    start = AdafacMLP(key=KEY, hidden_size=2, hidden_layers=1)
    runs = [training(3, optimizer=start), training(3, optimizer=start, finish=scheduled_linearly)]
    for run in runs:
        run.run()
    same(runs[0].last.hyperparameters, runs[1].last.hyperparameters)
    assert [run.optimizer.settings["schedule"] for run in runs] == ["constant", "linear"]
    with pytest.raises(ConfigError, match="has other meta-parameters than"):
        start.with_settings(hidden_size=3)


def scheduled_linearly(optimizer):
    return optimizer.with_settings(schedule="linear")


@pytest.mark.parametrize(
    "words, message",
    [
        (["--settings-learning.schedul", "linear"], "No setting of AdafacMLP is called 'schedul'"),
        (["--estimator", "pse"], "No estimator is called 'pse'. Did you mean pes?"),
        (["--estimator.partciles", "3"], "No setting of the estimator pes is called 'partciles'"),
        (["--settings.hidden", "3"], "hidden_size"),
        (["--architecture", "AdafacMPL"], "No architecture is called 'AdafacMPL'. Did you mean AdafacMLP"),
        (["--outer.learning-rat", "3"], "learning_rate"),
        (["--tasks", "Linear_21"], "No task is called 'Linear_21'"),
        (["--since", "1"], "Losses cannot count since 1.0 of a trajectory"),
        (["--inner.x", "3"], "takes no --inner.* options"),
        (["--weights", "nowhere"], "'nowhere'"),
        (["--weights", "small_fc", "--architecture", "RNNMLP"], "small_fc is of the architecture AdafacMLP"),
        (["--settings.hidden-size", "0"], "hidden_size must be at least 1, not 0"),
        (["--settings.hidden-size", "x"], "hidden_size of AdafacMLP must be a whole number, not 'x'"),
        (["--settings.step-mult", "x"], "step_mult of AdafacMLP must be a number, not 'x'"),
        (["--estimator.particles", "2.5"], "particles of the estimator pes must be a whole number, not 2.5"),
        (["--estimator.std", "x"], "std of the estimator pes must be a number, not 'x'"),
        (["--estimator.length", "x"], "length of the estimator pes must be a whole number, not 'x'"),
        (["--estimator.low", "5"], "needs lengths of trajectories: either --estimator.length, or"),
        (["--estimator.shaping", "x"], "shaping of the estimator pes must be none or sign or rank, not 'x'"),
        (["--outer.learning-rate", "x"], "learning_rate of clip_norm:adam must be a number, not 'x'"),
        (["--seed", "-1"], "Seed -1 is not allowed"),
        (["--validation-every", "-1"], "--validation-every -1 is not possible"),
        (["--steps", "0"], "0 outer steps are not possible"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_written(words, message, tmp_path, capsys, monkeypatch):
    from outeropt.cli.main import main

    monkeypatch.chdir(tmp_path)
    given = [word for word in COMMAND if not word.startswith("--settings") or words[0] != "--weights"]
    if words[0] == "--weights":
        given.remove("2")
    assert main([*given, "--out", "runs", *words]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1
    assert not (tmp_path / "runs").exists()
