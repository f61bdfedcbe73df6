"""What it costs to run chunks elsewhere, how sweeps grow with cores, and how many trials a driver can take.

    python benchmarks/executors.py overhead       # seconds a chunk: this process, Ray, processes
    python benchmarks/executors.py scaling        # trials a second: 1, 2, 8 devices; 1, 2 workers
    python benchmarks/executors.py tiny           # 10 000 trials of one step through driver and store
    python benchmarks/executors.py tiny --lanes 1 # the same, a chunk for every two trials

`overhead` runs one sweep of a few chunks of the default size twice with each executor, one worker and one
device for a chunk, and times the second, when programs are compiled and workers know their data. The time a
chunk takes in this process is the reference. Each line of `scaling` and `tiny` is a process of its own.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

import outeropt
from outeropt import optimizers, tasks
from outeropt._sweep import Executor, InProcess, Ray, Slurm


def swept(task: str, executor: Executor | None, chunks: int, steps: int, first_rate: float = 1e-4) -> float:
    """Seconds of a sweep of chunks of the default size, 32 lanes."""
    rates = np.geomspace(first_rate, first_rate * 100, 4 * chunks)
    settings = outeropt.grid(optimizers.get("adam"), learning_rate=rates.tolist())
    began = time.perf_counter()
    outeropt.sweep(tasks.get(task), settings, seeds=8, steps=steps, eval_every=steps // 10, executor=executor)
    return time.perf_counter() - began


def overhead(task: str, steps: int, chunks: int) -> None:
    folder = Path(tempfile.mkdtemp())
    makers: dict[str, Callable[[], Executor]] = {
        "this process": lambda: InProcess(jax.local_devices()[:1]),
        "Ray, one worker": Ray,
        "processes, one after the other": lambda: Slurm(folder, "local", parallel=1),
    }
    print("| chunks of 32 trials run in | first sweep, s | seconds a chunk | overhead |\n|---|---|---|---|")
    reference = None
    for name, make in makers.items():
        if name.startswith("Ray"):
            import ray

            ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
        with make() as executor:
            began = time.perf_counter()
            first = swept(task, executor, chunks, steps)
            first = time.perf_counter() - began
            second = swept(task, executor, chunks, steps, 1.1e-4) / chunks
        reference = reference or second
        print(f"| {name} | {first:.1f} | {second:.2f} | {second / reference - 1:+.1%} |", flush=True)


def child(*words: str, **environment: str) -> dict[str, float]:
    """What this script says in a process of its own."""
    command = [sys.executable, __file__, *words]
    told = subprocess.run(
        command, env={**os.environ, **environment}, check=True, capture_output=True, text=True
    )
    return json.loads(told.stdout.splitlines()[-1])


def scaling(task: str, steps: int, chunks: int) -> None:
    print("| devices or workers | trials a second | of one |\n|---|---|---|")
    one = None
    size = ["--task", task, "--steps", str(steps), "--chunks", str(chunks)]
    for devices in (1, 2, 8):
        rate = child("one-sweep", *size, JAX_NUM_CPU_DEVICES=str(devices))["rate"]
        one = one or rate
        print(f"| {devices} host devices, one process | {rate:.1f} | {rate / one:.2f} |", flush=True)
    for workers in (1, 2):
        rate = child("one-sweep", *size, "--workers", str(workers))["rate"]
        print(f"| {workers} workers of Ray, one device each | {rate:.1f} | {rate / one:.2f} |", flush=True)


def one_sweep(task: str, steps: int, chunks: int, workers: int) -> None:
    if not workers:
        executor = InProcess(jax.local_devices())
    else:
        import ray

        ray.init(
            "local", num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
        )
        executor = Ray()
    with executor:
        swept(task, executor, chunks, steps)
        print(json.dumps({"rate": 32 * chunks / swept(task, executor, chunks, steps, 1.1e-4)}))


def tiny(count: int, lanes: str) -> None:
    """Trials of one step: all that they cost is driver and store."""
    settings = outeropt.grid(optimizers.get("sgd"), learning_rate=np.geomspace(1e-5, 1e-1, count).tolist())
    with tempfile.TemporaryDirectory() as folder, outeropt.Store(f"{folder}/runs.db") as store:
        began = time.perf_counter()
        outeropt.sweep(
            tasks.get("Quadratic_10"),
            settings,
            seeds=1,
            steps=1,
            eval_every=1,
            eval_batches=1,
            last_eval_batches=1,
            lanes="auto" if lanes == "auto" else int(lanes),
            store=store,
            set="tiny",
        )
        seconds = time.perf_counter() - began
        size = Path(f"{folder}/runs.db").stat().st_size
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "mb": peak, "store_kb": size / 1024}))


def tinies(lanes: str) -> None:
    print("| trials of one step | seconds | peak memory, MB | store, KB a trial |\n|---|---|---|---|")
    for count in (100, 1000, 10_000):
        found = child("one-tiny", "--count", str(count), "--lanes", lanes)
        size = found["store_kb"] / count
        print(f"| {count} | {found['seconds']:.1f} | {found['mb']:.0f} | {size:.2f} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("overhead", "scaling", "tiny", "one-sweep", "one-tiny"))
    parser.add_argument("--task", default="ImageMLP_Digits_Relu32")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--lanes", default="auto")
    given = parser.parse_args()
    outeropt.use_all_cores()
    if given.what == "overhead":
        overhead(given.task, given.steps, given.chunks)
    elif given.what == "scaling":
        scaling(given.task, given.steps, given.chunks)
    elif given.what == "one-sweep":
        one_sweep(given.task, given.steps, given.chunks, given.workers)
    elif given.what == "tiny":
        tinies(given.lanes)
    else:
        tiny(given.count, given.lanes)
