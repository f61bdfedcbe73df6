"""Making this machine ready: one host device per core, and programs kept from run to run."""

import os
from pathlib import Path

import jax
import pooch


def use_all_cores(cache: bool = True) -> None:
    """Gives JAX one host device per core, so that sweeps share their lanes between cores.

    Call it before anything else of JAX runs; afterwards it changes nothing. `JAX_NUM_CPU_DEVICES` and
    `JAX_COMPILATION_CACHE_DIR` win over it.

    Args:
      cache: also keeps compiled programs in the user's cache folder, so that a second run need not compile.
    """
    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        try:
            jax.config.update("jax_num_cpu_devices", _cores())
        except RuntimeError:
            return  # JAX runs already, with the devices that it has
    if cache and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = Path(os.environ.get("OUTEROPT_CACHE_DIR", pooch.os_cache("outeropt"))) / "programs"
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def _cores() -> int:
    """Cores that this process may use; macOS cannot tell, and has no smaller allowance than all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
