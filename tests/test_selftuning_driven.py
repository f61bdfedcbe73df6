"""Hyperparameters driven by controllers: derivatives, what survives an episode, guards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from outeropt import optimizers, tree
from outeropt.errors import OuteroptError
from outeropt.selftuning import DrivenHyperparameters, LinearController, NetworkController, sensitivity


PARAMS = {"w": jnp.array([[1.0, -0.5, 0.3], [0.7, 1.2, -0.9]]), "s": jnp.float32(-0.8)}
LINEAR = LinearController.zeros(memory=3)
NETWORK = NetworkController.random(jax.random.key(0), memory=3, width=4)


def loss(params):
    return sum(jnp.sum(jnp.square(leaf - 0.1)) for leaf in jax.tree.leaves(params)) + jnp.cos(params["s"])


def run(optimizer, state, params, count):
    for _ in range(count):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return params, state


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def made(controller=LINEAR, follow=0.0, **settings):
    meta = optimizers.get("sgd", learning_rate=0.5)
    return DrivenHyperparameters(
        optimizers.get("adam", learning_rate=0.01), meta, controller, follow, **settings
    )


def shaken(controller):
    """The controller with every number moved."""
    return jax.tree.map(
        lambda leaf: leaf + 0.1 + 0.05 * jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape),
        controller,
    )


@pytest.mark.parametrize("controller", [LINEAR, NETWORK], ids=["linear", "network"])
def test_controllers_learn_from_the_derivative_of_the_lookahead(controller):
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        optimizer = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), made(shaken(controller)))
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), PARAMS)
        params, before = run(optimizer, optimizer.init(params), params, 4)
        there, after = run(optimizer, before, params, 1)
        grads = jax.grad(loss)(there)
        _, last = optimizer.update(grads, after, there)
        chart = sensitivity.chart(optimizer.inner, ["learning_rate"], "space")

        def ahead(controller):
            inner = chart.write(optimizer.inner, before.base + controller(after.window))
            updates, _ = inner.update(jax.grad(loss)(params), before.inner, params)
            return loss(jax.tree.map(jnp.add, params, updates))

        (plain,), (cosine,) = (
            sensitivity.signals(kind, grads, after.tangents, jnp.float64) for kind in ("gradient", "cosine")
        )
        for index, leaf in enumerate(jax.tree.leaves(after.controller)):
            for place in np.ndindex(leaf.shape):

                def moved(by, index=index, place=place):
                    leaves, structure = jax.tree.flatten(after.controller)
                    leaves[index] = leaves[index].at[place].add(by)
                    return jax.tree.unflatten(structure, leaves)

                rise = (ahead(moved(1e-5)) - ahead(moved(-1e-5))) / 2e-5
                move = jax.tree.leaves(last.controller)[index][place] - leaf[place]
                np.testing.assert_allclose(move, -0.5 * rise * cosine / plain, rtol=1e-5, atol=1e-10)


def test_a_still_controller_is_the_inner_optimizer():
    still = DrivenHyperparameters(made().inner, optimizers.get("sgd", learning_rate=0.0))
    ours, _ = run(still, still.init(PARAMS), PARAMS, 5)
    theirs, _ = run(still.inner, still.inner.init(PARAMS), PARAMS, 5)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_the_window_holds_the_last_signals_newest_first():
    optimizer = made()
    params, state, seen = PARAMS, optimizer.init(PARAMS), []
    for _ in range(5):
        grads = jax.grad(loss)(params)
        seen.insert(0, sensitivity.signals("cosine", grads, state.tangents, jnp.float32))
        updates, state = optimizer.update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    np.testing.assert_array_equal(state.window, jnp.stack(seen[:3], axis=1))
    assert state.window[0, 0] < 0  # Smaller steps would have been worse.
    assert optimizer.diagnostics(state)["learning_rate"] > 0.01
    np.testing.assert_allclose(optimizer.diagnostics(state)["base.learning_rate"], 0.01, rtol=1e-5)


def test_the_base_follows():
    optimizer = made(follow=0.5)
    _, state = run(optimizer, optimizer.init(PARAMS), PARAMS, 5)
    assert optimizer.diagnostics(state)["base.learning_rate"] > 0.0101


@pytest.mark.parametrize("controller", [LINEAR, NETWORK], ids=["linear", "network"])
def test_a_restart_keeps_what_was_learned(controller):
    optimizer = made(controller, follow=0.5)
    _, state = run(optimizer, optimizer.init(PARAMS), PARAMS, 6)
    again, fresh = optimizer.restart(state, PARAMS), optimizer.init(PARAMS)
    assert same(again.base, state.mean) and again.count == 0
    for kept in ("controller", "meta"):
        assert same(getattr(again, kept), getattr(state, kept))
    for new in ("inner", "window", "tangents", "known"):
        assert same(getattr(again, new), getattr(fresh, new)) and not same(
            getattr(state, new), getattr(fresh, new)
        )
    assert not same(state.controller, fresh.controller)
    _, later = run(optimizer, again, PARAMS, 1)
    assert same(later.controller, state.controller)


def test_after_a_run_the_leaves_are_those_of_its_beginning():
    optimizer = made(follow=0.5)
    _, state = run(optimizer, optimizer.init(PARAMS), PARAMS, 6)
    learned = optimizer.after(state)
    np.testing.assert_array_equal(learned.controller.coefficients, state.controller.coefficients)
    np.testing.assert_allclose(
        learned.hyperparameters["inner.learning_rate"],
        np.exp(state.mean)[0],
        rtol=1e-6,
    )
    assert jax.tree.structure(learned) == jax.tree.structure(optimizer)
    assert learned.hyperparameters.keys() == learned.spaces.keys()


def test_what_is_not_finite_teaches_nothing():
    optimizer = made(NETWORK)
    params, state = run(optimizer, optimizer.init(PARAMS), PARAMS, 3)
    bad = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.inf), PARAMS)
    _, after = optimizer.update(bad, state, params)
    assert same(after.controller, state.controller) and same(after.meta, state.meta)
    _, later = run(optimizer, after._replace(inner=state.inner), params, 2)
    assert tree.all_finite((later.controller, later.window, later.base))


def test_several_leaves_have_a_controller_each():
    leaves = ("learning_rate", "b1", "weight_decay")
    inner = optimizers.get("adamw", learning_rate=0.01)
    optimizer = DrivenHyperparameters(
        inner, controller=NetworkController.random(jax.random.key(1), leaves=3), tuned=leaves
    )
    _, state = run(optimizer, optimizer.init(PARAMS), PARAMS, 6)
    values = optimizer.diagnostics(state)
    for name in leaves:
        inner.spaces[name].check(name, values[name])
        assert values[name] != values[f"base.{name}"]


def test_lanes_are_what_each_is_alone():
    def final(optimizer):
        def body(carry, _):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params), state, params)
            return (jax.tree.map(jnp.add, params, updates), state), loss(params)

        return jax.lax.scan(body, (PARAMS, optimizer.init(PARAMS)), length=8)[1]

    both = [made(NETWORK), made(shaken(NETWORK))]
    lanes = jax.jit(jax.vmap(final))(tree.stack(both))
    for lane, optimizer in zip(lanes, both):
        np.testing.assert_allclose(lane, final(optimizer), rtol=2e-5)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: made(tuned=("learning_rate", "b1")), "2 leaves are tuned by 1 controllers"),
        (lambda: LinearController.zeros(memory=0), "memory must be at least 1, not 0"),
        (lambda: NetworkController.random(jax.random.key(0), width=0), "width must be at least 1"),
    ],
)
def test_mistakes_are_told(make, message):
    with pytest.raises(OuteroptError, match=message):
        make()
