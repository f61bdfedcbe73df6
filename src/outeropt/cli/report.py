"""`outeropt report`: a store as tables, figures and one interactive page."""

import dataclasses
from pathlib import Path
from typing import Literal

import tyro


@dataclasses.dataclass(frozen=True)
class Config:
    """Turn a store into tables, figures and one interactive page that works offline."""

    store: tyro.conf.Positional[Path]
    """The store (.db), or a folder of exported archives."""
    out: Path = Path("report")
    """Folder for index.html and figures/."""
    tasks: str = "*"
    """Only tasks that match this pattern."""
    sets: str = "*"
    """Only sets that match this pattern."""
    curve: Literal["train/loss", "valid/loss", "test/loss"] = "train/loss"
    """The curve that the ranking scores."""
    reference: str | None = None
    """The normalizer: a shipped version, or a .npz file. Default: shipped, else made from these archives."""
    title: str = "Which optimizer wins?"
    """Heading of the page."""


def run(config: Config) -> None:
    """Runs the command."""
    from outeropt.bench import reporting
    from outeropt.cli.show import show_families, show_leaderboard

    archives = reporting.read(config.store, config.tasks, config.sets)
    board, normalizer = reporting.ranked(archives, config.curve, config.reference)
    if board:
        show_leaderboard(board)
    show_families(archives)
    page = reporting.write(archives, board, normalizer, config.out, config.title)
    print(f"Report: {page}")
