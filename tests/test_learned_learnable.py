"""SGD, momentum and Adam with meta-learned hyperparameters, against learned_optimization and optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from learned_golden import assert_same_updates, below, load, replay
from outeropt.errors import ConfigError
from outeropt.learned.learnable import LearnableAdam, LearnableSGD, LearnableSGDM


GOLDEN = {
    "learnable_sgd": LearnableSGD,
    "learnable_sgdm": LearnableSGDM,
    "learnable_adam": LearnableAdam,
    "learnable_adam_harsh": LearnableAdam,
}
CLASSES = [LearnableSGD, LearnableSGDM, LearnableAdam]
PARAMS = {"w": jnp.array([[1.0, -2.0], [0.5, 0.0]]), "s": jnp.float32(0.3)}
GRADS = {"w": jnp.array([[0.1, 3.0], [-0.7, 0.0]]), "s": jnp.float32(-0.2)}


def _types(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_trajectory(name):
    arrays, _ = load(f"learned/{name}")
    optimizer = GOLDEN[name]().from_published(below(arrays, "theta"))
    params, _, updates = replay(optimizer, arrays)
    assert_same_updates(updates, arrays)
    for leaf, want in below(arrays, "params64_final").items():
        np.testing.assert_allclose(params[leaf][-1], want, rtol=2e-6, atol=2e-6)


def test_golden_states():
    arrays, _ = load("learned/learnable_adam")
    optimizer = LearnableAdam().from_published(below(arrays, "theta"))
    _, states, _ = replay(optimizer, arrays)
    for step, name in ((0, "state1"), (4, "state5"), (24, "final_state")):
        inner = f"{name}/optax_opt_state/0"
        assert states.step[step] == arrays[f"{inner}/count"]
        # The original subtracts its decay from 1 in float32, which costs digits where the decay is near 1.
        for ours, theirs, digits in ((states.mean, "mu", 1e-5), (states.square, "nu", 1e-4)):
            for leaf, want in below(arrays, f"{inner}/{theirs}").items():
                slack = digits * np.abs(want).max()
                np.testing.assert_allclose(ours[leaf][step], want, rtol=digits, atol=slack)

    arrays, _ = load("learned/learnable_sgdm")
    optimizer = LearnableSGDM().from_published(below(arrays, "theta"))
    _, momentum, _ = replay(optimizer, arrays)
    for leaf, want in below(arrays, "final_state/optax_opt_state/0/trace").items():
        np.testing.assert_allclose(momentum[leaf][-1], want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (LearnableSGD(initial_learning_rate=0.2), optax.sgd(0.2)),
        (LearnableSGDM(initial_learning_rate=0.2, initial_momentum=0.7), optax.sgd(0.2, momentum=0.7)),
        (
            LearnableAdam(initial_learning_rate=0.2, initial_b1=0.0, initial_b2=0.97, initial_eps=1e-3),
            optax.adam(0.2, b1=0.0, b2=0.97, eps=1e-3, eps_root=1e-8),
        ),
    ],
)
def test_initial_values_are_the_hyperparameters(ours, theirs):
    state, wanted_state = ours.init(PARAMS), theirs.init(PARAMS)
    for factor in (1.0, -0.5, 2.0):
        grads = jax.tree.map(lambda g, factor=factor: factor * g, GRADS)
        updates, state = ours.update(grads, state, PARAMS, value=jnp.float32(1))
        with jax.numpy_dtype_promotion("standard"):
            wanted, wanted_state = theirs.update(grads, wanted_state, PARAMS)
        for got, want in zip(jax.tree.leaves(updates), jax.tree.leaves(wanted)):
            np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-8)


@pytest.mark.parametrize("cls", CLASSES)
def test_counts_of_meta_parameters(cls):
    count = {LearnableSGD: 1, LearnableSGDM: 2, LearnableAdam: 4}[cls]
    leaves = cls().hyperparameters
    assert list(leaves) == list(cls().published_names)
    assert len(leaves) == count
    assert all(leaf.shape == () and leaf.dtype == jnp.float32 for leaf in leaves.values())


@pytest.mark.parametrize("cls", CLASSES)
def test_settings_build_it_again(cls):
    first = cls(initial_learning_rate=0.125)
    again = cls(**first.settings)
    assert first.settings["initial_learning_rate"] == 0.125
    assert jax.tree.structure(again) == jax.tree.structure(first)
    assert all(a == b for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(first)))


@pytest.mark.parametrize("cls", CLASSES)
def test_meta_gradient_against_differences(cls):
    """The gradient of a short training's last loss, where the parameters also have zero gradients."""
    optimizer = cls(initial_learning_rate=0.1)
    flat, unflatten = ravel_pytree(optimizer)
    scales = jnp.array([1.0, 0.1, 5.0, 0.0])

    def meta_loss(theta):
        optimizer = unflatten(theta)
        params = jnp.ones(4)
        state = optimizer.init(params)

        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(scales * params, state, params)
            return (params + updates, state), None

        (params, _), _ = jax.lax.scan(step, (params, state), None, length=5)
        return jnp.sum(scales * jnp.square(params))

    got = jax.jit(jax.grad(meta_loss))(flat)
    step = 1e-2
    moves = step * jnp.eye(flat.size)
    losses = jax.jit(jax.vmap(lambda move: meta_loss(flat + move)))(jnp.concatenate([moves, -moves]))
    want = (losses[: flat.size] - losses[flat.size :]) / (2 * step)
    assert np.all(np.isfinite(got))
    np.testing.assert_allclose(got, want, rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("cls", CLASSES)
def test_particles(cls):
    """A map over the leaves gives each particle the same numbers as alone."""
    particles = [cls().replace(log_learning_rate=value) for value in (-5.0, -1.0)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *particles)

    def one(optimizer):
        return optimizer.update(GRADS, optimizer.init(PARAMS), PARAMS)[0]

    together = jax.jit(jax.vmap(one))(stacked)
    for i, particle in enumerate(particles):
        for got, want in zip(jax.tree.leaves(together), jax.tree.leaves(one(particle))):
            np.testing.assert_allclose(got[i], want, rtol=1e-6)


def test_adam_with_decays_below_zero_stays_finite():
    optimizer = LearnableAdam().replace(log_one_minus_b1=1.0, log_one_minus_b2=2.0)
    state = optimizer.init(PARAMS)
    for _ in range(3):
        updates, state = optimizer.update(GRADS, state, PARAMS)
    # Decays of zero: the normalised gradient of this step.
    want = -1e-3 * np.sign(GRADS["w"])
    np.testing.assert_allclose(updates["w"], want, rtol=1e-4, atol=1e-9)


def test_narrow_parameters_keep_their_type():
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    grads = jax.tree.map(lambda g: g.astype(jnp.bfloat16), GRADS)
    for cls in CLASSES:
        optimizer = cls()
        state = optimizer.init(params)
        updates, after = optimizer.update(grads, state, params)
        assert all(u.dtype == jnp.bfloat16 for u in jax.tree.leaves(updates))
        assert _types(state) == _types(after)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: LearnableSGD(initial_learning_rate=0.0), "initial_learning_rate must be above 0, not 0.0"),
        (lambda: LearnableSGDM(initial_momentum=1.0), "initial_momentum must be below 1, not 1.0"),
        (lambda: LearnableAdam(initial_b2=1.5), "initial_b2 must be below 1, not 1.5"),
        (lambda: LearnableAdam(eps_root=float("nan")), "eps_root must be above 0, not nan"),
    ],
)
def test_values_out_of_range(make, says):
    with pytest.raises(ConfigError, match=says):
        make()
