"""The optimizer contract by a hand-written one: names of leaves, replacing them, and living inside optax."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from outeropt import Optimizer, Space, grid, train
from outeropt.errors import OutOfSpace, UnknownName
from outeropt.optimizer import resolve
from outeropt.optimizers import Accumulate
from toys import regression


class Heavy(Optimizer):
    """Heavy-ball momentum; remembers what the inner loop offered it."""

    learning_rate: jax.Array
    momentum: dict[str, jax.Array]
    label: str = eqx.field(static=True, default="heavy")

    def __init__(self, learning_rate=0.1, decay=0.9):
        self.learning_rate = jnp.float32(learning_rate)
        self.momentum = {"decay": jnp.float32(decay)}

    def init(self, params, *, num_steps=None, key=None):
        start = 0.0 if key is None else jax.random.uniform(key)
        length = -1 if num_steps is None else num_steps
        trace = jax.tree.map(lambda p: jnp.full_like(p, start), params)
        return trace, jnp.asarray(length, jnp.int32)

    def update(self, grads, state, params, **context: Any):
        trace, length = state
        trace = jax.tree.map(lambda t, g: self.momentum["decay"] * t + g, trace, grads)
        return jax.tree.map(lambda t: -self.learning_rate * t, trace), (trace, length)

    @property
    def spaces(self):
        return {"learning_rate": Space.log(1e-4, 1.0, allowed=(0, 10)), "decay": Space.logit(0.5, 0.99)}


class Pair(Optimizer):
    """Two optimizers side by side; its leaves share their last names."""

    first: Heavy
    second: Heavy

    def init(self, params, *, num_steps=None, key=None):
        return self.first.init(params), self.second.init(params)

    def update(self, grads, state, params, **context: Any):
        one, left = self.first.update(grads, state[0], params)
        two, right = self.second.update(grads, state[1], params)
        return jax.tree.map(jnp.add, one, two), (left, right)


@pytest.fixture
def pair():
    return Pair(Heavy(0.1, 0.8), Heavy(0.2, 0.7))


def values(optimizer):
    return {name: round(float(leaf), 6) for name, leaf in optimizer.hyperparameters.items()}


def test_an_optimizer_lacking_a_part_cannot_be_made():
    class Half(Optimizer):
        def init(self, params, *, num_steps=None, key=None):
            return ()

    with pytest.raises(TypeError, match="abstract"):
        Half()


def test_leaves_are_named_and_static_fields_are_none(pair):
    assert values(Heavy()) == {"learning_rate": 0.1, "decay": 0.9}
    assert list(pair.hyperparameters) == [
        "first.learning_rate",
        "first.decay",
        "second.learning_rate",
        "second.decay",
    ]
    assert Optimizer.spaces.fget(pair) == {} == pair.spaces


def test_replace_changes_a_copy(pair):
    heavy = Heavy()
    changed = heavy.replace(learning_rate=0.5)
    assert values(changed) == {"learning_rate": 0.5, "decay": 0.9} and values(heavy)["learning_rate"] == 0.1
    assert changed.learning_rate.dtype == jnp.float32 and changed.label == "heavy"
    both = heavy.replace({"decay": 0.6}, learning_rate=1)
    assert values(both) == {"learning_rate": 1.0, "decay": 0.6} and both.learning_rate.dtype == jnp.float32
    assert heavy.replace().learning_rate is heavy.learning_rate
    both = pair.replace({"first.decay": 0.6, "second.learning_rate": 0.3})
    assert values(both) == {
        "first.learning_rate": 0.1,
        "first.decay": 0.6,
        "second.learning_rate": 0.3,
        "second.decay": 0.7,
    }


def test_the_end_of_a_dotted_name_is_enough_when_it_is_unique(pair):
    wrapped = Accumulate(Heavy(), every=2)
    assert values(wrapped.replace(decay=0.6))["inner.decay"] == 0.6
    assert resolve("learning_rate", wrapped.hyperparameters) == "inner.learning_rate"
    with pytest.raises(UnknownName, match=r"'decay' is ambiguous; say which: first.decay, second.decay\."):
        pair.replace(decay=0.6)
    leaves = {"decay": 1, "first.decay": 2}
    assert resolve("decay", leaves) == "decay"  # the whole name wins
    assert resolve("first.decay", leaves) == "first.decay"
    with pytest.raises(UnknownName, match="No hyperparameter is called 'cay'"):
        resolve("cay", {"first.decay": 2})  # an ending, but not a whole part


def test_wrong_names_and_values_are_told(pair):
    with pytest.raises(UnknownName) as error:
        Heavy().replace(learning_rat=0.1)
    assert str(error.value) == (
        "No hyperparameter is called 'learning_rat'. Did you mean learning_rate? "
        "This optimizer has: learning_rate, decay."
    )
    with pytest.raises(OutOfSpace, match=r"decay = 1 is outside its space; allowed: 0.5 to 0.99"):
        Heavy().replace(decay=1.0)
    with pytest.raises(OutOfSpace, match=r"learning_rate = -0\.1"):
        Heavy().replace(learning_rate=-0.1)
    assert values(Heavy().replace(learning_rate=0))["learning_rate"] == 0  # allowed, though not searched
    assert values(pair.replace({"first.decay": 7}))["first.decay"] == 7  # no space, no limits


def test_replace_works_while_tracing():
    def rate(x):
        return Heavy().replace(learning_rate=x).learning_rate * 2

    assert float(jax.grad(rate)(jnp.float32(0.3))) == 2.0
    np.testing.assert_allclose(jax.vmap(rate)(jnp.array([0.1, 99.0])), [0.2, 198.0], rtol=1e-6)


PARAMS = {"w": jnp.array([1.0, -2.0, 3.0]), "b": jnp.array(0.5)}


def descend(transformation, steps=5, params=PARAMS, **context):
    state = transformation.init(params)
    for _ in range(steps):
        grads = jax.tree.map(lambda p: 2 * p, params)
        updates, state = transformation.update(grads, state, params, **context)
        params = optax.apply_updates(params, updates)
    return params


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), a, b)


def test_an_optimizer_lives_in_optax_chain():
    ours = optax.chain(optax.clip(0.5), Heavy(0.1, 0.9).as_optax(), optax.scale(2.0))
    theirs = optax.chain(optax.clip(0.5), optax.sgd(0.1, momentum=0.9), optax.scale(2.0))
    close(descend(ours), descend(theirs))
    # Extra arguments pass through a chain, and are ignored by those that do not know them.
    close(descend(ours, value=jnp.float32(1), value_fn=lambda p: jnp.float32(1)), descend(theirs))


def test_an_optimizer_lives_in_multi_transform():
    labels = {"w": "heavy", "b": "still"}
    ours = optax.multi_transform({"heavy": Heavy(0.1, 0.9).as_optax(), "still": optax.set_to_zero()}, labels)
    sgd = optax.sgd(0.1, momentum=0.9)
    theirs = optax.multi_transform({"heavy": sgd, "still": optax.set_to_zero()}, labels)
    ended = descend(ours)
    close(ended, descend(theirs))
    assert float(ended["b"]) == 0.5 and not np.allclose(ended["w"], PARAMS["w"])


def test_as_optax_passes_length_and_randomness_to_init():
    trace, length = Heavy().as_optax(num_steps=7, key=jax.random.key(0)).init(PARAMS)
    assert int(length) == 7 and float(trace["b"]) == float(jax.random.uniform(jax.random.key(0)))
    trace, length = Heavy().as_optax().init(PARAMS)
    assert int(length) == -1 and float(trace["b"]) == 0.0


def test_a_hand_written_optimizer_trains_and_sweeps():
    task = regression()
    one = train(task, Heavy(0.01, 0.9), steps=20, eval_every=10, key=jax.random.key(0))
    assert float(one.curves["train/loss"][-1]) < 0.5 * float(one.curves["train/loss"][0])
    settings = grid(Heavy(), learning_rate=[0.01, 0.02], decay=[0.5, 0.9])
    assert [s["decay"] for s in settings.describe()] == [0.5, 0.9, 0.5, 0.9]

    def final(optimizer):
        return train(task, optimizer, steps=20, eval_every=10, key=jax.random.key(0)).curves["train/loss"][-1]

    finals = eqx.filter_vmap(final)(settings.stacked)
    np.testing.assert_allclose(finals[1], one.curves["train/loss"][-1], rtol=1e-5)
