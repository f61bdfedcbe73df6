"""Hyperparameter sets: those of learned_optimization exactly, and ours for every optimizer."""

import fnmatch
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from outeropt import optimizers
from outeropt.bench import sets
from outeropt.bench.published_sets import LEFT_OUT
from outeropt.bench.scores import ruleset_of
from outeropt.bench.sets import HyperparameterSet
from outeropt.errors import ConfigError, OutOfSpace, UnknownName
from outeropt.learned import AdafacMLP


TABLE = json.loads((pathlib.Path(__file__).parent / "golden" / "tables" / "hparam_sets.json").read_text())

# What the original calls an optimizer and its hyperparameters, and what we do.
OURS = {
    "@AdaBelief()": "adabelief",
    "@AdaGrad()": "adagrad",
    "@Adafactor()": "adafactor",
    "@AdamExpDecayLR()": "exponential:adam",
    "@AdamSqrtDecayLR()": "inverse_sqrt:adam",
    "@Adam()": "adam",
    "@AdamW()": "adamw",
    "@Fromage()": "fromage",
    "@Lamb()": "lamb",
    "@Lars()": "lars",
    "@RAdam()": "radam",
    "@RMSProp()": "rmsprop",
    "@SGD()": "sgd",
    "@SGDM()": "momentum",
    "@SM3()": "sm3",
    "@Yogi()": "yogi",
}
HYPERPARAMETERS = {"num_average": "every"}


def left_out(name):
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in LEFT_OUT)


OFFERED = sorted(
    name for name, row in TABLE["sets"].items() if not left_out(name) and not row["needs_opt_name_and_path"]
)
FOR_WEIGHTS = sorted(
    name for name, row in TABLE["sets"].items() if not left_out(name) and row["needs_opt_name_and_path"]
)


@functools.cache
def everything():
    return tuple(sets.names())


def test_all_sets_of_the_original_are_offered_or_explained():
    published = [name for name in everything() if sets.get(name).tags == ("published",)]
    assert sorted(published) == OFFERED
    assert len(OFFERED) == 35 and len(FOR_WEIGHTS) == 26 and len(TABLE["sets"]) == 69
    for name in FOR_WEIGHTS:
        with pytest.raises(UnknownName, match=f"Set {name} needs a learned optimizer: write {name}:WEIGHTS"):
            sets.get(name)
    for name in TABLE["sets"]:
        if left_out(name):
            assert "Shampoo" in name or "OptList" in name
            with pytest.raises(UnknownName, match=f"{name} of learned_optimization is not offered: "):
                sets.get(name)


@pytest.mark.parametrize("name", OFFERED)
def test_published_sets_are_the_original_s(name):
    row, found = TABLE["sets"][name], sets.get(name)
    assert found.name == name and len(found.settings()) == row["num_configs"]
    assert (found.seeds, found.steps, found.eval_every) == (row["seeds"], row["num_steps"], row["eval_every"])
    assert (found.eval_batches, found.last_eval_batches) == (row["eval_batches"], row["last_eval_batches"])
    bindings = dict(row["other_bindings"])
    wrapped = bindings.pop("GradientAccumulator.opt", None)
    assert found.optimizer == (f"accumulate:{OURS[wrapped]}" if wrapped else OURS[row["optimizer"]])
    grid = [
        (ours(key), tuple(TABLE["learning_rates"] if values == "learning_rates" else values))
        for key, values in row["grid"]
    ]
    assert list(found.grid.items()) == grid  # the order of names is the order of settings
    for key, value in bindings.items():
        assert found.fixed[ours(key)] == value


@pytest.mark.parametrize("name", FOR_WEIGHTS)
def test_published_sets_of_learned_optimizers_are_the_original_s(name, weights):
    row, found = TABLE["sets"][name], sets.get(f"{name}:{weights}")
    assert found.name == f"{name}-mine" and found.shown.endswith("learned:mine")
    assert len(found.settings()) == row["num_configs"]
    assert (found.seeds, found.steps, found.eval_every) == (row["seeds"], row["num_steps"], row["eval_every"])
    assert (found.eval_batches, found.last_eval_batches) == (row["eval_batches"], row["last_eval_batches"])
    bindings = dict(row["other_bindings"])
    accumulated = bindings.get("GradientAccumulator.opt") == "@opt_from_checkpoint()"
    assert found.optimizer == f"{'accumulate:' if accumulated else ''}learned:{weights}"
    assert list(found.grid.items()) == [(ours(key), tuple(values)) for key, values in row["grid"]]
    if "GradientAccumulator.num_average" in bindings:
        assert found.fixed == {"every": bindings["GradientAccumulator.num_average"]}
    built = found.build(found.settings()[-1])
    every = {**found.fixed, **found.settings()[-1]}.get("every")
    assert every is None or float(built.hyperparameters["every"]) == every


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A learned optimizer in a folder, as meta-training leaves it."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    AdafacMLP().save(folder / "optimizer.safetensors")
    return str(folder)


