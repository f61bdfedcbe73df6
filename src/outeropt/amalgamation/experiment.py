"""An amalgamation's folder: what was asked for, a row and a checkpoint for each period, and the best student.

config.yaml                      what was asked for
summary.csv                      a row for each finished period
checkpoint/stage_S.P.R.safetensors        the student, as `learned.load` takes it
checkpoint/stage_S.P.R.learner.safetensors    with the outer optimizer's state
checkpoint/unfinished.safetensors         the period that is under way
log/stage_S.P.R.npz              losses of each outer step
optimizer.safetensors            the best student so far
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jaxtyping import PyTree

from outeropt import checkpoint
from outeropt.amalgamation.strategies import Place, Record, Strategy
from outeropt.errors import ConfigError, OuteroptError
from outeropt.learned import LearnedOptimizer
from outeropt.optimizer import Optimizer
from outeropt.weight_files import FILE


CONFIG = "config.yaml"
SUMMARY = "summary.csv"
_UNFINISHED = "unfinished"

# The published code's columns, in its order; those of stages and attempts where the strategy has them.
_COLUMNS = (
    "validation", "time", "duration", "stage", "period", "repeat", "warmup", "warmup_rate", "p_teacher",
    "depth", "unroll_len", "epochs", "meta_loss", "imitation_loss",
)  # fmt: skip


class Experiment:
    """Reads and writes one folder. Every file is whole at any moment."""

    def __init__(self, folder: str | Path, strategy: Strategy):
        self.folder = Path(folder)
        self._strategy = strategy
        self._rows = _read_rows(self.folder / SUMMARY)

    @property
    def records(self) -> list[Record]:
        """The finished periods, in order."""
        return [
            Record(
                Place(int(row.get("stage") or 0), int(row["period"]), int(row.get("repeat") or 0)),
                float(row["validation"]),
                float(row["meta_loss"]),
            )
            for row in self._rows
        ]

    def configure(self, config: Mapping[str, Any]) -> None:
        """Writes what was asked for, or checks that it is what the folder was made for.

        Raises:
          ConfigError: the folder is of another configuration; the message names the first key that differs.
        """
        path = self.folder / CONFIG
        text = yaml.safe_dump(dict(config), sort_keys=False)
        asked = yaml.safe_load(text)
        if path.exists():
            kept = yaml.safe_load(path.read_text()) or {}
            for key in {**kept, **asked}:
                if kept.get(key) != asked.get(key):
                    raise ConfigError(
                        f"{self.folder} holds an amalgamation with {key} = {kept.get(key)!r}, not "
                        f"{asked.get(key)!r}. Give another folder, or the same configuration to go on."
                    )
            return
        checkpoint.replace(path, text.encode())

    def finish(
        self,
        place: Place,
        student: Optimizer,
        learner: PyTree,
        row: Mapping[str, Any],
        logs: Mapping[str, np.ndarray],
        about: Mapping[str, Any],
        best: Optimizer | None,
    ) -> None:
        """Writes a finished period; its row comes last, so that a row has all that belongs to it.

        Args:
          place: which period.
          student: as it is to be used.
          learner: with all that training needs to go on from here.
          row: values by column.
          logs: arrays by name.
          about: how the student was made.
          best: the student to offer as the folder's, if this period brought a better one.
        """
        label = self._strategy.label(place)
        checkpoint.save(self._path(f"{label}.learner"), learner)
        save_student(self._path(label), student, about)
        data = io.BytesIO()
        np.savez_compressed(data, allow_pickle=False, **logs)
        checkpoint.replace(self.folder / "log" / f"{label}.npz", data.getvalue())
        if best is not None:
            save_student(self.folder / FILE, best, about)
        self._rows.append({name: str(row[name]) for name in _COLUMNS if name in row})
        checkpoint.replace(self.folder / SUMMARY, _as_csv(self._rows).encode())
        self._path(_UNFINISHED).unlink(missing_ok=True)

    def learner(self, place: Place, like: PyTree) -> PyTree:
        """The learner after a finished period."""
        return checkpoint.load(self._path(f"{self._strategy.label(place)}.learner"), like)

    def suspend(self, state: PyTree, about: Mapping[str, Any]) -> None:
        """Keeps a period that is under way."""
        checkpoint.save(self._path(_UNFINISHED), state, about)

    def suspended(self, place: Place) -> dict[str, Any] | None:
        """What `suspend` was told about the period, if it is the one that is under way."""
        path = self._path(_UNFINISHED)
        about = checkpoint.metadata(path) if path.exists() else {}
        return about if about.get("label") == self._strategy.label(place) else None

    def resumed(self, like: PyTree) -> PyTree:
        """The state that `suspend` kept."""
        return checkpoint.load(self._path(_UNFINISHED), like)

    def _path(self, name: str) -> Path:
        return self.folder / "checkpoint" / f"{name}.safetensors"


def save_student(path: Path, student: Optimizer, about: Mapping[str, Any]) -> None:
    """Writes an optimizer: a learned one as `learned.load` takes it, another one's numbers alone."""
    if isinstance(student, LearnedOptimizer):
        student.save(path, about)
    else:
        checkpoint.save(path, student, {"about": dict(about)})


def _read_rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if missing := [name for name in ("validation", "period", "meta_loss") if not row.get(name)]:
            raise OuteroptError(f"{path} has a row without {missing[0]}; it was not written by outeropt.")
    return rows


def _as_csv(rows: Sequence[Mapping[str, str]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
