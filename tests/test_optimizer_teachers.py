"""Teachers against the recordings of "Optimizer Amalgamation", adaptive clipping, optimizers from text."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from outeropt import optimizers, tree
from outeropt.errors import ConfigError, OutOfSpace, UnknownName
from outeropt.optimizers import ClipAdaptive, from_text


FOLDER = Path(__file__).parent / "golden" / "amalgamation"
# At the defaults, which are the original's.
TEACHERS = {
    "sgd": "sgd,learning_rate=0.2",
    "momentum": "ema_momentum",
    "rmsprop": "root_rmsprop",
    "adam": "static_adam",
    "addsign": "addsign",
    "powersign": "powersign",
}
ADAPTIVE = {"adaptive_addsign": "addsign", "adaptive_powersign": "powersign"}


def load(name):
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def below(arrays, prefix):
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}


@jax.jit
def run(optimizer, params, grads):
    """All updates and the last state."""

    def step(state, grad):
        updates, state = optimizer.update(grad, state, params)
        return state, updates

    state, updates = jax.lax.scan(step, optimizer.init(params), grads)
    return updates, state


def exact(optimizer):
    """The same in float64, with the numbers that its float32 leaves round."""
    return jax.tree.map(lambda leaf: jnp.float64(f"{leaf:.6g}"), optimizer)


# In float32, 1 - b2 of b2 = 0.999 is 1.3e-5 off.
@pytest.mark.parametrize("wide, tolerance", [(False, 1e-5), (True, 1e-10)], ids=["float32", "float64"])
@pytest.mark.parametrize("name", TEACHERS)
def test_published_trajectories(name, wide, tolerance):
    arrays, inputs = load(f"updates_{name}"), load("updates_inputs")
    optimizer, given = from_text(TEACHERS[name]), (below(inputs, "params0/"), below(inputs, "grads/"))
    with jax.enable_x64(wide):
        if wide:
            optimizer, given = exact(optimizer), jax.tree.map(np.float64, given)
        updates, state = run(optimizer, *given)
    for tensor, wanted in below(arrays, "f64/delta/").items():
        got = np.asarray(updates[tensor], np.float64)
        axes = tuple(range(1, wanted.ndim))
        assert (np.abs(got + wanted).max(axes) <= tolerance * np.abs(wanted).max(axes)).all(), tensor
    for part, field in {"m": "mean", "v": "square"}.items():
        if hasattr(state, field):
            for tensor, average in getattr(state, field).items():
                recorded = arrays[f"final/{tensor}/{part}"]
                np.testing.assert_allclose(average, recorded, rtol=2e-5, atol=1e-12)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive_forms_divide_by_the_root_mean_square(name):
    inputs = load("updates_inputs")
    params, grads = below(inputs, "params0/"), below(inputs, "grads/")
    adaptive, state = run(from_text(f"{name},learning_rate=0.1"), params, grads)
    plain, _ = run(from_text(ADAPTIVE[name]), params, grads)
    root = jax.tree.map(lambda square: np.sqrt(np.asarray(square, np.float64) + 1e-10), state.square)
    for tensor in params:
        wanted = plain[tensor][-1] / root[tensor]
        np.testing.assert_allclose(adaptive[tensor][-1], wanted, rtol=2e-6, atol=1e-9)


@pytest.mark.parametrize("name", [*TEACHERS.values(), *ADAPTIVE])
def test_derivatives_are_finite_for_gradients_of_any_size(name):
    params = {"w": jnp.ones((3,)), "narrow": jnp.ones((2,), jnp.bfloat16)}

    @jax.jit
    def slopes(size):
        def total(optimizer, size):
            grads = jax.tree.map(lambda p: jnp.broadcast_to(size, (4, *p.shape)).astype(p.dtype), params)
            updates, _ = run(optimizer, params, grads)
            return sum(jnp.sum(leaf.astype(jnp.float32)) for leaf in jax.tree.leaves(updates))

        return jax.value_and_grad(total, (0, 1))(from_text(name), size)

    for size in (0.0, 1e-30, 1e-5, 1.0, 1e15):
        assert tree.all_finite(slopes(jnp.float32(size))), size


def test_adaptive_clipping_equals_the_original():
    arrays = load("clipping")
    weights, grads = below(arrays, "weights/"), below(arrays, "grad_max/")
    optimizer = optimizers.get("clip_adaptive:sgd", learning_rate=1.0)
    assert optimizer.hyperparameters["max_ratio"] == np.float32(0.1)
    updates, _ = optimizer.update(grads, optimizer.init(weights), weights)
    clipped = set()
    for name, wanted in below(arrays, "clipped_max/").items():
        np.testing.assert_allclose(-updates[name], wanted, rtol=2e-6)
        clipped.add(bool(np.any(wanted != grads[name])))
    assert clipped == {True, False}


def test_adaptive_clipping_is_smooth_at_zero():
    params = {"zero": jnp.zeros((2, 2)), "one": jnp.ones((3,))}

    def total(optimizer, params, grads):
        updates, _ = optimizer.update(grads, optimizer.init(params), params)
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(updates))

    optimizer = ClipAdaptive(optimizers.get("sgd"))
    for size in (0.0, 1e-3, 1e6):
        grads = jax.tree.map(lambda p, size=size: jnp.full_like(p, size), params)
        assert tree.all_finite(jax.value_and_grad(total, (0, 1, 2))(optimizer, params, grads)), size


def test_a_text_is_a_name_and_what_differs():
    for text, wanted in {
        "adam": optimizers.get("adam"),
        "sgd,learning_rate=0.2": optimizers.get("sgd", learning_rate=0.2),
        " clip:adam , max_value = 5e-1, b1=.95 ": optimizers.get("clip:adam", max_value=0.5, b1=0.95),
        "sgd,nesterov=true,momentum=0.5": optimizers.get("sgd", nesterov=True, momentum=0.5),
        "shampoo,graft=none": optimizers.get("shampoo", graft="none"),
        "shampoo,precondition_every=3": optimizers.get("shampoo", precondition_every=3),
        "weight_decay:adamw,inner.weight_decay=0": optimizers.get(
            "weight_decay:adamw", **{"inner.weight_decay": 0}
        ),
        "learned:small_fc": optimizers.get("learned:small_fc"),
    }.items():
        assert tree.fingerprint(from_text(text)) == tree.fingerprint(wanted), text


@pytest.mark.parametrize(
    "text, error, message",
    [
        ("", UnknownName, "No optimizer is called ''"),
        ("sdg,learning_rate=1", UnknownName, "No optimizer is called 'sdg'. Did you mean sgd"),
        ("sgd,0.2", ConfigError, "'0.2' in 'sgd,0.2' is no setting; write NAME,hyperparameter=value"),
        ("sgd,", ConfigError, "'' in 'sgd,' is no setting"),
        ("sgd,learning_rate=", ConfigError, "'learning_rate=' in .* is no setting"),
        ("sgd,learning_rate=fast", ConfigError, "learning_rate of sgd must be a number, not 'fast'"),
        ("sgd,learning_rate=true", ConfigError, "learning_rate of sgd must be a number, not 'true'"),
        ("sgd,learning_rate=1,learning_rate=2", ConfigError, "learning_rate is given twice"),
        ("sgd,lr=1", UnknownName, "'lr'. sgd has: learning_rate"),
        ("sgd,learning_rate=nan", OutOfSpace, "learning_rate = nan is outside"),
        ("learned:small_fc,learning_rate=1", ConfigError, "takes no hyperparameter learning_rate"),
    ],
)
def test_a_text_that_cannot_be_read(text, error, message):
    with pytest.raises(error, match=message) as caught:
        from_text(text)
    assert "\n" not in str(caught.value)
