"""`outeropt tune`: search hyperparameters, or tune them while they train."""

import dataclasses
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from outeropt.cli.config import Plain


@dataclasses.dataclass(frozen=True)
class Config:
    """Look for the hyperparameters with the lowest validation loss.

    Searches (random, grid, sobol, bayes, cmaes, halving, hyperband, pbt) try --trials settings. Methods that
    tune while they train (one-pass, ...) start --restarts times from random settings. Other hyperparameters
    are set by --optimizer.NAME VALUE; -c a.yaml b.yaml fills any option (the later file wins). The same
    command goes on after an interruption.
    """

    DOTTED: ClassVar[dict[str, str]] = {"optimizer": "hyperparameters"}

    task: str
    """A task's name (outeropt list tasks), or path/to/file.py:attribute."""
    optimizer: str = "adamw"
    """An optimizer's name (outeropt list optimizers), or wrapper:name."""
    hyperparameters: Annotated[dict[str, Plain], tyro.conf.Suppress] = dataclasses.field(default_factory=dict)
    method: str = "halving"
    """How to look: a search, or a method that tunes while it trains."""
    tune: str | None = None
    """Names of the hyperparameters to tune, with commas between. Default: the learning rate."""
    trials: int = 64
    """Settings to try, by a search."""
    parallel: int = 16
    """Settings that are trained side by side."""
    restarts: int = 100
    """Random starts, of a method that tunes while it trains."""
    steps: int = 1000
    """Inner steps of a trial of full length."""
    seeds: int = 1
    """Seeds for every setting of a search."""
    seed: int = 0
    """Seed of the search's own randomness; of restarts, the first."""
    eval_every: int | None = None
    """Inner steps between evaluations; must divide steps. Default: about a hundred evaluations."""
    store: Path = Path("runs.db")
    """Where finished trials are kept; those that are there already are not run again."""
    warm_start: Path | None = None
    """A store whose trials of this task, optimizer and number of steps the search hears first."""
    name: str | None = None
    """Name of the set in the store. Default: made from optimizer and method."""


def run(config: Config) -> None:
    """Runs the command."""
    from outeropt.cli.running import prepare

    prepare()
    from outeropt.cli.tuning import tuned

    tuned(config)
    print(f"Trials: {config.store}   next: outeropt report {config.store}")
