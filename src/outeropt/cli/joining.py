"""Joining the processes that run one command together."""

import os

from outeropt.errors import ConfigError


# Options, and the variables that stand for them.
_VARIABLES = {
    "--coordinator": "JAX_COORDINATOR_ADDRESS",
    "--processes": "JAX_NUM_PROCESSES",
    "--process": "JAX_PROCESS_ID",
}


def join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Joins this process with the others of the command; call before anything of JAX runs.

    Where nothing is given, by options or variables, the tasks of a SLURM job step (`srun`) are joined, and
    elsewhere a process is alone.

    Args:
      coordinator: `HOST:PORT` of the first process.
      processes: how many there are; 1 joins none.
      process: which one this is, from 0.

    Raises:
      ConfigError: a part of this is missing or not possible, or the others do not come.
    """
    import jax

    options = dict(zip(_VARIABLES, (coordinator, processes, process)))
    given = {name: value if value is not None else _variable(name) for name, value in options.items()}
    if given["--processes"] == 1:
        return
    missing = [name for name, value in given.items() if value is None]
    how: dict[str, object] = {}
    if len(missing) == len(given):
        if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) < 2:
            return
        how["cluster_detection_method"] = "slurm"
    elif missing:
        told = ", ".join(f"{name} (or {_VARIABLES[name]})" for name in missing)
        raise ConfigError(f"To join processes give {told} as well, or --processes 1 to run this one alone.")
    else:
        address, count, number = given["--coordinator"], given["--processes"], given["--process"]
        _check(address, count, number)
        how = {"coordinator_address": address, "num_processes": count, "process_id": number}
        how["cluster_detection_method"] = "deactivate"
    try:
        jax.distributed.initialize(**how)  # pyright: ignore[reportArgumentType]
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"The processes could not be joined: {error}") from error


def _variable(option: str) -> str | int | None:
    name = _VARIABLES[option]
    text = os.environ.get(name)
    if text is None or option == "--coordinator":
        return text
    if not text.isdecimal():
        raise ConfigError(f"{name}={text} must be a whole number.")
    return int(text)


def _check(address: str | int | None, count: str | int | None, number: str | int | None) -> None:
    assert isinstance(count, int) and isinstance(number, int)
    host, _, port = str(address).rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(f"--coordinator {address} is no address; give HOST:PORT of the first process.")
    if count < 1 or not 0 <= number < count:
        raise ConfigError(
            f"--processes {count} --process {number} is not possible; processes count from 0 to {count - 1}."
        )
