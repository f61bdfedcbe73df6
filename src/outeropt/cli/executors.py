"""Where the chunks of a sweep run, from the words of the command line."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outeropt.cli.values import Plain, coerce
from outeropt.errors import ConfigError, unknown_name


if TYPE_CHECKING:
    from outeropt._sweep import Executor


PLACES = "here, processes, slurm, ray, or a Ray cluster's address (ray://HEAD:10001)"


def executor_of(on: str, ray: Mapping[str, Plain], slurm: Mapping[str, Plain], store: Path) -> "Executor":
    """The executor that options ask for.

    Args:
      on: one of `PLACES`.
      ray: options of `Ray` by name.
      slurm: options of `Slurm` by name; all others are for `sbatch`.
      store: the sweep's store; jobs and their logs go beside it.

    Raises:
      ConfigError: there is no such place, an option of another place or type, or a package is missing.
    """
    import jax

    from outeropt._sweep import InProcess, Ray, Slurm

    is_ray, is_slurm = on == "ray" or on.startswith("ray://"), on in ("slurm", "processes")
    for name, given, wanted in (("ray", ray, is_ray), ("slurm", slurm, is_slurm)):
        if given and not wanted:
            raise ConfigError(f"--{name}.* options go with --on {name}, not with --on {on}.")
    if on == "here":
        return InProcess(jax.local_devices())
    if is_ray:
        options = _checked("ray", Ray, ray, {"address"})
        for name in ray.keys() - options.keys():
            raise unknown_name("option of --ray", name, _names(Ray, {"address"}))
        return Ray(None if on == "ray" else on, **options)
    if is_slurm:
        fixed = {"folder", "cluster", "options"}
        options = _checked("slurm", Slurm, slurm, fixed)
        others = {name: value for name, value in slurm.items() if name not in options}
        cluster = "local" if on == "processes" else "slurm"
        return Slurm(Path(f"{store}.jobs").resolve(), cluster, **options, options=others)
    raise ConfigError(f"--on {on} is no place to run; give {PLACES}.")


def _names(executor: Callable[..., Any], fixed: set[str]) -> dict[str, Any]:
    """Options of an executor, and their types."""
    parameters = inspect.signature(executor).parameters
    return {name: p.annotation for name, p in parameters.items() if name not in fixed}


def _checked(
    place: str, executor: Callable[..., Any], given: Mapping[str, Plain], fixed: set[str]
) -> dict[str, Any]:
    known = _names(executor, fixed)
    return {
        name: coerce(value, known[name], f"--{place}.{name}")
        for name, value in given.items()
        if name in known
    }
