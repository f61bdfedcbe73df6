"""What an optimizer that tunes itself did: its loss over the episodes, and what it tuned."""

import re

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from outeropt.bench.pictures import style
from outeropt.errors import OuteroptError
from outeropt.store.archive import Archive


_OWN = "optimizer/"
_COEFFICIENT = re.compile(r"optimizer/coefficient\.(\d+)")
# More episodes than this are thinned out in the panel of taps.
_MOST_TAPS = 8


def controller_figure(archive: Archive, setting: int = 0) -> Figure:
    """Loss, everything the optimizer tuned, and a controller's coefficients by age at the end of episodes.

    Args:
      archive: of one optimizer; lines are means over seeds, bands their smallest and largest.
      setting: which of its settings.

    Raises:
      OuteroptError: the optimizer tells nothing of itself.
    """
    curves = {name: curve[setting] for name, curve in archive.curves.items()}
    taps = sorted((int(found[1]), name) for name in curves if (found := _COEFFICIENT.fullmatch(name)))
    lines = [name for name in sorted(curves) if name.startswith(_OWN) and not _COEFFICIENT.fullmatch(name)]
    if not taps and not lines:
        raise OuteroptError(
            f"{archive.optimizer} has no curves of its own; optimizers that tune themselves have."
        )
    episodes = archive.episodes
    figure, axes = style.panels(1 + len(lines) + bool(taps))
    loss = "inner/loss" if "inner/loss" in curves else "train/loss"
    _over_steps(axes[0], archive, curves[loss], episodes)
    positive = curves[loss][np.isfinite(curves[loss])]
    if positive.size and positive.min() > 0 and positive.max() > 10 * positive.min():
        axes[0].set_yscale("log")
    style.label(axes[0], archive.task, "inner step", loss)
    for ax, name in zip(axes[1:], lines):
        _over_steps(ax, archive, curves[name], episodes)
        style.label(ax, name.removeprefix(_OWN), "inner step")
    if taps:
        _by_age(axes[-1], np.stack([curves[name] for _, name in taps]), archive, episodes)
    return figure


def _over_steps(ax: Axes, archive: Archive, values: np.ndarray, episodes: int) -> None:
    """One curve over the inner steps, and a rule where an episode ends."""
    length = archive.num_steps // episodes
    for end in range(1, episodes):
        ax.axvline(end * length, color=style.RULE, linewidth=1.2)
    shown = np.isfinite(values).any(axis=0)
    line = style.look(0).line()
    if shown.any():
        steps, values = np.asarray(archive.steps)[shown], values[:, shown]
        ax.plot(steps, np.nanmean(values, axis=0), linewidth=1.3, **line)
        if len(values) > 1:
            low, high = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
            ax.fill_between(steps, low, high, color=line["color"], alpha=0.15, linewidth=0)
    ax.xaxis.set_major_formatter(FuncFormatter(style.short))


def _by_age(ax: Axes, taps: np.ndarray, archive: Archive, episodes: int) -> None:
    """Coefficients by age, means over seeds, at the end of some episodes; later ones darker."""
    length = archive.num_steps // episodes
    ends = [int(np.searchsorted(archive.steps, (i + 1) * length)) for i in range(episodes)]
    chosen = sorted({round(i) for i in np.linspace(0, episodes - 1, min(episodes, _MOST_TAPS))})
    colour = style.look(0).line()["color"]
    for place, episode in enumerate(chosen):
        label = f"episode {episode + 1}" if episodes > 1 else "at the end"
        shade = 0.25 + 0.75 * (place + 1) / len(chosen)
        values = taps[:, :, ends[episode]].mean(axis=1)
        ax.plot(range(len(taps)), values, marker="o", markersize=3, color=colour, alpha=shade, label=label)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.set_xlim(-0.3, len(taps) - 0.7)
    ax.axhline(0.0, color=style.MUTED, linewidth=0.6)
    ax.legend(frameon=False, fontsize=7, labelcolor=style.INK)
    style.label(ax, "coefficients", "age (0: this step's gradient)", "coefficient")
