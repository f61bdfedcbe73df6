"""Figures of archives and leaderboards, for papers and READMEs.

Every function returns a `matplotlib.figure.Figure` that belongs to no global state: nothing is shown, no
backend is chosen, and `figure.savefig` works without a display. `docs/report.md` says how to read each one.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from outeropt.bench import scores
from outeropt.bench.leaderboard import Leaderboard
from outeropt.bench.normalizer import Normalizer
from outeropt.bench.pictures import series, style
from outeropt.bench.pictures.contestants import Contestant, contestants, order
from outeropt.bench.pictures.episodes import episode_figure
from outeropt.bench.pictures.score_figures import heat_map, profiles, ranking
from outeropt.bench.pictures.series import Band
from outeropt.bench.profiles import profiles as performance_profiles
from outeropt.errors import OuteroptError
from outeropt.store.archive import Archive


__all__ = [
    "episode_figure",
    "heat_map",
    "learning_curves",
    "profiles",
    "ranking",
    "save_all",
    "sensitivity",
    "tunability",
]


def learning_curves(
    archives: Sequence[Archive],
    curve: str = "train/loss",
    *,
    select: str = "valid/loss",
    kind: series.Kind = "range",
    smoothing: float = 0.0,
    log_y: bool | None = None,
    leaderboard: Leaderboard | None = None,
) -> Figure:
    """Mean over seeds of each set's best setting, with a band, one panel per task.

    Rules stand where episodes end, if all sets of a panel have the same.

    Args:
      archives: one for each set and task; those without `curve` are left out.
      curve: what to draw.
      select: the curve whose final value chooses the setting.
      kind: the band: `"range"` (smallest and largest seed) or `"interval"` (95 % of the mean).
      smoothing: decay of the exponential moving average along the steps, in [0, 1).
      log_y: logarithmic loss axis; by default where a panel spans more than a factor of ten.
      leaderboard: gives labels and the order of colours to those it has; the others follow by name.

    Raises:
      OuteroptError: no archive has the curve, or `smoothing` is out of range.
    """
    everyone = contestants(archives, leaderboard)
    tasks = series.tasks(a for a in archives if curve in a.curves)
    if not tasks:
        known = sorted({name for a in archives for name in a.curves})
        raise OuteroptError(f"No archive has the curve {curve!r}; they have {', '.join(known) or 'none'}.")
    figure, axes = style.panels(len(tasks))
    shown: dict[str, Contestant] = {}
    for ax, task in zip(axes, tasks, strict=True):
        drawn, ends = [], {}
        for entry in everyone:
            archive = entry.archives.get(task)
            if archive is None or curve not in archive.curves:
                continue
            values = archive.curves[curve][series.chosen(archive, select)]
            band = series.band(series.smoothed(values, smoothing), kind)
            _draw_band(ax, archive.steps, band, entry)
            drawn.append(band.centre)
            finite = band.centre[np.isfinite(band.centre)]
            ends[entry.name] = (float(finite[-1]) if finite.size else np.nan, entry.look)
            shown[entry.name] = entry
        _scale_losses(ax, drawn, log_y)
        here = [e.archives[task] for e in everyone if task in e.archives and curve in e.archives[task].curves]
        for step in series.boundaries(here):
            ax.axvline(step, color=style.RULE, linewidth=1.2, zorder=0)
        ax.xaxis.set_major_formatter(FuncFormatter(style.short))
        style.label(ax, task, "inner step", curve)
        if len(tasks) == 1:
            style.end_labels(figure, ax, ends)
    if len(tasks) > 1:
        style.legend(figure, {name: entry.line for name, entry in shown.items()})
    return figure


def sensitivity(
    archives: Sequence[Archive],
    hyperparameter: str = "learning_rate",
    curve: str = "valid/loss",
    *,
    leaderboard: Leaderboard | None = None,
) -> Figure:
    """Final loss against a hyperparameter: mean and range over seeds, one line per set, one panel per task.

    A cross above the axes is a value with which a seed diverged, or which ended well above the initial loss.

    Args:
      archives: one for each set and task; those without the curve or the hyperparameter are left out.
      hyperparameter: the horizontal axis, logarithmic where its values are positive and span a factor of ten.
      curve: whose last value to draw.
      leaderboard: gives labels and the order of colours to those it has; the others follow by name.

    Raises:
      OuteroptError: no archive has both.
    """
    found = [
        (task, entry, result)
        for entry in contestants(archives, leaderboard)
        for task, archive in entry.archives.items()
        if (result := series.sensitivity(archive, hyperparameter, curve)) is not None
    ]
    if not found:
        raise OuteroptError(f"No archive has the hyperparameter {hyperparameter!r} and the curve {curve!r}.")
    tasks = [task for task in series.tasks(archives) if any(task == name for name, _, _ in found)]
    figure, axes = style.panels(len(tasks))
    for ax, task in zip(axes, tasks, strict=True):
        here = [(entry, result) for name, entry, result in found if name == task]
        top = series.ceiling([entry.archives[task] for entry, _ in here], curve)
        _scale_values(ax, np.concatenate([result.values for _, result in here]))
        drawn = []
        stacked: dict[float, int] = {}
        for entry, result in here:
            lost = ~np.isfinite(result.final.centre) | (result.final.centre > top)
            edges = (result.final.centre, result.final.low, result.final.high)
            band = Band(*(np.where(lost, np.nan, edge) for edge in edges))
            _draw_band(ax, result.values, band, entry, marker=entry.look.marker)
            drawn.append(band.centre)
            for value in result.values[lost | (result.diverged > 0)]:
                stacked[value] = level = stacked.get(value, -1) + 1
                ax.annotate(
                    "×",
                    (value, 1.0),
                    xycoords=ax.get_xaxis_transform(),
                    xytext=(0, 4.5 * level - 1),
                    textcoords="offset points",
                    ha="center",
                    fontsize=8,
                    color=style.LIGHT[entry.look.colour],
                )
        _scale_losses(ax, drawn, None)
        style.label(
            ax, task, hyperparameter, f"final {curve}", pad=8 + 4.5 * max(stacked.values(), default=-1)
        )
    shown = {entry.name: {**entry.line, "marker": entry.look.marker} for _, entry, _ in found}
    style.legend(figure, shown)
    return figure


def tunability(
    archives: Sequence[Archive],
    normalizer: Normalizer | None = None,
    curve: str | None = None,
    *,
    leaderboard: Leaderboard | None = None,
) -> Figure:
    """Expected result of the best of k settings, drawn at random from each set, against k.

    With a normalizer one panel: the expected speed-up over its reference, averaged over the tasks it knows,
    for the sets that have run all of them. Without one, a panel per task: the expected final loss.

    Args:
      archives: one for each set and task.
      normalizer: the reference, or None.
      curve: the loss; by default `train/loss` with a normalizer, `valid/loss` without.
      leaderboard: gives labels and the order of colours to those it has; the others follow by name.

    Raises:
      OuteroptError: no set can be drawn.
    """
    everyone = contestants(archives, leaderboard)
    if normalizer is not None:
        curve = curve or "train/loss"
        known = [task for task in series.tasks(archives) if normalizer.knows(task, curve)]
        results = [("", e, series.expected_speedup(e, normalizer, curve, known)) for e in everyone]
        quantity = "expected speed-up of the best"
    else:
        curve = curve or "valid/loss"
        results = [
            (task, e, series.expected_best(a, curve)) for e in everyone for task, a in e.archives.items()
        ]
        quantity = f"expected final {curve}"
    found = [(task, entry, result) for task, entry, result in results if result is not None]
    if not found:
        raise OuteroptError(f"No set has run {curve!r} on every task: no tunability to draw.")
    tasks = list(dict.fromkeys(task for task, _, _ in found))
    figure, axes = style.panels(len(tasks))
    for ax, task in zip(axes, tasks, strict=True):
        here = [(entry, result) for name, entry, result in found if name == task]
        for entry, result in here:
            marker = entry.look.marker if len(result) == 1 else ""
            ax.plot(np.arange(1, len(result) + 1), result, marker=marker, **entry.line)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        ax.set_xlim(0.8, max(len(result) for _, result in here) + 0.2)
        style.label(ax, task, "settings tried", quantity)
        if len(tasks) == 1:
            style.end_labels(figure, ax, {e.name: (float(r[-1]), e.look) for e, r in here})
    if len(tasks) > 1:
        style.legend(figure, {entry.name: entry.line for _, entry, _ in found})
    return figure


def save_all(
    archives: Sequence[Archive],
    leaderboard: Leaderboard | None,
    folder: str | Path,
    normalizer: Normalizer | None = None,
) -> list[Path]:
    """Writes every figure that these archives allow, as PNG and SVG.

    Curves, sensitivity and tunability show the tuned contestants, or the as-is ones if there are no others;
    of several episodes everyone is shown.

    Args:
      archives: one for each set and task.
      leaderboard: scores of them, or None where no task has a normalizer.
      folder: created if missing; files of the same names are replaced.
      normalizer: the leaderboard's reference, for the performance profiles and the tunability in speed-ups.

    Returns:
      The files written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tuned = [a for a in archives if scores.ruleset_of(a.set) == "tuned"] or list(archives)
    jobs: dict[str, Callable[[], Figure]] = {
        "learning_curves": lambda: learning_curves(tuned, "train/loss", leaderboard=leaderboard),
        "learning_curves_valid": lambda: learning_curves(tuned, "valid/loss", leaderboard=leaderboard),
        "sensitivity": lambda: sensitivity(tuned, leaderboard=leaderboard),
        "episodes": lambda: episode_figure(archives, leaderboard=leaderboard),
        "tunability": lambda: tunability(tuned, normalizer, leaderboard=leaderboard),
    }
    if leaderboard is not None:
        jobs["ranking"] = lambda: ranking(leaderboard)
        jobs["heat_map"] = lambda: heat_map(leaderboard)
    if normalizer is not None:
        jobs["profiles"] = lambda: profiles(
            performance_profiles(archives, normalizer), first=order(leaderboard)
        )
    return style.save_all(jobs, folder)


