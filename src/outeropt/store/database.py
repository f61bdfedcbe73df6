"""The store: every finished trial in one SQLite file, safe against crashes and shared by processes."""

import contextlib
import dataclasses
import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from outeropt.errors import StoreError
from outeropt.store import commands, connection, membership, rows, trial
from outeropt.store.archive import Archive
from outeropt.store.cadence import Cadence
from outeropt.store.commands import Command
from outeropt.store.trial import Setting, Trial


# One JSON parameter holds any number of ids; SQLite limits the count of parameters.
_IN = "trials.id IN (SELECT value FROM json_each(?))"

# Trials that are in memory at a time while stores are merged.
_MERGED = 500


@dataclasses.dataclass(frozen=True)
class Status:
    """How far one set on one task has come.

    Attributes:
      task: name of the task.
      set: name of the hyperparameter set.
      optimizer: name of the optimizer.
      expected: trials that belong to the set.
      finished: how many of them are stored.
      diverged: how many of those diverged.
    """

    task: str
    set: str
    optimizer: str
    expected: int
    finished: int
    diverged: int


class Store:
    """Finished trials in one SQLite file.

    Threads may share one `Store`, and processes one file. What `add` has returned from is on the disk: ending
    the process at any moment loses nothing of it and leaves no half-written chunk behind.

    A *set* is a named grid of trials (settings by seeds) on one task. The same trial can be in several.

    Args:
      path: the file; by convention it ends in `.db`. Created, with its folder, if it does not exist.
      mode: `"read"` wants the file to exist and never changes it.

    Raises:
      StoreError: the file cannot be opened, or is no store.

    Examples:
      >>> import outeropt
      >>> task, sgd = outeropt.tasks.get("Quadratic_10"), outeropt.optimizers.get("sgd")
      >>> with outeropt.Store("runs.db") as store:
      ...     archive = outeropt.sweep(task, sgd, seeds=2, steps=20, store=store, set="mine")
      >>> with outeropt.Store("runs.db", "read") as store:
      ...     [(found.task, found.set, found.seeds) for found in store.archives()]
      [('Quadratic_10', 'mine', (0, 1))]
    """

    def __init__(self, path: str | Path, mode: connection.Mode = "write"):
        self.path = Path(path)
        self._lock = threading.RLock()
        self._connection = connection.connect(self.path, mode)

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file. A store that is not closed loses nothing."""
        with self._lock:
            self._connection.close()

    @contextlib.contextmanager
    def _transaction(self, kind: Literal["IMMEDIATE", "DEFERRED"]) -> Iterator[sqlite3.Connection]:
        with self._lock, connection.explained(self.path):
            self._connection.execute(f"BEGIN {kind}")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                # SQLite has already rolled back after some errors, a full disk among them.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def declare(
        self,
        set: str,
        task: str,
        optimizer: str,
        settings: Sequence[Setting],
        seeds: Sequence[int],
        ids: Sequence[Sequence[str]],
        steps: Sequence[int] | np.ndarray,
        eval_every: int,
        eval_batches: int,
        last_eval_batches: int,
    ) -> None:
        """Says which trials a set consists of, before they run, so that `status` knows what is missing.

        Declaring a set again adds to it: more seeds, or more settings after the known ones. If anything else
        differs (optimizer, settings, steps, cadence, or the id of a trial), the new declaration replaces the
        old one. Trials themselves are never removed.

        Args:
          set: name of the set.
          task: name of the task.
          optimizer: name of the optimizer.
          settings: hyperparameter values by name, one mapping per setting.
          seeds: one integer per seed.
          ids: the trials' content hashes, `ids[setting][seed]`.
          steps: inner steps of the evaluations, shape (T,).
          eval_every: inner steps between evaluations.
          eval_batches: batches per evaluation.
          last_eval_batches: batches of the evaluation after the last step.

        Raises:
          StoreError: the file cannot be written.
        """
        cadence = Cadence(np.asarray(steps, "<i4").tobytes(), eval_every, eval_batches, last_eval_batches)
        members = {(i, int(seed)): ids[i][j] for i in range(len(settings)) for j, seed in enumerate(seeds)}
        texts = [trial.setting_json(setting) for setting in settings]
        with self._transaction("IMMEDIATE") as sql:
            membership.enroll(sql, set, task, optimizer, texts, cadence.row(sql), members)

    def add(self, trials: Sequence[Trial], set: str | None = None) -> int:
        """Stores finished trials in one transaction: all of them or, if it fails, none.

        Args:
          trials: trials of any tasks and optimizers. Those already stored (by id) are left as they are.
          set: name of a set to put them in, after what it holds (or in its place, if it holds another
            optimizer or cadence). Not needed for trials that were declared.

        Returns:
          How many were new.

        Raises:
          StoreError: the file cannot be written, or one set would get two optimizers or cadences on one task.
        """
        with self._transaction("IMMEDIATE") as sql:
            new = rows.insert(sql, trials)
            if set is not None:
                membership.append(sql, set, trials)
        return new

    def add_archive(self, archive: Archive) -> int:
        """Stores an archive as a set, in one transaction; returns how many trials were new.

        Trials keep their ids; those of an archive without any are identified by their content.

        Raises:
          StoreError: the file cannot be written.
        """
        found = list(trial.from_archive(archive))
        texts = [trial.setting_json(setting) for setting in archive.settings]
        with self._transaction("IMMEDIATE") as sql:
            new = rows.insert(sql, [one for _, one in found])
            members = {(i, one.seed): one.id for i, one in found}
            cadence = Cadence.of(archive).row(sql)
            membership.enroll(sql, archive.set, archive.task, archive.optimizer, texts, cadence, members)
        return new

    def merge(self, other: "Store") -> int:
        """Takes over all that another store holds: trials, sets and commands. What is here stays as it is.

        A set that both have grows by what is new of it; one of another optimizer, cadence or grid does not.

        Returns:
          How many trials were new.

        Raises:
          StoreError: one file cannot be read, or the other cannot be written.
        """
        ids = [row[0] for row in other._select("SELECT id FROM trials ORDER BY rowid")]
        new = 0
        for i in range(0, len(ids), _MERGED):
            new += self.add(list(other.get(ids[i : i + _MERGED]).values()))
        with other._transaction("DEFERRED") as theirs:
            sets, found = membership.read_sets(theirs), commands.remembered(theirs)
        for each in sets:
            with self._transaction("IMMEDIATE") as sql:
                membership.take_over(sql, each)
        for command in found:
            self.remember(command)
        return new

    def finished(self, ids: Iterable[str]) -> set[str]:
        """Those of the given ids whose trials are stored."""
        return {row[0] for row in self._select(f"SELECT id FROM trials WHERE {_IN}", ids)}

    def get(self, ids: Iterable[str]) -> dict[str, Trial]:
        """The stored trials among the given ids, by id.

        Raises:
          StoreError: the file cannot be read, or is damaged.
        """
        query = f"SELECT {rows.TRIAL_COLUMNS} FROM trials JOIN cadences ON cadences.id = cadence WHERE {_IN}"
        return {row[0]: rows.read_trial(row) for row in self._select(query, ids)}

    def archives(
        self, task: str | None = None, set: str | None = None, missing: Literal["drop", "nan"] = "drop"
    ) -> list[Archive]:
        """The stored curves, one archive for each task and set, ordered by task and set.

        Args:
          task: only this task.
          set: only this set.
          missing: what becomes of trials that are not finished. `"drop"` leaves out every setting without all
            of its seeds, and archives without any setting left. `"nan"` keeps the whole grid: curves and
            seconds of a missing trial are NaN, and its id is `""`.

        Raises:
          StoreError: the file cannot be read, or is damaged.
        """
        query = """SELECT sets.task, name, optimizer, settings,
                          steps, eval_every, eval_batches, last_eval_batches
                   FROM sets JOIN cadences ON cadences.id = cadence
                   WHERE (?1 IS NULL OR sets.task = ?1) AND (?2 IS NULL OR name = ?2)
                   ORDER BY sets.task, name"""
        with self._transaction("DEFERRED") as sql:
            found = [rows.read_archive(sql, row) for row in sql.execute(query, (task, set)).fetchall()]
        if missing == "drop":
            found = [archive.select(_complete(archive)) for archive in found if _complete(archive)]
        return found

    def tasks(self) -> list[str]:
        """Names of the tasks that have trials or sets, sorted."""
        query = "SELECT task FROM trials UNION SELECT task FROM sets ORDER BY 1"
        return [row[0] for row in self._select(query)]

    def sets(self, task: str | None = None) -> list[str]:
        """Names of the sets, or of those on one task, sorted."""
        query = "SELECT DISTINCT name FROM sets WHERE ?1 IS NULL OR task = ?1 ORDER BY 1"
        with self._transaction("DEFERRED") as sql:
            return [row[0] for row in sql.execute(query, (task,)).fetchall()]

    def status(self) -> list[Status]:
        """Expected, finished and diverged trials of every set on every task, ordered by task and set."""
        query = """SELECT sets.task, sets.name, sets.optimizer, count(members.trial), count(trials.id),
                          count(CASE WHEN trials.diverged_at >= 0 THEN 1 END)
                   FROM sets
                   LEFT JOIN members ON members.set_name = sets.name AND members.task = sets.task
                   LEFT JOIN trials ON trials.id = members.trial
                   GROUP BY sets.task, sets.name ORDER BY sets.task, sets.name"""
        return [Status(*row) for row in self._select(query)]

    def remember(self, command: Command) -> None:
        """Writes down a command that fills this store; giving it again changes nothing."""
        with self._transaction("IMMEDIATE") as sql:
            commands.remember(sql, command)

    def commands(self) -> list[Command]:
        """The commands that were written down, in order."""
        with self._transaction("DEFERRED") as sql:
            return commands.remembered(sql)

    def check(self) -> None:
        """Reads the whole file and compares it with SQLite's own rules.

        Raises:
          StoreError: something is damaged.
        """
        answers = [row[0] for row in self._select("PRAGMA integrity_check")]
        if answers != ["ok"]:
            raise StoreError(f"Store {self.path} is damaged: {answers[0]}; restore it from a copy.")

    def _select(self, query: str, ids: Iterable[str] | None = None) -> list[Any]:
        given = () if ids is None else (json.dumps(list(ids)),)
        with self._transaction("DEFERRED") as sql:
            return sql.execute(query, given).fetchall()


def _complete(archive: Archive) -> list[int]:
    """Settings whose seeds are all there."""
    assert archive.ids is not None
    return np.flatnonzero((archive.ids != "").all(axis=1)).tolist() if archive.seeds else []
