"""`outeropt leaderboard`: rank optimizers on a suite of tasks."""

import dataclasses
from pathlib import Path
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Config:
    """Rank optimizers on a suite of tasks: a table, figures and one interactive page.

    Every optimizer plays twice: tuned (the best of nine learning rates, by validation loss) and as is (its
    default). An interrupted run goes on where it stopped.
    """

    suite: str = "bundled"
    """bundled (no download, minutes on two cores), real (Fashion-MNIST, CIFAR-10, text; half an hour),
    metaopt-functions (test functions of 50 parameters) or metaopt (workloads of Meta-Optimization)."""
    optimizers: tuple[str, ...] = ()
    """Contestants in place of the suite's own; wrapped names such as clip:adam are welcome."""
    store: Path = Path("leaderboard.db")
    """Where finished trials are kept; those that are there already are not run again."""
    out: Path = Path("leaderboard")
    """Folder for index.html and figures/."""
    curve: Literal["train/loss", "valid/loss", "test/loss"] = "train/loss"
    """The curve that the ranking scores."""


def run(config: Config) -> None:
    """Runs the command."""
    from outeropt.cli.running import prepare

    prepare()
    from outeropt.bench import reporting, suites
    from outeropt.bench.run import run_all, trials
    from outeropt.cli.show import show_leaderboard
    from outeropt.progress import Progress
    from outeropt.store import Store

    plan = suites.get(config.suite).plan(config.optimizers)
    with Store(config.store) as store, Progress("trials") as progress:
        bar = progress.task(f"{config.suite} suite", sum(map(trials, plan.values())))
        archives = run_all(plan, store, bar.advance)
    board, normalizer = reporting.ranked(archives, config.curve)
    assert board is not None  # every suite's tasks are in the shipped normalizer: tests/test_leaderboard.py
    show_leaderboard(board)
    page = reporting.write(
        archives, board, normalizer, config.out, f"Which optimizer wins? The {config.suite} suite"
    )
    print(f"Report: {page}")
