"""Libraries that are not always there, imported when they are needed."""

import importlib
from typing import Any

from outeropt.errors import ConfigError


def load(module: str, package: str) -> Any:
    """The module of this name.

    Args:
      module: as `import` takes it.
      package: what to install for it.

    Raises:
      ConfigError: the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != module.partition(".")[0]:
            raise
        raise ConfigError(
            f"This model needs {package}, which is not installed: pip install {package}."
        ) from None
