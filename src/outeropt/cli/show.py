"""Tables on the terminal."""

import math
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import rich.box
from rich.console import Console
from rich.table import Table


if TYPE_CHECKING:
    from outeropt.bench.leaderboard import Leaderboard, Row
    from outeropt.bench.statistics import Interval
    from outeropt.bench.versus import Comparison, Final, Standing
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
    # A controller has more coefficients than a terminal has columns; their sum is among the curves.
    names = sorted(name for name in archive.curves if not re.search(r"coefficient\.\d+$", name))
    last = len(archive.steps) - 1
    points = sorted({round(i * last / min(10, last)) for i in range(min(10, last) + 1)})
    rows = [[str(archive.steps[i]), *(number(archive.curves[n][0, 0, i]) for n in names)] for i in points]
    setting = ", ".join(f"{name} = {value:g}" for name, value in archive.settings[0].items())
    title = f"{archive.task}: {archive.optimizer}" + (f" ({setting})" if setting else "")
    show_table(["step ", *(f"{name.removeprefix('optimizer/')} " for name in names)], rows, title)
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
    length = f"{archive.num_steps // archive.episodes} steps"
    length = f"{archive.episodes} episodes of {length}" if archive.episodes > 1 else length
    title = f"{archive.task}: {archive.set}, {len(archive.seeds)} seeds, {length}"
    show_table(columns, rows, title)


def show_episodes(archives: "Sequence[Archive]") -> None:
    """Prints the training loss at the end of each episode of every set's best setting, best first."""
    from outeropt.bench.pictures.episodes import episode_table
    from outeropt.bench.pictures.report_tables import plus_minus, setting_text

    found = episode_table(archives)
    most = max(len(row.ends.centre) for row in found)
    rows = []
    for row in found:
        ends = [plus_minus(*end) for end in zip(row.ends.centre, row.ends.high)]
        rows.append(
            [
                row.contestant.name,
                setting_text(row.setting),
                *ends,
                *[""] * (most - len(ends)),
                f"{row.diverged}/{row.seeds}" if row.diverged else "",
                str(row.steps),
                number(row.gradients),
                number(row.state),
                number(row.seconds),
            ]
        )
    numbers = [f"episode {i} " for i in range(1, most + 1)]
    columns = [
        "optimizer",
        "best setting",
        *numbers,
        "diverged ",
        "steps ",
        "gradients ",
        "state ",
        "s a trial ",
    ]
    show_table(columns, rows, f"{archives[0].task}: train/loss at the end of each episode")


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


_KEY = """\
Settings are chosen by validation loss. Ratio, difference (seed by seed) and verdict compare test losses.
Needs: the baseline's steps to the contestant's final loss. Better trial: how likely a trial of the contestant
ends below one of the baseline. Intervals are 95%; a verdict is unclear where the difference's holds 0."""


def show_comparison(comparison: "Comparison") -> None:
    """Prints how everyone ended on one task: baselines at their best settings, then the contestants."""
    several = len(comparison.baselines) > 1
    duels = {final.label: [] for final in comparison.contestants}
    for duel in comparison.duels:
        duels[duel.contestant].append(duel)
    rows = [[*_ended(final), *[""] * (4 + several)] for final in comparison.baselines]
    for final in comparison.contestants:
        for i, duel in enumerate(duels[final.label]):
            rows.append(
                [
                    *(_ended(final) if i == 0 else [""] * 5),
                    *([duel.baseline] if several else []),
                    number(duel.ratio),
                    _plus_minus(duel.difference),
                    _needed(duel.steps, comparison.steps),
                    duel.verdict,
                ]
            )
    finals = ["optimizer", "train loss ", "valid loss ", "test loss ", "diverged "]
    against = ["against"] if several else []
    columns = [*finals, *against, "ratio ", "difference ", "needs ", "verdict"]
    seeds = f"{comparison.baselines[0].seeds} seed{'s' if comparison.baselines[0].seeds > 1 else ''}"
    show_table(columns, rows, f"{comparison.task}: {comparison.steps} steps, {seeds}")


