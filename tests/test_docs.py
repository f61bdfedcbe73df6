"""The documentation: examples run, commands exist, links lead somewhere, no public name is missing."""

import ast
import contextlib
import dataclasses
import importlib.util
import inspect
import io
import os
import re
import shlex
import subprocess
import sys
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import jax
import pytest
import tyro

import outeropt
from outeropt import optimizers, tasks
from outeropt.cli import running
from outeropt.cli.config import parse
from outeropt.cli.main import VERBS, main


ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
REFERENCE = DOCS / "reference"
GUIDES = [
    DOCS / f"{name}.md"
    for name in (
        "which-optimizer",
        "gallery",
        "learned",
        "estimators",
        "amalgamation",
        "selftuning",
        "selftuning_hypergradient",
    )
]
FOLDERS = ("tutorials", "howto", "papers")
RUN = [
    ROOT / "README.md",
    *GUIDES,
    *(page for name in FOLDERS for page in sorted((DOCS / name).glob("*.md"))),
]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
# Libraries that examples are written for and that need not be there.
OPTIONAL = ("haiku", "keras", "torch")
BLOCK = re.compile(r'^```(\w+)(?: title="(.+?)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, *languages: str) -> list[tuple[str | None, str]]:
    """Title and text of a page's code blocks in some languages, but for what cannot run here."""
    found = BLOCK.findall(page.read_text("utf-8"))
    return [
        (title or None, text) for language, title, text in found if language in languages and can_run(text)
    ]


def can_run(text: str) -> bool:
    """Whether all of the optional libraries that a block imports are here."""
    imported = re.findall(r"^(?:import|from) (\w+)", text, re.MULTILINE)
    return all(importlib.util.find_spec(name) for name in imported if name in OPTIONAL)


def commands(page: Path) -> list[list[str]]:
    """The words after `outeropt` of every such command on a page."""
    lines = [line for _, text in blocks(page, "bash") for line in text.replace("\\\n", " ").splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("outeropt ")]


def write_titled(page: Path) -> None:
    """Saves blocks that have a file's name as their title, as the page tells its reader to."""
    for title, text in blocks(page, "python", "yaml"):
        if title:
            Path(title).write_text(text, "utf-8")


# Pages that need an optional framework, which is not everywhere.
NEEDS = {"keras.md": "keras", "torch.md": "torch"}


def run_python(page: Path) -> None:
    """Runs a page's Python blocks in order, in one namespace, as a reader with a fresh JAX would."""
    names = {"__name__": "page"}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for _, text in blocks(page, "python"):
            exec(compile(text, str(page), "exec"), names)


@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_python_examples_run(page, tmp_path, monkeypatch):
    if page.name in NEEDS and importlib.util.find_spec(NEEDS[page.name]) is None:
        pytest.skip(f"{NEEDS[page.name]} is not here")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    write_titled(page)
    with contextlib.redirect_stdout(io.StringIO()):
        run_python(page)


@pytest.mark.parametrize("page", [*RUN, DOCS / "index.md", REFERENCE / "command-line.md"], ids=name_of)
def test_commands_are_understood(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_titled(page)
    (tmp_path / "configs").symlink_to(DOCS.parent / "configs")
    for words in commands(page):
        verb, *rest = words
        if verb in ("list", "describe") or verb.startswith("-"):
            assert main(words) == 0, (words, capsys.readouterr().err)
            continue
        assert verb in VERBS, words
        config = parse(verb, importlib.import_module(f"outeropt.cli.{verb}").Config, rest)
        if verb == "sweep":
            config.check()
            running.plans_of(config)
        if verb in ("train", "tune"):
            running.optimizer_from(config.optimizer, config.hyperparameters)
        if verb in ("train", "sweep", "tune"):
            several = verb == "sweep" and config.tasks
            tasks.check(running.tasks_of(config)[0] if several else tasks.get(config.task))


def slugs(page: Path) -> set[str]:
    """Anchors of a page's headings."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", head).strip().lower()) for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    code_and_formulas = r"^```.*?^```$|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]+\$"
    text = re.sub(code_and_formulas, "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor and linked.suffix == ".md":
            assert anchor in slugs(linked), target


def documented() -> dict[str, set[str] | None]:
    """What the reference renders: dotted path, and which of its members (None for all)."""
    found: dict[str, set[str] | None] = {}
    for page in REFERENCE.glob("*.md"):
        parts = re.split(r"^::: +", page.read_text("utf-8"), flags=re.MULTILINE)[1:]
        for part in parts:
            path = part.split()[0]
            members = re.search(r"members: \[(.*?)\]", part.split("\n\n")[0], re.DOTALL)
            found[path] = {name.strip() for name in members[1].split(",")} if members else None
    return found


# Rooms that load a framework beside JAX, which need not be there.
FRAMEWORKS = ("torch", "keras")


def rooms() -> dict[str, ModuleType]:
    """What has public names: the package, its rooms, and those for other frameworks once they have a page.

    A room whose framework is not installed is left out.
    """
    written = [name for name in FRAMEWORKS if (REFERENCE / f"{name}.md").exists()]
    found = {"outeropt": outeropt}
    for name in dict.fromkeys((*outeropt._ROOMS, "store", *written)):
        try:
            found[f"outeropt.{name}"] = importlib.import_module(f"outeropt.{name}")
        except ModuleNotFoundError as missing:
            if (missing.name or "").startswith("outeropt"):
                raise
    return found


ROOMS = rooms()
PUBLIC = [(room, name) for room, module in ROOMS.items() for name in module.__all__]
CLASSES = {
    value.__qualname__: value
    for room, name in PUBLIC
    if inspect.isclass(value := getattr(ROOMS[room], name)) and value.__module__.startswith("outeropt")
}


@pytest.mark.parametrize(("room", "name"), PUBLIC, ids=lambda value: value)
def test_every_public_name_is_in_the_reference(room, name):
    value = getattr(ROOMS[room], name)
    if inspect.ismodule(value) or not hasattr(value, "__qualname__"):
        written = "\n".join(page.read_text("utf-8") for page in REFERENCE.glob("*.md"))
        assert f"`{room}.{name}`" in written
        return
    rendered = documented()
    module, path = value.__module__, f"{value.__module__}.{value.__qualname__}"
    members = rendered.get(module, set())
    assert path in rendered or members is None or name in members
    assert inspect.getdoc(value), "a public name without a docstring"


@pytest.mark.parametrize("kind", CLASSES.values(), ids=CLASSES)
def test_every_public_method_is_described(kind):
    """By itself or by the class whose contract it fills in."""
    for name in list(vars(kind)):
        value = inspect.getattr_static(kind, name)
        method = isinstance(value, property) or inspect.isroutine(getattr(kind, name))
        if method and not name.startswith("_") and name not in getattr(kind, "__annotations__", ()):
            assert inspect.getdoc(getattr(kind, name)), f"{kind.__qualname__}.{name} has no docstring"


def test_the_reference_renders_what_exists():
    for path, members in documented().items():
        room = path.split(".")[1]
        if room in FRAMEWORKS and f"outeropt.{room}" not in ROOMS:
            continue
        module, name = path, None
        if importlib.util.find_spec(path.rpartition(".")[0]) and not _is_module(path):
            module, _, name = path.rpartition(".")
        found = importlib.import_module(module)
        for each in [name] if name else members or ():
            assert hasattr(found, each), f"{module}.{each}"


def _is_module(path: str) -> bool:
    try:
        return importlib.util.find_spec(path) is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.parametrize("verb", VERBS)
def test_the_command_line_reference_is_complete(verb, capsys):
    page = (REFERENCE / "command-line.md").read_text("utf-8")
    sections = re.split(r"^## ", page, flags=re.MULTILINE)
    (section,) = (part for part in sections if re.match(rf"`outeropt {verb}\b", part))
    assert main([verb, "--help"]) == 0
    heads = r"^\s+(?:-[a-z](?: \S+)?, )?(--[a-z][a-z-]*)(?: \S+, (--[a-z][a-z-]*))?"
    shown = {
        word for pair in re.findall(heads, capsys.readouterr().out, re.MULTILINE) for word in pair if word
    }
    cells = re.findall(r"^\| (`--.*?) \|", section, re.MULTILINE)
    assert {*re.findall(r"`(--[a-z-]+)`", " ".join(cells))} == shown - {"--help"}


def options(kind: type) -> Iterator[tuple[type, str, bool]]:
    """Every option that a dataclass gives the command line, and whether a line of help stands below it."""
    for base in kind.__mro__:
        if not (dataclasses.is_dataclass(base) and base.__module__.startswith("outeropt")):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        hints = typing.get_type_hints(base, include_extras=True)
        for line, below in zip(tree.body, [*tree.body[1:], None]):
            name = ast.unparse(line.target) if isinstance(line, ast.AnnAssign) else ""
            if name not in {field.name for field in dataclasses.fields(base)}:
                continue
            if tyro.conf.Suppress not in getattr(hints[name], "__metadata__", ()):
                yield base, name, isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            if inspect.isclass(hints[name]) and dataclasses.is_dataclass(hints[name]):
                yield from options(hints[name])


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_has_help(verb):
    found = list(options(importlib.import_module(f"outeropt.cli.{verb}").Config))
    assert found
    for kind, name, said in found:
        assert said, f"{kind.__module__}.{kind.__qualname__}.{name} has no line of help below it"


def test_what_readme_counts():
    assert len(tasks.names()) > 200
    assert len(optimizers.names()) > 70


def test_ci_does_what_readme_says():
    install, test = blocks(ROOT / "README.md", "bash")[-1][1].splitlines()
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    assert f"do_ {install}\n" in script
    assert f"do_ {test}\n" in script


def test_the_site_builds_and_needs_no_other_server(tmp_path):
    for needed in ("mkdocs", "material", "mkdocstrings", "latex2mathml"):
        pytest.importorskip(needed, exc_type=ImportError)
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        # Running the notebooks takes minutes; tests/test_notebooks.py does it under the slow mark.
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "RUN_NOTEBOOKS": "false"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    pages = {page.relative_to(tmp_path): page.read_text("utf-8") for page in tmp_path.rglob("*.html")}
    for page, text in pages.items():
        assert not re.search(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="?(?:https?:)?//', text), page
    assert "<math" in pages[Path("scores.html")]
