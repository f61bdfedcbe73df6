"""MetaOpt: identities, derivatives, guards, types, and controllers in files. Numbers: test_metaopt_golden."""

import functools
import os
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from outeropt import optimizers, selftuning, train, tree
from outeropt.errors import ConfigError, OuteroptError, UnknownName
from outeropt.optimizers import from_optax
from outeropt.selftuning import AdamScaled, MetaOpt
from outeropt.selftuning.control.controllers import CONTROLLERS
from outeropt.selftuning.control.history import History
from outeropt.selftuning.control.transfer import fitted
from toys import regression


QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
PARAMS = {"w": jnp.array([[1.0, -0.5, 0.3], [0.7, 1.2, -0.9]]), "s": jnp.array([-0.8, 0.4])}
ROLLOUTS = ("fake", "cf1", "cf")
KINDS = ("scalar", "per_tensor", "diagonal", "full")


def sgd(rate):
    return optimizers.get("sgd", learning_rate=rate)


def loss(params, step=0):
    """Another badly conditioned quadratic at each step; one parameter never matters."""
    w, s = params["w"], params["s"]
    phase = 0.1 * jnp.asarray(step, w.dtype)
    curved = jnp.sum(jnp.array([[1.0, 4.0, 0.0], [0.3, 2.0, 1.0]], w.dtype) * (w - jnp.sin(phase)) ** 2)
    return curved + jnp.sum((s - w[0, :2]) ** 2)


def run(optimizer, params=PARAMS, steps=30, loss=loss):
    @functools.partial(jax.jit, compiler_options=QUICK)
    def whole(optimizer, params):
        def body(carry, step):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params, step)
            context = {"value": value, "grad": grads, "value_fn": lambda p: loss(p, step), "value_at": loss}
            updates, state = optimizer.update(grads, state, params, **context, step=step)
            return (jax.tree.map(jnp.add, params, updates), state), (value, state.cost)

        start = params, optimizer.init(params, num_steps=steps, key=jax.random.key(0))
        return jax.lax.scan(body, start, jnp.arange(steps))

    (params, state), (values, costs) = whole(optimizer, params)
    return params, state, values, costs


@pytest.mark.parametrize("base", ["sgd", "adamw", "schedule_free_sgd", "linear:momentum"])
@pytest.mark.parametrize("kind", ["scalar", "diagonal"])
def test_without_coefficients_it_is_the_base_optimizer(base, kind):
    base = optimizers.get(base, learning_rate=0.05)
    ours, state, *_ = run(MetaOpt(base, sgd(0.0), controller=kind))

    def plain(carry, step):
        params, state = carry
        updates, state = base.update(jax.grad(loss)(params, step), state, params)
        return (jax.tree.map(jnp.add, params, updates), state), None

    (theirs, _), _ = jax.jit(
        lambda p: jax.lax.scan(plain, (p, base.init(p, num_steps=30)), jnp.arange(30)), compiler_options=QUICK
    )(PARAMS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), ours, theirs)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(state.coefficients))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("disturbance", ["raw", "adam"])
@pytest.mark.parametrize("estimator", ROLLOUTS)
def test_a_rollout_of_what_played_ends_where_it_really_ended(estimator, disturbance, kind):
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), PARAMS)
        start = jax.tree.map(lambda leaf: leaf - 0.01, CONTROLLERS[kind](3).zeros(params))
        optimizer = MetaOpt(
            optimizers.get("momentum", learning_rate=0.02), sgd(0.0), disturbance, 0.01, start,
            memory=3, horizon=4, controller=kind, estimator=estimator,
        )  # fmt: skip
        _, _, values, costs = run(optimizer, params)
        np.testing.assert_allclose(costs[1:], values[1:], rtol=1e-6)


@pytest.mark.parametrize("estimator", ROLLOUTS)
def test_the_gradient_is_that_of_the_cost(estimator):
    """Central differences of the cost; for the estimators that hold something constant, of what they vary."""
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), PARAMS)
        start = jnp.array([-0.05, 0.02, -0.01], jnp.float64)
        optimizer = MetaOpt(
            sgd(0.02), sgd(0.0), "adam", 0.01, start, memory=3, horizon=3, estimator=estimator
        )
        _, state, *_ = run(optimizer, params, steps=12)
        point = jax.tree.map(lambda leaf: leaf + 0.1, params)
        context = {"value_fn": lambda p: loss(p, 12), "value_at": loss, "step": jnp.int32(12)}

        @functools.partial(jax.jit, compiler_options=QUICK)
        def cost(coefficients):
            moved = state._replace(coefficients=coefficients)
            return optimizer._gradient(jax.grad(loss)(point, 12), moved, point, context)[:2]

        _, gradient = cost(start)
        for i in range(3):
            width = 1e-6 * jnp.eye(3)[i]
            slope = (cost(start + width)[0] - cost(start - width)[0]) / 2e-6
            if estimator == "cf1":  # the fresh gradients move too, which it leaves out
                assert abs(gradient[i] / slope - 1) > 1e-6
                np.testing.assert_allclose(gradient[i], slope, rtol=0.5)
            else:
                np.testing.assert_allclose(gradient[i], slope, rtol=1e-6)


