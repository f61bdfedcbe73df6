"""How fast sweeps and single trainings are, against a Python loop of jitted steps in the same run.

    python benchmarks/speed.py            # all parts, one process each; prints a Markdown table
    python benchmarks/speed.py thousand   # one part

The loop is what learned_optimization's runner does: one jitted call per inner step, and every `eval_every`
steps one jitted call per evaluation batch of each split. Needs Fashion-MNIST and CIFAR-10.
"""

import argparse
import functools
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time


SMALL = (
    "ImageMLP_Digits_Relu32",
    "ImageMLP_Digits_Tanh32",
    "Logistic_Digits",
    "Logistic_20_noisy",
    "Linear_20",
    "Quadratic_10",
    "Quadratic_100_cond100",
    "NoisyQuadratic_100_cond100",
    "Function_Rosenbrock",
    "Function_Ackley",
)


def loop(task, optimizer, steps, eval_every=None, eval_batches=5, warm=20):
    """Seconds per inner step of the Python loop, evaluations included, compilation excluded."""
    import equinox as eqx
    import jax

    from outeropt.task import SPLITS
    from outeropt.training import inner_step, start

    key = jax.random.key(0)
    arrays, static = eqx.partition((task, optimizer), eqx.is_array)

    @jax.jit
    def step(arrays, state, i):
        return inner_step(*eqx.combine(arrays, static), state, i, key)

    @functools.partial(jax.jit, static_argnums=2)
    def evaluate(arrays, state, split, k):
        task, _ = eqx.combine(arrays, static)
        return task.loss(state.params, state.model, task.batch(split, k), None)[0]

    keys = list(jax.random.split(key, eval_batches))

    def run(state, first, count):
        for i in range(first, first + count):
            if eval_every and i % eval_every == 0:
                for split in SPLITS:
                    sum(float(evaluate(arrays, state, split, k)) for k in keys)
            state, loss = step(arrays, state, i)
        jax.block_until_ready(loss)
        return state

    state = run(start(task, optimizer, key, steps), 0, warm)
    began = time.perf_counter()
    run(state, 0, steps)
    return (time.perf_counter() - began) / steps


def thousand():
    """(a) 1000 trials: 10 small tasks x 10 learning rates x 10 seeds, 1000 steps, one cold command."""
    from outeropt.bench.run import run_all
    from outeropt.bench.sets import HyperparameterSet
    from outeropt.store import Store

    rates = tuple(float(f"{10 ** (-4 + k / 3):.3g}") for k in range(10))
    item = HyperparameterSet(
        "thousand", "adam", grid={"learning_rate": rates}, seeds=10, steps=1000, eval_every=50
    )
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, Store(f"{folder}/runs.db") as store:
        archives = run_all({name: [item] for name in SMALL}, store)
    seconds = time.perf_counter() - began
    trials = sum(archive.diverged_at.size for archive in archives)
    return {
        "what": f"(a) {trials} trials, 10 tasks, 1000 steps, compilation included",
        "ours": f"{seconds:.0f} s",
        "reference": "90 s allowed",
        "ratio": 90 / seconds,
    }


def adam_set():
    """(b) The AdamLR_2000_R5 set on ImageMLP_FashionMnist8_Relu32, its own cadence."""
    from outeropt import sweep, tasks
    from outeropt.bench import sets

    task = tasks.get("ImageMLP_FashionMnist8_Relu32")
    item = sets.get("AdamLR_2000_R5")
    seconds = []
    for _ in range(2):  # the second time the program is compiled already, as the loop's are
        began = time.perf_counter()
        archive = sweep(
            task,
            item.optimizers(),
            seeds=item.seeds,
            steps=item.steps,
            eval_every=item.eval_every,
            eval_batches=item.eval_batches,
            last_eval_batches=item.last_eval_batches,
        )
        seconds.append(time.perf_counter() - began)
    trials = archive.diverged_at.size
    optimizer = item.build(item.settings()[8])
    theirs = loop(task, optimizer, item.steps, item.eval_every, item.eval_batches) * item.steps
    return {
        "what": f"(b) AdamLR_2000_R5 on ImageMLP_FashionMnist8_Relu32, {trials} trials, its own cadence",
        "ours": f"{trials / seconds[1]:.1f} trials/s ({trials / seconds[0]:.1f} with compilation)",
        "reference": f"{1 / theirs:.2f} trials/s (loop)",
        "ratio": theirs * trials / seconds[1],
    }


