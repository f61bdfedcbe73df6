"""When trials are evaluated: rows that trials and sets share."""

import dataclasses
import sqlite3
from typing import Any, Protocol

import numpy as np


class _Evaluated(Protocol):
    @property
    def steps(self) -> Any: ...
    @property
    def eval_every(self) -> int: ...
    @property
    def eval_batches(self) -> int: ...
    @property
    def last_eval_batches(self) -> int: ...


@dataclasses.dataclass(frozen=True)
class Cadence:
    """When a trial was evaluated, and on how much.

    Attributes:
      packed: inner steps with an evaluation, ascending, as little-endian int32; hashing bytes is quick.
      eval_every: inner steps between evaluations.
      eval_batches: batches per evaluation.
      last_eval_batches: batches of the evaluation after the last step.
    """

    packed: bytes
    eval_every: int
    eval_batches: int
    last_eval_batches: int

    @classmethod
    def of(cls, source: _Evaluated) -> "Cadence":
        """The cadence of a trial or an archive."""
        packed = np.asarray(source.steps, "<i4").tobytes()
        return cls(packed, int(source.eval_every), int(source.eval_batches), int(source.last_eval_batches))

    @property
    def steps(self) -> np.ndarray:
        """The steps, shape (T,) int32."""
        return unpack_steps(self.packed)

    def row(self, sql: sqlite3.Connection) -> int:
        """The id of this cadence's row, which is inserted if it is new."""
        values = {
            "num_steps": int(self.steps[-1]),
            "eval_every": self.eval_every,
            "eval_batches": self.eval_batches,
            "last_eval_batches": self.last_eval_batches,
            "steps": self.packed,
        }
        columns, marks = ", ".join(values), ", ".join("?" * len(values))
        where = " AND ".join(f"{name} = ?" for name in values)
        given = tuple(values.values())
        sql.execute(f"INSERT OR IGNORE INTO cadences ({columns}) VALUES ({marks})", given)
        return sql.execute(f"SELECT id FROM cadences WHERE {where}", given).fetchone()[0]


def unpack_steps(packed: bytes) -> np.ndarray:
    """Steps as an int32 array, from little-endian bytes."""
    return np.frombuffer(packed, "<i4").astype(np.int32)
