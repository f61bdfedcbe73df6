"""Lanes side by side against one by one, on CPU: what a step of a lane takes, and which the engine chooses.

    python benchmarks/lanes.py
    python benchmarks/lanes.py --task UCI_Energy --settings 1 --seeds 32

Side by side, all settings of a seed share its batches. One by one, every lane has its values in the cache.
"""

import argparse
from collections.abc import Callable
from typing import Any
from unittest import mock

import outeropt
from outeropt import optimizers, tasks
from outeropt._sweep import lanes, plan


TASKS = (
    "UCI_Yacht",
    "UCI_Kin8nm_BS128",
    "ImageMLP_FashionMnist8_Relu32",
    "ImageMLP_Cifar10_8_Relu32",
    "UCI_Energy",
    "FashionMnist_MLP50",
    "RNNLM_TinyShakespeare_LSTM64_seq32",
    "ImageMLP_FashionMnist_Relu128x128",
    "ImageMLPAE_Mnist_128x32x128_bs128",
    "Digits_MLP",
    "UCI_Kin8nm",
    "TransformerLM_TinyShakespeare_1layer_32width",
)

ONE = {"eval_batches": 1, "last_eval_batches": 1}


def microseconds(name: str, settings: int, seeds: int, steps: int, lane_map: Callable[..., Any]) -> float:
    """What a step of a lane takes with all devices at work, the better of two runs."""
    rates = [1e-4 * 1.1**i for i in range(settings)]
    grid = outeropt.grid(optimizers.get("adamw"), learning_rate=rates)
    with mock.patch.object(plan, "_lane_map", lambda *_: lane_map):
        how = {"seeds": seeds, "steps": steps, "eval_every": steps, **ONE}
        runs = [outeropt.sweep(tasks.get(name), grid, **how) for _ in range(2)]
    return 1e6 * min(float(run.seconds.mean()) for run in runs) / steps


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", action="append", help="default: a dozen")
    parser.add_argument("--settings", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=60)
    given = parser.parse_args()
    outeropt.use_all_cores()
    print("| task | side by side, us | one by one, us | ratio | chosen |\n| --- | --- | --- | --- | --- |")
    for name in given.task or TASKS:
        beside, alone = (
            microseconds(name, given.settings, given.seeds, given.steps, lane_map)
            for lane_map in (lanes.vectorized, lanes.one_by_one)
        )
        chosen = (
            "one by one" if plan._lane_map(tasks.get(name), "cpu") is lanes.one_by_one else "side by side"
        )
        print(f"| {name} | {beside:.1f} | {alone:.1f} | {alone / beside:.2f} | {chosen} |", flush=True)


if __name__ == "__main__":
    main()
