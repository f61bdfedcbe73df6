"""The tables of a report page, as plain values that the template prints."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from outeropt.bench import restarts, scores
from outeropt.bench.leaderboard import Leaderboard, Row
from outeropt.bench.pictures import episodes, restart_series, series
from outeropt.bench.pictures.contestants import Contestant, order
from outeropt.store.archive import Archive


FULL_TINT = 4.0  # speed-up (or slow-down) at which a cell has its full colour
DETAIL_LENGTH = 200
DETAIL_COUNT = 8


def summary(everyone: Sequence[Contestant], tasks: Sequence[str]) -> dict[str, Any]:
    """What the page's header counts."""
    held = _archives(everyone)
    seconds = [float(np.nansum(a.seconds)) for a in held]
    return {
        "optimizers": len({entry.label for entry in everyone}),
        "tasks": len(tasks),
        "trials": sum(a.seconds.size for a in held),
        "steps": sum(a.seconds.size * a.num_steps for a in held),
        "diverged": sum(int(diverged_trials(a).sum()) for a in held),
        "time": duration(sum(seconds)),
        "rulesets": [rules for rules in scores.RULESETS if any(entry.ruleset == rules for entry in everyone)],
    }


def ranking(leaderboard: Leaderboard, everyone: Sequence[Contestant]) -> list[dict[str, Any]]:
    """One row per contestant, best first within its ruleset.

    `place` counts within the ruleset, `pair` orders tuned beside as is. Bars are percentages of the longest
    interval's end, or of the reference (1) if that is longer.
    """
    looks = {(entry.label, entry.ruleset): entry.look for entry in everyone}
    full = 1.05 * max([1.0, *(row.high for row in leaderboard.rows if np.isfinite(row.high))])
    best = {
        (rules, task): max((row.per_task.get(task, 0.0) for row in leaderboard.rows_of(rules)), default=0.0)
        for rules in scores.RULESETS
        for task in leaderboard.tasks
    }
    labels = order(leaderboard)
    result = []
    for rules in scores.RULESETS:
        for place, row in enumerate(leaderboard.rows_of(rules), 1):
            wins = sum(row.per_task.get(task, -1.0) >= best[rules, task] > 0 for task in leaderboard.tasks)
            look = looks.get((row.optimizer, rules))
            result.append(
                {
                    "place": place,
                    "pair": 2 * labels.index(row.optimizer) + scores.RULESETS.index(rules),
                    "label": row.optimizer,
                    "ruleset": rules,
                    "colour": look.colour if look else 0,
                    "row": row,
                    "at": 100 * row.score / full,
                    "low": 100 * row.low / full,
                    "width": 100 * (row.high - row.low) / full,
                    "one": 100 / full,
                    "wins": wins,
                    "missing": leaderboard.missing(row),
                    "seconds": duration(row.seconds),
                }
            )
    return result


def heat_of_scores(leaderboard: Leaderboard, everyone: Sequence[Contestant]) -> list[dict[str, Any]]:
    """Rows of speed-ups: tasks by contestants; the tint is log2 of the speed-up, full at 4 times."""
    rows = {(row.optimizer, row.ruleset): row for row in leaderboard.rows}

    def cell(row: Row | None, task: str) -> dict[str, Any]:
        value = row.per_task.get(task) if row else None
        if value is None:
            return {"text": "–", "sort": "", "tint": 0.0}
        tint = float(np.log2(np.clip(value, 1 / FULL_TINT, FULL_TINT)) / np.log2(FULL_TINT))
        return {"text": f"{value:.2f}", "sort": value, "tint": tint}

    return [
        {"task": task, "cells": [cell(rows.get((e.label, e.ruleset)), task) for e in everyone]}
        for task in leaderboard.tasks
    ]


def heat_of_losses(everyone: Sequence[Contestant], tasks: Sequence[str], curve: str) -> list[dict[str, Any]]:
    """Rows of final losses (seed mean of the best setting); tints run from a row's worst (-1) to best (1)."""
    table = []
    for task in tasks:
        values = [_final(entry.archives.get(task), curve) for entry in everyone]
        finite = [v for v in values if v is not None and np.isfinite(v)]
        low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
        cells = []
        for value in values:
            if value is None:
                cells.append({"text": "–", "sort": "", "tint": 0.0})
            elif not np.isfinite(value):
                cells.append({"text": "diverged", "sort": "Infinity", "tint": -1.0})
            else:
                tint = 1 - 2 * (value - low) / (high - low) if high > low else 0.0
                cells.append({"text": f"{value:.4g}", "sort": value, "tint": tint})
        table.append({"task": task, "cells": cells})
    return table


