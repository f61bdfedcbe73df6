"""outeropt optimizes optimizers: rank, sweep, tune, self-tune, meta-train and distil them.

Names are loaded when first used, so that importing the package costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any


_ROOMS = ("bench", "data", "optimizers", "tasks")
_NAMES = {
    "Optimizer": "outeropt.optimizer",
    "Task": "outeropt.task",
    "TaskFamily": "outeropt.task",
    "Space": "outeropt.space",
    "Run": "outeropt.training",
    "train": "outeropt.training",
    "unroll": "outeropt.training",
    "sweep": "outeropt._sweep",
    "Settings": "outeropt._sweep",
    "grid": "outeropt._sweep",
    "sample": "outeropt._sweep",
    "use_all_cores": "outeropt._sweep",
    "Store": "outeropt.store",
    "Archive": "outeropt.store",
    "OuteroptError": "outeropt.errors",
}

if TYPE_CHECKING:
    from outeropt import bench as bench, data as data, optimizers as optimizers, tasks as tasks
    from outeropt._sweep import (
        Settings as Settings,
        grid as grid,
        sample as sample,
        sweep as sweep,
        use_all_cores as use_all_cores,
    )
    from outeropt.errors import OuteroptError as OuteroptError
    from outeropt.optimizer import Optimizer as Optimizer
    from outeropt.space import Space as Space
    from outeropt.store import Archive as Archive, Store as Store
    from outeropt.task import Task as Task, TaskFamily as TaskFamily
    from outeropt.training import Run as Run, train as train, unroll as unroll

__all__ = ["__version__", *_NAMES, *_ROOMS]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("outeropt")
    if name in _NAMES:
        value = getattr(importlib.import_module(_NAMES[name]), name)
        globals()[name] = value
        return value
    if name in _ROOMS:
        return importlib.import_module(f"outeropt.{name}")
    raise AttributeError(f"module 'outeropt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
