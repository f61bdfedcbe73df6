"""How long RNNProp's step takes on many coordinates, and the way back through it.

    python benchmarks/coordinatewise.py                        # prints a Markdown table
    python benchmarks/coordinatewise.py --coordinates 100000 --steps 50

An unroll of RNNProp on given gradients as one compiled scan, and the derivative of its updates with respect
to all meta-parameters. The reference is the same network with coordinates in the first axis, as it was
published, and with everything that the way forward computes kept for the way back. Both take turns in one
process; times are the least of the repeats, of one step. CPU time is of all threads, and the better measure
where others use the machine. Memory is the temporary memory of the derivative.
"""

import argparse
import resource
import time

import equinox as eqx
import jax
import jax.numpy as jnp

from outeropt.learned import RNNProp
from outeropt.learned.coordinatewise.keras_cells import LSTMStack


class ByRows(eqx.Module):
    """A stack of LSTMs whose states are `[coordinates, hidden]`."""

    stack: LSTMStack

    def zeros(self, coordinates):
        return jax.tree.map(jnp.transpose, self.stack.zeros(coordinates))

    def __call__(self, x, state):
        x, following = x.T, []
        for layer, last in zip(self.stack.layers, state):
            following.append(by_rows(layer, x, last))
            x = following[-1][0]
        return x.T, tuple(following)


def by_rows(layer, x, state):
    """A step of a cell with the features in the last axis."""
    hidden, cell = state
    weight = jnp.concatenate([layer.kernel, layer.recurrent_kernel])
    i, f, g, o = jnp.split(jnp.concatenate([x, hidden], axis=1) @ weight + layer.bias, 4, axis=1)
    cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(cell), cell


def reference(optimizer: RNNProp) -> RNNProp:
    return eqx.tree_at(lambda made: made.lstms, optimizer, ByRows(optimizer.lstms))


def unroll(optimizer, grads):
    """The sum of all updates."""

    def step(state, grad):
        updates, state = optimizer.update(grad, state, grad)
        return state, jnp.sum(updates)

    return jnp.sum(jax.lax.scan(step, optimizer.init(grads[0]), grads)[1])


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--coordinates", type=int, default=18_122, help="of the paper's network")
    parser.add_argument("--steps", type=int, default=20, help="of the unroll")
    parser.add_argument("--repeats", type=int, default=7)
    config = parser.parse_args()

    ours = RNNProp()
    grads = jax.random.normal(jax.random.key(0), (config.steps, config.coordinates))
    programs = {}
    for name, optimizer in (("ours", ours), ("reference", reference(ours))):
        for what, function in (("forward", unroll), ("forward and back", jax.value_and_grad(unroll))):
            compiled = jax.jit(function).lower(optimizer, grads).compile()
            programs[what, name] = lambda program=compiled, given=optimizer: program(given, grads)
            if what != "forward":
                print(f"{name}: {compiled.memory_analysis().temp_size_in_bytes / 1e6:.0f} MB")
    best = {key: (float("inf"), float("inf")) for key in programs}
    for _ in range(config.repeats):
        for key, program in programs.items():
            wall, cpu = time.perf_counter(), cpu_seconds()
            jax.block_until_ready(program())
            taken = time.perf_counter() - wall, cpu_seconds() - cpu
            best[key] = min(best[key][0], taken[0]), min(best[key][1], taken[1])

    print(f"\n{jax.devices()[0].device_kind}, {config.coordinates} coordinates, {config.steps} steps\n")
    print("| | ours, wall (CPU) | reference, wall (CPU) | ratio of CPU times |\n| --- | --- | --- | --- |")
    for what in ("forward", "forward and back"):
        cells = [[1e3 * taken / config.steps for taken in best[what, name]] for name in ("ours", "reference")]
        shown = " | ".join(f"{wall:.1f} ms ({cpu:.1f} ms)" for wall, cpu in cells)
        print(f"| {what} | {shown} | {cells[1][1] / cells[0][1]:.2f} |")


if __name__ == "__main__":
    main()
