"""Where the tests' datasets are, and fixtures that set the machine up."""

import hashlib
import os
import sys
from pathlib import Path

import pytest


REAL = Path(os.environ.get("OUTEROPT_DATA_DIR") or Path(__file__).parents[2] / "shared" / "data")


def needs(*names: str):
    """Skips a test where real files are not at hand."""
    missing = [name for name in names if not (REAL / name).is_file()]
    return pytest.mark.skipif(bool(missing), reason=f"no {', '.join(missing)} in {REAL}")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def forget():
    """Drops every loaded dataset."""
    for module, cached in (
        ("images", ("_images", "_pixels")),
        ("text", ("_tokens", "vocabulary")),
        ("tables", ("_table",)),
    ):
        for function in cached:
            getattr(sys.modules[f"outeropt.data.{module}"], function).cache_clear()


@pytest.fixture
def machine(monkeypatch, tmp_path_factory):
    """A machine with the real files where there are any, an empty cache and no network."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("OUTEROPT_DATA_DIR", str(REAL))
    monkeypatch.setenv("OUTEROPT_CACHE_DIR", str(cache))
    monkeypatch.setenv("OUTEROPT_OFFLINE", "1")
    return cache


@pytest.fixture
def elsewhere(monkeypatch, tmp_path, machine):
    """An empty data directory in the place of the real one."""
    forget()
    monkeypatch.setenv("OUTEROPT_DATA_DIR", str(tmp_path))
    yield tmp_path
    forget()
