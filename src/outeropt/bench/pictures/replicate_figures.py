"""Figures of replicates: where each of them ends, how losses fall from epoch to epoch, and which way.

A replicate is one meta-training of a learned optimizer; replicates of one family share a colour. Optimizers
that are alone stand beside them. All archives must be evaluated once an epoch, as those of
`outeropt evaluate --tasks amalgamation-suite` are. The kinds of figures are those of Huang et al. 2022
(arXiv 2203.06474).
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from outeropt.bench import stability
from outeropt.bench.pictures import series, style
from outeropt.errors import OuteroptError
from outeropt.store.archive import Archive


@dataclasses.dataclass(frozen=True)
class Group:
    """What is drawn in one colour: a family's replicates, or an optimizer alone.

    Attributes:
      name: the family's or the optimizer's.
      look: colour, dash and marker, the same on all panels.
      archives: by task and then by replicate (`""` for an optimizer alone).
    """

    name: str
    look: style.Look
    archives: dict[str, dict[str, Archive]]

    @property
    def line(self) -> dict:
        """Keyword arguments for `Axes.plot`."""
        return {**self.look.line(), "linewidth": 1.6}


def groups(archives: Sequence[Archive]) -> list[Group]:
    """Families with their replicates in order of number, and the optimizers that are alone."""
    held: dict[str, dict[str, dict[str, Archive]]] = {}
    for archive in archives:
        name, replicate = stability.family_of(archive.optimizer) or (archive.optimizer or archive.set, "")
        replicates = held.setdefault(name, {}).setdefault(archive.task, {})
        if replicate in replicates:
            raise OuteroptError(
                f"There are two archives of {archive.optimizer} on {archive.task}; give one of each."
            )
        replicates[replicate] = archive
    return [
        Group(
            name,
            style.look(i),
            {
                task: dict(sorted(found.items(), key=lambda pair: int(pair[0] or 0)))
                for task, found in tasks.items()
            },
        )
        for i, (name, tasks) in enumerate(held.items())
    ]


def replicate_boxes(archives: Sequence[Archive], statistic: str = "valid_best") -> Figure:
    """A box for each replicate's runs, and behind them the family's mean with two standard errors of it.

    A box has the quartiles and the median, whiskers to the furthest run within 1.5 times its height, runs
    beyond as points, and its mean as a marker. The family's standard error is of the replicates' means, that
    of an optimizer alone of its runs. A cross above a box says that runs of it diverged; those are in the box
    only with what they have of the statistic.

    Args:
      archives: one for each optimizer and task.
      statistic: a field of `stability.RunStatistics`.

    Raises:
      OuteroptError: there is no archive.
    """
    figure, axes, everyone = _panels(archives)
    for ax, task in zip(axes, series.tasks(archives), strict=True):
        place, names = 0, []
        for group in everyone:
            runs = {
                replicate: stability.run_statistics(archive)
                for replicate, archive in group.archives.get(task, {}).items()
            }
            values = {replicate: getattr(one, statistic) for replicate, one in runs.items()}
            values = {replicate: of[np.isfinite(of)] for replicate, of in values.items()}
            _ruler(ax, place, list(values.values()), group)
            for replicate, of in values.items():
                _box(ax, place, of, group)
                if runs[replicate].diverged.any():
                    cross = {"marker": "x", "markersize": 4, "color": style.LIGHT[group.look.colour]}
                    ax.plot(place, 1.02, transform=ax.get_xaxis_transform(), clip_on=False, **cross)
                names.append(replicate)
                place += 1
            place += 1
            names.append(None)
        shown = [(i, name) for i, name in enumerate(names) if name]
        ax.set_xticks([i for i, _ in shown], [name for _, name in shown])
        ax.grid(axis="x", visible=False)
        ax.set_xlim(-0.8, max(place - 1.2, 0.8))
        style.label(ax, task, "replicate" if any(names) else "", _STATISTICS[statistic], pad=10)
    style.legend(figure, {group.name: group.line for group in everyone})
    return figure


def epoch_curves(archives: Sequence[Archive], curve: str = "valid/loss") -> Figure:
    """Mean over all runs of each group against epochs, with a band from the smallest run to the largest.

    Runs of all replicates count alike; one that diverged is left out from there on.

    Args:
      archives: one for each optimizer and task; those without the curve are left out.
      curve: what to draw; `"train/loss"` is the mean over each epoch's batches.

    Raises:
      OuteroptError: no archive has the curve.
    """
    archives = [archive for archive in archives if curve in archive.curves]
    figure, axes, everyone = _panels(archives, curve)
    for ax, task in zip(axes, series.tasks(archives), strict=True):
        ends, drawn = {}, []
        for group in everyone:
            values = _pooled(group, task, curve)
            if values is None:
                continue
            band, epoch = series.band(values), np.arange(1, values.shape[1] + 1)
            ax.plot(epoch, band.centre, **group.line)
            ax.fill_between(
                epoch, band.low, band.high, color=style.LIGHT[group.look.colour], alpha=0.12, linewidth=0
            )
            drawn.append(band.centre[np.isfinite(band.centre)])
            ends[group.name] = (float(drawn[-1][-1]) if drawn[-1].size else np.nan, group.look)
        together = np.concatenate(drawn)
        if together.size and together.min() > 0 and together.max() > 10 * together.min():
            ax.set_yscale("log")
            style.log_ticks(ax.yaxis, *ax.get_ylim())
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        style.label(ax, task, "epoch", curve)
        if len(axes) == 1:
            style.end_labels(figure, ax, ends)
    if len(axes) > 1:
        style.legend(figure, {group.name: group.line for group in everyone})
    return figure


def phases(archives: Sequence[Archive]) -> Figure:
    """The way of each group through the plane of training and validation loss, one arrow for each epoch.

    Both are natural logarithms, averaged over the runs that did not diverge. Above the rule validation is
    worse than training; an arrow to the upper left overfits. A marker stands where the first epoch ended.

    Args:
      archives: one for each optimizer and task.

    Raises:
      OuteroptError: there is no archive.
    """
    figure, axes, everyone = _panels(archives)
    for ax, task in zip(axes, series.tasks(archives), strict=True):
        corners = []
        for group in everyone:
            train, valid = (_pooled(group, task, curve) for curve in ("train/loss", "valid/loss"))
            if train is None or valid is None:
                continue
            x, y = (series.band(stability.logarithm(side)).centre for side in (train, valid))
            colour = style.LIGHT[group.look.colour]
            ax.quiver(
                *(x[:-1], y[:-1], np.diff(x), np.diff(y)),
                **{"angles": "xy", "scale_units": "xy", "scale": 1, "color": colour, "width": 0.006},
            )
            ax.plot(x[:1], y[:1], color=colour, marker=group.look.marker, markersize=4)
            corners += [x[np.isfinite(x)], y[np.isfinite(y)]]
            ax.update_datalim(np.column_stack([x, y])[np.isfinite(x) & np.isfinite(y)])
        ax.autoscale_view()
        if any(corner.size for corner in corners):
            limits = ax.get_xlim(), ax.get_ylim()
            ax.axline((limits[0][0], limits[0][0]), slope=1, color=style.MUTED, linewidth=0.8, zorder=0)
            ax.set(xlim=limits[0], ylim=limits[1])
        style.label(ax, task, "log train/loss", "log valid/loss")
    style.legend(figure, {group.name: {**group.line, "marker": group.look.marker} for group in everyone})
    return figure


def save_replicates(archives: Sequence[Archive], folder: str | Path) -> list[Path]:
    """Writes the figures of all tasks on which a family has two replicates or more, as PNG and SVG.

    Args:
      archives: any; others that ran on those tasks are drawn beside.
      folder: created if missing; files of the same names are replaced.

    Returns:
      The files written; none where there are no replicates.
    """
    folder = Path(folder)
    tasks = {family.task for family in stability.families(archives)}
    shown = [archive for archive in archives if archive.task in tasks]
    jobs: dict[str, Callable[[], Figure]] = {
        "replicates": lambda: replicate_boxes(shown),
        "replicates_train": lambda: replicate_boxes(shown, "train_last"),
        "replicates_phases": lambda: phases(shown),
        **{
            f"replicates_{curve.replace('/', '_')}": functools.partial(epoch_curves, shown, curve)
            for curve in ("train/loss", "valid/loss", "valid/accuracy")
        },
    }
    return style.save_all(jobs, folder)


_STATISTICS = {
    "valid_best": "best log valid/loss",
    "valid_last": "last log valid/loss",
    "valid_mean": "mean log valid/loss",
    "jitter": "jitter of log valid/loss",
    "train_best": "best log train/loss",
    "train_last": "last log train/loss",
    "train_mean": "mean log train/loss",
    "accuracy_best": "best valid/accuracy",
}


def _panels(archives: Sequence[Archive], curve: str = "") -> tuple[Figure, list[Axes], list[Group]]:
    tasks = series.tasks(archives)
    if not tasks:
        raise OuteroptError(f"No archive {f'has the curve {curve!r}' if curve else 'is given'}.")
    figure, axes = style.panels(len(tasks))
    return figure, axes, groups(archives)


def _pooled(group: Group, task: str, curve: str) -> Float[np.ndarray, "runs epochs"] | None:
    """One curve of all runs of a group; None where it did not run the task."""
    held = group.archives.get(task)
    return np.concatenate([stability.epochs(archive, curve) for archive in held.values()]) if held else None


def _box(ax: Axes, place: int, values: np.ndarray, group: Group) -> None:
    colour = style.LIGHT[group.look.colour]
    edge = {"color": colour, "linewidth": 1.0}
    if not values.size:
        return
    ax.boxplot(
        values,
        positions=[place],
        widths=0.6,
        boxprops=edge,
        whiskerprops=edge,
        capprops=edge,
        medianprops=edge,
        flierprops={"marker": ".", "markersize": 3, "markeredgecolor": colour, "markerfacecolor": colour},
        manage_ticks=False,
    )
    ax.plot(place, values.mean(), color=colour, marker=group.look.marker, markersize=3.5)


def _ruler(ax: Axes, start: int, values: Sequence[np.ndarray], group: Group) -> None:
    """Mean and two standard errors of it, behind the boxes from `start` on."""
    held = [of for of in values if of.size]
    if not held:
        return
    units = held[0] if len(held) == 1 else np.array([of.mean() for of in held])
    mean = float(units.mean())
    error = 2 * float(units.std(ddof=1)) / len(units) ** 0.5 if len(units) > 1 else 0.0
    left, right = start - 0.45, start + len(values) - 0.55
    colour = style.LIGHT[group.look.colour]
    ax.fill_between(
        [left, right], mean - error, mean + error, color=colour, alpha=0.15, linewidth=0, zorder=0
    )
    ax.plot([left, right], [mean, mean], color=colour, linewidth=0.9, zorder=1)
