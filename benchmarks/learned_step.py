"""How much longer a learned optimizer's step takes than Adam's, and how much memory it borrows.

    python benchmarks/learned_step.py                                # prints two Markdown tables
    python benchmarks/learned_step.py --side 4096 --repeats 10
    python benchmarks/learned_step.py --side 10000 --no-reference    # 100M parameters, for a GPU

Compiled steps, with parameters and state donated, on one square tensor and on the tensors of a small network.
All take turns in one process; of two steps in a turn the second is timed. Times are medians, and in brackets
the least; CPU time is of all threads, and the better measure where others use the machine. The reference is
the same step written as it was published: one array `[parameters, 39]` of all features of all parameters, and
matrix products with it. Memory is the temporary memory of a step, relative to the bytes of parameters and
state. Runs on a GPU where there is one.
"""

import argparse
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from outeropt import optimizers
from outeropt.learned import AdafacMLP, PerParameterMLP, tensorwise
from outeropt.learned.features import normalize, tanh_embedding
from outeropt.learned.moments import moment_features


NETWORK = ((784, 128), (128,), (128, 128), (128,), (128, 10), (10,))


class Contender(NamedTuple):
    """A step `update(optimizer, grads, state, params)` of an optimizer."""

    optimizer: Any
    update: Callable[..., Any]


def plain(optimizer, grads, state, params):
    """The optimizer's own step."""
    return optimizer.update(grads, state, params)


def as_published(optimizer: AdafacMLP, grads, state, params):
    """The step of AdafacMLP with features and time concatenated."""
    time_inputs = tanh_embedding(state.step)

    def move(grad, param, moments):
        moments = moments.updated(optimizer.decays, grad)
        made = moment_features(moments.sources(grad, param))
        made = normalize(jnp.stack([jnp.broadcast_to(x, param.shape) for x in made]))
        same = jnp.broadcast_to(time_inputs, (*param.shape, time_inputs.size))
        out = optimizer.net(jnp.concatenate([jnp.moveaxis(made, 0, -1), same], axis=-1))
        return -optimizer.step_mult * out[..., 0] * jnp.exp(optimizer.exp_mult * out[..., 1]), moments

    return tensorwise.advance(move, grads, state, params)


def contenders(naive: bool) -> dict[str, Contender]:
    """By the name of their row, Adam first."""
    found = {"Adam": Contender(optimizers.get("adam"), plain)}
    for hidden in (4, 32):
        optimizer = AdafacMLP(hidden_size=hidden)
        found[f"AdafacMLP, width {hidden}"] = Contender(optimizer, plain)
        if naive:
            found[f"AdafacMLP, width {hidden}, as published"] = Contender(optimizer, as_published)
        found[f"PerParameterMLP, width {hidden}"] = Contender(PerParameterMLP(hidden_size=hidden), plain)
    return found


class Cost(NamedTuple):
    """Seconds of each repeat, and what the compiler says."""

    wall: list[float]
    cpu: list[float]
    memory: float


def measure(found: dict[str, Contender], shapes, repeats: int) -> dict[str, Cost]:
    """Costs of one step of each, in turns."""
    steps, costs = {}, {}
    grads = normal(0, shapes)
    for name, contender in found.items():
        steps[name], memory = prepare(contender, normal(1, shapes), grads)
        costs[name] = Cost([], [], memory)
    for _ in range(repeats):
        for name, step in steps.items():
            wall, cpu = next(step)
            costs[name].wall.append(wall)
            costs[name].cpu.append(cpu)
    return costs


def normal(seed: int, shapes) -> list[jax.Array]:
    """Normal tensors of these shapes."""
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes)]


def prepare(contender: Contender, params, grads) -> tuple[Iterator[tuple[float, float]], float]:
    """The seconds (wall, CPU) of one step after another, and its temporary memory."""
    state = contender.optimizer.init(params)

    def step(optimizer, params, state, grads):
        updates, state = contender.update(optimizer, grads, state, params)
        return jax.tree.map(jnp.add, params, updates), state

    compiled = jax.jit(step, donate_argnums=(1, 2)).lower(contender.optimizer, params, state, grads).compile()
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves((params, state)))
    return _times(compiled, contender.optimizer, params, state, grads), (
        compiled.memory_analysis().temp_size_in_bytes / kept
    )


def _times(compiled, optimizer, params, state, grads) -> Iterator[tuple[float, float]]:
    while True:
        params, state = jax.block_until_ready(compiled(optimizer, params, state, grads))
        wall, cpu = time.perf_counter(), time.process_time()
        params, state = jax.block_until_ready(compiled(optimizer, params, state, grads))
        yield time.perf_counter() - wall, time.process_time() - cpu


def table(what: str, costs: dict[str, Cost], parameters: int) -> None:
    """Prints a Markdown table."""
    print(f"\n{what}, {parameters:,} parameters\n")
    print("| step | ms | CPU ms | / Adam | CPU / Adam | ns a parameter | memory |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    adam = costs["Adam"]
    for name, cost in costs.items():
        pairs = (cost.wall, adam.wall), (cost.cpu, adam.cpu)
        middle = statistics.median
        cells = (
            name,
            *(f"{1e3 * middle(its):.2f} ({1e3 * min(its):.2f})" for its, _ in pairs),
            *(f"{middle(its) / middle(adams):.1f} ({min(its) / min(adams):.1f})" for its, adams in pairs),
            f"{1e9 * middle(cost.wall) / parameters:.1f}",
            f"{cost.memory:.2f}",
        )
        print(f"| {' | '.join(cells)} |", flush=True)


def main():
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=int, default=1024, help="of the square tensor (default 1024)")
    parser.add_argument("--repeats", type=int, default=30, help="steps of each (default 30)")
    parser.add_argument("--no-reference", action="store_true", help="leaves out the step as published")
    options = parser.parse_args()
    machine = jax.devices()[0].device_kind if jax.default_backend() != "cpu" else platform.processor()
    print(f"{machine or platform.machine()}, {os.cpu_count()} cores, jax {jax.__version__}")
    found = contenders(naive=not options.no_reference)
    square = ((options.side, options.side),)
    for what, shapes in (("One tensor", square), ("A small network", NETWORK)):
        parameters = sum(math.prod(shape) for shape in shapes)
        table(what, measure(found, shapes, options.repeats), parameters)


if __name__ == "__main__":
    main()
