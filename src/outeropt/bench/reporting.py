"""From a store to a report: which archives, which reference, which files."""

import fnmatch
from collections.abc import Sequence
from pathlib import Path

from outeropt.bench.leaderboard import Leaderboard, leaderboard
from outeropt.bench.normalizer import Normalizer
from outeropt.bench.pictures import figures
from outeropt.bench.pictures.replicate_figures import save_replicates
from outeropt.bench.pictures.report import write_report
from outeropt.bench.pictures.restart_figures import save_restarts
from outeropt.errors import OuteroptError
from outeropt.store import Archive, Store, load_folder


# The sets that a reference is made from, for tasks that no shipped normalizer knows.
REFERENCE_SETS = ("AdamLR_*", "adam-lr")


def read(path: str | Path, tasks: str = "*", sets: str = "*") -> list[Archive]:
    """The archives of a store file or of a folder of exported ones.

    Args:
      path: the store, or the folder.
      tasks: a pattern for task names.
      sets: a pattern for set names.

    Raises:
      StoreError: it cannot be read.
      OuteroptError: nothing matches.
    """
    path = Path(path)
    if path.is_dir():
        archives = load_folder(path)
    else:
        with Store(path, "read") as store:
            archives = store.archives()
    found = [a for a in archives if fnmatch.fnmatchcase(a.task, tasks) and fnmatch.fnmatchcase(a.set, sets)]
    if not found:
        held = ", ".join(sorted({f"{a.set} on {a.task}" for a in archives})[:5]) or "no finished set"
        raise OuteroptError(f"{path} has nothing for tasks {tasks!r} and sets {sets!r}; it holds {held}.")
    return found


def ranked(
    archives: Sequence[Archive], curve: str = "train/loss", reference: str | None = None
) -> tuple[Leaderboard | None, Normalizer | None]:
    """Scores archives against a frozen reference.

    Args:
      archives: what to score.
      curve: the loss to score.
      reference: a shipped version or a `.npz` file; None takes the shipped one and, for tasks that it does
        not know, a reference made from the archives of `REFERENCE_SETS`.

    Returns:
      The leaderboard and its reference; None and None if no task has a reference.
    """
    normalizer = named(reference) if reference else _default(archives)
    if normalizer is None or not any(normalizer.knows(archive.task, curve) for archive in archives):
        return None, None
    return leaderboard(archives, normalizer, curve), normalizer


def named(reference: str) -> Normalizer:
    """A normalizer by shipped version or file."""
    return Normalizer.load(reference) if reference.endswith(".npz") else Normalizer.shipped(reference)


def _default(archives: Sequence[Archive]) -> Normalizer | None:
    known = Normalizer.shipped()
    own = [
        archive
        for archive in archives
        if archive.task not in known.tasks
        and archive.episodes == 1
        and any(fnmatch.fnmatchcase(archive.set, pattern) for pattern in REFERENCE_SETS)
    ]
    longest = {archive.task: 0 for archive in own}
    for archive in own:
        longest[archive.task] = max(longest[archive.task], archive.num_steps)
    own = [archive for archive in own if archive.num_steps == longest[archive.task]]
    if not own:
        return known
    made = Normalizer.from_archives(own)
    version = f"{known.version} and {', '.join(made.made_from)} of these archives"
    return Normalizer(version, {**known.envelopes, **made.envelopes}, (*known.made_from, *made.made_from))


def write(
    archives: Sequence[Archive],
    board: Leaderboard | None,
    normalizer: Normalizer | None,
    out: str | Path,
    title: str,
) -> Path:
    """Writes `index.html` and `figures/`; returns the page."""
    out = Path(out)
    figures.save_all(archives, board, out / "figures", normalizer)
    save_restarts(archives, out / "figures")
    save_replicates(archives, out / "figures")
    return write_report(archives, board, out / "index.html", title=title, normalizer=normalizer)
