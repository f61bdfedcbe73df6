"""`outeropt export`: a store's archives as files to publish."""

import dataclasses
from pathlib import Path

import tyro


@dataclasses.dataclass(frozen=True)
class Config:
    """Write one Parquet and one .npz file per task and set."""

    store: tyro.conf.Positional[Path]
    """The store (.db)."""
    out: str = "archive"
    """Folder for TASK/SET.parquet and TASK/SET.npz, or an address that fsspec knows (s3://bucket/archive)."""
    tasks: str = "*"
    """Only tasks that match this pattern."""
    sets: str = "*"
    """Only sets that match this pattern."""


def run(config: Config) -> None:
    """Runs the command."""
    from outeropt.bench import reporting
    from outeropt.store import export

    for path in export(reporting.read(config.store, config.tasks, config.sets), config.out):
        print(path)
