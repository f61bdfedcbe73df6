"""Figures of scores: the ranking, the heat map of tasks and optimizers, and performance profiles."""

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from outeropt.bench.leaderboard import Leaderboard
from outeropt.bench.pictures import style
from outeropt.bench.pictures.contestants import order
from outeropt.bench.profiles import R_MAX, Profile
from outeropt.bench.scores import RULESETS, Ruleset
from outeropt.errors import OuteroptError


SLOWER, FASTER = "#c8641e", "#326eb6"
DIVERGING = LinearSegmentedColormap.from_list(
    "slower-faster", [SLOWER, "#f7d9c2", "#ffffff", "#c9dcf1", FASTER]
)


def ranking(leaderboard: Leaderboard) -> Figure:
    """Score of every contestant with its 95 % interval; tuned (filled) beside as is (hollow).

    Best tuned score at the top; contestants without a tuned score follow by their as-is score. The upright
    rule at 1 is the reference.

    Raises:
      OuteroptError: the leaderboard has no rows.
    """
    if not leaderboard.rows:
        raise OuteroptError("The leaderboard has no rows to draw.")
    rows = {(row.optimizer, row.ruleset): row for row in leaderboard.rows}
    names = order(leaderboard)
    figure = Figure(figsize=(6.6, 0.9 + 0.32 * len(names)), dpi=160, layout="constrained")
    figure.set_facecolor("white")
    ax = figure.add_subplot()
    style.dress(ax)
    ax.grid(False, axis="y")
    ax.axvline(1.0, color=style.MUTED, linewidth=0.9)
    both = {ruleset for _, ruleset in rows} == set(RULESETS)
    for place, name in enumerate(names):
        for ruleset in RULESETS:
            row = rows.get((name, ruleset))
            if row is None:
                continue
            height = place + (0.0 if not both else -0.15 if ruleset == "tuned" else 0.15)
            colour = style.LIGHT[style.look(place).colour]
            ax.plot([row.low, row.high], [height, height], color=colour, linewidth=1.6, solid_capstyle="butt")
            face = colour if ruleset == "tuned" else "white"
            ax.plot([row.score], [height], "o", color=colour, markerfacecolor=face, markersize=5)
    ax.set_yticks(range(len(names)))
    for text in ax.set_yticklabels(names):
        text.set_parse_math(False)
        text.set_fontsize(8.5)
    ax.set_ylim(len(names) - 0.4, -0.6)
    top = max([1.0, *(row.high for row in leaderboard.rows)])
    ax.set_xlim(0.0, 1.05 * top)
    count = f"{len(leaderboard.tasks)} task{'s' if len(leaderboard.tasks) != 1 else ''}"
    style.label(ax, x=f"speed-up over {leaderboard.reference} ({leaderboard.curve}, {count}; 95 % interval)")
    if both:
        handles = [
            Line2D(
                [],
                [],
                marker="o",
                color=style.MUTED,
                markerfacecolor=face,
                markersize=5,
                label=name,
                linewidth=1.6,
            )
            for name, face in (("tuned", style.MUTED), ("as is", "white"))
        ]
        figure.legend(handles=handles, loc="outside upper right", ncols=2, frameon=False, fontsize=8.5)
    return figure


def heat_map(leaderboard: Leaderboard, ruleset: Ruleset = "tuned") -> Figure:
    """Speed-up of each contestant (columns, best first) on each task (rows), with the numbers.

    White is as fast as the reference; colours end at 4 times faster or slower. A dash is a task not run.

    Raises:
      OuteroptError: the leaderboard has no row of any ruleset.
    """
    rows = leaderboard.rows_of(ruleset) or leaderboard.rows
    if not rows:
        raise OuteroptError("The leaderboard has no rows to draw.")
    tasks = leaderboard.tasks
    values = np.array([[row.per_task.get(task, np.nan) for row in rows] for task in tasks])
    size = (1.2 + 0.075 * max(map(len, tasks)) + 0.52 * len(rows), 1.1 + 0.3 * len(tasks))
    figure = Figure(figsize=size, dpi=160, layout="constrained")
    figure.set_facecolor("white")
    ax = figure.add_subplot()
    shade = np.log2(np.clip(np.nan_to_num(values, nan=1.0), 0.25, 4.0))
    ax.imshow(shade, cmap=DIVERGING, vmin=-2.4, vmax=2.4, aspect="auto")
    for i, j in np.ndindex(values.shape):
        text = f"{values[i, j]:.2f}" if np.isfinite(values[i, j]) else "–"
        ax.text(j, i, text, ha="center", va="center", fontsize=7.5, color=style.INK)
    ax.set_xticks(
        range(len(rows)), [row.optimizer for row in rows], rotation=40, ha="left", rotation_mode="anchor"
    )
    ax.set_yticks(range(len(tasks)), tasks)
    for text in (*ax.get_xticklabels(), *ax.get_yticklabels()):
        text.set_parse_math(False)
    ax.tick_params(length=0, labelsize=8, labelcolor=style.INK, top=True, labeltop=True, labelbottom=False)
    ax.set_xticks(np.arange(len(rows) + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(len(tasks) + 1) - 0.5, minor=True)
    ax.grid(True, which="minor", color="white", linewidth=1.5)
    ax.tick_params(which="minor", length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return figure


def profiles(
    rows: Sequence[Profile], ruleset: Ruleset = "tuned", r_max: float = R_MAX, *, first: Sequence[str] = ()
) -> Figure:
    """Share of tasks on which each contestant reaches the target within tau times the reference's time.

    Args:
      rows: from `outeropt.bench.profiles`.
      ruleset: which to draw; all where there is none of it.
      r_max: right end of the axis, on a scale of powers of two.
      first: optimizers in the order in which colours are given; the others follow in the order of `rows`.

    Raises:
      OuteroptError: there are no profiles.
    """
    shown = [row for row in rows if row.ruleset == ruleset] or list(rows)
    if not shown:
        raise OuteroptError("There are no performance profiles to draw.")
    figure, (ax,) = style.panels(1)
    ratios = [np.sort([r for r in row.ratios.values() if np.isfinite(r)]) for row in shown]
    start = 2.0 ** np.floor(np.log2(min([0.5, *(float(r[0]) for r in ratios if r.size and r[0] > 0)])))
    lines = {}
    places = {name: i for i, name in enumerate(dict.fromkeys([*first, *(row.optimizer for row in rows)]))}
    for row, jumps in sorted(zip(shown, ratios, strict=True), key=lambda pair: places[pair[0].optimizer]):
        tau = np.concatenate([[start], jumps[(jumps > start) & (jumps < r_max)], [r_max]])
        rho = row.rho(tau)
        look = style.look(places[row.optimizer])
        name = row.optimizer if row.ruleset == ruleset else f"{row.optimizer}, {row.ruleset}"
        lines[name] = {"linewidth": 1.6, **look.line()}
        ax.plot(tau, rho, drawstyle="steps-post", **lines[name])
    ax.axvline(1.0, color=style.MUTED, linewidth=0.9)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.set_xlim(start, r_max)
    ax.set_ylim(-0.02, 1.04)
    style.label(ax, x="time to the target, relative to the reference", y="share of tasks")
    style.legend(figure, lines)
    return figure
