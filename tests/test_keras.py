"""`outeropt.keras` on each backend of Keras, which is fixed when Keras is imported: a process for each."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


# To import it would choose a backend for this process.
if importlib.util.find_spec("keras") is None:
    pytest.skip("Keras is not here", allow_module_level=True)

SCRIPT = Path(__file__).parent / "keras_script.py"
CHECKS = re.findall(r"^def (check_\w+)", SCRIPT.read_text("utf-8"), re.MULTILINE)


def python(backend, folder, *arguments):
    """The end of a process whose Keras has a backend and whose JAX compiles fast rather than well."""
    settings = {
        "KERAS_BACKEND": backend,
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "KERAS_HOME": str(folder / "keras"),
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, env={**os.environ, **settings}, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_what_holds_on_a_backend(backend, tmp_path):
    if backend == "torch":
        pytest.importorskip("torch")
    ended = python(backend, tmp_path, SCRIPT, tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.split() == CHECKS


def test_other_backends_are_refused_in_one_line(tmp_path):
    code = "import outeropt.keras\nouteropt.keras.load('prodigy')"
    ended = python("numpy", tmp_path, "-c", code)
    assert ended.returncode == 1
    last = ended.stderr.strip().splitlines()[-1]
    assert "backends jax and torch, not on numpy; set KERAS_BACKEND=jax or torch" in last


def test_keras_is_imported_by_no_other_room(tmp_path):
    code = "import sys, outeropt, outeropt.torch, outeropt.cli.main; print('keras' in sys.modules)"
    assert python("torch", tmp_path, "-c", code).stdout.split() == ["False"]
