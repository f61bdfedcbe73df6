"""Cost of an outer step of amalgamation: RNNProp, two teachers, 100 steps of conv_train with batches of 128.

    python benchmarks/amalgamation.py

Measures in fresh processes without a cache of programs: the first outer step, which compiles, and the median
of the next three, in seconds of wall clock and of CPU, and the peak of memory. The reference is the published
code at equal work (TensorFlow 2.4.1, two quiet cores): the first one takes 37 s of CPU, then 24 s of CPU and
12.4 s of wall clock each, and 7.9 GB. `XLA's convolutions` is this library with them in place of
`tasks.rows_last`. The last rows are for a small task, one student and four at once.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time


REFERENCE = {"first CPU s": 37.0, "s": 12.4, "CPU s": 24.0, "GB": 7.9}

# Task, students at once, settings.
ROWS = {
    "conv_train": ("conv_train", 1, {}),
    "conv_train, recomputed": ("conv_train", 1, {"rematerialise": True}),
    "conv_train, XLA's convolutions": ("conv_train", 1, {"plain": True}),
    "8 x 8 pixels": ("ImageMLP_FashionMnist8_Relu32", 1, {}),
    "8 x 8 pixels, four students": ("ImageMLP_FashionMnist8_Relu32", 4, {}),
}


def measure(row: str) -> None:
    """Runs one row in this process, and prints its numbers."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    import outeropt

    outeropt.use_all_cores(cache=False)
    from outeropt import optimizers, tasks, tree
    from outeropt.amalgamation import Losses, outer, race
    from outeropt.amalgamation.perturbations import Unperturbed
    from outeropt.learned import RNNProp
    from outeropt.tasks import rows_last

    name, students, options = ROWS[row]
    if options.get("plain"):
        rows_last._FEWEST_ROWS = sys.maxsize
    task, key = tasks.get(name), jax.random.key(0)
    teachers = (optimizers.get("static_adam"), optimizers.get("root_rmsprop"))
    chosen = optimizers.get("clip_adaptive:adam", learning_rate=1e-3)
    remade = options.get("rematerialise", False)
    recipe = outer.Recipe(teachers, Losses(), Unperturbed(), chosen, 3.0, remade)

    def begin(key):
        learner = outer.begin(recipe, RNNProp(key=key))
        return learner, race.start(task, learner.student, teachers, 3.0, 400, key)

    def learn(task, learner, runners, key):
        return outer.learn(task, recipe, learner, runners, jnp.float32(0.2), key, 100)

    if students > 1:
        state = tree.stack([begin(k) for k in jax.random.split(key, students)])
        step = eqx.filter_jit(lambda task, *rest: jax.vmap(lambda *one: learn(task, *one))(*rest))
        keys = jax.random.split(key, students)
    else:
        state, step, keys = eqx.filter_jit(begin)(key), eqx.filter_jit(learn), key
    walls, used = [], []
    for _ in range(4):
        began, cpu = time.perf_counter(), time.process_time()
        *state, _ = jax.block_until_ready(step(task, *state, keys))
        walls.append((time.perf_counter() - began) / students)
        used.append((time.process_time() - cpu) / students)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(walls[0], used[0], statistics.median(walls[1:]), statistics.median(used[1:]), peak)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    chosen = parser.parse_args().row
    if chosen:
        return measure(chosen)
    heads = ("for each student", "first s", "CPU s", "then s", "CPU s", "GB")
    print("{:32} {:>8} {:>6} {:>7} {:>6} {:>5}  of reference".format(*heads))
    numbers = (REFERENCE[name] for name in ("first CPU s", "s", "CPU s", "GB"))
    print("{:32} {:>8} {:6.1f} {:7.2f} {:6.2f} {:5.2f}".format("published code, conv_train", "", *numbers))
    for row in ROWS:
        command = [sys.executable, __file__, "--row", row]
        found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        first, first_used, wall, used, peak = map(float, found)
        share = f"{used / REFERENCE['CPU s']:.2f}" if row.startswith("conv_train") else ""
        print(
            f"{row:32} {first:8.1f} {first_used:6.1f} {wall:7.2f} {used:6.2f} {peak:5.2f}  {share}",
            flush=True,
        )


if __name__ == "__main__":
    main()