def dead(params, step=0):
    """A network with a dead input and a dead unit."""
    x = jnp.array([[0.0, 1.0], [0.0, -2.0]])
    hidden = jax.nn.relu(x @ params["w"] + jnp.array([[0.0, 0.0, -1e3]]))
    return jnp.mean((hidden @ jnp.ones((3, 1))[:, 0] - params["s"]) ** 2) + 0.0 * jnp.asarray(
        step, jnp.float32
    )


@pytest.mark.parametrize("estimator", ["gaps", *ROLLOUTS])
@pytest.mark.parametrize("kind", ["scalar", "diagonal"])
def test_dead_inputs_give_numbers(estimator, kind):
    optimizer = MetaOpt(
        sgd(1e-3), disturbance="adam", controller=kind, estimator=estimator, memory=1, horizon=2
    )
    _, state, values, _ = run(optimizer, loss=dead)
    assert tree.all_finite((state.coefficients, values)) and values[-1] < values[0]
    assert any(np.any(leaf) for leaf in jax.tree.leaves(state.coefficients))


def test_play_from_the_rollout():
    def values(rate, play):
        return run(MetaOpt(sgd(0.02), sgd(rate), estimator="cf", horizon=2, memory=2, play=play))[2]

    # While nothing is learned, the rollout ends at the parameters and nothing is added.
    np.testing.assert_allclose(values(0.0, "rollout"), values(0.0, "real"), rtol=1e-5)
    ahead, real = values(1e-4, "rollout"), values(1e-4, "real")
    assert tree.all_finite(ahead) and not np.allclose(ahead, real, rtol=1e-3)


def test_a_bad_gradient_changes_nothing_but_time():
    optimizer = MetaOpt(sgd(0.02), optimizers.get("adam", learning_rate=0.01), "adam", memory=3)
    _, state, *_ = run(optimizer, steps=5)
    bad = {"w": PARAMS["w"].at[0, 0].set(jnp.nan), "s": PARAMS["s"]}
    updates, after = optimizer.update(bad, state, PARAMS, value=jnp.float32(jnp.nan))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(updates))
    for field in ("coefficients", "meta", "base", "disturbance", "cost"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, field), getattr(state, field))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(after.history.row(state.history.count)))


def test_the_ball_holds_the_coefficients():
    optimizer = MetaOpt(sgd(0.02), sgd(10.0), radius=0.02, radius_decay=0.5, memory=3)
    _, state, *_ = run(optimizer)
    assert np.all(np.abs(state.coefficients) <= 0.02 * 0.5 ** np.arange(3) * (1 + 1e-6))
    for kind in ("per_tensor", "diagonal", "full"):
        _, state, *_ = run(MetaOpt(sgd(0.02), sgd(1.0), radius=0.02, memory=2, controller=kind))
        assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(state.coefficients)) <= 0.02 * (1 + 1e-6)


def test_an_averaging_meta_optimizer_plays_the_average():
    optimizer = MetaOpt(sgd(0.02), optimizers.get("averaged:sgd", learning_rate=0.05, decay=0.9), memory=2)
    _, state, *_ = run(optimizer)
    average = optimizer.meta.eval_params(state.meta, state.coefficients)
    assert not np.allclose(average, state.coefficients)
    np.testing.assert_array_equal(optimizer.after(state).coefficients, average)


def test_frozen_controllers_do_not_move_and_keep_less():
    start = jnp.array([-0.02, -0.01, 0.0, 0.0])
    learning = MetaOpt(sgd(0.02), coefficients=start, memory=4, horizon=3)
    frozen = selftuning.freeze(optimizers.ClipByGlobalNorm(learning, max_norm=100.0)).inner
    _, state, *_ = run(frozen)
    np.testing.assert_array_equal(state.coefficients, start)
    assert state.history.length == 4 and learning.init(PARAMS).history.length == 6 and state.meta == ()


