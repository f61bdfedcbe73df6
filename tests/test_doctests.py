"""The examples in docstrings do what they say, and those who are called most have one."""

import ast
import contextlib
import doctest
import importlib
import io
from pathlib import Path

import jax
import pytest

import outeropt
from outeropt import bench, checkpoint, data, learned, optimizers, search, selftuning, store, tasks


SOURCES = Path(outeropt.__file__).parent
SHOWN = (
    *(outeropt.train, outeropt.sweep, outeropt.grid, outeropt.sample, outeropt.Space, outeropt.Optimizer),
    *(optimizers.get, optimizers.names, optimizers.from_text, optimizers.from_optax, optimizers.Cosine),
    *(tasks.get, tasks.names, tasks.describe, tasks.from_functions, data.from_arrays),
    *(store.Store, store.Archive, checkpoint.save, learned.load, learned.LearnedOptimizer.save),
    *(selftuning.save, selftuning.OnePass, selftuning.RandomStart, selftuning.HypergradientDescent),
    *(search.search, search.expected_best_of_k, bench.sets.get),
)


def documented(path: Path) -> list[tuple[str, str]]:
    """Name and docstring of everything in a file that has one."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, kinds)]
    found = [(getattr(node, "name", path.stem), ast.get_docstring(node)) for node in nodes]
    return [(name, text) for name, text in found if text]


def dotted(path: Path) -> str:
    parts = path.relative_to(SOURCES.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


WITH_EXAMPLES = {
    dotted(path): path for path in sorted(SOURCES.rglob("*.py")) if ">>>" in path.read_text("utf-8")
}


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples(module, tmp_path, monkeypatch):
    """In a fresh folder, with nothing but what an example imports, as a reader with a fresh JAX."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as missing:
        pytest.skip(f"{missing.name} is not installed")
    monkeypatch.chdir(tmp_path)
    for name, text in documented(WITH_EXAMPLES[module]):
        test = doctest.DocTestParser().get_doctest(text, {}, f"{module}.{name}", None, None)
        said = io.StringIO()
        with contextlib.ExitStack() as stack:
            stack.enter_context(jax.numpy_dtype_promotion("standard"))
            stack.enter_context(jax.numpy_rank_promotion("allow"))
            result = doctest.DocTestRunner(verbose=False).run(test, out=said.write)
        assert result.failed == 0, said.getvalue()


def test_what_is_called_an_example_runs():
    """`Examples:` is what the reference shows as code; `Example:` would be a box of quoted words."""
    for path in SOURCES.rglob("*.py"):
        for name, text in documented(path):
            _, found, example = text.partition("\nExamples:\n")
            assert not found or example.lstrip().startswith(">>>"), (path, name)
            assert "\nExample:\n" not in text, (path, name)


@pytest.mark.parametrize("what", SHOWN, ids=lambda what: what.__qualname__)
def test_the_most_used_have_an_example(what):
    assert ">>>" in what.__doc__
