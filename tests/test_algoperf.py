"""Submissions to AlgoPerf in a stand-in for its harness: the functions, hyperparameters, search spaces."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import algoperf_harness as harness
from algoperf_harness import Digits, module, train_once, trial
from outeropt import Space, algoperf, optimizers
from outeropt.algoperf.names import find, name_of
from outeropt.algoperf.program import Layout
from outeropt.errors import ConfigError, OuteroptError, OutOfSpace, UnknownName


BATCH = 64
STEPS = 24
# By name, and what a trial of the external ruleset says of each; None plays by the self-tuning ruleset.
TRAINED = {
    "adamw": trial(learning_rate=3e-2, one_minus_beta1=0.1, beta2=0.99, epsilon=1e-4, grad_clip=1.0),
    "nadamw_cosine": trial(learning_rate=3e-2, warmup_factor=0.1, label_smoothing=0.1, dropout_rate=0.0),
    "schedule_free_adamw": trial(learning_rate=3e-2, warmup_factor=0.1),
    "averaged:sgd": trial(learning_rate=0.3),
    "prodigy": trial(estim_lr0=1e-3),
    "momo": None,
    "learned:small_fc": None,
    "self_tuning": None,
}


@pytest.fixture(autouse=True)
def _installed(monkeypatch):
    """AlgoPerf's own code and flax's mix types, as a user's JAX lets them."""
    harness.install(monkeypatch)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def workload():
    return Digits()


def near(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)


def by_hand(workload, optimizer, settings, steps):
    """The training points of a plain loop on one device, with the harness's keys and batches."""
    rng, _ = jax.random.split(jax.random.PRNGKey(3), 2)
    data_rng, opt_rng, model_rng, rng = jax.random.split(rng, 4)
    queue = workload._build_input_queue(data_rng, "train", None, BATCH)
    params, model_state = workload.init_model_fn(model_rng)
    state = optimizer.init(params, num_steps=workload.step_hint, key=jax.random.wrap_key_data(opt_rng))
    clip = optax.clip_by_global_norm(settings.get("grad_clip", jnp.inf))

    @jax.jit
    def step(params, model_state, state, batch, index, key):
        def loss(params):
            logits, new = workload.model_fn(
                params,
                batch,
                model_state,
                harness.ForwardPassMode.TRAIN,
                key,
                True,
                settings.get("dropout_rate", 0.1),
            )
            each = workload.loss_fn(batch["targets"], logits, None, settings.get("label_smoothing", 0.0))[
                "per_example"
            ]
            return jnp.sum(each * batch["weights"]) / jnp.sum(batch["weights"]), new

        (value, new), grads = jax.value_and_grad(loss, has_aux=True)(params)
        grads, _ = clip.update(grads, clip.init(params))
        context = {"value": value, "grad": grads, "value_fn": lambda p: loss(p)[0], "step": index}
        own = jax.random.fold_in(jax.random.wrap_key_data(key), 1)
        updates, state = optimizer.update(grads, state, params, **context, key=own)
        return optax.apply_updates(params, updates), new, state

    points = []
    for index in range(steps):
        key = jax.random.split(jax.random.fold_in(rng, index), 4)[1]
        params, model_state, state = step(params, model_state, state, next(queue), jnp.int32(index), key)
        points.append(params)
    return points, model_state, optimizer.eval_params(state, params)


