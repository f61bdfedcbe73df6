"""One step of optimizers on parameters that eight devices share: run as a program, writes what it sees.

`python sharded_states.py OUT NAME...` writes JSON: for each name what does not lie where its parameter does
(after `init`, after a step), how far the updates are from those of one device, and what the compiled step
gathers.
"""

import json
import math
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from outeropt import optimizers


SPECS = {"w": PartitionSpec("rows", "columns"), "v": PartitionSpec("rows"), "s": PartitionSpec()}
SHAPES = {"w": (32, 16), "v": (24,), "s": ()}
# What one device holds of the largest parameter.
SHARD = 32 * 16 // 8
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}


def mesh(kind):
    return jax.make_mesh((4, 2), ("rows", "columns"), axis_types=(kind, kind))


def parameters():
    keys = jax.random.split(jax.random.key(0), len(SHAPES))
    return {name: jax.random.normal(key, shape) for (name, shape), key in zip(SHAPES.items(), keys)}


def shared(tree, devices):
    return jax.device_put(tree, {name: NamedSharding(devices, spec) for name, spec in SPECS.items()})


def loss(params):
    return sum(jnp.sum(jnp.square(leaf - 0.1)) for leaf in jax.tree.leaves(params))


def start(optimizer, params):
    return optimizer.init(params, num_steps=12, key=jax.random.key(1))


def step(optimizer, params, state):
    value, grads = jax.value_and_grad(loss)(params)
    context = {"value": value, "grad": grads, "value_fn": loss, "valid_fn": loss, "step": jnp.int32(0)}
    return optimizer.update(grads, state, params, **context, key=jax.random.key(2))


def astray(tree, devices):
    """Leaves that have a parameter's shape, maybe behind other axes, and not its sharding."""
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        for name in ("w", "v"):
            front = leaf.ndim - len(SHAPES[name])
            if front < 0 or leaf.shape[front:] != SHAPES[name]:
                continue
            wanted = NamedSharding(devices, PartitionSpec(*[None] * front, *SPECS[name]))
            if not leaf.sharding.is_equivalent_to(wanted, leaf.ndim):
                found.append(jax.tree_util.keystr(path))
    return found


def gathered(text):
    """Sizes of what a compiled program gathers, from the largest on, if it is more than a shard."""
    shapes = re.findall(r"= \(?\w+\[([\d,]*)\]\S* all-gather(?:-start)?\(", text)
    sizes = (math.prod(int(n) for n in shape.split(",") if n) for shape in shapes)
    return sorted((size for size in sizes if size > SHARD), reverse=True)


def compiled(optimizer, params, state):
    program = jax.jit(lambda params, state: step(optimizer, params, state), compiler_options=QUICK)
    return program.lower(params, state).compile()


def two_steps(program, params, state):
    """Updates and state of the second step: in the first one some stand still."""
    updates, after = program(params, state)
    # The same program again: what `init` made on one device goes back there.
    after = jax.device_put(after, program.input_shardings[0][1])
    return program(jax.tree.map(jnp.add, params, updates), after)


def seen(name):
    optimizer, devices = optimizers.get(name), mesh(AxisType.Auto)
    params, alone = shared(parameters(), devices), parameters()
    state, state_alone = start(optimizer, params), start(optimizer, alone)
    program = compiled(optimizer, params, state)
    updates, after = two_steps(program, params, state)
    expected, _ = two_steps(compiled(optimizer, alone, state_alone), alone, state_alone)
    errors = jax.tree.map(lambda a, b: np.max(np.abs(np.asarray(a) - np.asarray(b))), updates, expected)
    largest = max(float(np.max(np.abs(leaf))) for leaf in jax.tree.leaves(expected))
    return {
        "init": astray(state, devices),
        "updates": astray(updates, devices),
        "state": astray(after, devices),
        "error": float(max(jax.tree.leaves(errors))) / max(largest, 1e-30),
        "gathered": gathered(program.as_text()),
    }


def explicit(name):
    """What is astray after `init` inside a program, on a mesh whose axes are part of types."""
    optimizer, devices = optimizers.get(name), mesh(AxisType.Explicit)
    params = shared(parameters(), devices)
    with jax.set_mesh(devices):
        state = jax.jit(lambda params: start(optimizer, params), compiler_options=QUICK)(params)
        updates, after = compiled(optimizer, params, state)(params, state)
    return astray((state, updates, after), devices)


if __name__ == "__main__":
    out, *names = sys.argv[1:]
    assert jax.device_count() == 8
    found = {name: explicit(name.split("=")[1]) if "=" in name else seen(name) for name in names}
    with open(out, "w") as file:
        json.dump(found, file)
