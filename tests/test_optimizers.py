"""The conformance suite: every registered optimizer keeps the contract. The registry and `from_optax`."""

import inspect
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from outeropt import optimizers, tree
from outeropt.errors import OuteroptError, OutOfSpace, UnknownName
from outeropt.optimizers import from_optax
from outeropt.optimizers.registry import TABLE


# These programs run once: compile them fast rather than well.
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
STEPS = 12
COMPOUND = [
    *("clip:adam", "averaged:accumulate:sgd", "linear:lion", "weight_decay:momo"),
    *("cautious:nesterov", "mars:lion", "schedule_free:prodigy", "mechanic:cosine:momentum"),
    *("hypergradient:sgd", "hypergradient:adam", "clip:hypergradient:momentum", "driven:adam", "driven:sgd"),
    *("metaopt:sgd", "metaopt:adam"),
]
# Learned optimizers have a suite of their own.
REGISTERED = [name for name in optimizers.names() if not name.startswith("learned:")]
NAMES = [*REGISTERED, *COMPOUND]
PARAMS = {"w": jnp.array([[1.0, -0.5, 0.3], [0.7, 1.2, -0.9]]), "s": jnp.float32(-0.8)}
# Its line search loops until it is content, which has no reverse derivative; it has no leaves either.
NO_DERIVATIVE = {"lbfgs"}
# optax wants one type for all parameters here.
ONE_TYPE = {"sophia"}


def loss(params):
    """A quadratic with its minimum, 0, at 0.1 everywhere, and gradients that are nowhere zero on the way."""
    wide = jnp.zeros(()).dtype
    return sum(jnp.sum(jnp.square(leaf.astype(wide) - 0.1)) for leaf in jax.tree.leaves(params))


def step(optimizer, params, state, index=0):
    value, grads = jax.value_and_grad(loss)(params)
    context = {"value": value, "grad": grads, "value_fn": loss, "valid_fn": loss}
    updates, state = optimizer.update(
        grads, state, params, **context, step=jnp.int32(index), key=jax.random.key(1), unheard_of="ignored"
    )
    return updates, state, value


def train(optimizer, params=PARAMS):
    """The loss at the evaluation point after `STEPS` steps; everything else beside it."""
    state = optimizer.init(params, num_steps=STEPS, key=jax.random.key(0))

    def body(carry, index):
        params, state = carry
        updates, state, value = step(optimizer, params, state, index)
        return (jax.tree.map(jnp.add, params, updates), state), value

    (params, state), values = jax.lax.scan(body, (params, state), jnp.arange(STEPS))
    return loss(optimizer.eval_params(state, params)), (values, params, state)


def quick(function):
    return jax.jit(function, compiler_options=QUICK)


def nearby(optimizer):
    """The same optimizer with every leaf a little smaller."""
    return jax.tree.map(lambda leaf: leaf * jnp.float32(0.9), optimizer)


@pytest.mark.parametrize("name", NAMES)
def test_trains_alike_alone_and_in_lanes(name):
    optimizer = optimizers.get(name)
    other = nearby(optimizer)
    if name in NO_DERIVATIVE:
        alone = quick(lambda optimizer: (train(optimizer), optimizer))
    else:
        alone = quick(jax.value_and_grad(train, has_aux=True))
    # JAX's own derivative of a power with an integer exponent, which bias corrections have, mixes types.
    with jax.numpy_dtype_promotion("standard"):
        (first, details), grads = alone(optimizer)
        (second, _), _ = alone(other)
    assert alone._cache_size() == 1, "recompiled because a number changed"
    assert tree.all_finite(details[:2])
    assert first < loss(PARAMS), "did not decrease a quadratic"
    for leaf_name, leaf in grads.hyperparameters.items():
        assert np.all(np.isfinite(leaf)), leaf_name
    if optimizer.hyperparameters:
        lanes, _ = quick(jax.vmap(train))(tree.stack([optimizer, other]))
        np.testing.assert_allclose(lanes, [first, second], rtol=2e-5)


def shapes(state):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), state)


@pytest.mark.parametrize("name", NAMES)
def test_keeps_shapes_and_types(name):
    optimizer = optimizers.get(name)
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    mixed = narrow if name in ONE_TYPE else {**PARAMS, "w": narrow["w"]}
    for params in (PARAMS, narrow, mixed, jnp.float32(0.5), {"deep": [PARAMS["w"][0]]}):

        def once(optimizer, params):
            state = optimizer.init(params, num_steps=STEPS, key=jax.random.key(0))
            updates, new, _ = step(optimizer, params, state)
            return updates, state, new, optimizer.eval_params(new, params)

        updates, state, new, point = jax.eval_shape(once, optimizer, params)
        assert shapes(updates) == shapes(jax.eval_shape(lambda params=params: params))
        assert shapes(point) == shapes(updates)
        assert shapes(state) == shapes(new)


