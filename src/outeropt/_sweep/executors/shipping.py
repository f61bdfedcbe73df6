"""Getting a user's own code to workers that do not have its files."""

import os
import sys
from types import ModuleType
from typing import Any

from outeropt import tree


def carry_own_code(cloudpickle: Any) -> None:
    """Lets `cloudpickle` send the user's modules as they are, not by name: a worker need not find them."""
    for module in [module for module in list(sys.modules.values()) if _is_carried(module)]:
        cloudpickle.register_pickle_by_value(module)


def environment() -> dict[str, str]:
    """What of this process's environment decides numbers, or where data are, for a worker to have too."""
    return {name: os.environ[name] for name in os.environ if name.startswith(("OUTEROPT_", "JAX_", "XLA_"))}


def _is_carried(module: Any) -> bool:
    # The main module goes by value anyway.
    own = isinstance(module, ModuleType) and module.__name__ != "__main__"
    return own and getattr(module, "__file__", None) is not None and tree.is_own_module(module.__name__)
