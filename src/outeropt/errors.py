"""Errors that a user can act on.

Every error of this module is one clear line: what was given, what is allowed, what to do. The command
line prints it and exits with status 2.
"""

import difflib
from collections.abc import Iterable


class OuteroptError(Exception):
    """Something the user gave cannot be used; the message says what would work."""


class UnknownName(OuteroptError):
    """A task, optimizer, set or dataset that does not exist."""


class OutOfSpace(OuteroptError):
    """A hyperparameter outside its space."""


class MissingData(OuteroptError):
    """A dataset file that is not on this machine and could not be fetched."""


class StoreError(OuteroptError):
    """A store that cannot be read or written."""


class ConfigError(OuteroptError):
    """A configuration with an unknown key, a wrong type or a value that is not allowed."""


def near_misses(given: str, names: Iterable[str], count: int = 3) -> list[str]:
    """Names that `given` was probably meant to be, most likely first."""
    folded = {name.lower(): name for name in names}
    close = difflib.get_close_matches(given.lower(), folded, n=count, cutoff=0.5)
    if len(close) < count:
        close += [low for low in folded if given.lower() in low and low not in close][: count - len(close)]
    return [folded[low] for low in close]


def unknown_name(kind: str, given: str, names: Iterable[str], see: str = "") -> UnknownName:
    """The error for a name that is not registered, with near misses.

    Args:
      kind: what the name stands for, such as `"task"`.
      given: the name as the user wrote it.
      names: every name that exists.
      see: the command that lists them, or the names themselves where they are few.
    """
    close = near_misses(given, names)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    where = f" All names: {see}" if see else ""
    return UnknownName(f"No {kind} is called {given!r}.{hint}{where}")


def first_line(error: BaseException) -> str:
    """An exception's class and the first line of its message, for errors of one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}{': ' + lines[0].rstrip('.') if lines else ''}"
