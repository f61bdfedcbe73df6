"""Commands that filled a store, so that they can be given again without knowing them."""

import json
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


# Stores that are older than this table get it when a command is remembered.
_TABLE = """CREATE TABLE IF NOT EXISTS commands (
  config TEXT PRIMARY KEY,
  verb TEXT NOT NULL,
  sets TEXT NOT NULL)"""


class Command(NamedTuple):
    """A command that fills a store.

    Attributes:
      verb: of the command line.
      config: its options by name, JSON values.
      sets: pairs of task and set that it fills.
    """

    verb: str
    config: Mapping[str, Any]
    sets: Sequence[tuple[str, str]]


def remember(sql: sqlite3.Connection, command: Command) -> None:
    """Writes a command down, once."""
    sql.execute(_TABLE)
    row = json.dumps(command.config, sort_keys=True), command.verb, json.dumps(command.sets)
    sql.execute("INSERT OR REPLACE INTO commands VALUES (?, ?, ?)", row)


def remembered(sql: sqlite3.Connection) -> list[Command]:
    """The commands, in the order in which they were first given."""
    if not sql.execute("SELECT 1 FROM sqlite_master WHERE name = 'commands'").fetchone():
        return []
    rows = sql.execute("SELECT verb, config, sets FROM commands ORDER BY rowid").fetchall()
    return [
        Command(verb, json.loads(config), [(task, name) for task, name in json.loads(sets)])
        for verb, config, sets in rows
    ]