def details(everyone: Sequence[Contestant], tasks: Sequence[str], curve: str) -> list[dict[str, Any]]:
    """One row per task and contestant: the chosen setting, its final loss, divergences and seconds."""
    result = []
    for task in tasks:
        for entry in everyone:
            archive = entry.archives.get(task)
            if archive is None:
                continue
            best = series.chosen(archive)
            lost = diverged_trials(archive)
            seconds = archive.seconds[np.isfinite(archive.seconds)]
            final = _final(archive, curve)
            result.append(
                {
                    "task": task,
                    "label": entry.label,
                    "ruleset": entry.ruleset,
                    "colour": entry.look.colour,
                    "set": entry.set,
                    "setting": setting_text(archive.settings[best]),
                    "final": final if final is not None and np.isfinite(final) else None,
                    "seeds": len(archive.seeds),
                    "steps": archive.num_steps,
                    "diverged": int(lost.sum()),
                    "trials": int(lost.size),
                    "seconds": float(np.median(seconds)) if seconds.size else None,
                }
            )
    return result


def ends(everyone: Sequence[Contestant]) -> list[dict[str, Any]]:
    """One row per task and contestant of several episodes: the training loss at the end of each."""
    return [
        {
            "task": row.task,
            "label": row.contestant.label,
            "ruleset": row.contestant.ruleset,
            "colour": row.contestant.look.colour,
            "name": row.contestant.name,
            "setting": setting_text(row.setting),
            "ends": [plus_minus(*end) for end in zip(row.ends.centre, row.ends.high)],
            "last": float(row.ends.centre[-1]) if np.isfinite(row.ends.centre[-1]) else "",
            "steps": row.steps,
            "gradients": row.gradients,
            "state": row.state,
            "seconds": row.seconds,
        }
        for row in episodes.rows(everyone)
        if len(row.ends.centre) > 1
    ]


def restart_rows(everyone: Sequence[Contestant], curve: str = "test/loss") -> list[dict[str, Any]]:
    """One row per task and contestant with restarts: how their final losses are spread, best median first."""
    found = []
    for task, here in restart_series.panels(everyone, curve).items():
        summaries = [
            (entry, restarts.summary(restarts.restarts(archive), np.random.RandomState(0)))
            for entry, archive in here
        ]
        summaries.sort(key=lambda pair: (not np.isfinite(pair[1].median.value), pair[1].median.value))
        for entry, one in summaries:
            numbers = (one.mean.value, one.median.value, *one.quantiles, one.best)
            found.append(
                {
                    "task": task,
                    "label": entry.label,
                    "ruleset": entry.ruleset,
                    "colour": entry.look.colour,
                    "name": entry.name,
                    "runs": one.runs,
                    "diverged": one.diverged,
                    "rate": one.diverged_rate,
                    "numbers": [_lost(number) for number in numbers],
                    "errors": [one.mean.error, one.median.error],
                    "seconds": one.seconds,
                }
            )
    return found


def _lost(value: float) -> float | None:
    """A loss; None where it is that of a run that diverged."""
    return value if np.isfinite(value) else None


def plus_minus(centre: float, high: float) -> str:
    """A mean and half of its interval as `0.012 ± 0.003`; a dash if it is no number."""
    if not np.isfinite(centre):
        return "–"
    return f"{centre:.3g} ± {high - centre:.2g}" if high > centre else f"{centre:.3g}"


def provenance(everyone: Sequence[Contestant]) -> list[tuple[str, str]]:
    """Distinct values of each entry of the archives' details (machine, versions), at most 8 of each."""
    found: dict[str, dict[str, None]] = {}
    for archive in _archives(everyone):
        for name, value in archive.details.items():
            text = str(value)
            values = found.setdefault(str(name), {})
            if len(values) < DETAIL_COUNT:
                values[text[:DETAIL_LENGTH]] = None
    return [
        (name, "; ".join(list(values)[:6]) + (" …" if len(values) > 6 else ""))
        for name, values in found.items()
    ]


def duration(seconds: float) -> str:
    """Seconds as text: `0.8 s`, `12 s`, `3.5 min`, `2.1 h`; a dash if not known."""
    if not np.isfinite(seconds):
        return "–"
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def setting_text(setting: dict[str, Any]) -> str:
    """A setting as `learning_rate 0.001, b1 0.9`: learning rate first, then as given."""
    ordered = sorted(setting.items(), key=lambda item: item[0] != "learning_rate")
    return ", ".join(f"{name} {_text(value)}" for name, value in ordered)


def diverged_trials(archive: Archive) -> np.ndarray:
    """Which trials diverged, shape (settings, seeds); by the first curve where there is no training loss."""
    if "train/loss" in archive.curves:
        return scores.diverged(archive)
    return archive.diverged_at >= 0


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _archives(everyone: Sequence[Contestant]) -> list[Archive]:
    return [archive for entry in everyone for archive in entry.archives.values()]


def _final(archive: Archive | None, curve: str) -> float | None:
    """Mean over seeds of the chosen setting's last value; NaN if a seed diverged, None if there is none."""
    if archive is None or curve not in archive.curves:
        return None
    return float(archive.final(curve)[series.chosen(archive)].mean(dtype=np.float64))
