"""Strict settings for every test, and the places where data and caches are."""

import gc
import itertools
import os
import sys
import tempfile
from pathlib import Path

import pytest


# Tests write Python files, change them within a second, and look at what else is in their folders.
sys.dont_write_bytecode = True
os.environ.setdefault("PYTHONDONTWRITEBYTECODE", "1")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "outeropt-test-programs")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("OUTEROPT_CACHE_DIR", tempfile.mkdtemp(prefix="outeropt-test-cache-"))
os.environ.setdefault("OUTEROPT_OFFLINE", "1")
# Which Keras is imported with; TensorFlow, its default, is not here.
os.environ.setdefault("KERAS_BACKEND", "jax")
_NEAR = Path(__file__).parents[2] / "shared" / "data"
if _NEAR.is_dir():
    os.environ.setdefault("OUTEROPT_DATA_DIR", str(_NEAR))

import jax  # noqa: E402

from outeropt.compiling import make_room  # noqa: E402


jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
    """Frees each file's compiled programs.

    A program holds a dozen memory maps or more, and Linux allows a process 65 530; a process that runs all
    tests and keeps all programs dies of it, with a segmentation fault wherever it asks for the next map.
    """
    yield
    jax.clear_caches()
    gc.collect()


_counted = itertools.count(1)


@pytest.fixture(autouse=True)
def _make_room():
    """The same within a file of hundreds of programs, where they have become too many."""
    yield
    if next(_counted) % 20 == 0:
        make_room()
