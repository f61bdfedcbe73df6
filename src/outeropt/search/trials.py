"""Trials of lanes that stop and go on, and archives of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from outeropt.search.lanes import Lane, Lanes
from outeropt.search.problem import Problem
from outeropt.store import Archive, Trial
from outeropt.store.trial import as_archive


def trial(
    problem: Problem,
    identity: str,
    setting: Mapping[str, float],
    seed: int,
    curves: Mapping[str, np.ndarray],
    diverged_at: int,
    seconds: float,
    details: Mapping[str, Any],
) -> Trial:
    """A trial of a problem, as far as its curves go."""
    protocol = problem.protocol
    return Trial(
        id=identity,
        task=problem.task.name,
        optimizer=problem.optimizer_name,
        setting=setting,
        seed=seed,
        steps=protocol.points[: len(next(iter(curves.values())))],
        curves=curves,
        eval_every=protocol.eval_every,
        eval_batches=protocol.eval_batches,
        last_eval_batches=protocol.last_eval_batches,
        diverged_at=diverged_at,
        seconds=seconds,
        details=details,
    )


def told(lanes: Lanes, lane: Lane) -> tuple[dict[str, np.ndarray], int, float]:
    """What a lane has to say: its curves so far, when it diverged, how long it took."""
    return *lanes.curves(lane), lane.seconds


def archive(problem: Problem, rows: Sequence[Sequence[Trial]]) -> Archive:
    """Trials of equal length, by setting and seed, as an archive."""
    return as_archive(
        rows,
        set=problem.set or "search",
        optimizer=problem.optimizer_name,
        settings=[row[0].setting for row in rows],
    )
