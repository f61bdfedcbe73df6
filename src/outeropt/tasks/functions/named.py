"""Test functions by name: `Function_Rosenbrock` has two parameters, `Function_Rosenbrock_50` has fifty."""

import functools
import re
from collections.abc import Callable

from outeropt.errors import ConfigError
from outeropt.task import Task
from outeropt.tasks.functions.planar import PLANAR
from outeropt.tasks.functions.scalable import SCALABLE
from outeropt.tasks.functions.shekel import SHEKEL
from outeropt.tasks.functions.surface import FunctionTask, Surface


# The size, besides two, in which functions of any size are listed; the others are there all the same.
LISTED_SIZE = 50

SURFACES: dict[str, Surface] = dict(
    sorted((PLANAR | {"Shekel": SHEKEL} | {name: entry.at(2) for name, entry in SCALABLE.items()}).items())
)


def _sized(name: str, function: str, dim: int) -> FunctionTask:
    entry = SCALABLE[function]
    if dim < entry.least:
        raise ConfigError(f"Function_{function} needs at least {entry.least} parameters; {name} has {dim}.")
    return FunctionTask(name, entry.at(dim))


def by_rule(name: str) -> Callable[[], Task] | None:
    """The builder of `Function_<name>_<number of parameters>`; None if the name is no such.

    The builder raises ConfigError where a function needs more parameters than that.
    """
    found = re.fullmatch(r"Function_(\w+)_([1-9]\d*)", name)
    if found is None or found[1] not in SCALABLE:
        return None
    return functools.partial(_sized, name, found[1], int(found[2]))


TASKS: dict[str, Callable[[], Task]] = {
    **{
        f"Function_{name}": functools.partial(FunctionTask, f"Function_{name}", surface)
        for name, surface in SURFACES.items()
    },
    **{
        f"Function_{name}_{LISTED_SIZE}": functools.partial(
            _sized, f"Function_{name}_{LISTED_SIZE}", name, LISTED_SIZE
        )
        for name in SCALABLE
    },
}