def show_standings(standings: "Sequence[Standing]") -> None:
    """Prints wins and losses over all tasks, and what the columns of all these tables say."""
    rows = [
        [
            row.contestant,
            row.baseline,
            str(row.tasks),
            str(row.wins),
            str(row.unclear),
            str(row.losses),
            number(row.ratio),
            f"{row.better.estimate:.0%}",
            f"{row.better.low:.0%} to {row.better.high:.0%}",
            f"{row.diverged}/{row.trials}" if row.diverged else "",
        ]
        for row in standings
    ]
    counts = ["tasks ", "wins ", "unclear ", "loses "]
    columns = ["optimizer", "against", *counts, "median ratio ", "better trial ", "95% ", "diverged "]
    show_table(columns, rows, "Over all tasks")
    print(_KEY)


_RUNS = {
    "valid_best": "best valid ",
    "valid_best_epoch": "in epoch ",
    "valid_last": "last valid ",
    "valid_mean": "mean valid ",
    "jitter": "jitter ",
    "train_best": "best train ",
    "train_last": "last train ",
    "train_mean": "mean train ",
    "accuracy_best": "best accuracy ",
}

_RUNS_KEY = """\
Losses are natural logarithms; best, last and mean are over epochs, then averaged over the seeds that have
them, with 95% intervals. Jitter: deviation of the validation loss from its smoothed self, epoch by epoch."""

_FAMILIES_KEY = """\
Mean over replicates, deviation of their effects (meta-stability) and of evaluations about their replicate
(evaluation stability), by restricted maximum likelihood, with 95% intervals."""


def show_runs(archives: "Sequence[Archive]") -> None:
    """Prints how runs went that were evaluated once an epoch, task by task."""
    from outeropt.bench.stability import run_statistics

    for task in dict.fromkeys(archive.task for archive in archives):
        here = [archive for archive in archives if archive.task == task]
        runs = [run_statistics(archive) for archive in here]
        rows = [
            [
                one.method,
                *(_seeds_mean(getattr(one, name)) for name in _RUNS),
                f"{one.diverged.sum()}/{one.diverged.size}" if one.diverged.any() else "",
            ]
            for one in runs
        ]
        title = f"{task}: {len(here[0].steps) - 1} epochs"
        show_table(["optimizer", *_RUNS.values(), "diverged "], rows, title)
    print(_RUNS_KEY)


def show_families(archives: "Sequence[Archive]") -> None:
    """Prints how much the replicates of learned optimizers differ; nothing where there are none."""
    from outeropt.bench.stability import families

    names = {"valid_best": "best log valid/loss", "train_last": "last log train/loss"}
    rows = []
    for family in families(archives):
        lost, runs = family.diverged
        for statistic, one in family.fits.items():
            rows.append(
                [
                    family.task,
                    family.name,
                    names[statistic],
                    str(one.replicates),
                    str(one.evaluations),
                    *(_between(interval) for interval in (one.mean, one.replicate_sd, one.residual_sd)),
                    f"{lost}/{runs}" if lost else "",
                ]
            )
    if rows:
        counts = ["replicates ", "evaluations "]
        deviations = ["mean ", "meta-stability ", "evaluation stability ", "diverged "]
        show_table(["task", "family", "of", *counts, *deviations], rows, "Replicates")
        print(_FAMILIES_KEY)


def _seeds_mean(values) -> str:
    from outeropt.bench.restarts import Estimate, rounded
    from outeropt.bench.statistics import mean_interval

    finite = values[~_isnan(values)]
    if not len(finite):
        return "-"
    mean, _, high = map(float, mean_interval(finite))
    return rounded(Estimate(mean, high - mean), 2)


def _between(interval: "Interval") -> str:
    if math.isnan(interval.estimate):
        return "-"
    return f"{interval.estimate:.3g} ({interval.low:.3g} to {interval.high:.3g})"


def _needed(steps: float, most: int) -> str:
    if math.isnan(steps):
        return "-"
    return f"{steps:.0f}" if math.isfinite(steps) else f"> {most}"


def _ended(final: "Final") -> list[str]:
    setting = ", ".join(f"{name} {value:g}" for name, value in final.setting.items())
    losses = [_plus_minus(interval) for interval in final.losses.values()]
    lost = f"{final.diverged}/{final.seeds}" if final.diverged else ""
    return [f"{final.label}, {setting}" if setting else final.label, *losses, lost]


def _plus_minus(interval: "Interval") -> str:
    half = interval.high - interval.estimate
    spread = f" ± {half:.2g}" if math.isfinite(half) and half > 0 else ""
    return f"{number(interval.estimate)}{spread}"
