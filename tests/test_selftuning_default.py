"""The default self-tuning optimizer: nothing to set, with and without a known length of the run."""

import jax
import jax.numpy as jnp
import numpy as np

from outeropt import optimizers, selftuning, tasks, train, tree
from outeropt.optimizers import Tail


def test_a_tail_decays_at_the_end_only():
    tail = Tail(peak=2.0, tail_fraction=0.25)
    values = [float(tail(step, 8)) for step in range(9)]
    np.testing.assert_allclose(values, [2, 2, 2, 2, 2, 2, 2, 1, 0])
    assert float(tail(5)) == 2.0 and float(tail(5, -1)) == 2.0
    assert float(Tail(tail_fraction=0.0)(7, 8)) == 1.0


def test_the_default_is_a_registered_name():
    default = selftuning.default()
    assert tree.fingerprint(default) == tree.fingerprint(optimizers.get("self_tuning"))
    assert "self_tuning" in optimizers.names(tuning_free=True)


def test_it_trains_digits_better_than_adam_at_any_of_its_usual_rates():
    task = tasks.get("ImageMLP_Digits_Relu32")

    def final(optimizer):
        run = train(task, optimizer, steps=200, eval_every=200, key=jax.random.key(0))
        return float(run.curves["train/loss"][-1])

    ours = final(selftuning.default())
    assert all(ours < final(optimizers.get("adam", learning_rate=rate)) for rate in (1e-4, 1e-3, 1e-2))


def test_it_takes_the_units_of_the_parameters_as_they_come():
    """A quadratic whose solution is near or a thousand times as far, with gradients to match."""

    def end(size):
        default = selftuning.default()

        def step(carry, _):
            x, state = carry
            grads = x - size
            updates, state = default.update(grads, state, x)
            return (x + updates, state), None

        start = jnp.zeros(4)
        (x, _), _ = jax.lax.scan(step, (start, default.init(start, num_steps=500)), length=500)
        return np.abs(x / size - 1).max()

    assert max(map(end, (0.1, 1.0, 100.0))) < 0.05


def test_it_needs_no_length_inside_optax():
    transformation = selftuning.default().as_optax()
    params = {"w": jnp.ones((3, 2))}
    state = transformation.init(params)
    for _ in range(5):
        updates, state = transformation.update(jax.tree.map(jnp.sign, params), state, params)
        params = jax.tree.map(jnp.add, params, updates)
    assert float(params["w"][0, 0]) < 1.0
