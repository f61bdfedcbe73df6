"""One finished trial, and the plain forms in which a store keeps it."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from outeropt.errors import StoreError
from outeropt.store.archive import Archive
from outeropt.store.cadence import Cadence


Setting = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Trial:
    """One optimizer, one seed, one task, trained to the end.

    Attributes:
      id: content hash of everything that decides the numbers; two trials of equal id are the same trial.
      task: name of the task.
      optimizer: name of the optimizer.
      setting: hyperparameter values by name.
      seed: the seed.
      steps: inner steps at which the curves were evaluated, shape (T,).
      curves: float32 arrays of shape (T,) by name, as in `Archive`.
      eval_every: inner steps between evaluations.
      eval_batches: batches per evaluation.
      last_eval_batches: batches of the evaluation after the last step.
      diverged_at: first inner step with a non-finite loss; -1 if there was none.
      seconds: wall-clock seconds of the trial's share of its compiled program; NaN if unknown.
      details: anything else worth keeping, JSON values only.

    Raises:
      StoreError: a curve's shape is not (T,).
    """

    id: str
    task: str
    optimizer: str
    setting: Setting
    seed: int
    steps: np.ndarray
    curves: Mapping[str, np.ndarray]
    eval_every: int
    eval_batches: int
    last_eval_batches: int
    diverged_at: int = -1
    seconds: float = math.nan
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for name, curve in self.curves.items():
            if np.shape(curve) != np.shape(self.steps):
                raise StoreError(
                    f"Curve {name!r} of a {self.optimizer} trial on {self.task} has shape {np.shape(curve)}; "
                    f"its steps have shape {np.shape(self.steps)}."
                )


def from_archive(archive: Archive) -> Iterator[tuple[int, Trial]]:
    """The trials of an archive, each with the index of its setting; missing ones (id `""`) are passed over.

    Trials without an id get the hash of all that the archive says about them.
    """
    cadence = Cadence.of(archive)
    for i, setting in enumerate(archive.settings):
        for j, seed in enumerate(archive.seeds):
            curves = {name: curve[i, j] for name, curve in archive.curves.items()}
            if archive.ids is None:
                names = (archive.set, archive.task, archive.optimizer)
                told = (*names, i, setting_json(setting), int(seed), cadence)
                digest = hashlib.blake2b(repr(told).encode(), digest_size=16)
                for name, curve in curves.items():
                    digest.update(name.encode() + np.asarray(curve, "<f4").tobytes())
                identity = digest.hexdigest()
            else:
                identity = str(archive.ids[i, j])
            if not identity:
                continue
            yield (
                i,
                Trial(
                    id=identity,
                    task=archive.task,
                    optimizer=archive.optimizer,
                    setting=setting,
                    seed=int(seed),
                    steps=archive.steps,
                    curves=curves,
                    eval_every=archive.eval_every,
                    eval_batches=archive.eval_batches,
                    last_eval_batches=archive.last_eval_batches,
                    diverged_at=int(archive.diverged_at[i, j]),
                    seconds=float(archive.seconds[i, j]),
                    details=archive.details,
                ),
            )


def as_archive(
    rows: Sequence[Sequence[Trial]], *, set: str, optimizer: str, settings: Sequence[Setting]
) -> Archive:
    """Trials of one task and length as an archive.

    Args:
      rows: a row for each setting, with a trial for each seed; the seeds of all rows are the same.
      set: name of the set.
      optimizer: name of the optimizer.
      settings: the setting of each row.
    """
    first = rows[0][0]
    return Archive(
        task=first.task,
        set=set,
        optimizer=optimizer,
        settings=tuple(dict(setting) for setting in settings),
        seeds=tuple(trial.seed for trial in rows[0]),
        steps=first.steps,
        curves={
            name: np.array([[trial.curves[name] for trial in row] for row in rows]) for name in first.curves
        },
        diverged_at=np.array([[trial.diverged_at for trial in row] for row in rows], np.int32),
        seconds=np.array([[trial.seconds for trial in row] for row in rows], np.float32),
        eval_every=first.eval_every,
        eval_batches=first.eval_batches,
        last_eval_batches=first.last_eval_batches,
        details=dict(first.details),
        ids=np.array([[trial.id for trial in row] for row in rows]),
    )


def setting_json(setting: Setting) -> str:
    """A setting as JSON that every reader understands: infinity is `1e999`, NaN is `null`."""
    return "{" + ", ".join(f"{json.dumps(name)}: {_value(value)}" for name, value in setting.items()) + "}"


def _value(value: Any) -> str:
    if isinstance(value, bool | int | str):
        return json.dumps(value)
    number = float(value)
    if math.isnan(number):
        return "null"
    return json.dumps(number) if math.isfinite(number) else ("1e999" if number > 0 else "-1e999")


def read_setting(text: str) -> dict[str, Any]:
    """The inverse of `setting_json`."""
    return {name: math.nan if value is None else value for name, value in json.loads(text).items()}


def details_json(details: Mapping[str, Any]) -> str:
    """Details as JSON.

    Raises:
      StoreError: a value is no JSON value.
    """
    try:
        return json.dumps(details, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise StoreError(
            f"Details must be JSON values (text, finite numbers, lists, dictionaries): {error}."
        ) from None


def pack(curves: Mapping[str, np.ndarray]) -> bytes:
    """Curves one after the other as little-endian float32."""
    return b"".join(np.ascontiguousarray(curve, "<f4").tobytes() for curve in curves.values())


def unpack(data: bytes, names: Sequence[str], length: int, identity: str) -> np.ndarray:
    """The inverse of `pack`: float32 of shape (curves, T).

    Raises:
      StoreError: the bytes are not that many numbers.
    """
    block = np.frombuffer(data, "<f4") if len(data) % 4 == 0 else np.empty(0, np.float32)
    if block.size != len(names) * length:
        raise StoreError(
            f"The curves of trial {identity} are damaged ({len(data)} bytes for {len(names)} curves of "
            f"{length} points); restore the store from a copy, or delete that row and run the sweep again."
        )
    return block.reshape(len(names), length).astype(np.float32)
