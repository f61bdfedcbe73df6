"""`outeropt resume`: go on with the sweeps that a store remembers."""

import dataclasses
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from outeropt.cli.values import Plain
from outeropt.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Config:
    """Give the sweeps of a store again that are not finished, as they were given; only what is missing runs.

    Another place to run has options of its own: --ray.* and --slurm.*, as in outeropt sweep.
    """

    DOTTED: ClassVar[dict[str, str]] = {"ray": "ray", "slurm": "slurm"}

    store: tyro.conf.Positional[Path] = Path("runs.db")
    """The store (.db)."""
    on: str | None = None
    """Where chunks of trials run, in place of where they ran: see outeropt sweep."""
    ray: Annotated[dict[str, Plain], tyro.conf.Suppress] = dataclasses.field(default_factory=dict)
    slurm: Annotated[dict[str, Plain], tyro.conf.Suppress] = dataclasses.field(default_factory=dict)


def run(config: Config) -> None:
    """Runs the command."""
    from outeropt.cli import sweep
    from outeropt.cli.running import recalled
    from outeropt.store import Store

    with Store(config.store, "read") as store:
        commands = store.commands()
        done = {(row.task, row.set) for row in store.status() if row.finished == row.expected}
    if not commands:
        raise ConfigError(f"{config.store} remembers no sweep; give the command again that filled it.")
    missing = [command for command in commands if not {*command.sets} <= done]
    for command in missing:
        found = recalled(command, config.store)
        if config.on is not None:
            found = dataclasses.replace(found, on=config.on, ray=config.ray, slurm=config.slurm)
        sweep.run(found)
    if not missing:
        print(f"Nothing is missing in {config.store}.")
