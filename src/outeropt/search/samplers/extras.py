"""Packages that only some samplers need."""

import importlib
from typing import Any

from outeropt.errors import ConfigError


def needed(package: str, method: str) -> Any:
    """The package, imported.

    Raises:
      ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError:
        raise ConfigError(
            f'The method {method} needs {package}; pip install "outeropt[tune]", or take sobol or halving.'
        ) from None
