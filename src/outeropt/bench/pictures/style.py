"""One look for every picture: which colour, dash and marker an optimizer has, and how axes are dressed.

The eight colours were chosen by a search that maximises the smallest OKLab distance between any two of them
as seen with normal vision and with protanopia, deuteranopia and tritanopia (simulated by the matrices of
Machado, Oliveira and Fernandes 2009), with a contrast of at least 3 to 1 against the page, once for a light
page and once, hue for hue, for a dark one. The ninth optimizer takes the first colour with another dash.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from outeropt.errors import OuteroptError


LIGHT = ("#326eb6", "#df6e1b", "#4ba493", "#bd2277", "#a46ffa", "#5b5d13", "#421098", "#6f163d")
DARK = ("#21b0e6", "#b08a65", "#4bfed1", "#fd97a0", "#807bef", "#f7dd68", "#c5cbff", "#d35ea4")
DASHES = ((), (6, 2.5), (1.5, 1.8), (6, 2, 1.5, 2))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

INK = "#1f2328"
MUTED = "#646c76"
RULE = "#e3e6ea"


@dataclasses.dataclass(frozen=True)
class Look:
    """How one series is drawn: an index into the palettes, a dash pattern in line widths, and a marker."""

    colour: int
    dash: tuple[float, ...]
    marker: str

    def line(self) -> dict:
        """Keyword arguments for `Axes.plot`."""
        return {"color": LIGHT[self.colour], "linestyle": (0, self.dash) if self.dash else "-"}


def look(place: int) -> Look:
    """The look of the series at this place in the list; after eight, colours come back with another dash."""
    again = place // len(LIGHT)
    return Look(place % len(LIGHT), DASHES[again % len(DASHES)], MARKERS[(place + again) % len(MARKERS)])


def panels(count: int, width: float = 3.4, height: float = 2.5) -> tuple[Figure, list[Axes]]:
    """A figure with `count` dressed axes of `width` x `height` inches in a grid; a single one is larger."""
    columns = min(count, 4 if count > 6 else 3)
    rows = -(-count // columns)
    scale = 1.9 if count == 1 else 1.0
    figure = Figure(figsize=(width * columns * scale, height * rows * scale), dpi=160, layout="constrained")
    figure.set_facecolor("white")
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(count)]
    for ax in axes:
        dress(ax)
    return figure, axes


def dress(ax: Axes) -> None:
    """Two spines, quiet ticks, a faint grid behind the data."""
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(MUTED)
        ax.spines[side].set_linewidth(0.6)
    ax.grid(True, color=RULE, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(which="both", colors=MUTED, labelcolor=INK, labelsize=8, width=0.6)
    ax.tick_params(which="minor", length=1.5)


def label(ax: Axes, title: str = "", x: str = "", y: str = "", pad: float = 6.0) -> None:
    """Title at the left in bold, `pad` points above, and axis labels; text is literal (no mathtext)."""
    size = min(9.0, 9.0 * 36 / max(len(title), 1)) if len(ax.figure.axes) > 1 else 10.0
    ax.set_title(title, loc="left", fontsize=size, fontweight="bold", color=INK, pad=pad, parse_math=False)
    ax.set_xlabel(x, fontsize=8.5, color=INK, parse_math=False)
    ax.set_ylabel(y, fontsize=8.5, color=INK, parse_math=False)


def short(value: float, _position: object = None) -> str:
    """A step count as a tick label: 500, 10k, 1.5M."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def log_ticks(axis: Axis, low: float, top: float) -> None:
    """Ticks at 1, 2 and 5 where decades alone would be but one or two; no names between."""
    if top < 100 * low:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(short))
    axis.set_minor_formatter(NullFormatter())


def legend(figure: Figure, lines: dict[str, dict]) -> None:
    """A legend below the axes, in columns, for series that appear in several panels.

    Args:
      figure: whose axes to describe.
      lines: keyword arguments of `Axes.plot` by name.
    """
    handles = [Line2D([], [], markersize=4, label=name, **line) for name, line in lines.items()]
    widest = max(len(name) for name in lines)
    columns = max(1, min(len(handles), int(figure.get_size_inches()[0] / (0.55 + 0.078 * widest))))
    rows = -(-len(handles) // columns)
    figure.set_size_inches(figure.get_size_inches()[0], figure.get_size_inches()[1] + 0.19 * rows)
    box = figure.legend(
        handles=handles,
        labels=list(lines),
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=8.5,
        labelcolor=INK,
        handlelength=2.6,
    )
    for text in box.get_texts():
        text.set_parse_math(False)


def end_labels(figure: Figure, ax: Axes, ends: dict[str, tuple[float, Look]]) -> None:
    """Writes each series' name right of the axes at the height where it ends, moved apart where they touch.

    Args:
      figure: the figure of the axes.
      ax: axes whose limits and scales are already final.
      ends: last value and look by name; values outside the axes are put at the nearest edge.
    """
    names = [name for name, (value, _) in ends.items() if np.isfinite(value)]
    transform = ax.transData + ax.transAxes.inverted()
    at = {}
    for name in names:
        height = float(transform.transform((ax.get_xlim()[1], ends[name][0]))[1])
        at[name] = min(max(height, 0.0), 1.0) if np.isfinite(height) else 0.0
    names.sort(key=lambda name: at[name])
    gap = min(9.5 / (72 * figure.get_size_inches()[1] * 0.85), 1.0 / max(len(names) - 1, 1))
    for name, height in zip(names, spread([at[n] for n in names], gap), strict=True):
        sample = Line2D([1.012, 1.055], [height] * 2, transform=ax.transAxes, clip_on=False, linewidth=1.6)
        sample.set(**ends[name][1].line())
        ax.add_artist(sample)
        ax.text(
            1.065, height, name, transform=ax.transAxes, va="center", fontsize=8, color=INK, parse_math=False
        )


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Sorted places in [0, 1] moved as little as needed to be at least `gap` apart and still inside.

    Groups that overlap are merged and centred on their mean place (pool adjacent violators).
    """
    groups: list[list[float]] = []  # [sum of places, count]
    for place in places:
        groups.append([place, 1])
        while len(groups) > 1:
            (sum_a, n_a), (sum_b, n_b) = groups[-2:]
            if _start(sum_b, n_b, gap) - _start(sum_a, n_a, gap) >= n_a * gap - 1e-12:
                break
            groups[-2:] = [[sum_a + sum_b, n_a + n_b]]
    return [_start(total, int(n), gap) + gap * i for total, n in groups for i in range(int(n))]


def _start(total: float, count: float, gap: float) -> float:
    """Place of the first of `count` labels `gap` apart with mean place `total / count`, kept in [0, 1]."""
    length = gap * (count - 1)
    return min(max(total / count - length / 2, 0.0), max(1.0 - length, 0.0))


def save(figure: Figure, path: Path) -> None:
    """Writes PNG, SVG or PDF by the suffix; the same figure gives the same bytes (no date, fixed ids)."""
    with matplotlib.rc_context({"svg.hashsalt": "outeropt"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def save_all(jobs: Mapping[str, Callable[[], Figure]], folder: Path) -> list[Path]:
    """Writes figures by name as PNG and SVG, but for those whose archives do not have what they show.

    Args:
      jobs: make the figures; one that raises an `OuteroptError` has nothing to show.
      folder: created for the first figure; files of the same names are replaced.

    Returns:
      The files written.
    """
    written = []
    for name, job in jobs.items():
        try:
            figure = job()
        except OuteroptError:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        for suffix in ("png", "svg"):
            written.append(folder / f"{name}.{suffix}")
            save(figure, written[-1])
    return written
