"""`outeropt data`: datasets on this machine."""

import dataclasses
from typing import Literal

import tyro

from outeropt.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Config:
    """Get datasets (with checksum and resume), or list them."""

    action: tyro.conf.Positional[Literal["get", "list"]]
    """get NAME ..., or list."""
    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Datasets to get."""


def run(config: Config) -> None:
    """Runs the command."""
    from outeropt import data

    if config.action == "list":
        for name in data.names():
            print(data.describe(name))
        return
    if not config.names:
        raise ConfigError(f"Say which dataset to get: {', '.join(data.names())}.")
    for name in config.names:
        for path in data.fetch(name):
            print(path)
