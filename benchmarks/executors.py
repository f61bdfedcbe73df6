"""What it costs to run chunks elsewhere, how sweeps grow with cores, and how many trials a driver can take.

    python benchmarks/executors.py overhead       # seconds a chunk: this process, Ray, processes
    python benchmarks/executors.py scaling        # trials a second: 1, 2, 8 devices; 1, 2 workers
    python benchmarks/executors.py tiny           # 10 000 trials of one step through driver and store
    python benchmarks/executors.py tiny --lanes 1 # the same, a chunk for every two trials

`overhead` runs sweeps of a few chunks of the default size with each executor, one worker and one device a
chunk, and times those after the first, when programs are compiled. Ray and this process, which is the
reference, take turns; printed are medians and ranges. Each line of `scaling` and `tiny` is a process of its
own.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
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


def overhead(task: str, steps: int, chunks: int, rounds: int = 3) -> None:
    import ray

    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    folder = Path(tempfile.mkdtemp())
    here, far = InProcess(jax.local_devices()[:1]), Ray()
    executors: dict[str, Executor] = {"this process": here, "Ray, one worker": far}
    times: dict[str, list[float]] = {name: [] for name in executors}
    first = {name: swept(task, executor, chunks, steps) for name, executor in executors.items()}
    for number in range(rounds):  # in turns, for the machine is not always the same
        for name, executor in executors.items():
            rate = 1e-4 * (1.1 + number / 10)
            times[name].append(swept(task, executor, chunks, steps, rate) / chunks)
    far.close()
    ray.shutdown()
    with Slurm(folder, "local", parallel=1) as executor:
        first["processes, one after the other"] = swept(task, executor, chunks, steps)
        times["processes, one after the other"] = [swept(task, executor, chunks, steps, 1.1e-4) / chunks]
    print("| chunks of 32 trials run in | first sweep, s | seconds a chunk | overhead |\n|---|---|---|---|")
    reference = statistics.median(times["this process"])
    for name, found in times.items():
        middle = statistics.median(found)
        spread = f" ({min(found):.2f} to {max(found):.2f})" if len(found) > 1 else ""
        print(f"| {name} | {first[name]:.1f} | {middle:.2f}{spread} | {middle / reference - 1:+.1%} |")


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
        size = sum(path.stat().st_size for path in Path(folder).glob("runs.db*"))  # with its log
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
