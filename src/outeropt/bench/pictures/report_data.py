"""The numbers inside a report page: everything its charts draw, rounded and thinned, as plain JSON values."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from outeropt.bench import restarts
from outeropt.bench.normalizer import Normalizer
from outeropt.bench.pictures import episodes, restart_series, series
from outeropt.bench.pictures.contestants import Contestant
from outeropt.bench.pictures.series import Band
from outeropt.bench.profiles import profiles
from outeropt.errors import OuteroptError


MAX_POINTS = 200
CURVE_BYTES = 2_200_000  # all curves together, so that a page with a dozen optimizers stays under 3 MB
DIGITS = 4


def numbers(values: Iterable[float]) -> list[float | None]:
    """Values with 4 significant digits; None (null in JSON) for what is not finite."""
    return [_short(float(v)) if np.isfinite(v) else None for v in values]


def _short(value: float) -> float:
    rounded = float(f"{value:.{DIGITS}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded


def charts(
    everyone: Sequence[Contestant], tasks: Sequence[str], normalizer: Normalizer | None, curve: str
) -> dict[str, Any]:
    """What the page's script draws.

    Args:
      everyone: contestants in display order; the page refers to them by their place in it.
      tasks: tasks in display order, likewise.
      normalizer: for profiles and for tunability in speed-ups; both are left out without one.
      curve: the loss that speed-ups are made from.
    """
    held = [a for entry in everyone for a in entry.archives.values()]
    names = sorted({name for a in held for name in a.curves}, key=_curve_order)
    total = sum(len(a.curves) for a in held)
    points = int(np.clip(CURVE_BYTES / (24 * max(total, 1)), 16, MAX_POINTS))
    final = "valid/loss" if "valid/loss" in names else next(iter(names), "")
    return {
        "entries": [
            {
                "name": entry.name,
                "label": entry.label,
                "ruleset": entry.ruleset,
                "colour": entry.look.colour,
                "dash": list(entry.look.dash),
                "marker": entry.look.marker,
            }
            for entry in everyone
        ],
        "tasks": list(tasks),
        "curves": names,
        "final": final,
        "learning": [_learning(everyone, task, points) for task in tasks],
        "episodes": _episodes(everyone, tasks),
        "restarts": _restarts(everyone),
        "boundaries": [series.boundaries([a for _, a in _here(everyone, task)]) for task in tasks],
        "sensitivity": {
            name: [_sensitivity(everyone, task, name, final) for task in tasks]
            for name in series.hyperparameters(held)
        },
        "tunability": [_tunability(everyone, task, final) for task in tasks],
        "speedup": _speedup(everyone, tasks, normalizer, curve),
        "profiles": _profiles(everyone, normalizer),
    }


def _curve_order(name: str) -> tuple[bool, int, str]:
    split, _, metric = name.partition("/")
    splits = ("train", "valid", "test")
    return metric != "loss", splits.index(split) if split in splits else len(splits), name


def _here(everyone: Sequence[Contestant], task: str):
    return [(i, entry.archives[task]) for i, entry in enumerate(everyone) if task in entry.archives]


def _learning(everyone: Sequence[Contestant], task: str, points: int) -> list[dict[str, Any]]:
    lines = []
    for i, archive in _here(everyone, task):
        best = series.chosen(archive)
        keep = series.thin(archive.steps, points)
        kept = {name: curve[best][:, keep] for name, curve in archive.curves.items()}
        curves = {name: _band(series.band(values), archive.seeds) for name, values in kept.items()}
        lines.append({"entry": i, "x": [int(step) for step in archive.steps[keep]], "curves": curves})
    return lines


def _band(band: Band, seeds: Sequence[int]) -> dict[str, list[float | None]]:
    """Centre, and its edges unless there is but one seed."""
    edges = {"low": numbers(band.low), "high": numbers(band.high)} if len(seeds) > 1 else {}
    return {"mid": numbers(band.centre), **edges}


def _episodes(everyone: Sequence[Contestant], tasks: Sequence[str]) -> list[list[dict[str, Any]]]:
    """Training loss at the end of each episode, by task; nothing where there is but one."""
    place = {entry.name: i for i, entry in enumerate(everyone)}
    lines: dict[str, list[dict[str, Any]]] = {task: [] for task in tasks}
    for row in episodes.rows(everyone):
        count = len(row.ends.centre)
        if count > 1:
            band = _band(row.ends, range(row.seeds))
            line = {"entry": place[row.contestant.name], "x": list(range(1, count + 1)), **band}
            lines[row.task].append(line)
    return list(lines.values()) if any(lines.values()) else []


def _restarts(everyone: Sequence[Contestant], curve: str = "test/loss") -> list[dict[str, Any]]:
    """Of each task with restarts, their final losses as a distribution, and the median against steps."""
    place = {entry.name: i for i, entry in enumerate(everyone)}
    found = []
    for task, here in restart_series.panels(everyone, curve).items():
        low, top = restart_series.limits([archive for _, archive in here], curve)
        ends, medians, heights = [], [], []
        for entry, archive in here:
            x, share = restart_series.distribution(restart_series.final(archive, curve), low, top)
            ends.append({"entry": place[entry.name], "x": numbers(x), "mid": numbers(share)})
            keep = series.thin(archive.steps, MAX_POINTS)
            middle = Band(*restarts.median_band(archive.curves[curve][0][:, keep]))
            heights += [middle.centre, middle.low]
            steps = [int(step) for step in archive.steps[keep]]
            medians.append({"entry": place[entry.name], "x": steps, **_band(middle, archive.seeds)})
        everything = [archive for _, archive in here]
        found.append(
            {
                "title": task,
                "tasks": sorted({archive.task for archive in everything}),
                "loss": [low, top],
                "height": list(restart_series.limits(everything, curve, np.concatenate(heights))),
                "ends": ends,
                "medians": medians,
            }
        )
    return found


def _sensitivity(everyone: Sequence[Contestant], task: str, name: str, curve: str) -> list[dict[str, Any]]:
    here = _here(everyone, task)
    top = series.ceiling([archive for _, archive in here], curve)
    lines = []
    for i, archive in here:
        result = series.sensitivity(archive, name, curve)
        if result is None:
            continue
        lost = ~np.isfinite(result.final.centre) | (result.final.centre > top)
        edges = (result.final.centre, result.final.low, result.final.high)
        band = Band(*(np.where(lost, np.nan, edge) for edge in edges))
        crosses = result.values[lost | (result.diverged > 0)]
        line = {
            "entry": i,
            "x": numbers(result.values),
            "crosses": numbers(crosses),
            **_band(band, archive.seeds),
        }
        lines.append(line)
    return lines


def _tunability(everyone: Sequence[Contestant], task: str, curve: str) -> list[dict[str, Any]]:
    found = [(i, series.expected_best(archive, curve)) for i, archive in _here(everyone, task)]
    return [_counted(i, expected) for i, expected in found if expected is not None]


def _speedup(
    everyone: Sequence[Contestant], tasks: Sequence[str], normalizer: Normalizer | None, curve: str
) -> list[dict[str, Any]]:
    if normalizer is None:
        return []
    known = [task for task in tasks if normalizer.knows(task, curve)]
    found = [
        (i, series.expected_speedup(entry, normalizer, curve, known)) for i, entry in enumerate(everyone)
    ]
    return [_counted(i, expected) for i, expected in found if expected is not None]


def _counted(i: int, expected: np.ndarray) -> dict[str, Any]:
    return {"entry": i, "x": list(range(1, len(expected) + 1)), "mid": numbers(expected)}


def _profiles(everyone: Sequence[Contestant], normalizer: Normalizer | None) -> list[dict[str, Any]]:
    """Finite ratios of each contestant, sorted, and the number of its tasks: what staircases are made of."""
    if normalizer is None:
        return []
    place = {(entry.label, entry.ruleset): i for i, entry in enumerate(everyone)}
    archives = [a for entry in everyone for a in entry.archives.values()]
    try:
        rows = profiles(archives, normalizer)
    except OuteroptError:  # the normalizer has no validation loss for these tasks
        return []
    return [
        {
            "entry": place[row.optimizer, row.ruleset],
            "ratios": numbers(sorted(r for r in row.ratios.values() if np.isfinite(r))),
            "tasks": len(row.ratios),
        }
        for row in rows
        if (row.optimizer, row.ruleset) in place
    ]
