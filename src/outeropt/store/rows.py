"""Trials and archives as rows of the store's tables: writing and reading them."""

import datetime
import json
import math
import sqlite3
from collections.abc import Sequence
from typing import Any

import numpy as np

from outeropt.store import trial
from outeropt.store.archive import Archive
from outeropt.store.cadence import Cadence, unpack_steps
from outeropt.store.membership import members_of
from outeropt.store.trial import Trial


TRIAL_COLUMNS = (
    "trials.id, task, optimizer, setting, seed, diverged_at, seconds, details, curve_names, curves, "
    "steps, eval_every, eval_batches, last_eval_batches"
)


def insert(sql: sqlite3.Connection, trials: Sequence[Trial]) -> int:
    """Inserts trials that are not stored yet; returns how many those were."""
    cadences = {cadence: cadence.row(sql) for cadence in {Cadence.of(one) for one in trials}}
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    before = sql.total_changes
    sql.executemany(
        "INSERT OR IGNORE INTO trials VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            (
                one.id,
                one.task,
                one.optimizer,
                trial.setting_json(one.setting),
                int(one.seed),
                int(one.steps[-1]),
                cadences[Cadence.of(one)],
                int(one.diverged_at),
                None if math.isnan(one.seconds) else float(one.seconds),
                trial.setting_json({name: curve[-1] for name, curve in one.curves.items()}),
                trial.details_json(one.details),
                now,
                json.dumps(list(one.curves)),
                trial.pack(one.curves),
            )
            for one in trials
        ),
    )
    return sql.total_changes - before


def read_trial(row: tuple) -> Trial:
    """A trial from the columns `TRIAL_COLUMNS`."""
    identity, task, optimizer, setting, seed, diverged_at, seconds, details, names, data, *evaluated = row
    steps, every, batches, last = evaluated
    grid = unpack_steps(steps)
    keys = json.loads(names)
    return Trial(
        id=identity,
        task=task,
        optimizer=optimizer,
        setting=trial.read_setting(setting),
        seed=seed,
        steps=grid,
        curves=dict(zip(keys, trial.unpack(data, keys, len(grid), identity))),
        eval_every=every,
        eval_batches=batches,
        last_eval_batches=last,
        diverged_at=diverged_at,
        seconds=math.nan if seconds is None else seconds,
        details=json.loads(details),
    )


def read_archive(sql: sqlite3.Connection, row: tuple) -> Archive:
    """The whole grid of one set, with NaN for what is missing."""
    task, name, optimizer, settings, steps, every, batches, last = row
    grid = unpack_steps(steps)
    settings = [trial.read_setting(text) for text in json.loads(settings)]
    members = members_of(sql, name, task)
    seeds = sorted({seed for _, seed in members})
    column = {seed: j for j, seed in enumerate(seeds)}
    shape = (len(settings), len(seeds))
    curves: dict[str, np.ndarray] = {}
    diverged_at = np.full(shape, -1, np.int32)
    seconds = np.full(shape, np.nan, np.float32)
    ids = np.full(shape, "", f"<U{max(map(len, members.values()), default=1)}")
    details: dict[str, dict[str, Any]] = {}
    names: dict[str, list[str]] = {}
    query = """SELECT setting_index, members.seed, id, diverged_at, seconds, details, curve_names, curves
               FROM members JOIN trials ON trials.id = trial WHERE set_name = ? AND members.task = ?"""
    for i, seed, identity, diverged, spent, about, text, data in sql.execute(query, (name, task)):
        place = (i, column[seed])
        if text not in names:
            names[text] = json.loads(text)
            for curve in names[text]:
                curves.setdefault(curve, np.full((*shape, len(grid)), np.nan, np.float32))
        for curve, values in zip(names[text], trial.unpack(data, names[text], len(grid), identity)):
            curves[curve][place] = values
        ids[place] = identity
        diverged_at[place] = diverged
        seconds[place] = np.nan if spent is None else spent
        if about not in details:
            details[about] = json.loads(about)
    return Archive(
        task=task,
        set=name,
        optimizer=optimizer,
        settings=tuple(settings),
        seeds=tuple(seeds),
        steps=grid,
        curves=curves,
        diverged_at=diverged_at,
        seconds=seconds,
        eval_every=every,
        eval_batches=batches,
        last_eval_batches=last,
        details=_shared(list(details.values())),
        ids=ids,
    )


def _shared(details: list[dict[str, Any]]) -> dict[str, Any]:
    """What all trials say alike."""
    if not details:
        return {}
    first, *rest = details
    return {key: value for key, value in first.items() if all(other.get(key) == value for other in rest)}
