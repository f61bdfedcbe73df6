"""Figures of hyperparameters that move while a method trains, over many restarts."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from outeropt.bench.pictures import series, style
from outeropt.bench.pictures.contestants import Contestant, contestants
from outeropt.bench.pictures.restart_series import base_task
from outeropt.errors import OuteroptError
from outeropt.store.archive import Archive


RATE, DECAY = "optimizer/learning_rate", "optimizer/weight_decay"

# In the order of panels; others follow by name.
_FIRST = (RATE, DECAY, "optimizer/momentum")
_MAX_PATHS = 60


def trajectories(archives: Sequence[Archive], x: str = RATE, y: str = DECAY) -> Figure:
    """The way of each restart through two hyperparameters, one panel for each method and task.

    A hollow ring is where a run starts, a filled dot where it ends, a cross where it diverged. Of many
    restarts evenly chosen ones are drawn.

    Args:
      archives: of one setting and many seeds each.
      x: curve on the horizontal axis.
      y: curve on the vertical axis.

    Raises:
      OuteroptError: no archive has both, or they move in none.
    """
    found = [
        (entry, archive)
        for entry in contestants(archives)
        for archive in entry.archives.values()
        if {x, y} <= archive.curves.keys() and (_moves(archive, x) or _moves(archive, y))
    ]
    if not found:
        raise OuteroptError(f"No archive has the curves {x!r} and {y!r} that move.")
    figure, axes = style.panels(len(found), 3.0, 2.7)
    several = _head(figure, [archive for _, archive in found])
    for ax, (entry, archive) in zip(axes, found, strict=True):
        _draw_paths(ax, archive, x, y, entry)
        title = f"{entry.name}, {archive.task}" if several else entry.name
        style.label(ax, title, _short(x), _short(y))
    _share_limits(axes, [a for _, a in found], x, y)
    marks = {
        "start": {"marker": "o", "markerfacecolor": "white", "linestyle": "", "color": style.MUTED},
        "end": {"marker": "o", "linestyle": "", "color": style.MUTED},
        "diverged": {"marker": "x", "linestyle": "", "color": style.MUTED},
    }
    _legend(figure, marks)
    return figure


def hyperparameter_bands(archives: Sequence[Archive]) -> Figure:
    """Each hyperparameter against inner steps: median over restarts, 25 to 75 % dark, 10 to 90 % light.

    One row for each method, one column for each hyperparameter; only of methods in which one moves. A run
    counts while it has not diverged.

    Args:
      archives: of one setting and many seeds each.

    Raises:
      OuteroptError: no hyperparameter moves in any.
    """
    found = [
        (entry, archive)
        for entry in contestants(archives)
        for archive in entry.archives.values()
        if any(_moves(archive, name) for name in names(archive))
    ]
    if not found:
        raise OuteroptError("No archive has hyperparameters that move.")
    columns = list(dict.fromkeys(name for _, archive in found for name in names(archive)))
    columns.sort(key=_order)
    size = (2.9 * len(columns) + 0.4, 1.75 * len(found) + 0.3)
    figure = Figure(figsize=size, dpi=160, layout="constrained")
    figure.set_facecolor("white")
    several = _head(figure, [archive for _, archive in found])
    grid = figure.subplots(len(found), len(columns), squeeze=False, sharex="col", sharey="col")
    for row, (entry, archive) in zip(grid, found, strict=True):
        for ax, name in zip(row, columns, strict=True):
            style.dress(ax)
            last = archive is found[-1][1]
            title = f"{entry.name}, {archive.task}" if several else entry.name
            style.label(ax, title if ax is row[0] else "", "inner step" if last else "", _short(name))
            if name in archive.curves:
                _draw_quantiles(ax, archive, name, entry)
            ax.xaxis.set_major_formatter(FuncFormatter(style.short))
    for ax, name in zip(grid[0], columns, strict=True):
        values = np.concatenate([a.curves[name][0].ravel() for _, a in found if name in a.curves])
        if series.prefers_log(values) and not name.endswith("momentum"):
            ax.set_yscale("log")
    return figure


def _head(figure: Figure, archives: Sequence[Archive]) -> bool:
    """Writes the task above all panels if it is one; whether there are several."""
    tasks = {base_task(archive.task) for archive in archives}
    if len(tasks) == 1:
        head = figure.suptitle(*tasks, x=0.01, ha="left", fontsize=11, fontweight="bold", color=style.INK)
        head.set_parse_math(False)
    return len(tasks) > 1


def names(archive: Archive) -> list[str]:
    """The curves that are hyperparameters of the method: what it logs of itself, the usual three first."""
    known = [name for name in archive.curves if name in _FIRST]
    return sorted(known, key=_order)


def _order(name: str) -> int:
    return _FIRST.index(name)


def _moves(archive: Archive, name: str) -> bool:
    """Whether any restart changes it by more than rounding."""
    values = archive.curves[name][0].astype(np.float64)
    start = values[:, :1]
    with np.errstate(invalid="ignore"):
        return bool((np.abs(values - start) > 1e-4 * np.abs(start)).any())


def _draw_paths(ax: Axes, archive: Archive, x: str, y: str, entry: Contestant) -> None:
    xs, ys = archive.curves[x][0], archive.curves[y][0]
    colour = style.LIGHT[entry.look.colour]
    runs = np.unique(np.linspace(0, len(xs) - 1, min(len(xs), _MAX_PATHS)).round().astype(int))
    for run in runs:
        seen = np.isfinite(xs[run]) & np.isfinite(ys[run])
        if not seen.any():
            continue
        path = np.column_stack([xs[run][seen], ys[run][seen]])
        lines = LineCollection([path], colors=colour, linewidths=0.8, alpha=0.45)
        ax.add_collection(lines, autolim=True)
        ax.plot(*path[0], "o", color=colour, markerfacecolor="white", markersize=3.2, markeredgewidth=0.7)
        ax.plot(*path[-1], "o" if seen.all() else "x", color=colour, markersize=3.4)


def _share_limits(axes: Sequence[Axes], archives: Sequence[Archive], x: str, y: str) -> None:
    for name, scale, limits in ((x, "set_xscale", "set_xlim"), (y, "set_yscale", "set_ylim")):
        values = np.concatenate([archive.curves[name][0].ravel() for archive in archives])
        values = values[np.isfinite(values)]
        log = series.prefers_log(values)
        low, high = float(values.min()), float(values.max())
        pad = 0.05 * ((np.log(high / low) if log else high - low) or 1.0)
        for ax in axes:
            if log:
                getattr(ax, scale)("log")
                getattr(ax, limits)(low / np.exp(pad), high * np.exp(pad))
            else:
                getattr(ax, limits)(low - pad, high + pad)


def _draw_quantiles(ax: Axes, archive: Archive, name: str, entry: Contestant) -> None:
    values = archive.curves[name][0].astype(np.float64)
    alive = np.isfinite(values).any(axis=0)
    edges = np.full((5, values.shape[1]), np.nan)
    edges[:, alive] = np.nanquantile(values[:, alive], [0.1, 0.25, 0.5, 0.75, 0.9], axis=0)
    colour = style.LIGHT[entry.look.colour]
    ax.fill_between(archive.steps, edges[0], edges[4], color=colour, alpha=0.12, linewidth=0)
    ax.fill_between(archive.steps, edges[1], edges[3], color=colour, alpha=0.22, linewidth=0)
    ax.plot(archive.steps, edges[2], **entry.line)


def _legend(figure: Figure, marks: dict[str, dict]) -> None:
    handles = [Line2D([], [], markersize=4, label=name, **mark) for name, mark in marks.items()]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=len(handles),
        frameon=False,
        fontsize=8.5,
        labelcolor=style.INK,
    )


def _short(name: str) -> str:
    return name.removeprefix("optimizer/").replace("_", " ")
