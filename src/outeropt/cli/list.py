"""`outeropt list`: what there is, by name or pattern."""

import dataclasses
import fnmatch
from collections.abc import Iterable
from typing import Literal

import tyro


@dataclasses.dataclass(frozen=True)
class Config:
    """List tasks, optimizers, sets, datasets, or learned optimizers: architectures, estimators, weights,
    presets of amalgamation."""

    what: tyro.conf.Positional[
        Literal["tasks", "optimizers", "sets", "data", "architectures", "estimators", "weights", "presets"]
    ]
    """What to list."""
    pattern: tyro.conf.Positional[str | None] = None
    """Keep names that match, with *, ? and [...] as in a shell; quote it."""


def run(config: Config) -> None:
    """Runs the command."""
    kinds = {
        "tasks": _tasks,
        "optimizers": _optimizers,
        "sets": _sets,
        "data": _data,
        "architectures": _architectures,
        "estimators": _estimators,
        "weights": _weights,
        "presets": _presets,
    }
    pattern = config.pattern
    found = [name for name in kinds[config.what]() if pattern is None or fnmatch.fnmatchcase(name, pattern)]
    for name in found:
        print(name)
    if not found and pattern is not None:
        from outeropt.errors import UnknownName

        raise UnknownName(f"No {config.what} match {pattern!r}; outeropt list {config.what} shows all.")


def _tasks() -> Iterable[str]:
    from outeropt import tasks

    return tasks.names()


def _optimizers() -> Iterable[str]:
    from outeropt import optimizers

    return optimizers.names()


def _sets() -> Iterable[str]:
    from outeropt.bench import collections, sets

    return [*collections.names(), *sets.names()]


def _data() -> Iterable[str]:
    from outeropt import data

    return data.names()


def _architectures() -> Iterable[str]:
    from outeropt import learned

    return learned.ARCHITECTURES


def _estimators() -> Iterable[str]:
    from outeropt import metatraining

    return metatraining.ESTIMATORS


def _weights() -> Iterable[str]:
    from outeropt import learned

    return learned.names()


def _presets() -> Iterable[str]:
    from outeropt.cli.amalgamate import Config

    return sorted(path.stem for path in Config.PRESETS.glob("*.yaml"))
