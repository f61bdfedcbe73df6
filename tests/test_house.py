"""The house rules: floors import downwards only, rooms of one floor keep apart, files stay small."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

import outeropt


ROOT = Path(outeropt.__file__).parent

# From the ground up. Rooms in one line are on one floor and do not import each other. On the first floor
# `data` and `optimizer` read the contracts `task` and `space`, which therefore stand below them.
FLOORS = (
    ("tree", "errors", "compiling", "best_of"),
    ("space", "task", "weight_files"),
    ("optimizer", "data", "checkpoint", "progress"),
    ("optimizers", "tasks", "training", "store"),
    ("sweep", "selftuning", "learned"),
    ("metatraining", "search"),
    ("amalgamation",),
    ("bench", "torch", "algoperf"),
    ("keras",),
    ("cli",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def files():
    return sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py").removeprefix("_")


def rooms_imported(path: Path, text: str) -> set[str]:
    """The rooms that a file imports, at its head or inside functions."""
    package = ["outeropt", *path.relative_to(ROOT).parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            top, _, rest = name.partition(".")
            if top == "outeropt" and rest:
                found.add(rest.partition(".")[0].removeprefix("_"))
    return found


@functools.cache
def arrows() -> dict[tuple[str, str], str]:
    """Which room imports which, with a file that does."""
    found = {}
    for path in files():
        here = room_of(path)
        for there in rooms_imported(path, path.read_text()) - {here}:
            if here == "cli" and there not in FLOOR:
                # The command line uses the public names of the package, which stand for rooms below it.
                there = public_room(there)
            found[here, there] = str(path.relative_to(ROOT))
    return found


def public_room(name: str) -> str:
    return outeropt._NAMES.get(name, f"outeropt.{name}").split(".")[1].removeprefix("_")


def test_every_room_has_a_floor():
    assert {room_of(path) for path in files()} <= FLOOR.keys()


def test_floors_import_downwards_only():
    breaches = [
        f"{here} imports {there} ({where})"
        for (here, there), where in arrows().items()
        if FLOOR[there] > FLOOR[here]
    ]
    assert not breaches


def test_rooms_of_one_floor_keep_apart():
    breaches = [
        f"{here} imports {there} ({where})"
        for (here, there), where in arrows().items()
        if FLOOR[there] == FLOOR[here]
    ]
    assert not breaches


def test_rooms_import_each_other_in_no_circle():
    below = {room: {there for here, there in arrows() if here == room} for room in FLOOR}
    while True:
        free = [room for room, needs in below.items() if not needs]
        if not free:
            break
        below = {room: needs - {*free} for room, needs in below.items() if room not in free}
    assert not below, f"in a circle: {below}"


def test_importing_does_not_start_jax():
    """`use_all_cores` and a user's own settings of JAX must come in time after any import."""
    rooms = [".".join(("outeropt", *p.relative_to(ROOT).with_suffix("").parts)) for p in files()]
    # What Keras and JAX's libraries of models do is their business.
    names = [name for name in rooms if not {"keras", "models", "algoperf"} & set(name.split("."))]
    code = (
        "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]; "
        "from jax._src.xla_bridge import backends_are_initialized as started; sys.exit(started())"
    )
    subprocess.run([sys.executable, "-c", code, *names], check=True)


def test_every_folder_of_modules_is_a_package():
    assert not {str(path.parent) for path in files() if not (path.parent / "__init__.py").exists()}


def test_no_file_is_long():
    long = {str(p.relative_to(ROOT)): n for p in files() if (n := len(p.read_text().splitlines())) > 400}
    assert not long


@pytest.mark.parametrize(
    ("place", "line", "rooms"),
    [
        ("tasks/own.py", "from outeropt.data import own", {"data"}),
        ("tasks/own.py", "from outeropt import bench, data", {"bench", "data"}),
        ("tasks/own.py", "from .layers import x", {"tasks"}),
        ("tasks/own.py", "from ..bench import x", {"bench"}),
        ("tasks/own.py", "from .. import bench", {"bench"}),
        ("training.py", "from . import cli", {"cli"}),
        ("optimizers/wrappers/base.py", "from ...bench.sets import x", {"bench"}),
        ("tasks/own.py", "def f():\n    import outeropt._sweep.engine", {"sweep"}),
        ("tasks/own.py", "import outeropting, numpy", set()),
    ],
)
def test_imports_are_seen_in_all_their_forms(place, line, rooms):
    assert rooms_imported(ROOT / place, line) == rooms