def ours(key):
    name = key.split(".")[-1]
    return HYPERPARAMETERS.get(name, name)


@pytest.mark.parametrize("name", OFFERED)
def test_published_sets_build_at_both_ends_of_their_grid(name):
    found = sets.get(name)
    for setting in (found.settings()[0], found.settings()[-1]):
        built = found.build(setting)
        for key, value in {**found.fixed, **setting}.items():
            leaf = [leaf for full, leaf in built.hyperparameters.items() if full.split(".")[-1] == key]
            if leaf:  # a few (SM3's b2) are static
                np.testing.assert_allclose(leaf[0], value, rtol=1e-6)


def test_every_optimizer_has_its_sets():
    for optimizer in optimizers.names():
        default = sets.get(f"{optimizer}-default")
        assert default.settings() == ({},) and ruleset_of(default.name) == "as is"
        assert default.build({}).hyperparameters.keys() == optimizers.get(optimizer).hyperparameters.keys()
        if f"{optimizer}-lr" in everything():
            tuned = sets.get(f"{optimizer}-lr")
            (values,) = tuned.grid.values()
            assert len(values) == 9 and tuned.seeds == 3 and ruleset_of(tuned.name) == "tuned"
            tuned.build(tuned.settings()[0])
    assert {"adam-lr", "sgd-lr", "nadamw_cosine-lr"} <= set(everything())
    assert "lbfgs-lr" not in everything()
    with pytest.raises(UnknownName, match="use lbfgs-default"):
        sets.get("lbfgs-lr")


def test_the_swept_leaf_is_the_one_that_changes():
    found = sets.get("nadamw_cosine-lr")
    first, last = (found.build(found.settings()[i]) for i in (0, -1))
    changed = [
        name
        for name, leaf in first.hyperparameters.items()
        if not np.array_equal(leaf, last.hyperparameters[name])
    ]
    assert changed == ["inner.learning_rate"]
    assert list(sets.get("clip:adam-lr").grid) == ["inner.learning_rate"]


def test_decaying_learning_rates_are_those_of_the_original():
    # On a constant gradient, bias-corrected Adam steps by the learning rate.
    params, grads = jnp.ones(3), jnp.ones(3)
    for name, expected in [
        ("AdamSqrtDecayLR_100000_R5", lambda t: min(max(t, 1) / 1000, (1000 / max(t, 1)) ** 0.5)),
        ("AdamExpDecayLR_100000_R5", lambda t: (1 - 7e-5) ** t),
    ]:
        optimizer = sets.get(name).build({"learning_rate": 0.01})

        def run(optimizer=optimizer):
            def step(state, _):
                updates, state = optimizer.update(grads, state, params)
                return state, updates[0]

            return jax.lax.scan(step, optimizer.init(params, num_steps=3000), None, length=3000)[1]

        steps = jax.jit(run)()
        for t in (0, 1, 10, 999, 1000, 2999):
            assert float(steps[t]) == pytest.approx(-0.01 * expected(t), rel=1e-3)


def test_settings_are_nested_loops():
    found = HyperparameterSet("x", "adam", grid={"b1": (0.8, 0.9), "learning_rate": (1.0, 0.1)})
    assert found.settings() == (
        {"b1": 0.8, "learning_rate": 1.0},
        {"b1": 0.8, "learning_rate": 0.1},
        {"b1": 0.9, "learning_rate": 1.0},
        {"b1": 0.9, "learning_rate": 0.1},
    )
    assert len(found.optimizers()) == 4