@pytest.mark.parametrize("name", TRAINED)
def test_trains_in_the_harness_as_by_hand_and_resumes_exactly(workload, name):
    submitted, hyperparameters = module(algoperf.submission(name)), TRAINED[name]
    whole = train_once(workload, submitted, hyperparameters, STEPS, STEPS // 2, BATCH)
    assert jax.device_count() > 1, "the batch is not divided"
    before = workload.eval_model(*workload.init_model_fn(jax.random.PRNGKey(0)))
    losses = [loss for _, loss in whole.evals]
    assert losses[-1] < min(losses[0], before)

    values = {} if hyperparameters is None else hyperparameters._asdict()
    # What the names above stand for, by hand.
    leaves = {
        "adamw": lambda v: {"learning_rate": v["learning_rate"], "b1": 0.9, "b2": 0.99, "eps": 1e-4},
        "nadamw_cosine": lambda v: {"learning_rate": v["learning_rate"], "warmup_fraction": 0.1},
        "schedule_free_adamw": lambda v: {"learning_rate": v["learning_rate"], "warmup_steps": 4},
        "averaged:sgd": lambda v: v,
        "prodigy": lambda v: v,
    }
    optimizer = optimizers.get(name).replace(leaves.get(name, lambda v: {})(values))
    points, model_state, point = by_hand(workload, optimizer, values, STEPS)
    for ours, theirs in zip(whole.points, points, strict=True):
        near(ours, theirs)
    near((whole.params, whole.model_state), (point, model_state))

    half = train_once(workload, submitted, hyperparameters, STEPS // 2, STEPS // 2, BATCH)
    resumed = train_once(
        workload, submitted, hyperparameters, STEPS, STEPS // 2, BATCH, restored=half.checkpoint
    )
    jax.tree.map(
        np.testing.assert_array_equal,
        (resumed.params, resumed.model_state, resumed.optimizer_state[0]),
        (whole.params, whole.model_state, whole.optimizer_state[0]),
    )
    assert resumed.checkpoint == whole.checkpoint


EIGHT = """
import sys
import jax, numpy as np
import algoperf_harness as harness
from outeropt import algoperf
sys.modules["algoperf.spec"] = harness.SPEC
assert jax.device_count() == 8
submitted = harness.module(algoperf.submission("schedule_free_adamw"))
ended = harness.train_once(harness.Digits(), submitted, harness.trial(learning_rate=1e-2), 6, 6, 64)
kept = ended.optimizer_state[0]
assert all(len(leaf.sharding.device_set) == 8 for leaf in jax.tree.leaves((kept, ended.params)))
np.savez(sys.argv[1], *map(np.asarray, jax.tree.leaves((ended.params, ended.model_state, kept))))
"""


def test_eight_devices_train_as_fewer(workload, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    ended = subprocess.run(
        [sys.executable, "-c", EIGHT, str(tmp_path / "eight.npz")],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    submitted = module(algoperf.submission("schedule_free_adamw"))
    here = train_once(workload, submitted, trial(learning_rate=1e-2), 6, 6, BATCH)
    leaves = jax.tree.leaves((here.params, here.model_state, here.optimizer_state[0]))
    with np.load(tmp_path / "eight.npz") as eight:
        near(leaves, [*eight.values()])


# The arguments that `algoperf/spec.py` documents, in its order.
COMMON = ["workload", "current_param_container", "current_params_types", "model_state", "hyperparameters"]
ARGUMENTS = {
    "get_batch_size": ["workload_name"],
    "init_optimizer_state": ["workload", "model_params", "model_state", "hyperparameters", "rng"],
    "update_params": [
        *(*COMMON, "batch", "loss_type", "optimizer_state", "eval_results", "global_step", "rng"),
        "train_state",
    ],
    "prepare_for_eval": [*COMMON, "loss_type", "optimizer_state", "eval_results", "global_step", "rng"],
    "data_selection": [
        *("workload", "input_queue", "optimizer_state", "current_param_container", "model_state"),
        *("hyperparameters", "global_step", "rng"),
    ],
}


@pytest.mark.parametrize("function", ARGUMENTS)
def test_functions_take_the_documented_arguments(function):
    found = inspect.signature(getattr(algoperf.submission("sgd"), function)).parameters
    assert list(found) == ARGUMENTS[function]
    assert [name for name in found if found[name].default is not inspect.Parameter.empty] == (
        ["train_state"] if function == "update_params" else []
    )


def test_batch_sizes_are_the_baselines_or_given():
    made = algoperf.submission("sgd", batch_sizes={"wmt": 64, "mine": 8})
    assert [made.get_batch_size(name) for name in ("wmt", "mine", "ogbg")] == [64, 8, 512]
    # The harness asks for the base workload when it meets a ValueError.
    with pytest.raises(ValueError, match="no batch size for workload 'wmt_post_ln'") as error:
        made.get_batch_size("wmt_post_ln")
    assert isinstance(error.value, OuteroptError) and len(str(error.value).splitlines()) == 1


def begin(workload, optimizer, hyperparameters=None, **settings):
    params, model_state = workload.init_model_fn(jax.random.PRNGKey(0))
    made = algoperf.submission(optimizer, **settings)
    state = made.init_optimizer_state(workload, params, model_state, hyperparameters, jax.random.PRNGKey(1))
    return made, state, params, model_state


def go(workload, made, state, params, model_state, index=0, **changes):
    batch = {**next(workload._build_input_queue(jax.random.PRNGKey(2), "train", None, BATCH)), **changes}
    arguments = (workload, params, None, model_state, None, batch, None, state, [], index)
    return made.update_params(*arguments, jax.random.PRNGKey(4))


def test_all_trials_share_one_program():
    class Counted(Digits):
        """Counts how often its model is traced."""

        traces = 0

        def model_fn(self, *arguments, **settings):
            self.traces += 1
            return super().model_fn(*arguments, **settings)

    workload = Counted()
    for rate in (1e-3, 1e-2, 1e-1):
        values = trial(learning_rate=rate, label_smoothing=rate, grad_clip=1.0)
        made, state, params, model_state = begin(workload, "lion", values)
        for index in range(2):
            state, params, model_state = go(workload, made, state, params, model_state, index)
    assert workload.traces == 1


def test_the_loss_takes_its_hyperparameters(workload):
    def moved(**values):
        made, state, params, model_state = begin(workload, "sgd", trial(learning_rate=1.0, **values))
        first = jax.device_get(params)
        _, params, _ = go(workload, made, state, params, model_state)
        return jax.tree.map(lambda a, b: np.asarray(a) - b, params, first)

    plain = moved()
    norm = float(optax.tree.norm(plain))
    for clip in (0.5 * norm, 2 * norm):
        clipped = moved(grad_clip=clip)
        expected = optax.tree.scale(min(1.0, clip / (norm + 1e-6)), plain)
        near(clipped, expected)
    # The workload's own rate is 0.1.
    near(moved(dropout_rate=0.1), plain)
    for other in (moved(dropout_rate=0.5), moved(label_smoothing=0.2)):
        assert not np.allclose(other["Dense_0"]["kernel"], plain["Dense_0"]["kernel"], rtol=1e-2)


def test_examples_of_no_weight_do_not_count(workload):
    made, state, params, model_state = begin(workload, "sgd")
    targets = next(workload._build_input_queue(jax.random.PRNGKey(2), "train", None, BATCH))["targets"]
    other = np.where(np.arange(BATCH) % 8 == 7, (targets + 1) % 10, targets)
    first = go(workload, made, state, params, model_state)[1]
    made, state, params, model_state = begin(workload, "sgd")
    second = go(workload, made, state, params, model_state, targets=other)[1]
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_the_training_point_is_kept_only_where_it_is_needed(workload):
    apart = {}
    for name in ("adamw", "clip:momo", "schedule_free_adamw", "averaged:adam", "lookahead"):
        _, (kept, held), params, _ = begin(workload, name)
        apart[name] = held.layout.apart
        assert len(kept["training"]) == held.layout.apart * len(jax.tree.leaves(params))
    names = [name for name, other in apart.items() if other]
    assert names == ["schedule_free_adamw", "averaged:adam", "lookahead"]


def test_keys_in_a_state_are_kept_as_numbers(workload):
    params = {"w": jnp.ones(3)}
    state = {"key": jax.random.key(5), "old": jax.random.PRNGKey(5), "count": jnp.int32(2)}
    layout = Layout.of(optimizers.get("sgd"), state, params)
    kept = layout.pack(state, params)
    assert {str(leaf.dtype) for leaf in kept["optimizer"]} == {"int32", "uint32"} and not kept["training"]
    back, _ = layout.unpack(kept, params)
    assert back["key"] == state["key"] and back["old"].dtype == jnp.uint32


def test_scalars_are_logged_as_by_the_baselines(workload):
    made, state, params, model_state = begin(workload, "hypergradient:sgd")
    logged = Digits()
    logged.metrics_logger = harness.Logger()
    for index in (0, 1, 100):
        state, params, model_state = go(logged, made, state, params, model_state, index)
    assert [step for step, _ in logged.metrics_logger.rows] == [0, 100]
    assert {"loss", "grad_norm", "optimizer/learning_rate"} <= logged.metrics_logger.rows[0][1].keys()


def test_what_cannot_run_is_told_in_one_line(workload, monkeypatch):
    class Weights:
        """Stands for PyTorch's module."""

    made = algoperf.submission("adamw")
    with pytest.raises(OuteroptError, match=r"not JAX arrays; run the workload with --framework=jax\.$"):
        made.init_optimizer_state(workload, Weights(), None, None, jax.random.PRNGKey(0))
    with pytest.raises(ConfigError, match="above 0"):
        algoperf.submission("adamw", length=0)
    with pytest.raises(UnknownName, match="No optimizer is called 'adamv'"):
        algoperf.submission("adamv")
    with pytest.raises(OuteroptError, match="valid_fn"):
        go(workload, *begin(workload, "one_pass:sgd"))
    monkeypatch.delitem(sys.modules, "algoperf.spec")
    with pytest.raises(OuteroptError, match="run the submission with its submission_runner"):
        go(workload, *begin(workload, "sign_sgd"))


def test_a_tuned_loss_is_followed(workload):
    class Smooths(type(optimizers.get("nadamw_constant"))):
        """Asks for a smoothing of its own."""

        def task_settings(self, state):
            return {NAME: jnp.float32(0.2)}

    NAME = "label_smoothing"
    asked = go(workload, *begin(workload, Smooths()))[1]
    near(asked, go(workload, *begin(workload, "nadamw_constant", trial(label_smoothing=0.2)))[1])
    NAME = "width"
    with pytest.raises(OuteroptError, match="tunes width of the loss; AlgoPerf's has label_smoothing"):
        go(Digits(), *begin(workload, Smooths()))


def test_the_length_of_a_run_follows_the_hint(workload):
    _, (kept, held), _, _ = begin(workload, "nadamw_cosine", length=0.75)
    clocks = [leaf for leaf in kept["optimizer"] if leaf.shape == (2,)]
    assert any(list(clock) == [0, 30] for clock in clocks)
    # Warm-up and cosine are those of the baselines.
    schedule = held.optimizer.replace(learning_rate=1.0, warmup_fraction=0.1).schedule
    theirs = optax.join_schedules(
        [optax.linear_schedule(0.0, 1.0, 3), optax.cosine_decay_schedule(1.0, 27)], boundaries=[3]
    )
    for step in range(31):
        np.testing.assert_allclose(schedule(step, 30), theirs(step), atol=1e-6)


@pytest.mark.parametrize(
    ("optimizer", "name", "leaf", "kind"),
    [
        ("adamw", "learning_rate", "learning_rate", "same"),
        ("adamw", "beta1", "b1", "same"),
        ("adamw", "one_minus_beta1", "b1", "complement"),
        ("adamw", "one_minus_b2", "b2", "complement"),
        ("adamw", "epsilon", "eps", "same"),
        ("prodigy", "beta2", "betas.1", "same"),
        ("prodigy", "betas__0", "betas.0", "same"),
        ("momentum", "one_minus_beta1", "momentum", "complement"),
        ("momo", "beta1", "beta", "same"),
        ("sam", "rho", "rho", "same"),
        ("cosine:adamw", "warmup_factor", "schedule.warmup_fraction", "same"),
        ("cosine:adamw", "end_factor", "schedule.end_fraction", "same"),
        ("cosine:adamw", "beta2", "inner.b2", "same"),
        ("schedule_free_adamw", "warmup_factor", "warmup_steps", "steps"),
        ("self_tuning", "meta__learning_rate", "meta.learning_rate", "same"),
    ],
)
def test_names_of_algoperf_stand_for_leaves(optimizer, name, leaf, kind):
    place = find(name, optimizers.get(optimizer).hyperparameters)
    assert (place.leaf, place.kind) == (leaf, kind)


def test_trials_fill_leaves():
    filled = algoperf.fill(
        optimizers.get("cosine:adamw"),
        trial(learning_rate=1e-3, one_minus_beta1=0.02, beta2=0.99, warmup_factor=0.05, grad_clip=1.0),
    ).hyperparameters
    expected = {
        "inner.learning_rate": 1e-3,
        "inner.b1": 0.98,
        "inner.b2": 0.99,
        "schedule.warmup_fraction": 0.05,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(filled[name], value, rtol=1e-6)
    assert (
        algoperf.fill(optimizers.get("adamw"), None).hyperparameters
        == optimizers.get("adamw").hyperparameters
    )
    steps = algoperf.fill(optimizers.get("schedule_free_adamw"), {"warmup_factor": 0.02}, 1000)
    assert float(steps.hyperparameters["warmup_steps"]) == 20


@pytest.mark.parametrize(
    ("optimizer", "values", "error", "told"),
    [
        ("adamw", {"warmup_factor": 0.1}, UnknownName, "in front of its name, as in cosine:adamw"),
        (
            "adamw",
            {"decay_steps_factor": 0.9},
            UnknownName,
            "write __ for a dot; the loss has label_smoothing",
        ),
        (
            "adamw",
            {"beta1": 0.9, "one_minus_beta1": 0.1},
            ConfigError,
            "beta1 and one_minus_beta1 both stand for b1",
        ),
        ("adamw", {"beta1": -1.0}, OutOfSpace, "b1 = -1 is outside its space"),
        ("self_tuning", {"learning_rate": 0.1}, UnknownName, "ambiguous; say which"),
        ("schedule_free_adamw", {"warmup_factor": 0.1}, ConfigError, "give num_steps"),
    ],
)
def test_hyperparameters_that_do_not_fit_are_told(optimizer, values, error, told):
    with pytest.raises(error, match=told) as found:
        algoperf.fill(optimizers.get(optimizer), values)
    assert len(str(found.value).splitlines()) == 1


@pytest.mark.parametrize("name", [*TRAINED, "metaopt", "sgd", "muon", "shampoo", "opt_list_0"])
def test_search_spaces_of_optimizers_are_written_and_read(tmp_path, name):
    optimizer, path = optimizers.get(name), tmp_path / "tuning_search_space.json"
    if not optimizer.spaces:
        with pytest.raises(ConfigError, match="either spaces by name or a list"):
            algoperf.write(path, optimizer)
        return
    algoperf.write(path, optimizer)
    document = json.loads(path.read_text())
    for key, entry in document.items():
        # What the harness can make a namedtuple of, and draw from.
        assert key.isidentifier() and not key.startswith("_")
        assert entry["scaling"] in ("linear", "log") if "min" in entry else entry["feasible_points"]
    back = algoperf.read(path, optimizer).spaces
    assert list(back) == list(optimizer.spaces)
    for leaf, space in back.items():
        own = optimizer.spaces[leaf]
        assert (space.scale, space.choices) == (own.scale, own.choices)
        np.testing.assert_allclose([space.low, space.high], [own.low, own.high], rtol=1e-9)
    # Every corner is a trial that fits.
    for end in ("min", "max"):
        algoperf.fill(optimizer, {key: entry[end] for key, entry in document.items() if "min" in entry})


# The space of the baselines of AlgoPerf's paper, and the form of a list.
BASELINE = """{
  "learning_rate": {"min": 1e-4, "max": 1e-2, "scaling": "log"},
  "one_minus_beta1": {"min": 2e-2, "max": 0.5, "scaling": "log"},
  "beta2": {"feasible_points": [0.999]},
  "warmup_factor": {"feasible_points": [0.05]},
  "weight_decay": {"min": 5e-3, "max": 1.0, "scaling": "log"},
  "label_smoothing": {"feasible_points": [0.1, 0.2]},
  "dropout_rate": {"feasible_points": [0.0, 0.1]}
}"""


def test_the_baselines_space_is_read_and_written_back(tmp_path):
    path, optimizer = tmp_path / "space.json", optimizers.get("cosine:nadamw")
    path.write_text(BASELINE)
    found = algoperf.read(path, optimizer)
    assert found.spaces == {
        "inner.learning_rate": Space.log(1e-4, 1e-2),
        "inner.b1": Space.logit(0.5, 0.98),
        "inner.b2": Space.choice(0.999),
        "schedule.warmup_fraction": Space.choice(0.05),
        "inner.weight_decay": Space.log(5e-3, 1.0),
        "label_smoothing": Space.choice(0.1, 0.2),
        "dropout_rate": Space.choice(0.0, 0.1),
    }
    algoperf.write(path, optimizer, found)
    assert json.loads(path.read_text()) == json.loads(BASELINE)
    free = optimizers.get("schedule_free_adamw")
    path.write_text('{"warmup_factor": {"min": 0.02, "max": 0.1, "scaling": "linear"}}')
    assert algoperf.read(path, free, num_steps=1000).spaces == {"warmup_steps": Space.linear(20, 100)}


def test_lists_of_settings_are_read_and_written_back(tmp_path):
    path, optimizer = tmp_path / "space.json", optimizers.get("cosine:nadamw")
    settings = [
        {"dropout_rate": 0.0, "learning_rate": 1e-3, "one_minus_beta1": 0.25, "warmup_factor": 0.1},
        {"dropout_rate": 0.1, "learning_rate": 5e-3, "one_minus_beta1": 0.125, "warmup_factor": 0.02},
    ]
    path.write_text(json.dumps(settings))
    found = algoperf.read(path, optimizer)
    assert found.settings[1] == {
        "inner.learning_rate": 5e-3,
        "inner.b1": 0.875,
        "schedule.warmup_fraction": 0.02,
        "dropout_rate": 0.1,
    }
    algoperf.write(path, optimizer, found)
    assert json.loads(path.read_text())[1] == {
        "learning_rate": 5e-3,
        "beta1": 0.875,
        "warmup_factor": 0.02,
        "dropout_rate": 0.1,
    }
    assert algoperf.read(path, optimizer) == found
    own = algoperf.SearchSpace(settings=tuple(settings))
    algoperf.write(path, optimizer, own)
    assert json.loads(path.read_text()) == settings


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "not JSON"),
        ("3", "must map names"),
        ("[1]", "Setting 0 of the search space is not a mapping"),
        ('[{"beta1": "0.9"}]', "Setting 0 of the search space is not a mapping of names to numbers"),
        ('[{"beta1": 0.9}, {"beta2": 0.9}]', "all must have the same names"),
        ('[{"beta1": 0.9, "one_minus_beta1": 0.1}]', "both stand for b1"),
        ('{"beta1": {"min": 0, "max": 1}}', "not understood"),
        ('{"b1": {"feasible_points": [0.9]}, "beta1": {"feasible_points": [0.9]}}', "two names for b1"),
        ("{}", "either spaces by name or a list"),
    ],
)
def test_files_that_are_no_search_space_are_told(tmp_path, text, told):
    path = tmp_path / "space.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=told) as found:
        algoperf.read(path, optimizers.get("adamw"))
    assert len(str(found.value).splitlines()) == 1
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        algoperf.read(tmp_path / "none.json", optimizers.get("adamw"))


def test_a_scale_that_algoperf_lacks_is_refused(tmp_path):
    logit = algoperf.SearchSpace({"dropout_rate": Space.logit(0.1, 0.5)})
    with pytest.raises(ConfigError, match="dropout_rate has a logit space"):
        algoperf.write(tmp_path / "space.json", optimizers.get("adamw"), logit)
    assert name_of("inner.b1", optimizers.get("cosine:adamw").hyperparameters) == "beta1"