@pytest.mark.parametrize("kind", ["scalar", "per_tensor", "diagonal"])
def test_narrow_parameters_and_histories(kind):
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    optimizer = MetaOpt(sgd(0.01), disturbance="adam", controller=kind, history_dtype="bfloat16")
    _, state, values, _ = run(optimizer)
    exact = run(MetaOpt(sgd(0.01), disturbance="adam", controller=kind))[2]
    assert {leaf.dtype for leaf in jax.tree.leaves(state.history.rows)} == {jnp.dtype("bfloat16")}
    np.testing.assert_allclose(values, exact, rtol=2e-2)
    params, state, *_ = run(optimizer, narrow)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(state.coefficients)} == {jnp.dtype("float32")}


def test_a_ring_keeps_the_newest_rows_by_age():
    history = History.empty({"a": jnp.zeros(2)}, 3)
    for i in range(5):
        history = history.push({"a": jnp.full(2, float(i))})
    np.testing.assert_array_equal(history.newest(3)["a"][:, 0], [4, 3, 2])
    np.testing.assert_array_equal(history.row(jnp.int32(3))["a"], [3, 3])
    np.testing.assert_array_equal(history.products({"a": jnp.ones(2)})[0], [8, 6, 4])
    np.testing.assert_array_equal(history.weighted({"a": jnp.array([1.0, 10.0])})["a"], [34, 34])


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from outeropt import optimizers
from outeropt.selftuning import MetaOpt

params = {"w": jnp.linspace(-1.0, 1.0, 64).reshape(8, 8), "s": jnp.linspace(0.5, 1.0, 8)}
placed = jax.device_put(params, NamedSharding(Mesh(np.array(jax.devices()), ("x",)), PartitionSpec("x")))

def loss(params):
    return jnp.sum(params["w"] ** 4) + jnp.sum((params["s"] - params["w"][0]) ** 2)

@jax.jit
def run(optimizer, params):
    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state, params, value_fn=loss)
        return (jax.tree.map(jnp.add, params, updates), state), value
    return jax.lax.scan(step, (params, optimizer.init(params)), length=20)

assert len(jax.devices()) == 8
for settings in ({"controller": "scalar"}, {"controller": "per_tensor"}, {"controller": "diagonal"},
                 {"estimator": "cf", "horizon": 2}):
    optimizer = MetaOpt(optimizers.sgd(0.01), disturbance="adam", memory=3, **settings)
    (one, state), values = run(optimizer, params)
    (two, sharded), others = run(optimizer, placed)
    assert len(sharded.history.rows["w"].sharding.device_set) == 8, settings
    assert not sharded.history.rows["w"].sharding.is_fully_replicated, settings
    for a, b in zip(jax.tree.leaves((one, state, values)), jax.tree.leaves((two, sharded, others))):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6, err_msg=str(settings))
