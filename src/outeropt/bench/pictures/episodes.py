"""How far each episode came: the loss at its end, as a figure and as a table.

Of a set with several settings the one is shown that ends best by the very curve that is drawn, which favours
the optimizers that were tuned beforehand.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from outeropt.bench.leaderboard import Leaderboard
from outeropt.bench.pictures import series, style
from outeropt.bench.pictures.contestants import Contestant, contestants
from outeropt.bench.pictures.series import Band
from outeropt.errors import OuteroptError
from outeropt.store.archive import Archive


_MOST_BANDS = 4


@dataclasses.dataclass(frozen=True)
class Row:
    """One contestant on one task.

    Attributes:
      task: the task.
      contestant: who.
      setting: the hyperparameters that its set varies, as chosen.
      ends: loss at the end of each episode, shape (episodes,): mean over the seeds that are finite, and
        the 95% interval of that mean.
      diverged: seeds whose last episode ended without a number.
      seeds: number of seeds.
      steps: inner steps of a trial, all episodes together.
      gradients: gradients of a trial, the optimizer's own among them; NaN if not known.
      state: bytes of optimizer state for each byte of parameters; NaN if not known.
      seconds: wall-clock seconds of a trial at this setting, median over seeds; NaN if not known.
    """

    task: str
    contestant: Contestant
    setting: dict[str, float]
    ends: Band
    diverged: int
    seeds: int
    steps: int
    gradients: float
    state: float
    seconds: float


def rows(everyone: Sequence[Contestant], curve: str = "train/loss") -> list[Row]:
    """One row for each task and contestant that has the curve; on a task, the lowest last end first."""
    found = [
        _row(task, entry, archive, curve)
        for entry in everyone
        for task, archive in entry.archives.items()
        if curve in archive.curves
    ]
    return sorted(found, key=lambda row: (row.task, row.diverged, _last(row.ends.centre)))


def episode_table(archives: Sequence[Archive], curve: str = "train/loss") -> list[Row]:
    """`rows` of archives; those of a single episode have one end."""
    return rows(contestants(archives), curve)


def episode_figure(
    archives: Sequence[Archive], curve: str = "train/loss", *, leaderboard: Leaderboard | None = None
) -> Figure:
    """Loss at the end of each episode: mean over seeds, one panel per task.

    The 95% interval of the mean is a band where no more than four lines share a panel.

    Args:
      archives: one for each set and task; those without `curve` or of a single episode are left out.
      curve: what to draw.
      leaderboard: gives labels and the order of colours to those it has; the others follow by name.

    Raises:
      OuteroptError: no archive has the curve and several episodes.
    """
    everyone = contestants(archives, leaderboard)
    found = [row for row in rows(everyone, curve) if len(row.ends.centre) > 1]
    if not found:
        raise OuteroptError(f"No archive has several episodes and the curve {curve!r}.")
    tasks = [task for task in series.tasks(archives) if any(row.task == task for row in found)]
    figure, axes = style.panels(len(tasks))
    for ax, task in zip(axes, tasks, strict=True):
        here = [row for row in found if row.task == task]
        _draw(ax, here)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        style.label(ax, task, "episode", f"{curve} at its end")
        if len(tasks) == 1:
            ends = {row.contestant.name: (_last(row.ends.centre), row.contestant.look) for row in here}
            style.end_labels(figure, ax, ends)
    if len(tasks) > 1:
        shown = {
            row.contestant.name: {**row.contestant.line, "marker": row.contestant.look.marker}
            for row in found
        }
        style.legend(figure, {e.name: shown[e.name] for e in everyone if e.name in shown})
    return figure


def _draw(ax: Axes, here: Sequence[Row]) -> None:
    """A line with its band for each row; a logarithmic axis that the means alone scale."""
    means = np.concatenate([row.ends.centre for row in here])
    means = means[np.isfinite(means)]
    floor = -np.inf
    if means.size and means.min() > 0:
        pad = max(means.max() / means.min(), 2.0) ** 0.06
        # An interval may reach below zero, which has no place on this axis.
        floor = float(means.min() / pad)
        ax.set_yscale("log")
        ax.set_ylim(floor, means.max() * pad)
    for row in here:
        numbers, look = np.arange(1, len(row.ends.centre) + 1), row.contestant.look
        ax.plot(numbers, row.ends.centre, marker=look.marker, markersize=3.5, **row.contestant.line)
        # More bands above each other would hide the lines; the table has the intervals.
        if len(here) <= _MOST_BANDS:
            low, colour = np.maximum(row.ends.low, floor), style.LIGHT[look.colour]
            ax.fill_between(numbers, low, row.ends.high, color=colour, alpha=0.1, linewidth=0)


def _row(task: str, entry: Contestant, archive: Archive, curve: str) -> Row:
    best = archive.best(curve)
    ends, seconds = archive.ends(curve)[best], archive.seconds[best]
    known = seconds[np.isfinite(seconds)]
    varied = {
        name: value
        for name, value in archive.settings[best].items()
        if any(other.get(name) != value for other in archive.settings)
    }
    return Row(
        task=task,
        contestant=entry,
        setting=varied,
        ends=series.band(ends, "interval"),
        diverged=int((~np.isfinite(ends[:, -1])).sum()),
        seeds=len(archive.seeds),
        steps=archive.num_steps,
        gradients=archive.num_steps * archive.details.get("gradients", float("nan")),
        state=archive.details.get("state", float("nan")),
        seconds=float(np.median(known)) if known.size else float("nan"),
    )


def _last(values: Float[np.ndarray, " episodes"]) -> float:
    """The last value; infinite where there is none, so that it sorts last."""
    return float(values[-1]) if np.isfinite(values[-1]) else float("inf")
