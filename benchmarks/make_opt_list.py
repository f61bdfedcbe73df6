"""Makes the tuned list of NAdamW configurations that the package ships, by a search on our own tasks.

    python benchmarks/make_opt_list.py --store opt_list.db

Draws random configurations of `nadamw_cosine`, trains every task with each, and orders them greedily: each
next one most lowers the mean over tasks of the best loss so far. A store given with `--store` keeps finished
trials, so that a killed search goes on where it was.
"""

import argparse
import contextlib
import json
import sys

import jax
import numpy as np

import outeropt
from outeropt import optimizers, tasks
from outeropt.errors import OuteroptError
from outeropt.optimizers.opt_list import greedy
from outeropt.optimizers.own_table import OPT_LIST
from outeropt.space import Space


# What is drawn, and where one in `ZERO` is drawn as 0 every other time.
SPACES = {
    "learning_rate": Space.log(1e-5, 1.0),
    "b1": Space.logit(0.5, 0.999),
    "b2": Space.logit(0.8, 0.9999),
    "eps": Space.log(1e-9, 1e-2),
    "weight_decay": Space.log(1e-5, 1.0, allowed=(0.0, 1.0)),
    "l2_weight_decay": Space.log(1e-7, 1e-2, allowed=(0.0, 1.0)),
    "warmup_fraction": Space.linear(0.0, 0.1),
    "end_fraction": Space.linear(0.0, 0.3),
    "constant_fraction": Space.linear(0.0, 0.8),
}
ZERO = ("weight_decay", "l2_weight_decay", "warmup_fraction", "end_fraction")
TASKS = (
    "ImageMLP_Digits_Relu32",
    "ImageMLP_Digits_Tanh32x32x32x32",
    "ImageMLP_FashionMnist8_Relu32",
    "ImageMLPAE_Digits_32x8x32_bs128",
    "Logistic_Digits",
    "UCI_Yacht",
    "Quadratic_100_cond1000_rotated",
    "Linear_100_cond1000",
)


def draw(count: int, seed: int) -> list[dict[str, float]]:
    """Random configurations, rounded to three digits as they will stand in the list."""
    keys = jax.random.split(jax.random.key(seed), len(SPACES) + 1)
    drawn = {name: np.asarray(space.sample(key, count)) for (name, space), key in zip(SPACES.items(), keys)}
    kept = np.random.default_rng(seed).random((count, len(ZERO))) < 0.5
    for column, name in enumerate(ZERO):
        drawn[name] = np.where(kept[:, column], drawn[name], 0.0)
    return [{name: float(f"{values[i]:.3g}") for name, values in drawn.items()} for i in range(count)]


def normalised(losses: np.ndarray) -> np.ndarray:
    """Losses of one task as 0 for the best configuration and 1 for the median one and all that is worse."""
    finite = losses[np.isfinite(losses)]
    best, middle = finite.min(), np.median(finite)
    scaled = (losses - best) / max(middle - best, np.finfo(np.float32).tiny)
    return np.where(np.isfinite(scaled), np.minimum(scaled, 1.0), 1.0)


def main() -> int:
    """Draws, trains, orders, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--configurations", type=int, default=256)
    parser.add_argument("--count", type=int, default=10, help="length of the list")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--store", default=None, help="keeps finished trials")
    parser.add_argument("--out", default=str(OPT_LIST))
    args = parser.parse_args()
    try:
        outeropt.use_all_cores()
        configurations = draw(args.configurations, args.seed)
        settings = [optimizers.get("nadamw_cosine", **configuration) for configuration in configurations]
        columns = []
        with outeropt.Store(args.store) if args.store else contextlib.nullcontext() as store:
            for name in args.tasks:
                archive = outeropt.sweep(
                    tasks.get(name),
                    settings,
                    seeds=args.seeds,
                    steps=args.steps,
                    eval_every=args.steps,
                    last_eval_batches=20,
                    store=store,
                    optimizer_name="nadamw_cosine",
                )
                curve = "valid/loss" if "valid/loss" in archive.curves else "train/loss"
                columns.append(normalised(archive.final(curve).astype(np.float64).mean(axis=1)))
                print(f"{name}: best is configuration {int(np.argmin(columns[-1]))}", flush=True)
        losses = np.stack(columns, axis=1)
        order = greedy(losses, args.count)
        best = np.minimum.accumulate(losses[order], axis=0).mean(axis=1)
        for place, (index, mean) in enumerate(zip(order, best)):
            print(f"{place:3d}  configuration {index:4d}  mean of the best so far {mean:.4f}")
        document = {
            "tasks": args.tasks,
            "steps": args.steps,
            "seeds": args.seeds,
            "drawn": args.configurations,
            "seed": args.seed,
            "mean_of_best": [round(float(value), 5) for value in best],
            "configurations": [configurations[index] for index in order],
        }
        with open(args.out, "w") as file:
            json.dump(document, file, indent=1)
            file.write("\n")
    except OuteroptError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
