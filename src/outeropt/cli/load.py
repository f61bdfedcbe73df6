"""`outeropt load`: archives and other stores into a store."""

import dataclasses
from pathlib import Path

import tyro

from outeropt.errors import StoreError


@dataclasses.dataclass(frozen=True)
class Config:
    """Load exported archives, those that learned_optimization published, or another store into a store."""

    path: tyro.conf.Positional[Path]
    """A file (.npz, .parquet, .curves) or a folder of them, or a store (.db)."""
    store: Path = Path("runs.db")
    """Where to put them; trials that are there already stay as they are."""


def run(config: Config) -> None:
    """Runs the command."""
    from outeropt.store import Store, load, load_folder, load_published

    if config.path.suffix == ".db":
        with Store(config.path, "read") as other, Store(config.store) as store:
            print(f"{config.path}: {store.merge(other)} new trials")
        return
    try:
        archives = load_folder(config.path) if config.path.is_dir() else [load(config.path)]
    except StoreError as ours:
        try:
            archives = load_published(config.path)
        except StoreError as published:
            raise StoreError(f"{ours} As a published archive: {published}") from None
    with Store(config.store) as store:
        for archive in archives:
            new = store.add_archive(archive)
            print(f"{archive.task}: {archive.set}, {archive.diverged_at.size} trials, {new} new")
