"""Does tuning while training work? The episode protocol of Meta-Optimization on digits, and on minibatches.

    python benchmarks/selftuning.py                       # both tables; ten minutes on two cores
    python benchmarks/selftuning.py --protocol minibatch

A perceptron 64-100-100-10, six episodes of 250 steps: parameters are drawn anew in each, and what an
optimizer learned about training stays. *One batch*: the same 512 images at every step. *Minibatch*: 128 of
the training images. Printed: the mean training loss over the last 10 steps of an episode, as mean and 95 %
interval over seeds, and seconds for a seed. Learning rates of the tuned are the best of nine by that number
in the last episode.
"""

import argparse
import functools

import numpy as np

from outeropt import Optimizer, optimizers, selftuning, sweep, tasks, use_all_cores
from outeropt.bench.statistics import mean_interval
from outeropt.selftuning import AdamScaled, MetaOpt
from outeropt.tasks.wrappers.augment import ReducedBatch


EPISODES, STEPS = 6, 250
RATES = tuple(float(rate) for rate in np.geomspace(1e-4, 1.0, 9))
TUNED = ("sgd", "momentum", "adam", "adamw")
TUNING_FREE = ("dadapt_adamw", "prodigy", "mechanic_adamw", "schedule_free_adamw", "cocob", "dog", "dowg")


def contestants() -> dict[str, Optimizer]:
    """Optimizers that tune themselves, by what distinguishes them."""

    def of(name, rate):
        return optimizers.get(name, learning_rate=rate)

    sgd, adam = functools.partial(of, "sgd"), functools.partial(of, "adam")
    found = {
        "metaopt": optimizers.get("metaopt"),
        "metaopt, diagonal": optimizers.get("metaopt", controller="diagonal"),
        "metaopt, memory 4": optimizers.get("metaopt", memory=4),
        "its Adam disturbance, meta step constant": MetaOpt(sgd(1e-4), adam(1e-4), AdamScaled(), memory=1),
        "the same, averaged": MetaOpt(
            sgd(1e-4), optimizers.get("averaged:adam", learning_rate=1e-4, decay=0.99), AdamScaled(), memory=1
        ),
        "raw, memory 32, base .1": MetaOpt(sgd(0.1), adam(1e-3), memory=32, horizon=2),
        "hypergradient:adam": optimizers.get("hypergradient:adam"),
        "driven:adam": optimizers.get("driven:adam"),
        "self_tuning": selftuning.default(),
    }
    return found | {name: optimizers.get(name) for name in TUNING_FREE}


def ends(task, optimizer) -> tuple[np.ndarray, float]:
    """Losses (settings, seeds, episodes) at the ends of episodes, and seconds of a trial."""
    archive = sweep(
        task,
        optimizer,
        seeds=5,
        steps=STEPS,
        episodes=EPISODES,
        eval_every=10,
        eval_batches=1,
        last_eval_batches=1,
    )
    last = [(episode + 1) * STEPS // 10 for episode in range(EPISODES)]
    return archive.curves["inner/loss"][:, :, last], float(archive.seconds.mean())


def row(name: str, losses: np.ndarray, seconds: float) -> str:
    """One line of the table from losses (seeds, episodes)."""
    cells = []
    for values in losses.T:
        mean, low, _ = mean_interval(values)
        cells.append(f"{mean:.2g} +- {mean - low:.1g}")
    return f"| {name} | {' | '.join(cells)} | {seconds:.2f} |"


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--protocol", choices=("one batch", "minibatch"), action="append")
    chosen = parser.parse_args().protocol or ("one batch", "minibatch")
    use_all_cores()
    known = {
        "one batch": tasks.get("Digits_MLP_FixedBatch"),
        "minibatch": ReducedBatch(tasks.get("Digits_MLP"), 0.25),
    }
    for protocol in chosen:
        task = known[protocol]
        print(f"\n{protocol}\n")
        print(f"| optimizer | {' | '.join(f'episode {i + 1}' for i in range(EPISODES))} | seconds |")
        print(f"|---|{'---|' * (EPISODES + 1)}")
        for name in TUNED:
            losses, seconds = ends(task, [optimizers.get(name, learning_rate=rate) for rate in RATES])
            means = losses[:, :, -1].mean(axis=1)
            best = int(np.argmin(np.where(np.isfinite(means), means, np.inf)))
            print(row(f"{name}, tuned: {RATES[best]:.2g}", losses[best], seconds), flush=True)
        for name, optimizer in contestants().items():
            losses, seconds = ends(task, optimizer)
            print(row(name, losses[0], seconds), flush=True)


if __name__ == "__main__":
    main()
