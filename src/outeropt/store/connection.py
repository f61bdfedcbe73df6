"""The SQLite file behind a store: how it is opened, what is in it, and what its errors mean."""

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from outeropt.errors import StoreError


Mode = Literal["write", "read"]

# Marks a SQLite file as a store ("outr"), and says which tables to expect in it.
APPLICATION_ID = 0x6F757472
VERSION = 1
BUSY_SECONDS = 60.0

_SCHEMA = (
    """CREATE TABLE cadences (
         id INTEGER PRIMARY KEY,
         num_steps INTEGER NOT NULL,
         eval_every INTEGER NOT NULL,
         eval_batches INTEGER NOT NULL,
         last_eval_batches INTEGER NOT NULL,
         steps BLOB NOT NULL,
         UNIQUE (num_steps, eval_every, eval_batches, last_eval_batches, steps))""",
    """CREATE TABLE trials (
         id TEXT PRIMARY KEY,
         task TEXT NOT NULL,
         optimizer TEXT NOT NULL,
         setting TEXT NOT NULL,
         seed INTEGER NOT NULL,
         num_steps INTEGER NOT NULL,
         cadence INTEGER NOT NULL REFERENCES cadences (id),
         diverged_at INTEGER NOT NULL,
         seconds REAL,
         final TEXT NOT NULL,
         details TEXT NOT NULL,
         created TEXT NOT NULL,
         curve_names TEXT NOT NULL,
         curves BLOB NOT NULL)""",
    """CREATE TABLE sets (
         name TEXT NOT NULL,
         task TEXT NOT NULL,
         optimizer TEXT NOT NULL,
         settings TEXT NOT NULL,
         cadence INTEGER NOT NULL REFERENCES cadences (id),
         PRIMARY KEY (name, task))""",
    # A member's trial need not be finished, so `trial` is no foreign key.
    """CREATE TABLE members (
         set_name TEXT NOT NULL,
         task TEXT NOT NULL,
         setting_index INTEGER NOT NULL,
         seed INTEGER NOT NULL,
         trial TEXT NOT NULL,
         PRIMARY KEY (set_name, task, setting_index, seed)) WITHOUT ROWID""",
    "CREATE INDEX trials_by_task ON trials (task, optimizer)",
    """CREATE VIEW results AS
         SELECT set_name, trials.task, optimizer, setting_index, setting, trials.seed, num_steps,
                diverged_at, seconds, final, trial
         FROM members JOIN trials ON trials.id = members.trial""",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {VERSION}",
)


def connect(path: Path, mode: Mode) -> sqlite3.Connection:
    """Opens a store's file, creating it first if `mode` is `"write"` and there is none.

    Committed transactions survive the end of the process at any moment, and of the machine: the journal is a
    write-ahead log, flushed to the disk at every commit.

    Raises:
      StoreError: there is no such file to read, it is no store, or it cannot be opened.
    """
    with explained(path):
        return _for_reading(path) if mode == "read" else _for_writing(path)


def _for_writing(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        if not _is_store(path, connection):
            connection.execute("BEGIN IMMEDIATE")
            # Another process may have created the tables while this one waited.
            if not _is_store(path, connection):
                for statement in _SCHEMA:
                    connection.execute(statement)
            connection.execute("COMMIT")
        _use_write_ahead_log(connection)
        connection.execute("PRAGMA synchronous = FULL")
        return connection
    except BaseException:
        connection.close()
        raise


def _for_reading(path: Path) -> sqlite3.Connection:
    if not path.is_file():
        raise StoreError(f"There is no store at {path}; a sweep with that store creates it.")
    uri = path.resolve().as_uri()
    # Where SQLite may not create its shared-memory file, a database without a log is read as it stands.
    attempts = ["?mode=ro"] if Path(f"{path}-wal").exists() else ["?mode=ro", "?immutable=1"]
    for i, suffix in enumerate(attempts):
        connection = sqlite3.connect(
            uri + suffix, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            if not _is_store(path, connection):
                raise StoreError(f"{path} is empty, not a store; give the path of a store, or delete it.")
            return connection
        except sqlite3.OperationalError:
            connection.close()
            if i + 1 == len(attempts):
                raise
        except BaseException:
            connection.close()
            raise
    raise AssertionError("unreachable: the last attempt returns or raises")


def _is_store(path: Path, connection: sqlite3.Connection) -> bool:
    """Whether the tables are there; False for a new, empty file."""
    alone = not connection.in_transaction
    # One transaction sees one state of the file, while another process may be creating the tables.
    if alone:
        connection.execute("BEGIN")
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if alone:
        connection.execute("COMMIT")
    if tables == 0 and application == 0:
        return False
    if application != APPLICATION_ID:
        raise StoreError(f"{path} is a SQLite file of another program, not a store; give another path.")
    if version > VERSION:
        raise StoreError(
            f"{path} has store format {version}, and this outeropt reads up to {VERSION}; upgrade outeropt."
        )
    return True


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    """Switches the journal mode; SQLite does not wait for other processes here, so this does."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL").fetchone()
            return
        except sqlite3.OperationalError as error:
            if _name(error) != "SQLITE_BUSY" or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _name(error: sqlite3.Error) -> str:
    return getattr(error, "sqlite_errorname", "")


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns errors of SQLite and of the file system into one line that says what to do."""
    try:
        yield
    except sqlite3.Error as error:
        raise StoreError(_explanation(path, error)) from error
    except OSError as error:
        raise StoreError(
            f"Store {path} cannot be opened: {error.strerror or error}; give a path that can be written."
        ) from error


def _explanation(path: Path, error: sqlite3.Error) -> str:
    name = _name(error)
    if name.startswith("SQLITE_FULL"):
        return (
            f"No room left on the disk of store {path}; this chunk was not written, all before it is safe. "
            "Free some space and run the same command again."
        )
    if name.startswith("SQLITE_NOTADB"):
        return f"{path} is not a store (no SQLite file); give another path, or delete it to start afresh."
    if name.startswith("SQLITE_CORRUPT"):
        return (
            f"Store {path} is damaged ({error}); restore a copy, or save what is readable with "
            f"'sqlite3 {path} .recover | sqlite3 recovered.db'."
        )
    if name.startswith(("SQLITE_READONLY", "SQLITE_PERM")):
        return (
            f"Store {path} is read-only here; copy it to a folder that can be written, or change its rights."
        )
    if name.startswith("SQLITE_CANTOPEN"):
        return (
            f"Store {path} cannot be opened: it is a folder, or it or its folder may not be written; "
            "give a path in a folder that can be written."
        )
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return (
            f"Store {path} was locked by another program for over {BUSY_SECONDS:.0f} seconds; "
            "close that program and try again."
        )
    if name.startswith("SQLITE_IOERR"):
        return (
            f"The disk of store {path} fails ({error}); everything committed before is safe. Check the disk."
        )
    return f"Store {path} cannot be used: {error}."