# One of each kind; within a kind only weights differ.
LEARNED = [
    *("learned:small_fc", "learned:mlp_nominal", "learned:amalgam-mean-1"),
    *("learned:amalgam-choice-small-1", "learned:amalgam-choice-large-1"),
]


@pytest.mark.parametrize("name", [*NAMES, *LEARNED])
def test_works_inside_optax(name):
    transformation = optimizers.get(name).as_optax(num_steps=STEPS, key=jax.random.key(0))

    chain = optax.chain(optax.clip(1.0), transformation)

    def body(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = chain.update(grads, state, params, value=value, grad=grads, value_fn=loss)
        return (optax.apply_updates(params, updates), state), value

    # A scan refuses a state whose structure, shapes or types change.
    def chained(params):
        return jax.lax.scan(body, (params, chain.init(params)), None, length=2)[0][0]

    def partly(params):
        both = optax.multi_transform(
            {"ours": transformation, "sgd": optax.sgd(0.1)}, {"w": "ours", "s": "sgd"}
        )
        value, grads = jax.value_and_grad(loss)(params)
        return both.update(grads, both.init(params), params, value=value)[0]

    assert shapes(jax.eval_shape(chained, PARAMS)) == shapes(jax.eval_shape(lambda: PARAMS))
    if not {"value_fn", "grad"} & set(optimizers.describe(name).needs):
        assert shapes(jax.eval_shape(partly, PARAMS)) == shapes(jax.eval_shape(lambda: PARAMS))


@pytest.mark.parametrize("name", NAMES)
def test_names_spaces_and_defaults_agree(name):
    optimizer = optimizers.get(name)
    leaves = optimizer.hyperparameters
    assert leaves.keys() == optimizer.spaces.keys()
    for leaf_name, leaf in leaves.items():
        assert leaf.dtype == jnp.float32
        optimizer.spaces[leaf_name].check(leaf_name, leaf)
        same = optimizer.replace({leaf_name: leaf})
        assert same.hyperparameters.keys() == leaves.keys()
    described = optimizers.describe(name)
    assert described.defaults.keys() == leaves.keys() and described.paper.title in str(described)
    assert jax.tree.structure(optimizers.get(name)) == jax.tree.structure(optimizer)
    assert tree.fingerprint(optimizers.get(name)) == tree.fingerprint(optimizer)


@pytest.mark.parametrize(
    "name", ["adam", "momentum", "nadamw_constant", "prodigy", "schedule_free_adamw", "mechanic_sgd"]
)
def test_hypergradients_equal_finite_differences(name):
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        optimizer = optimizers.get(name, learning_rate=0.05)
        if "weight_decay" in optimizer.hyperparameters:
            optimizer = optimizer.replace(weight_decay=0.1)
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), PARAMS)
        final = quick(lambda optimizer: train(optimizer, params)[0])
        grads = quick(jax.grad(lambda optimizer: train(optimizer, params)[0]))(optimizer).hyperparameters
        for leaf_name, leaf in optimizer.hyperparameters.items():
            if leaf_name.split(".")[-1] not in ("learning_rate", "b1", "momentum", "weight_decay"):
                continue
            width = np.float32(1e-3 * float(leaf))
            up, down = leaf + width, leaf - width
            rise = final(optimizer.replace({leaf_name: up})) - final(optimizer.replace({leaf_name: down}))
            run = np.float64(up) - np.float64(down)
            np.testing.assert_allclose(grads[leaf_name], rise / run, rtol=1e-4, err_msg=leaf_name)


# L-BFGS has no hyperparameter to inject, and its line search takes longer to compile than the rest together.
FROM_OPTAX = [name for name, entry in TABLE.items() if not entry.makes_optimizer and name != "lbfgs"]


