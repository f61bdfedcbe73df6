"""Trajectories that learned_optimization computed, and our optimizers on the same gradients."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np


FOLDER = Path(__file__).parent / "golden" / "learned_optimization"


def load(name):
    """The arrays of a golden file such as `learned/adafac_h4`, by path, and its settings."""
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    return arrays, json.loads(str(arrays.pop("config")))


def below(arrays, prefix):
    """The arrays under a path, with the path taken off."""
    return {
        key.removeprefix(prefix + "/"): value for key, value in arrays.items() if key.startswith(prefix + "/")
    }


def replay(optimizer, arrays, num_steps=100):
    """Runs the recorded gradients and losses: parameters `[steps + 1, ...]`, each step's states, updates."""
    grads, losses = jax.tree.map(jnp.asarray, (below(arrays, "grads"), arrays["losses"]))
    start = jax.tree.map(jnp.asarray, below(arrays, "params0"))
    valid = jnp.asarray(arrays.get("is_valid", np.zeros(len(losses), bool)))

    def step(carry, given):
        params, state = carry
        grad, loss, is_valid = given
        context = {"value": loss, "is_valid": is_valid} if "is_valid" in arrays else {"value": loss}
        updates, state = optimizer.update(grad, state, params, **context)
        params = jax.tree.map(jnp.add, params, updates)
        return (params, state), (params, state, updates)

    state = optimizer.init(start, num_steps=num_steps)

    def run(carry, given):
        return jax.lax.scan(step, carry, given)

    # Compilation is most of the time of such a test.
    fast = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
    program = jax.jit(run, compiler_options=fast)
    _, (params, states, updates) = program((start, state), (grads, losses, valid))
    params = {name: np.concatenate([np.asarray(start[name])[None], params[name]]) for name in start}
    return params, states, updates


def assert_same_updates(updates, arrays, relative=1e-5):
    """Each update agrees to a share of the tensor's largest update."""
    wanted = below(arrays, "updates64") or {k: np.diff(v, axis=0) for k, v in below(arrays, "params").items()}
    for name, want in wanted.items():
        got = np.asarray(updates[name], np.float64)
        largest = np.abs(want).max()
        # Differences of float32 parameters carry the parameters' own rounding.
        slack = 0 if "updates64/" + name in arrays else 2e-7 * np.abs(arrays["params/" + name]).max()
        worst = (np.abs(got - want) - slack - relative * largest).max()
        assert worst <= 0, f"{name}: {np.abs(got - want).max()} where updates reach {largest}"
