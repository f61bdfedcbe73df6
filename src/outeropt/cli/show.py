"""Tables on the terminal."""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import rich.box
from rich.console import Console
from rich.table import Table


if TYPE_CHECKING:
    from outeropt.bench.leaderboard import Leaderboard, Row
    from outeropt.store import Archive


def show_table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str = "") -> None:
    """Prints a table; columns whose name ends in a space are numbers, aligned right."""
    table = Table(title=title or None, box=rich.box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column.strip(), justify="right" if column.endswith(" ") else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console()
    # A pipe has no width: let nothing be cut there.
    (console if console.is_terminal else Console(width=200)).print(table)


def number(value: float) -> str:
    """Four significant digits; a dash for NaN."""
    return "-" if math.isnan(value) else f"{value:.4g}"


def show_run(archive: "Archive") -> None:
    """Prints a dozen points of a single trial's curves and how it ended."""
    names = sorted(archive.curves)
    last = len(archive.steps) - 1
    points = sorted({round(i * last / min(10, last)) for i in range(min(10, last) + 1)})
    rows = [[str(archive.steps[i]), *(number(archive.curves[n][0, 0, i]) for n in names)] for i in points]
    setting = ", ".join(f"{name} = {value:g}" for name, value in archive.settings[0].items())
    title = f"{archive.task}: {archive.optimizer} ({setting})"
    show_table(["step ", *(f"{name} " for name in names)], rows, title)
    diverged = int(archive.diverged_at[0, 0])
    if diverged >= 0:
        print(f"Diverged: the loss was not finite at step {diverged}.")


def show_archive(archive: "Archive") -> None:
    """Prints final values per setting, best first."""
    varied = [
        name for name in archive.settings[0] if len({setting.get(name) for setting in archive.settings}) > 1
    ]
    accuracy = "test/accuracy" in archive.curves
    shown = ["train/loss", "valid/loss", "test/loss"] + (["test/accuracy"] if accuracy else [])
    finals = {name: archive.final(name) for name in shown}
    best = archive.best("valid/loss")

    def cost(i: int) -> tuple[int, float]:
        values = finals["valid/loss"][i]
        finite = values[~_isnan(values)]
        return len(values) - len(finite), float(finite.mean()) if len(finite) else math.inf

    rows = []
    for i in sorted(range(len(archive.settings)), key=cost):
        diverged = int((archive.diverged_at[i] >= 0).sum())
        rows.append(
            [
                "*" if i == best else "",
                *(f"{archive.settings[i].get(name, math.nan):g}" for name in varied),
                *(_spread(finals[name][i]) for name in shown),
                str(diverged) if diverged else "",
            ]
        )
    columns = ["", *(f"{name} " for name in varied), *(f"{name} " for name in shown), "diverged "]
    title = f"{archive.task}: {archive.set}, {len(archive.seeds)} seeds, {archive.num_steps} steps"
    show_table(columns, rows, title)


def _isnan(values):
    return values != values


def _spread(values) -> str:
    finite = values[~_isnan(values)]
    if not len(finite):
        return "-"
    spread = f" ± {finite.std(ddof=1):.2g}" if len(finite) > 1 else ""
    return f"{finite.mean():.4g}{spread}"


def show_leaderboard(board: "Leaderboard") -> None:
    """Prints the ranking, both rulesets side by side, best first (the report has every task)."""
    places: dict[str, dict[str, Row]] = {}
    for row in board.rows:
        places.setdefault(row.optimizer, {})[row.ruleset] = row
    played = [ruleset for ruleset in ("tuned", "as is") if board.rows_of(ruleset)]
    rows = []
    for name, rows_of in sorted(places.items(), key=lambda item: -max(r.score for r in item[1].values())):
        cells = [name]
        for ruleset in played:
            row = rows_of.get(ruleset)
            cells += [f"{row.score:.2f}", f"{row.low:.2f} to {row.high:.2f}"] if row else ["-", ""]
        worst = max(row.diverged for row in rows_of.values())
        rows.append([*cells, f"{worst:.0%}" if worst else ""])
    columns = [
        "optimizer",
        *(column for ruleset in played for column in (f"{ruleset} ", "95% ")),
        "diverged ",
    ]
    title = f"Speed-up over the tuned reference {board.reference}: {board.curve}, {len(board.tasks)} tasks"
    show_table(columns, rows, title)