def _single(name, steps):
    import jax

    from outeropt import optimizers, tasks, train

    task, optimizer = tasks.get(name), optimizers.get("adam")
    options = {"key": jax.random.key(0), "eval_every": steps, "eval_batches": 1, "last_eval_batches": 1}
    jax.block_until_ready(train(task, optimizer, steps=steps, **options))
    began = time.perf_counter()
    jax.block_until_ready(train(task, optimizer, steps=steps, **options))
    ours = (time.perf_counter() - began) / steps
    theirs = loop(task, optimizer, steps)
    return ours, theirs


def one_small():
    """(c) `train` on one lane of a small network."""
    ours, theirs = _single("ImageMLP_FashionMnist8_Relu32", 3000)
    return {
        "what": "(c) train, one lane, ImageMLP_FashionMnist8_Relu32",
        "ours": f"{ours * 1e6:.0f} us/step",
        "reference": f"{theirs * 1e6:.0f} us/step (loop)",
        "ratio": theirs / ours,
    }


def one_large():
    """(c) `train` on one lane of a larger network."""
    ours, theirs = _single("ImageMLP_Cifar10_128x128x128_Relu", 300)
    return {
        "what": "(c) train, one lane, ImageMLP_Cifar10_128x128x128_Relu",
        "ours": f"{ours * 1e3:.2f} ms/step",
        "reference": f"{theirs * 1e3:.2f} ms/step (loop)",
        "ratio": theirs / ours,
    }


def convolution():
    """(d) A convolutional task, per lane, in a sweep of 4 lanes."""
    from outeropt import grid, optimizers, sweep, tasks

    task, optimizer = tasks.get("Conv_Cifar10_16_32x64x64"), optimizers.get("adam")
    steps = 30
    archive = sweep(
        task,
        grid(optimizer, learning_rate=[1e-4, 1e-3]),
        seeds=2,
        steps=steps,
        eval_every=steps,
        eval_batches=1,
        last_eval_batches=1,
    )
    ours = float(archive.seconds[0, 0]) / steps
    theirs = loop(task, optimizer, steps, warm=3)
    return {
        "what": "(d) Conv_Cifar10_16_32x64x64, per lane and step, 4 lanes",
        "ours": f"{ours * 1e3:.1f} ms",
        "reference": f"{theirs * 1e3:.1f} ms (loop)",
        "ratio": theirs / ours,
    }


def help_page():
    """(e) `outeropt --help`, the median of nine processes."""
    command = [sys.executable, "-m", "outeropt.cli.main", "train", "--help"]
    times = []
    for _ in range(9):
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - began)
    seconds = sorted(times)[4]
    return {
        "what": "(e) outeropt train --help",
        "ours": f"{seconds:.2f} s",
        "reference": "0.5 s allowed",
        "ratio": 0.5 / seconds,
    }


PARTS = {part.__name__: part for part in (thousand, adam_set, one_small, one_large, convolution, help_page)}


def main():
    """Runs one part in this process, or all parts in one process each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", nargs="?", choices=PARTS, help="default: all")
    part = parser.parse_args().part
    if part:
        from outeropt import use_all_cores

        use_all_cores(cache=False)
        result = PARTS[part]()
        who = resource.RUSAGE_CHILDREN if part == "help_page" else resource.RUSAGE_SELF
        result["peak"] = resource.getrusage(who).ru_maxrss / 1024
        print(json.dumps(result))
        return
    import jax

    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, jax {jax.__version__}\n")
    print("| what | ours | reference | ratio | peak memory |\n| --- | --- | --- | --- | --- |")
    for name in PARTS:
        done = subprocess.run([sys.executable, __file__, name], check=True, capture_output=True, text=True)
        row = json.loads(done.stdout.splitlines()[-1])
        cells = row["what"], row["ours"], row["reference"], f"{row['ratio']:.2f}", f"{row['peak']:.0f} MB"
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