@pytest.mark.parametrize("name", FROM_OPTAX)
def test_equals_optax(name):
    ours = optimizers.get(name)
    arguments = {
        key: parameter.default
        for key, parameter in inspect.signature(ours.factory).parameters.items()
        if parameter.default is not parameter.empty
    }
    arguments.update(TABLE[name].defaults)
    static = [key for key in arguments if key not in ours.values]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        injected = optax.inject_hyperparams(ours.factory, static_args=static)(**arguments)
        plain = optax.with_extra_args_support(ours.factory(**arguments))
        found, exactly, nearly = (two_steps(kind) for kind in (ours, injected, plain))
    for leaf, exact, near in zip(*map(jax.tree.leaves, (found, exactly, nearly))):
        if not any(isinstance(value, tuple) for value in ours.values.values()):
            np.testing.assert_array_equal(leaf, exact)
        # Schedule-free methods subtract parameters from parameters, whose rounding is what shows.
        rounding = 3e-7 if name.startswith("schedule_free") else 0.0
        # Directions without any gradient so far have no basis of their own: rounding turns them.
        rounding = 1e-5 if name == "soap" else rounding
        np.testing.assert_allclose(leaf, near, rtol=1e-5, atol=1e-5 * np.abs(near).max() + rounding)


def line_loss(params, obj_fn=None):
    """optax's line searches want every keyword of the update to be one of the loss."""
    del obj_fn
    return loss(params)


def two_steps(transformation):
    params, state, found = PARAMS, transformation.init(PARAMS), []
    for _ in range(2):
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = transformation.update(
            grads, state, params, value=value, grad=grads, value_fn=line_loss, obj_fn=loss
        )
        params = jax.tree.map(jnp.add, params, updates)
        found.append(updates)
    return found


def test_rectified_adam_equals_optax():
    for ours, theirs in zip(
        *(
            jax.tree.leaves(two_steps(from_optax(factory, learning_rate=0.1, b2=0.5)))
            for factory in (TABLE["radam"].factory, optax.radam)
        )
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_narrow_parameters_keep_their_hyperparameters():
    # In bfloat16, b2 = 0.999 is 1: a hyperparameter of the parameters' type makes Adam divide by zero.
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    for name in ("adam", "nadamw_constant"):
        optimizer = optimizers.get(name)
        updates, _, _ = step(optimizer, params, optimizer.init(params))
        wide, _, _ = step(optimizer, PARAMS, optimizer.init(PARAMS))
        for leaf, expected in zip(jax.tree.leaves(updates), jax.tree.leaves(wide)):
            np.testing.assert_allclose(np.float32(leaf), expected, rtol=0.05)


def test_floats_become_leaves_and_the_rest_is_static():
    optimizer = from_optax(
        optax.adamw, learning_rate=1, b1=np.float64(0.8), weight_decay=jnp.array(0.1), mask=None
    )
    assert optimizer.hyperparameters == {
        "learning_rate": 1.0,
        "b1": np.float32(0.8),
        "b2": np.float32(0.999),
        "eps": np.float32(1e-8),
        "eps_root": 0.0,
        "weight_decay": np.float32(0.1),
    }
    assert ("nesterov", False) in optimizer.settings
    prodigy = from_optax(optax.contrib.prodigy, betas=(0.8, 0.99))
    assert prodigy.hyperparameters["betas.0"] == np.float32(0.8)
    assert prodigy.replace({"betas.1": 0.9}).hyperparameters["betas.1"] == np.float32(0.9)
    dog = from_optax(optax.contrib.dog, init_step=("distance", 1e-3))
    assert dog.hyperparameters["init_step.1"] == np.float32(1e-3)
    assert dict(dog.settings)["init_step"] == ("distance", None)
    masked = from_optax(optax.adamw, learning_rate=0.1, mask=jnp.ndim)
    assert dict(masked.settings)["mask"] is jnp.ndim


def test_a_users_own_factory():
    def cautious(learning_rate, strength: float = 0.5, **options):
        return optax.chain(optax.clip(options["limit"]), optax.scale(-learning_rate * strength))

    optimizer = from_optax(cautious, learning_rate=0.1, limit=0.2)
    assert set(optimizer.hyperparameters) == {"learning_rate", "strength", "limit"}
    updates, _, _ = step(optimizer, PARAMS, optimizer.init(PARAMS))
    np.testing.assert_allclose(updates["s"], 0.1 * 0.5 * 0.2, rtol=1e-6)


def test_names():
    assert optimizers.names("schedule_free_*d") == ["schedule_free_sgd"]
    free = optimizers.names(tuning_free=True)
    assert {"dog", "prodigy", "cocob", "mechanic_adamw", "momo"} <= set(free) and "adam" not in free
    assert set(free) | set(optimizers.names(tuning_free=False)) == set(optimizers.names())
    missing = {name for name in vars(optax.contrib) if name in ("ademamix", "muon")} - set(optimizers.names())
    assert not missing and len(optimizers.names()) >= 65


def test_hyperparameters_find_their_way_through_wrappers():
    optimizer = optimizers.get(
        "weight_decay:clip_norm:adamw", weight_decay=0.3, learning_rate=0.2, max_norm=2
    )
    assert optimizer.hyperparameters["weight_decay"] == np.float32(0.3)
    assert optimizer.hyperparameters["inner.inner.weight_decay"] == np.float32(1e-4)
    assert optimizer.hyperparameters["inner.max_norm"] == 2.0
    inside = optimizers.get("weight_decay:adamw", **{"inner.weight_decay": 0.3})
    assert inside.hyperparameters["inner.weight_decay"] == np.float32(0.3)
    assert optimizers.get("sgd", nesterov=True, momentum=0.5).hyperparameters["momentum"] == 0.5


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: optimizers.get("adm"), UnknownName, "No optimizer is called 'adm'. Did you mean adam"),
        (lambda: optimizers.get("clap:adam"), UnknownName, "No wrapper is called 'clap'. Did you mean clip"),
        (lambda: optimizers.get("adam", lr=1), UnknownName, "'lr'.*adam has: learning_rate, b1"),
        (lambda: optimizers.get("clip:adam", max=1), UnknownName, "'max'.*clip has: max_value"),
        (
            lambda: optimizers.get("nadamw_cosine", lr=1),
            UnknownName,
            "'lr'.*nadamw_constant has: learning_rate",
        ),
        (
            lambda: optimizers.get("adam", learning_rate=-1),
            OutOfSpace,
            "learning_rate = -1 is outside.*0 to 1000",
        ),
        (lambda: optimizers.get("clip:adam", b1=2), OutOfSpace, "b1 = 2 is outside"),
        (lambda: optimizers.get("adam").replace(b1=1.5), OutOfSpace, "b1 = 1.5 is outside"),
        (
            lambda: optimizers.get("reduce_on_plateau", factor=optimizers.Constant(0.5)),
            OuteroptError,
            "`factor` is fixed",
        ),
        (lambda: from_optax(optax.adam), OuteroptError, "adam needs `learning_rate`"),
        (
            lambda: from_optax(optax.adamw, learning_rate=0.1, mask={"w": True}),
            OuteroptError,
            "`mask` = dict",
        ),
        (lambda: optimizers.opt_list(-1), UnknownName, "tuned list"),
        (lambda: optimizers.describe("nothing"), UnknownName, "No optimizer is called"),
    ],
)
def test_mistakes_are_told(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("name", ["momo", "polyak_sgd", "lbfgs", "sophia", "reduce_on_plateau", "sam"])
def test_a_missing_context_is_told(name):
    optimizer = optimizers.get(name)
    need = optimizers.describe(name).needs[0]
    with pytest.raises(OuteroptError, match=f"needs `{need}`, which was not given"):
        optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)


