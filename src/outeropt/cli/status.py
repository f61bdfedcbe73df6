"""`outeropt status`: what a store holds."""

import dataclasses
from pathlib import Path

import tyro


@dataclasses.dataclass(frozen=True)
class Config:
    """Say what a store holds: finished, missing and diverged trials of every set on every task."""

    store: tyro.conf.Positional[Path] = Path("runs.db")
    """The store (.db)."""


def run(config: Config) -> None:
    """Runs the command."""
    from outeropt.cli.show import show_table
    from outeropt.store import Store

    with Store(config.store, "read") as store:
        rows = store.status()
    show_table(
        ["task", "set", "finished ", "missing ", "diverged "],
        [
            [r.task, r.set, str(r.finished), str(r.expected - r.finished or ""), str(r.diverged or "")]
            for r in rows
        ],
        str(config.store),
    )
