"""What a step of MetaOpt costs beside one of SGD in the same run, on the network of the original's table.

    python benchmarks/selftuning_step.py

A perceptron 64-100-100-10 (17,610 parameters) on 512 digits, as one compiled scan. Printed for every
estimator and memory: processor time of a step over that of SGD's, floating-point operations over SGD's as the
compiler counts them, and the optimizer's state in copies of the parameters.
"""

import argparse
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from outeropt import Optimizer, optimizers, tasks
from outeropt.compiling import for_loops
from outeropt.selftuning import MetaOpt


STEPS = 200

# The original's processor time over SGD's, one thread (Meta-Optimization at its last commit).
ORIGINAL = {
    "cf, memory 32, horizon 1": 4.0,
    "cf, memory 32, horizon 2": 7.05,
    "cf, memory 32, horizon 4": 13.8,
    "cf, memory 32, horizon 8": 26.4,
    "cf, memory 8, horizon 2": 6.3,
    "cf, memory 1, horizon 2": 6.1,
    "fake, memory 32, horizon 2": 2.9,
    "fake, memory 32, horizon 8": 5.6,
    "frozen, memory 32, horizon 2": 1.6,
    "cf, memory 32, horizon 2, diagonal": 17.5,
    "cf, memory 32, horizon 2, adam": 7.0,
}


def contestants() -> dict[str, Optimizer]:
    """Every optimizer of the table by its name; SGD first."""
    found: dict[str, Optimizer] = {"sgd": optimizers.get("sgd"), "adam": optimizers.get("adam")}

    def add(estimator, memory, horizon, **settings):
        name = f"{estimator}, memory {memory}, horizon {horizon}"
        name += "".join(f", {value}" for value in settings.values())
        if estimator == "frozen":
            settings, estimator = {**settings, "frozen": True}, "gaps"
        found[name] = MetaOpt(
            optimizers.get("sgd", learning_rate=0.1),
            memory=memory,
            horizon=horizon,
            estimator=estimator,
            **settings,
        )

    for memory in (1, 4, 8, 32):
        add("gaps", memory, 1)
    add("gaps", 32, 1, history_dtype="bfloat16")
    add("gaps", 4, 4)
    add("gaps", 1, 1, disturbance="adam")
    add("gaps", 4, 1, controller="per_tensor")
    add("gaps", 4, 1, controller="diagonal")
    for horizon in (2, 8):
        add("fake", 32, horizon)
    for horizon in (1, 2, 4):
        add("cf1", 32, horizon)
    for horizon in (1, 2, 4, 8):
        add("cf", 32, horizon)
    add("cf", 8, 2)
    add("cf", 1, 2)
    add("cf", 32, 2, controller="diagonal")
    add("cf", 32, 2, disturbance="adam")
    add("frozen", 32, 2)
    return found


def program(task, optimizer, params, batch):
    """The compiled scan, its arguments, and the operations of a step."""

    def loss(params):
        return task.loss(params, None, batch, None)[0]

    def step(carry, index):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        context = {"value": value, "value_fn": loss, "value_at": lambda p, s: loss(p), "step": index}
        updates, state = optimizer.update(grads, state, params, **context)
        return (jax.tree.map(jnp.add, params, updates), state), value

    def scan(params, state):
        return jax.lax.scan(step, (params, state), jnp.arange(STEPS, dtype=jnp.int32))

    options = for_loops(jax.devices()[0].platform)
    state = optimizer.init(params)
    compiled = jax.jit(scan, compiler_options=options).lower(params, state).compile()
    single = jax.jit(step).lower((params, state), jnp.int32(0)).compile()
    return functools.partial(compiled, params, state), state, float(single.cost_analysis()["flops"])


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=12, help="timings of each program; the least counts")
    repeats = parser.parse_args().repeats
    task = tasks.get("Digits_MLP")
    key = jax.random.key(0)
    params, _ = task.init(key)
    batch = task.batch("train", key)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    programs = {name: program(task, one, params, batch) for name, one in contestants().items()}
    least = dict.fromkeys(programs, np.inf)
    # Round after round, so that a busy moment does not fall on one of them alone.
    for _ in range(repeats):
        for name, (run, _, _) in programs.items():
            began = time.process_time()
            jax.block_until_ready(run())
            least[name] = min(least[name], time.process_time() - began)
    reference, flops = least["sgd"], programs["sgd"][2]
    print(f"SGD: {1e3 * reference / STEPS:.3f} ms of processor time a step")
    print("| optimizer | time / SGD | the original | operations / SGD | state / parameters |")
    print("|---|---|---|---|---|")
    for name, (_, state, operations) in programs.items():
        copies = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / size
        original = f"{ORIGINAL[name]:.2f}" if name in ORIGINAL else ""
        columns = f"{least[name] / reference:.2f}", original, f"{operations / flops:.2f}", f"{copies:.2f}"
        print(f"| {name} | {' | '.join(columns)} |")


if __name__ == "__main__":
    main()
