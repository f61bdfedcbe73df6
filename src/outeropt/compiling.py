"""How much time the compiler may take, by how often a program will run."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.core import Tracer


def for_loops(platform: str) -> dict[str, Any]:
    """Compiler options of programs that run for long.

    On CPU, LLVM's second level takes longer to compile and makes nothing faster (docs/benchmarks.md).
    """
    return {"xla_backend_optimization_level": 1} if platform == "cpu" else {}


def jit_once(function: Callable[..., Any], **how: Any) -> Callable[..., Any]:
    """`jax.jit` for what runs about once: on CPU it compiles in a third of the time, and is slow.

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
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(args)):
            return function(*args)
        return program(jax.default_backend())(*args)

    return call
