"""outeropt optimizes optimizers: rank, sweep, tune, self-tune, meta-train and distil them.

Names are loaded when first used, so that importing the package costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any


_ROOMS = (
    *("algoperf", "amalgamation", "bench", "data", "learned", "metatraining", "optimizers", "search"),
    *("selftuning", "tasks"),
)
# Rooms above `optimizers` that add names of their own to it: `learned:small_fc`, `metaopt`.
_SOURCES = ("learned", "selftuning")
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
    from outeropt import algoperf as algoperf
    from outeropt import amalgamation as amalgamation
    from outeropt import bench as bench
    from outeropt import data as data
    from outeropt import learned as learned
    from outeropt import metatraining as metatraining
    from outeropt import optimizers as optimizers
    from outeropt import search as search
    from outeropt import selftuning as selftuning
    from outeropt import tasks as tasks
    from outeropt._sweep import (
        Settings as Settings,
    )
    from outeropt._sweep import (
        grid as grid,
    )
    from outeropt._sweep import (
        sample as sample,
    )
    from outeropt._sweep import (
        sweep as sweep,
    )
    from outeropt._sweep import (
        use_all_cores as use_all_cores,
    )
    from outeropt.errors import OuteroptError as OuteroptError
    from outeropt.optimizer import Optimizer as Optimizer
    from outeropt.space import Space as Space
    from outeropt.store import Archive as Archive
    from outeropt.store import Store as Store
    from outeropt.task import Task as Task
    from outeropt.task import TaskFamily as TaskFamily
    from outeropt.training import Run as Run
    from outeropt.training import train as train
    from outeropt.training import unroll as unroll

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


def _load_sources() -> None:
    """Loads the rooms that add names to `optimizers`, which may not import them itself."""
    for room in _SOURCES:
        importlib.import_module(f"outeropt.{room}")


def __dir__() -> list[str]:
    return sorted(__all__)
