"""Speed of meta-training: PES on AdafacMLP and the MLP task 64-32-10, batch 128, 16 pairs, truncation 10.

    python benchmarks/metatraining.py
    python benchmarks/metatraining.py --devices 1 2 8

Measures in fresh processes without a cache of programs: the time from the start of the process to the end of
the first outer step, this step alone (which compiles), and then the mean of 200 outer steps. The reference is
learned_optimization at equal work (16 tasks, antithetic pairs), measured on two quiet cores: the first update
alone takes 14.6 s (23.8 s of CPU), then 93 ms (138 ms of CPU) per outer step. The row `concatenated` is this
library with the learned update written the way that the original writes it, with all 39 inputs of each
parameter in one array.

With --devices, how outer steps scale with host devices that share the particles, relative to the first number
given (strong scaling: the work stays the same). More devices than cores show what sharing costs.
"""

import argparse
import math
import os
import subprocess
import sys
import time


REFERENCE = {"first s": 14.6, "first CPU s": 23.8, "ms": 93.0, "CPU ms": 138.0}


def measure(concatenated: bool) -> None:
    """Runs one measurement in this process, and prints its six numbers."""
    start, start_used = time.perf_counter(), time.process_time()
    import jax
    import jax.numpy as jnp

    import outeropt

    outeropt.use_all_cores(cache=False)
    from outeropt import tasks
    from outeropt.learned import AdafacMLP
    from outeropt.learned.mlps import moment_mlp
    from outeropt.metatraining import PES, MetaTraining, lengths

    def by_the_book(layers, rule, stored, given, shape, shared):
        """`per_parameter_step` with features written down, normalised, concatenated."""
        sources, kept = rule.look(stored, given)
        made = jnp.stack([jnp.broadcast_to(x, shape) for x in rule.features(sources)], axis=-1)
        axes = tuple(range(len(shape)))
        x = made * jax.lax.rsqrt(1e-5 + jnp.mean(jnp.square(made), axis=axes, keepdims=True))
        x = jnp.concatenate([x, jnp.broadcast_to(shared, (*shape, shared.size))], axis=-1)
        for i, layer in enumerate(layers):
            x = jax.nn.relu(x) if i else x
            x = x @ layer.weight
            x = x + jnp.broadcast_to(layer.bias, x.shape)
        return rule.finish([x[..., i] for i in range(x.shape[-1])], sources), kept

    if concatenated:
        moment_mlp.per_parameter_step = by_the_book
    run = MetaTraining(
        AdafacMLP(key=jax.random.key(0)),
        tasks.get("ImageMLP_FashionMnist8_Relu32"),
        estimator=PES(
            particles=16, truncation=10, lengths=lengths.LogUniform(100, 1000, 10), random_offset=500
        ),
        steps=301,
        key=jax.random.key(1),
    )
    begun, used = time.perf_counter(), time.process_time()
    run.advance_to(1)
    now, now_used = time.perf_counter(), time.process_time()
    whole, first = (now - start, now_used - start_used), (now - begun, now_used - used)
    run.advance_to(101)
    begun, used = time.perf_counter(), time.process_time()
    run.advance_to(301)
    wall, cpu = time.perf_counter() - begun, time.process_time() - used
    print(*whole, *first, wall / 200 * 1e3, cpu / 200 * 1e3)


def scaling(counts: list[int]) -> None:
    """Measures each number of devices in a process of its own."""
    print(
        "| devices | first update | CPU | outer steps/s | CPU per step | speed |\n|---|---|---|---|---|---|"
    )
    base = None
    for count in counts:
        told = subprocess.run(
            [sys.executable, __file__, "--measure", "ours"],
            env=os.environ | {"JAX_NUM_CPU_DEVICES": str(count)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        _, _, first, first_cpu, step, step_cpu = (float(word) for word in told.split()[-6:])
        base = base or step
        times = f"{first:.1f} s | {first_cpu:.1f} s | {1e3 / step:.1f} | {step_cpu:.1f} ms"
        print(f"| {count} | {times} | {base / step:.2f}x |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--measure", choices=["ours", "concatenated"], help="one measurement in this process")
    parser.add_argument("--devices", type=int, nargs="+", help="host devices that share the particles")
    given = parser.parse_args()
    if given.measure:
        measure(given.measure == "concatenated")
        return
    if given.devices:
        scaling(given.devices)
        return
    rows = {"learned_optimization": [math.nan] * 2 + list(REFERENCE.values())}
    for name in ("ours", "concatenated"):
        call = [sys.executable, __file__, "--measure", name]
        told = subprocess.run(call, capture_output=True, text=True, check=True).stdout
        rows[name] = [float(word) for word in told.split()[-6:]]
    print("| | from the start | CPU | first update | CPU | outer step | CPU |\n|---|---|---|---|---|---|---|")
    for name, (whole, whole_cpu, first, first_cpu, step, step_cpu) in rows.items():
        seconds = " | ".join(f"{value:.1f} s" for value in (whole, whole_cpu, first, first_cpu))
        print(f"| {name} | {seconds} | {step:.1f} ms | {step_cpu:.1f} ms |")
    ratios = [theirs / ours for theirs, ours in zip(REFERENCE.values(), rows["ours"][2:])]
    print("ours is faster by: " + ", ".join(f"{ratio:.1f}x" for ratio in ratios))


if __name__ == "__main__":
    main()
