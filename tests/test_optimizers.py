"""The conformance suite: every registered optimizer keeps the contract. And the registry, and `from_optax`."""

import functools
import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from outeropt import optimizers, tree
from outeropt.errors import OuteroptError, OutOfSpace, UnknownName
from outeropt.optimizers import from_optax
from outeropt.optimizers.registry import TABLE


STEPS = 12
COMPOUND = ["clip:adam", "averaged:accumulate:sgd", "linear:lion", "weight_decay:momo"]
NAMES = [*optimizers.names(), *COMPOUND]
PARAMS = {"w": jnp.array([[1.0, -0.5, 0.3], [0.7, 1.2, -0.9]]), "s": jnp.float32(-0.8)}
# Steps of these are signs or fixed lengths: zero derivative where they are differentiable at all.
NO_DERIVATIVE = {"lbfgs"}


def loss(params):
    """A quadratic with its minimum, 0, at 0.1 everywhere, and gradients that are nowhere zero on the way."""
    return sum(jnp.sum(jnp.square(leaf - jnp.asarray(0.1, leaf.dtype))) for leaf in jax.tree.leaves(params))


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
    """Compiled without optimisation: these programs run once."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


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
    assert tree.all_finite(details)
    assert first < loss(PARAMS), "did not decrease a quadratic"
    for leaf_name, leaf in grads.hyperparameters.items():
        assert np.isfinite(leaf), leaf_name
    if optimizer.hyperparameters:
        lanes, _ = quick(jax.vmap(train))(tree.stack([optimizer, other]))
        np.testing.assert_allclose(lanes, [first, second], rtol=2e-5)


def shapes(state):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), state)


@pytest.mark.parametrize("name", NAMES)
def test_keeps_shapes_and_types(name):
    optimizer = optimizers.get(name)
    mixed = {"w": PARAMS["w"].astype(jnp.bfloat16), "s": PARAMS["s"]}
    for params in (PARAMS, mixed, jnp.float32(0.5), {"deep": [PARAMS["w"][0]]}):

        def once(optimizer, params):
            state = optimizer.init(params, num_steps=STEPS, key=jax.random.key(0))
            updates, new, _ = step(optimizer, params, state)
            return updates, state, new, optimizer.eval_params(new, params)

        updates, state, new, point = jax.eval_shape(once, optimizer, params)
        assert shapes(updates) == shapes(jax.eval_shape(lambda params=params: params))
        assert shapes(point) == shapes(updates)
        assert shapes(state) == shapes(new)


@pytest.mark.parametrize("name", NAMES)
def test_works_inside_optax(name):
    transformation = optimizers.get(name).as_optax(num_steps=STEPS, key=jax.random.key(0))

    def chained(params):
        chain = optax.chain(optax.clip(1.0), transformation)
        value, grads = jax.value_and_grad(loss)(params)
        return chain.update(grads, chain.init(params), params, value=value, grad=grads, value_fn=loss)[0]

    def partly(params):
        both = optax.multi_transform({"ours": transformation, "sgd": optax.sgd(0.1)}, {"w": "ours", "s": "sgd"})
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


@pytest.mark.parametrize("name", ["adam", "momentum", "nadamw_constant"])
def test_hypergradients_equal_finite_differences(name):
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        optimizer = optimizers.get(name, learning_rate=0.05).replace(
            {"weight_decay": 0.1} if name.startswith("nadamw") else {}
        )
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), PARAMS)
        final = quick(lambda optimizer: train(optimizer, params)[0])
        grads = quick(jax.grad(lambda optimizer: train(optimizer, params)[0]))(optimizer).hyperparameters
        for leaf_name, leaf in optimizer.hyperparameters.items():
            if leaf_name not in ("learning_rate", "b1", "momentum", "weight_decay"):
                continue
            width = np.float32(1e-3 * float(leaf))
            up, down = leaf + width, leaf - width
            rise = final(optimizer.replace({leaf_name: up})) - final(optimizer.replace({leaf_name: down}))
            run = np.float64(up) - np.float64(down)
            np.testing.assert_allclose(grads[leaf_name], rise / run, rtol=1e-4, err_msg=leaf_name)


FROM_OPTAX = [name for name, entry in TABLE.items() if not entry.makes_optimizer]


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
        np.testing.assert_allclose(leaf, near, rtol=1e-5, atol=1e-5 * np.abs(near).max() + rounding)


def line_loss(params, obj_fn=None):
    """optax's line searches want every keyword of the update to be one of the loss."""
    del obj_fn
    return loss(params)


def two_steps(transformation):
    params, state, found = PARAMS, transformation.init(PARAMS), []
    for _ in range(2):
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = transformation.update(grads, state, params, value=value, grad=grads, value_fn=line_loss, obj_fn=loss)
        params = jax.tree.map(jnp.add, params, updates)
        found.append(updates)
    return found
