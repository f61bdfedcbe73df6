"""The `outeropt` command: finds the verb, parses, calls a lower floor, prints."""

import importlib
import os
import sys
import warnings
from collections.abc import Sequence

from outeropt.errors import OuteroptError, near_misses


# verb -> what it does; the module cli/<verb>.py holds its configuration and `run`.
VERBS = {
    "leaderboard": "Rank optimizers on bundled tasks: a table and a report page in under three minutes.",
    "list": "List tasks, optimizers, sets, datasets or weights, by name or pattern.",
    "describe": "Say what a name stands for: a task, an optimizer, an architecture, a set, ...",
    "train": "Train one optimizer on one task.",
    "sweep": "Train tasks with many settings and seeds, here or on many machines.",
    "tune": "Search an optimizer's hyperparameters, or tune them while it trains.",
    "metatrain": "Learn an optimizer: meta-train it on tasks.",
    "amalgamate": "Distil many optimizers into one learned optimizer.",
    "evaluate": "Compare learned optimizers with tuned baselines.",
    "reproduce": "Run a published study again, beside its published numbers.",
    "report": "Turn a store into tables, figures and one interactive page.",
    "export": "Write a store's archives as Parquet and .npz files.",
    "load": "Load exported or published archives into a store.",
    "resume": "Go on with the sweeps that a store remembers.",
    "status": "Say what a store holds: finished, missing and diverged trials.",
    "data": "Get or list datasets.",
}


def main(words: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
      words: the words after `outeropt`; None takes them from the command line.

    Returns:
      Exit status: 0, 2 for something the user can mend, 130 when interrupted.
    """
    try:
        _run(list(sys.argv[1:] if words is None else words))
        sys.stdout.flush()
    except OuteroptError as error:
        print(f"outeropt: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Whoever reads has seen enough, as in `outeropt list tasks | head`; Python must not flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = f"{error.filename} cannot be used: " if error.filename else ""
        print(f"outeropt: {where}{error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("outeropt: interrupted; finished work is kept, the same command goes on", file=sys.stderr)
        return 130
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def _run(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return
    if words[0] in ("-V", "--version"):
        from importlib.metadata import version

        print(f"outeropt {version('outeropt')}")
        return
    verb, *rest = words
    if verb not in VERBS:
        close = near_misses(verb, VERBS)
        hint = f"did you mean {' or '.join(close)}?" if close else f"verbs: {', '.join(VERBS)}."
        raise OuteroptError(f"outeropt has no verb {verb!r}; {hint}")
    from outeropt.cli.config import parse

    module = importlib.import_module(f"outeropt.cli.{verb}")
    config = parse(verb, module.Config, rest)
    with warnings.catch_warnings():
        warnings.showwarning = _tell
        module.run(config)


def _tell(message: Warning | str, *_: object) -> None:
    """Shows a warning as one line, without the place in the code that it came from."""
    print(f"outeropt: {' '.join(str(message).split())}", file=sys.stderr)


def _help() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {what}" for verb, what in VERBS.items())
    return (
        "usage: outeropt VERB ...\n\nOptimize optimizers: rank, sweep and tune them.\n\n"
        f"{verbs}\n\nouteropt VERB --help says more about one of them."
    )


if __name__ == "__main__":
    sys.exit(main())