def test_schedule_free_evaluates_elsewhere():
    optimizer = optimizers.get("clip:schedule_free_sgd", learning_rate=0.1)
    state = optimizer.init(PARAMS)
    params = PARAMS
    for _ in range(3):
        updates, state, _ = step(optimizer, params, state)
        params = jax.tree.map(jnp.add, params, updates)
    point = optimizer.eval_params(state, params)
    expected = optax.contrib.schedule_free_eval_params(state, params)
    for leaf, there, training in zip(*map(jax.tree.leaves, (point, expected, params))):
        np.testing.assert_allclose(leaf, there, rtol=1e-6)
        assert not np.allclose(leaf, training)


def test_noise_follows_the_runs_key():
    optimizer = optimizers.get("noisy_sgd")

    def noise(seed):
        return step(optimizer, PARAMS, optimizer.init(PARAMS, key=jax.random.key(seed)))[0]["w"]

    assert np.array_equal(noise(1), noise(1)) and not np.array_equal(noise(1), noise(2))


def test_the_guide_lists_every_name():
    guide = (pathlib.Path(__file__).parents[1] / "docs" / "optimizers.md").read_text()
    listed = re.findall(r"^\| `([a-z0-9_]+)` \|", guide, re.MULTILINE)
    assert listed == [name for name in REGISTERED if not name.startswith("opt_list")]
    assert re.findall(r"^\| `(\w+):` \|", guide, re.MULTILINE) == list(optimizers.prefixes())
