"""Compiled programs: how much time the compiler may take, and how many there may be."""

import functools
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer


_MAPS = Path("/proc/self/maps")
_LIMIT = Path("/proc/sys/vm/max_map_count")


def for_loops(platform: str) -> dict[str, Any]:
    """Compiler options of programs that run for long.

    On CPU, LLVM's second level takes longer to compile and makes nothing faster (docs/benchmarks.md).
    """
    return {"xla_backend_optimization_level": 1} if platform == "cpu" else {}


def jit_once(function: Callable[..., Any], **how: Any) -> Callable[..., Any]:
    """`jax.jit` for what runs about once: on CPU it compiles in half the time, and is slow.

    Args:
      function: what is compiled; inside of another program it is a part of that.
      **how: for `jax.jit`.
    """

    @functools.cache
    def program(platform: str) -> Callable[..., Any]:
        quick = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
        return jax.jit(function, compiler_options=quick if platform == "cpu" else {}, **how)

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        if _is_tracing():
            return function(*args)
        return program(jax.default_backend())(*args)

    return call


def _is_tracing() -> bool:
    """Whether another program is being traced: then any operation gives a tracer."""
    return isinstance(jnp.zeros(()), Tracer)


def make_room(share: float = 0.5) -> None:
    """Forgets all compiled programs if they have taken more than a share of this process's memory maps.

    A program for CPU holds some hundred memory maps. Linux allows a process 65 530 of them by default, and
    where JAX asks for more, it dies of a segmentation fault. Programs that are needed again come from the
    cache on disk. Elsewhere than on Linux this does nothing.
    """
    try:
        limit = int(_LIMIT.read_text())
        with _MAPS.open("rb") as maps:
            used = sum(1 for _ in maps)
    except OSError:
        return
    if used > share * limit:
        jax.clear_caches()
        gc.collect()
