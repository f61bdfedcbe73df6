"""`outeropt list`: what there is, by name or pattern."""

import dataclasses
from typing import Literal

import tyro


@dataclasses.dataclass(frozen=True)
class Config:
    """List tasks, optimizers, sets or datasets."""

    what: tyro.conf.Positional[Literal["tasks", "optimizers", "sets", "data"]]
    """What to list."""
    pattern: tyro.conf.Positional[str | None] = None
    """Keep names that match, with *, ? and [...] as in a shell; quote it."""


def run(config: Config) -> None:
    """Runs the command."""
    names = {"tasks": _tasks, "optimizers": _optimizers, "sets": _sets, "data": _data}[config.what]
    found = names(config.pattern)
    for name in found:
        print(name)
    if not found:
        from outeropt.errors import UnknownName

        see = f"outeropt list {config.what}"
        raise UnknownName(f"No {config.what} match {config.pattern!r}; {see} shows all.")


def _tasks(pattern: str | None) -> list[str]:
    from outeropt import tasks

    return tasks.names(pattern)


def _optimizers(pattern: str | None) -> list[str]:
    from outeropt import optimizers

    return optimizers.names(pattern)


def _sets(pattern: str | None) -> list[str]:
    from outeropt.bench import sets

    return sets.names(pattern)


def _data(pattern: str | None) -> list[str]:
    import fnmatch

    from outeropt import data

    return [name for name in data.names() if pattern is None or fnmatch.fnmatchcase(name, pattern)]
