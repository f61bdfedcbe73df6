"""Figures of many restarts of one setting: where they end, how they get there, and what more of them buy.

Methods that differ in whether they also train on the validation rows (task names that end in `_TrainValid`)
share a panel: their test rows are the same. The figures are those of Clarke, Oldewage and Hernandez-Lobato
2022 (arXiv 2110.10461), but that runs which diverged stay in all of them.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from outeropt.bench import restarts
from outeropt.bench.pictures import restart_series, style
from outeropt.bench.pictures.contestants import Contestant, contestants
from outeropt.bench.pictures.hyperparameter_figures import hyperparameter_bands, trajectories
from outeropt.bench.pictures.restart_series import MIN_RESTARTS, Panels, base_task, with_restarts
from outeropt.errors import OuteroptError
from outeropt.store.archive import Archive


def final_distribution(archives: Sequence[Archive], curve: str = "test/loss", unit: str = "") -> Figure:
    """Share of the restarts that end at or below a loss, one line for each method, one panel for each task.

    Where a line ends below the top, the rest diverged or ended above the right edge.

    Args:
      archives: of one setting and many seeds each; others are left out.
      curve: whose last values to draw.
      unit: what is written behind its name.

    Raises:
      OuteroptError: there is no such archive.
    """
    figure, axes, panels = _panels(archives, curve)
    for ax, (task, here) in zip(axes, panels.items(), strict=True):
        low, top = restart_series.limits([archive for _, archive in here], curve)
        finals = {entry.name: restart_series.final(archive, curve) for entry, archive in here}
        ends = {}
        # Many lines end at the top: there the names come in the order of the medians, best above.
        for entry, _ in sorted(here, key=lambda pair: -np.median(finals[pair[0].name])):
            x, share = restart_series.distribution(finals[entry.name], low, top)
            ax.plot(x, share, drawstyle="steps-post", **entry.line)
            ends[entry.name] = (float(share[-1]), entry.look)
        _log_if_wide(ax, low, top, "x")
        ax.set_ylim(-0.02, 1.02)
        ax.yaxis.set_major_formatter(PercentFormatter(1.0))
        style.label(ax, task, f"final {curve} {unit}".rstrip(), "restarts at or below")
        _name(figure, ax, ends, len(panels))
    _legend(figure, panels)
    return figure


def median_curves(archives: Sequence[Archive], curve: str = "test/loss", unit: str = "") -> Figure:
    """Median over restarts against inner steps, with the 95 % bootstrap interval of it as a band.

    A run that diverged counts as infinite from there on.

    Args:
      archives: of one setting and many seeds each; others are left out.
      curve: what to draw.
      unit: what is written behind its name.

    Raises:
      OuteroptError: there is no such archive.
    """
    figure, axes, panels = _panels(archives, curve)
    for ax, (task, here) in zip(axes, panels.items(), strict=True):
        ends, drawn = {}, []
        for entry, archive in here:
            middle, low, high = restarts.median_band(archive.curves[curve][0])
            middle = np.where(np.isfinite(middle), middle, np.nan)
            ax.plot(archive.steps, middle, **entry.line)
            _band(ax, archive.steps, low, high, entry)
            drawn += [middle, low]
            ends[entry.name] = (_last(middle), entry.look)
        low, top = restart_series.limits([archive for _, archive in here], curve, np.concatenate(drawn))
        _log_if_wide(ax, low, top, "y")
        ax.xaxis.set_major_formatter(FuncFormatter(style.short))
        style.label(ax, task, "inner step", f"median {curve} {unit}".rstrip())
        _name(figure, ax, ends, len(panels))
    _legend(figure, panels)
    return figure


def incumbents(
    archives: Sequence[Archive],
    curve: str = "test/loss",
    unit: str = "",
    *,
    select: str = "valid/loss",
) -> Figure:
    """Expected loss of the best restart so far, against the seconds that all of them took, one after another.

    The restarts come in random order, and the best is chosen by `select`; the line is the mean over all
    orders. A run that diverged leaves the untrained network, whose loss is that at step 0.

    Args:
      archives: of one setting and many seeds each; others are left out.
      curve: whose last value to draw.
      unit: what is written behind its name.
      select: whose last value chooses. Methods that train on the validation rows are chosen by what they
        trained on.

    Raises:
      OuteroptError: there is no such archive.
    """
    figure, axes, panels = _panels(archives, curve)
    for ax, (task, here) in zip(axes, panels.items(), strict=True):
        ends, drawn, longest = {}, [], 0.0
        for entry, archive in here:
            final = restart_series.final(archive, curve)
            start = float(np.nanmean(archive.curves[curve][0, :, 0]))
            chosen = archive.final(select)[0] if select in archive.curves else final
            expected = restarts.incumbent(np.where(np.isfinite(final), final, start), chosen)
            seconds = float(np.nanmean(archive.seconds[0])) * np.arange(1, len(expected) + 1)
            ax.plot(seconds, expected, **entry.line)
            # The first point is what one run alone gives.
            ax.plot(seconds[:1], expected[:1], marker=entry.look.marker, markersize=3.5, **entry.line)
            drawn.append(expected)
            longest = max(longest, seconds[-1])
            ends[entry.name] = (float(expected[-1]), entry.look)
        low, top = restart_series.limits([archive for _, archive in here], curve, np.concatenate(drawn))
        _log_if_wide(ax, low, top, "y")
        ax.set_xscale("log")
        ax.set_xlim(right=longest)
        style.log_ticks(ax.xaxis, *ax.get_xlim())
        style.label(ax, task, "seconds of all restarts so far", f"expected best {curve} {unit}".rstrip())
        _name(figure, ax, ends, len(panels))
    _legend(figure, panels)
    return figure


def save_restarts(archives: Sequence[Archive], folder: str | Path, unit: str = "") -> list[Path]:
    """Writes the figures of restarts that these archives allow, as PNG and SVG.

    Args:
      archives: any; those of one setting and many seeds are drawn.
      folder: created if missing; files of the same names are replaced.
      unit: of the losses, as it is written behind them.

    Returns:
      The files written; none where nothing has restarts.
    """
    folder = Path(folder)
    shown = with_restarts(archives)
    jobs: dict[str, Callable[[], Figure]] = {
        "restarts_final": lambda: final_distribution(shown, unit=unit),
        "restarts_median": lambda: median_curves(shown, unit=unit),
        "restarts_incumbent": lambda: incumbents(shown, unit=unit),
    }
    for task in sorted({base_task(archive.task) for archive in shown}):
        here = [archive for archive in shown if base_task(archive.task) == task]
        jobs[f"restarts_trajectories_{task}"] = functools.partial(trajectories, here)
        jobs[f"restarts_hyperparameters_{task}"] = functools.partial(hyperparameter_bands, here)
    return style.save_all(jobs, folder)


def _panels(archives: Sequence[Archive], curve: str) -> tuple[Figure, list[Axes], Panels]:
    panels = restart_series.panels(contestants(archives), curve)
    if not panels:
        raise OuteroptError(
            f"No archive has the curve {curve!r} at one setting with {MIN_RESTARTS} seeds or more."
        )
    figure, axes = style.panels(len(panels))
    return figure, axes, panels


def _log_if_wide(ax: Axes, low: float, top: float, axis: str) -> None:
    """A logarithmic axis where the limits span more than a factor of ten."""
    if low > 0 and top > 10 * low:
        (ax.set_xscale if axis == "x" else ax.set_yscale)("log")
        style.log_ticks(ax.xaxis if axis == "x" else ax.yaxis, low, top)
    (ax.set_xlim if axis == "x" else ax.set_ylim)(low, top)


def _band(ax: Axes, x: np.ndarray, low: np.ndarray, high: np.ndarray, entry: Contestant) -> None:
    """A band; where its upper edge is infinite it has no end inside the axes."""
    high = np.where(np.isfinite(high), high, np.finfo(np.float32).max)
    seen = np.isfinite(low)
    colour = style.LIGHT[entry.look.colour]
    ax.fill_between(x, low, high, where=seen, color=colour, alpha=0.1, linewidth=0)


def _last(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite[-1]) if finite.size else np.nan


def _name(figure: Figure, ax: Axes, ends: dict[str, tuple[float, style.Look]], panels: int) -> None:
    if panels == 1:
        style.end_labels(figure, ax, ends)


def _legend(figure: Figure, panels: Panels) -> None:
    if len(panels) > 1:
        style.legend(figure, {entry.name: entry.line for here in panels.values() for entry, _ in here})