def _draw_band(ax: Axes, x: np.ndarray, band: Band, entry: Contestant, marker: str = "") -> None:
    """A line with its band; a lone finite point, which no line would show, gets a dot."""
    lone = np.isfinite(band.centre).sum() == 1
    ax.plot(x, band.centre, marker=marker or ("o" if lone else ""), markersize=3.5, **entry.line)
    ax.fill_between(x, band.low, band.high, color=style.LIGHT[entry.look.colour], alpha=0.13, linewidth=0)


def _scale_values(ax: Axes, values: np.ndarray) -> None:
    """A horizontal axis that holds all values of a hyperparameter."""
    if series.prefers_log(values):
        ax.set_xscale("log")
        margin = (values.max() / values.min()) ** 0.05
        ax.set_xlim(values.min() / margin, values.max() * margin)
    else:
        margin = 0.05 * (np.ptp(values) or abs(float(values[0])) or 1.0)
        ax.set_xlim(values.min() - margin, values.max() + margin)


def _scale_losses(ax: Axes, drawn: Sequence[np.ndarray], log_y: bool | None) -> None:
    """Limits from the centres alone, so that one seed's excursion does not flatten all curves."""
    values = np.concatenate(drawn)
    values = values[np.isfinite(values)]
    if log_y or (log_y is None and series.prefers_log(values)):
        positive = values[values > 0]
        if positive.size:
            ax.set_yscale("log")
            low, high = np.log(positive.min()), np.log(positive.max())
            pad = 0.06 * max(high - low, 0.1)
            ax.set_ylim(np.exp(low - pad), np.exp(high + pad))
            return
    if values.size:
        pad = 0.06 * max(np.ptp(values), 1e-3 * float(np.abs(values).max()), 1e-12)
        ax.set_ylim(values.min() - pad, values.max() + pad)
