"""What a search finds for its work: every method of outeropt.search on one task, from ten seeds.

    python benchmarks/search.py                             # three minutes on two cores
    python benchmarks/search.py --task ImageMLP_FashionMnist8_Relu32

AdamW's learning rate, weight decay and b1 in their whole spaces. Printed: validation loss of the best setting
(mean and median over the seeds of the search), its test loss, and the work in trials of full length.
"""

import argparse

import numpy as np

from outeropt import optimizers, tasks, use_all_cores
from outeropt.search import search


SEARCHES = (
    ("random", 12, 12),
    ("sobol", 12, 12),
    ("bayes", 12, 4),
    ("cmaes", 12, 4),
    ("pbt", 12, 12),
    ("hyperband", 27, 16),
    ("halving", 64, 16),
    ("random", 64, 16),
    ("bayes", 64, 16),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="ImageMLP_Digits_Relu32")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=10)
    given = parser.parse_args()
    use_all_cores()
    task, adamw = tasks.get(given.task), optimizers.get("adamw")
    print("| method | trials | parallel | work | valid/loss, mean | median | test/loss, mean |")
    print("|---|---|---|---|---|---|---|")
    for method, trials, parallel in SEARCHES:
        rows = []
        for seed in range(given.seeds):
            found = search(
                task,
                adamw,
                method=method,
                trials=trials,
                parallel=parallel,
                steps=given.steps,
                eval_every=given.steps // 16,
                seed=seed,
                tune=["learning_rate", "weight_decay", "b1"],
            )
            (archive, *_) = found.archives
            best = archive.best("valid/loss")
            rows.append((found.incumbent.trials[-1], found.score, archive.final("test/loss")[best, 0]))
        work, valid, test = np.array(rows).T
        cells = f"{valid.mean():.3f} | {np.median(valid):.3f} | {test.mean():.3f}"
        print(f"| {method} | {trials} | {parallel} | {work[0]:.0f} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
