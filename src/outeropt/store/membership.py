"""Sets: which trials belong to one, and what happens when it is declared again."""

import json
import sqlite3
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from outeropt.errors import StoreError
from outeropt.store import trial
from outeropt.store.cadence import Cadence
from outeropt.store.trial import Trial


def enroll(
    sql: sqlite3.Connection,
    name: str,
    task: str,
    optimizer: str,
    settings: Sequence[str],
    cadence: int,
    members: Mapping[tuple[int, int], str],
) -> None:
    """Writes a set's row and members; see `Store.declare` for what becomes of an earlier one.

    Args:
      sql: a connection inside a transaction.
      name: name of the set.
      task: name of the task.
      optimizer: name of the optimizer.
      settings: settings as `setting_json` writes them.
      cadence: id of the cadence's row.
      members: trial ids by (setting index, seed).
    """
    key = (name, task)
    old = _set_row(sql, name, task)
    known = members_of(sql, name, task)
    grows = old is not None and (
        old[:2] == (optimizer, cadence)
        and old[2] == list(settings[: len(old[2])])
        and all(known.get(place, identity) == identity for place, identity in members.items())
    )
    if not grows:
        sql.execute("DELETE FROM members WHERE set_name = ? AND task = ?", key)
    sql.execute(
        "INSERT OR REPLACE INTO sets VALUES (?, ?, ?, ?, ?)",
        (*key, optimizer, json.dumps(list(settings)), cadence),
    )
    sql.executemany(
        "INSERT OR REPLACE INTO members VALUES (?, ?, ?, ?, ?)",
        ((*key, *place, identity) for place, identity in members.items()),
    )


def append(sql: sqlite3.Connection, name: str, trials: Sequence[Trial]) -> None:
    """Puts trials into a set, their settings after those it has.

    Raises:
      StoreError: the set would get two optimizers or cadences on one task.
    """
    by_task: dict[str, list[Trial]] = {}
    for one in trials:
        by_task.setdefault(one.task, []).append(one)
    for task, group in by_task.items():
        if len({(one.optimizer, Cadence.of(one)) for one in group}) > 1:
            raise StoreError(
                f"Set {name!r} on {task} would get trials of several optimizers or cadences; "
                "a set holds one of each, so give them different names."
            )
        first = group[0]
        cadence = Cadence.of(first).row(sql)
        old = _set_row(sql, name, task)
        texts = list(old[2]) if old is not None and old[:2] == (first.optimizer, cadence) else []
        index = {text: i for i, text in enumerate(texts)}
        members = {}
        for one in group:
            place = index.setdefault(trial.setting_json(one.setting), len(index))
            members[place, int(one.seed)] = one.id
        enroll(sql, name, task, first.optimizer, list(index), cadence, members)


class Set(NamedTuple):
    """A set on a task, out of its store.

    Attributes:
      name: name of the set.
      task: name of the task.
      optimizer: name of the optimizer.
      settings: settings as `setting_json` writes them.
      cadence: when its trials are evaluated.
      members: trial ids by (setting index, seed).
    """

    name: str
    task: str
    optimizer: str
    settings: list[str]
    cadence: Cadence
    members: Mapping[tuple[int, int], str]


def read_sets(sql: sqlite3.Connection) -> list[Set]:
    """All sets of a store."""
    query = """SELECT name, task, optimizer, settings, steps, eval_every, eval_batches, last_eval_batches
               FROM sets JOIN cadences ON cadences.id = cadence"""
    return [
        Set(name, task, optimizer, json.loads(settings), Cadence(*cadence), members_of(sql, name, task))
        for name, task, optimizer, settings, *cadence in sql.execute(query).fetchall()
    ]


def take_over(sql: sqlite3.Connection, theirs: Set) -> None:
    """Puts another store's set into this one. One that is here and means something else stays as it is."""
    cadence = theirs.cadence.row(sql)
    ours, settings = _set_row(sql, theirs.name, theirs.task), theirs.settings
    if ours is not None:
        common = min(len(ours[2]), len(settings))
        if ours[:2] != (theirs.optimizer, cadence) or ours[2][:common] != settings[:common]:
            return
        settings = max(ours[2], settings, key=len)
    enroll(sql, theirs.name, theirs.task, theirs.optimizer, settings, cadence, theirs.members)


def _set_row(sql: sqlite3.Connection, name: str, task: str) -> tuple[str, int, list[str]] | None:
    query = "SELECT optimizer, cadence, settings FROM sets WHERE name = ? AND task = ?"
    row = sql.execute(query, (name, task)).fetchone()
    return None if row is None else (row[0], row[1], json.loads(row[2]))


def members_of(sql: sqlite3.Connection, name: str, task: str) -> dict[tuple[int, int], str]:
    """Trial ids of a set on a task, by (setting index, seed)."""
    query = "SELECT setting_index, seed, trial FROM members WHERE set_name = ? AND task = ?"
    return {(row[0], row[1]): row[2] for row in sql.execute(query, (name, task))}
