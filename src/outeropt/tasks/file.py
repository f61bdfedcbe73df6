"""A task from a user's Python file."""

import functools
import importlib.util
import sys
import traceback
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
    _make_way(path.parent)
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise OuteroptError(f"{where} raised {first_line(error)}{_line_of(error, path)}.") from error
    finally:
        sys.path.remove(str(path.parent))
    return module


def _make_way(folder: Path) -> None:
    """Forgets modules that another task file imported from beside it under a name that is here as well."""
    for name, module in list(sys.modules.items()):
        file, top = getattr(module, "__file__", None), name.partition(".")[0]
        here = folder / f"{top}.py", folder / top / "__init__.py"
        elsewhere = file is not None and folder not in Path(file).resolve().parents
        if elsewhere and any(map(Path.is_file, here)) and tree.is_own_module(name):
            del sys.modules[name]


def _line_of(error: BaseException, path: Path) -> str:
    if isinstance(error, SyntaxError):
        return f" (line {error.lineno})"
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == str(path.resolve())
    ]
    return f" (line {lines[-1]})" if lines else ""
