"""A task from a user's Python file."""

import contextlib
import functools
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from outeropt import tree
from outeropt.errors import OuteroptError, first_line
from outeropt.task import Task
from outeropt.tasks.contract import kind


def from_file(path: Path, attribute: str) -> Task:
    """The task that a Python file holds.

    Args:
      path: the file. It may import modules that lie beside it, whatever else has their names.
      attribute: name of a `Task` in it, or of a function without arguments that gives one.

    Raises:
      OuteroptError: the file is missing, raises, lacks the attribute, or gives something that is no task.
    """
    where = f"Task file {str(path)!r}"
    if not path.is_file():
        raise OuteroptError(f"{where} does not exist; give path/to/file.py:attribute.")
    module = _load(path.resolve(), path.stat().st_mtime_ns, where)
    if not hasattr(module, attribute):
        public = [key for key, value in vars(module).items() if isinstance(value, Task)]
        hint = f" Tasks in it: {', '.join(public)}." if public else ""
        raise OuteroptError(f"{where} has no attribute {attribute!r}.{hint}")
    task = getattr(module, attribute)
    if callable(task) and not isinstance(task, Task):
        try:
            task = task()
        except OuteroptError:
            raise
        except Exception as error:
            raise OuteroptError(
                f"{where}: {attribute}() raised {first_line(error)}{_line_of(error, path)}."
            ) from error
    if not isinstance(task, Task):
        raise OuteroptError(
            f"{where}: {attribute} is {kind(task)}, no task; make one with outeropt.tasks.from_functions."
        )
    return task


@functools.cache
def _load(path: Path, modified: int, where: str) -> ModuleType:
    """Runs a task file once for each state of the file, so that its functions stay the same objects."""
    del modified
    name = f"outeropt_task_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up while it runs
    try:
        with _at_home(path.parent):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise OuteroptError(f"{where} raised {first_line(error)}{_line_of(error, path)}.") from error
    return module


@contextlib.contextmanager
def _at_home(folder: Path) -> Iterator[None]:
    """Imports what lies in a folder first; who has imported others of these names keeps them afterwards."""
    namesakes = {name for name in sys.modules if _is_namesake(name, folder)}
    aside = {name: sys.modules.pop(name) for name in namesakes}
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        tops = {name.partition(".")[0] for name in aside}
        for name in [name for name in sys.modules if name.partition(".")[0] in tops]:
            del sys.modules[name]
        sys.modules.update(aside)


def _is_namesake(name: str, folder: Path) -> bool:
    """Whether an imported module of the user's has the name of one in the folder, but is another."""
    file, top = getattr(sys.modules[name], "__file__", None), name.partition(".")[0]
    if file is None or not tree.is_own_module(name) or folder in Path(file).resolve().parents:
        return False
    return (folder / f"{top}.py").is_file() or (folder / top / "__init__.py").is_file()


def _line_of(error: BaseException, path: Path) -> str:
    if isinstance(error, SyntaxError):
        return f" (line {error.lineno})"
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == str(path.resolve())
    ]
    return f" (line {lines[-1]})" if lines else ""
