"""Notebooks: files without outputs, clean code, pages as they should be, and cells that run in order."""

import base64
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import matplotlib
import numpy as np
import pytest


ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
NOTEBOOKS = sorted(DOCS.rglob("*.ipynb"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def learned_beats_what_was_made_by_hand(results) -> bool:
    losses = {name: np.mean(runs["losses"]) for name, runs in results.items()}
    assert all(np.isfinite(value) for value in losses.values()), losses
    return losses["learned"] < losses["momentum"] < losses["SGD"] and losses["learned, time"] < losses["Adam"]


def tuning_pays(results) -> bool:
    losses = {name: np.mean(runs) for name, runs in results.items()}
    return losses["adam-lr"] < losses["adamw-default"] and np.isfinite(list(losses.values())).all()


def one_pass_works_from_anywhere(results) -> bool:
    return results["one-pass, worst start"] < 0.5 * results["AdamW, worst start"]


# What each page says that its runs show.
CONCLUSIONS = {
    "learned_optimizers": learned_beats_what_was_made_by_hand,
    "rank_optimizers": tuning_pays,
    "tune_while_training": one_pass_works_from_anywhere,
}


def cells(path: Path, kind: str) -> list[dict]:
    return [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == kind]


def text(cell: dict) -> str:
    return "".join(cell["source"])


def test_there_are_notebooks():
    assert [path.stem for path in NOTEBOOKS] == list(CONCLUSIONS)


@every_notebook
def test_no_output_is_stored(path):
    notebook = json.loads(path.read_text("utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    for cell in cells(path, "code"):
        assert cell["outputs"] == [] and cell["execution_count"] is None, text(cell)


@every_notebook
def test_code_is_clean(path):
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, str(path)], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


@every_notebook
def test_nothing_depends_on_one_machine(path):
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        assert not re.search(r"""(?:^|[\s"'(=])(?:/|~|[A-Z]:\\)\w+""", text(cell)), text(cell)
        if cell["cell_type"] == "code":
            assert not re.search(r"^\s*[%!]", text(cell), re.MULTILINE), "a magic or a shell command"


@every_notebook
def test_every_figure_is_described(path):
    for cell in cells(path, "code"):
        assert ("plt.show()" in text(cell)) == ("alt" in cell["metadata"]), text(cell)


@every_notebook
def test_headings_and_links(path):
    words = "\n".join(
        re.sub(r"```.*?```", "", text(cell), flags=re.DOTALL) for cell in cells(path, "markdown")
    )
    depths = [len(marks) for marks in re.findall(r"^(#+) ", words, re.MULTILINE)]
    assert depths[0] == 1 and set(depths[1:]) == {2}
    numbers = [int(number) for number in re.findall(r"^## (\d+)\. ", words, re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
    exercises = [int(number) for number in re.findall(r"\*\*Exercise (\d+)", words)]
    assert exercises == list(range(1, len(exercises) + 1))
    solutions = [cell for cell in cells(path, "code") if "solution" in cell["metadata"].get("tags", ())]
    assert len(solutions) == len(exercises)
    for target in re.findall(r"\]\(([^)\s]+)\)", words):
        if not re.match(r"\w+:", target):
            assert (path.parent / target.partition("#")[0]).resolve().exists(), target


@pytest.fixture(scope="module")
def hook():
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("notebook_hook", DOCS / "notebooks.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_has_code_outputs_and_folded_solutions(hook):
    picture = {"output_type": "display_data", "data": {"image/png": base64.b64encode(b"png").decode()}}
    printed = {"output_type": "stream", "name": "stdout", "text": ["1\n", "2\n"]}
    notebook = {
        "cells": [
            {"cell_type": "markdown", "source": ["# Title\n", "Words"], "metadata": {}},
            {
                "cell_type": "code",
                "source": ["draw()"],
                "metadata": {"alt": "A line"},
                "outputs": [picture, printed],
            },
            {"cell_type": "code", "source": "hide()", "metadata": {"tags": ["solution"]}, "outputs": []},
        ]
    }
    page, pictures = hook._markdown(notebook, "name")
    assert pictures == {"name_1.png": b"png"}
    title, code, figure, output, solution = page.split("\n\n", 4)
    assert title == "# Title\nWords"
    assert code == "```python\ndraw()\n```"
    assert figure == "![A line](name_1.png)"
    assert output == "```text\n1\n2\n```"
    assert solution.startswith("<details") and "```python\nhide()\n```" in solution


def test_a_notebook_is_run_once_for_each_version(hook, tmp_path):
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    source = tmp_path / "sum.ipynb"
    notebook = json.loads(NOTEBOOKS[0].read_text("utf-8"))
    notebook["cells"] = [
        {**cells(NOTEBOOKS[0], "code")[0], "source": "import os\n\nprint(1 + 1, os.urandom(4).hex())"}
    ]
    source.write_text(json.dumps(notebook), "utf-8")

    def printed() -> str:
        (cell,) = cells(hook._run(source, tmp_path / "kept"), "code")
        return "".join(cell["outputs"][0]["text"])

    first = printed()
    assert first.startswith("2 ")
    assert printed() == first
    source.write_text(json.dumps(notebook).replace("1 + 1", "1 + 2"), "utf-8")
    assert printed().startswith("3 ")


@pytest.mark.slow
@every_notebook
def test_cells_run_in_order(path, monkeypatch, capsys):
    """As in a reader's fresh kernel; and the page's conclusions hold."""
    matplotlib.use("Agg")
    monkeypatch.setattr(sys, "argv", ["notebook"])
    names: dict = {"__name__": "__main__"}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for cell in cells(path, "code"):
            exec(compile(text(cell), path.name, "exec"), names)
            matplotlib.pyplot.close("all")
    capsys.readouterr()
    assert CONCLUSIONS[path.stem](names["results"]), names["results"]