def test_a_set_under_another_protocol():
    published = sets.get("AdamLR_2000_R5")
    assert published.adapted() == published
    short = published.adapted(steps=25, seeds=2, eval_batches=1)
    assert short.name == "AdamLR_2000_R5@25" and short.settings() == published.settings()
    assert short.protocol == {
        "seeds": 2,
        "steps": 25,
        "episodes": 1,
        "eval_every": 1,  # 10 does not divide 25
        "eval_batches": 1,
        "last_eval_batches": 10,
    }
    assert published.adapted(steps=400).eval_every == 10
    assert sets.get("adam-lr").adapted(**short.protocol).name == "adam-lr"
    with pytest.raises(ConfigError, match="eval_every = 3 does not divide steps = 4; 2 would"):
        published.adapted(steps=4, eval_every=3)


def test_names_by_pattern():
    assert sets.names("AdamLR_1000_*") == ["AdamLR_1000_R5"]
    assert sets.names("sgd-*") == ["sgd-lr", "sgd-default"]
    assert len(set(everything())) == len(everything())


def test_sets_from_files(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "optimizer: accumulate:adam\n"
        "fixed: {every: 2, eps: 1e-6}\n"
        "grid:\n  learning_rate: log:1e-4:1e-2:3\n  b1: [0.8, 9e-1]\n"
        "seeds: 2\nsteps: 50\ntags: [demo]\n"
    )
    found = sets.get(str(tmp_path / "mine.yaml"))
    assert (found.name, found.optimizer, found.seeds, found.steps) == ("mine", "accumulate:adam", 2, 50)
    assert found.fixed == {"every": 2, "eps": 1e-6} and found.tags == ("demo",)
    np.testing.assert_allclose(found.grid["learning_rate"], [1e-4, 1e-3, 1e-2])
    assert found.grid["b1"] == (0.8, 0.9) and len(found.optimizers()) == 6
    (tmp_path / "mine.py").write_text(
        "from outeropt.bench.sets import HyperparameterSet\n"
        "wide = HyperparameterSet('wide', 'sgd', grid={'learning_rate': (0.1, 1.0)})\nother = 3\n"
    )
    assert sets.get(f"{tmp_path}/mine.py:wide").name == "wide"
    with pytest.raises(UnknownName, match="Did you mean wide"):
        sets.get(f"{tmp_path}/mine.py:wid")
    with pytest.raises(ConfigError, match="is of type int; make it a HyperparameterSet"):
        sets.get(f"{tmp_path}/mine.py:other")
    (tmp_path / "bad.py").write_text("1 / 0\n")
    with pytest.raises(ConfigError, match="cannot be run: ZeroDivisionError"):
        sets.get(f"{tmp_path}/bad.py:x")


@pytest.mark.parametrize(
    "text, message",
    [
        ("optimizer: adam\nsed: 3", "unknown key 'sed'. Did you mean seeds"),
        ("optimizer: adam\nseeds: three", "seeds = 'three' must be a whole number"),
        ("optimizer: adam\nsteps: 0", "steps = 0; it must be at least 1"),
        ("optimizer: adam\ngrid: {b1: []}", "no values for b1"),
        ("optimizer: adam\ngrid: {b1: [high]}", "the grid of b1 has 'high'"),
        ("optimizer: adam\ngrid: {b1: 'log:1'}", "Grid 'log:1' is not understood"),
        ("optimizer: adam\nfixed: {b1: 1}\ngrid: {b1: [1]}", "both fixed and in the grid"),
        ("seeds: 3", "`optimizer` is missing"),
        ("- adam", "must be a mapping with at least `optimizer`, not list"),
        ("a: [", "not valid YAML"),
    ],
)
def test_wrong_files_are_explained(tmp_path, text, message):
    path = tmp_path / "set.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        sets.from_yaml(path)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_wrong_names_and_values_are_explained(tmp_path):
    with pytest.raises(UnknownName, match="Did you mean AdamLR_1000_R5"):
        sets.get("AdamLR_1000_R4")
    with pytest.raises(UnknownName, match="Did you mean adam-lr"):
        sets.get("adamv-lr")
    with pytest.raises(ConfigError, match="cannot be read"):
        sets.get(str(tmp_path / "none.yaml"))
    with pytest.raises(OutOfSpace):
        HyperparameterSet("x", "adam", grid={"learning_rate": (-1.0,)}).optimizers()
    with pytest.raises(UnknownName):
        HyperparameterSet("x", "adam", grid={"lr": (1.0,)}).optimizers()