"""


def test_parameters_and_histories_shard_alike():
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "8"}
    done = subprocess.run([sys.executable, "-c", SHARDED], env=env, capture_output=True, text=True)
    assert not done.returncode, done.stderr


def test_any_optimizer_may_disturb():
    ours = run(MetaOpt(sgd(1e-3), disturbance=optimizers.get("adam", learning_rate=1.0, eps_root=1e-12)))[2]
    named = run(MetaOpt(sgd(1e-3), disturbance=AdamScaled()))[2]
    np.testing.assert_allclose(ours, named, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_controllers_move_to_other_models_memories_and_kinds(kind):
    optimizer = MetaOpt(sgd(0.01), memory=3, controller=kind)
    _, state, *_ = run(optimizer)
    learned = optimizer.after(state).coefficients
    zeros = jax.tree.map(jnp.zeros_like, state.coefficients)
    jax.tree.map(np.testing.assert_array_equal, fitted(learned, zeros), learned)
    shorter = fitted(learned, MetaOpt(memory=2, controller=kind).init(PARAMS).coefficients)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[:2]), shorter, learned)
    longer = fitted(learned, MetaOpt(memory=5, controller=kind).init(PARAMS).coefficients)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:3], b), longer, learned)
    assert not any(np.any(leaf[3:]) for leaf in jax.tree.leaves(longer))
    other = {"w": jnp.ones((4, 2)), "new": jnp.ones(5)}
    for other_kind in KINDS:
        moved = MetaOpt(sgd(0.01), memory=3, controller=other_kind).with_controller(learned).init(other)
        assert tree.all_finite(moved.coefficients)


def test_a_scalar_controller_does_the_same_in_every_kind():
    start = jnp.array([-0.03, -0.01])
    expected = run(MetaOpt(sgd(0.01), coefficients=start, memory=2, frozen=True))[0]
    for kind in KINDS:
        found = run(MetaOpt(sgd(0.01), coefficients=start, memory=2, controller=kind, frozen=True))[0]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)


@pytest.mark.parametrize("name", ["metaopt", "clip:metaopt", "metaopt:momentum"])
def test_controllers_in_files(tmp_path, name):
    optimizer = optimizers.get(name, memory=3) if name == "metaopt" else optimizers.get(name)
    run_ = train(regression(), optimizer, steps=20, eval_every=20, key=jax.random.key(0))
    after = optimizer.after(run_.state.opt)
    file = selftuning.save(tmp_path, optimizer, after, {"task": "toy"})
    assert file == tmp_path / "controller.safetensors"
    back = selftuning.load(tmp_path, optimizer)
    assert tree.fingerprint(back) == tree.fingerprint(after)
    longer = train(regression(), after, steps=20, eval_every=20, key=jax.random.key(1))
    again = train(regression(), back, steps=20, eval_every=20, key=jax.random.key(1))
    np.testing.assert_array_equal(longer.curves["train/loss"], again.curves["train/loss"])


@pytest.mark.parametrize("kind", ["per_tensor", "diagonal"])
def test_controllers_of_parameters_by_name_come_back(tmp_path, kind):
    optimizer = MetaOpt(controller=kind)
    params = {"a": jnp.ones(3), "b": {"c": jnp.ones(2)}}
    state = optimizer.init(params)
    for _ in range(3):
        _, state = optimizer.update(params, state, params)
    selftuning.save(tmp_path, optimizer, optimizer.after(state))
    back = selftuning.load(tmp_path, optimizer).init(params).coefficients
    jax.tree.map(np.testing.assert_array_equal, back, state.coefficients)
    assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(back))


def test_files_that_do_not_fit_are_told(tmp_path):
    optimizer = optimizers.get("metaopt")
    with pytest.raises(ConfigError, match="learned nothing"):
        selftuning.save(tmp_path, optimizer, optimizer)
    with pytest.raises(OuteroptError, match="There is no controller at"):
        selftuning.load(tmp_path, optimizer)
    optimizers_state = optimizer.init(PARAMS)
    selftuning.save(tmp_path, optimizer, optimizer.after(optimizers_state))
    with pytest.raises(ConfigError, match="has no place"):
        selftuning.load(tmp_path, optimizers.get("adam"))
    with pytest.raises(ConfigError, match="does not tune itself"):
        selftuning.freeze(optimizers.get("adam"))


def test_unusable_settings_are_told():
    for settings, message in (
        ({"controller": "vector"}, "No controller is called 'vector'"),
        ({"estimator": "gap"}, "No estimator is called 'gap'. Did you mean gaps"),
        ({"disturbance": "none"}, "No disturbance is called 'none'"),
        ({"play": "best"}, "No play is called 'best'"),
    ):
        with pytest.raises(UnknownName, match=message):
            MetaOpt(**settings)
    for settings, message in (
        ({"memory": 0}, "memory = 0 is not allowed; give at least 1"),
        ({"horizon": 0}, "horizon = 0"),
        ({"play": "rollout"}, "estimator gaps does not make"),
        ({"radius_decay": 0.1}, "radius_decay shrinks a radius that is not given"),
    ):
        with pytest.raises(ConfigError, match=message):
            MetaOpt(**settings)
    with pytest.raises(OuteroptError, match="needs `value_fn`"):
        optimizer = MetaOpt(estimator="cf")
        optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)


def test_it_works_as_an_optax_transformation_without_a_closure():
    transformation = MetaOpt(sgd(0.01)).as_optax()
    state = transformation.init(PARAMS)
    params = PARAMS
    for step in range(3):
        updates, state = transformation.update(jax.grad(loss)(params, step), state, params)
        params = jax.tree.map(jnp.add, params, updates)
    assert loss(params) < loss(PARAMS)
    rollouts = MetaOpt(sgd(0.01), estimator="cf", horizon=2).as_optax()
    state = rollouts.init(PARAMS)
    for _ in range(3):  # one batch for all steps of the rollout
        updates, state = rollouts.update(jax.grad(loss)(PARAMS), state, PARAMS, value_fn=loss)
    assert np.any(state.coefficients)


def test_a_callable_from_optax_may_be_base_and_meta():
    import optax

    optimizer = MetaOpt(from_optax(optax.lion, learning_rate=1e-2), from_optax(optax.sgd, learning_rate=1e-3))
    assert run(optimizer)[2][-1] < loss(PARAMS)
    assert eqx.is_array(optimizer.hyperparameters["base.b1"])
