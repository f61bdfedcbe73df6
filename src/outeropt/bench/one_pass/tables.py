"""The study's tables: the paper's numbers, its released code's, and ours, side by side."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from outeropt.bench.one_pass.problems import PROBLEMS
from outeropt.bench.one_pass.published import NOTHING, PAPER, RELEASED_CODE, Published
from outeropt.bench.one_pass.study import METHODS
from outeropt.bench.restarts import Estimate, Summary, rounded


@dataclasses.dataclass(frozen=True)
class Table:
    """Text by rows.

    Attributes:
      title: what it shows.
      columns: heads; one that ends in a space is a column of numbers.
      rows: cells, as many as columns.
      bold: places (row, column) of the best, and of what its error does not tell from it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    bold: frozenset[tuple[int, int]] = frozenset()


def tables(dataset: str, summaries: Mapping[str, Summary]) -> tuple[Table, Table]:
    """Averages side by side, and how the runs are spread.

    Columns of which nothing was published for the dataset are left out.

    Args:
      dataset: one of `problems.PROBLEMS`.
      summaries: ours, by method.
    """
    paper, released = PAPER.get(dataset, {}), RELEASED_CODE.get(dataset, {})
    measure = PROBLEMS[dataset].measure
    return _averages(dataset, measure, summaries, paper, released), _spread(
        dataset, measure, summaries, paper, released
    )


KEY = """\
Mean and median are over the runs that did not diverge, with bootstrap errors, as in the paper. The 25, 75
and 90 % quantiles are of all runs: one that diverged counts as infinite. The paper's best is the smallest
test loss at any step, the others are final. At best valid.: median of the test losses where each run's
validation loss was lowest; Random, Random (×LR) and Baydin train on these rows, so for them it says
nothing of choosing. x Random: seconds of a run as a multiple of those of an untuned one. Paper: as
submitted, with another hypergradient than the released code, which ours follows."""


def markdown(found: Sequence[Table], about: str) -> str:
    """A page of tables.

    Args:
      found: the tables.
      about: a sentence on what was run.
    """
    parts = ["# One-pass hyperparameter tuning", about]
    for table in found:
        rule = "|".join(" ---: " if column.endswith(" ") else " --- " for column in table.columns)
        lines = [f"## {table.title}", "", _line(column.strip() for column in table.columns), f"|{rule}|"]
        for i, row in enumerate(table.rows):
            lines.append(_line(f"**{c}**" if (i, j) in table.bold else c for j, c in enumerate(row)))
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, KEY]) + "\n"


def _line(cells) -> str:
    return f"| {' | '.join(cells)} |"


def _averages(dataset: str, measure: str, ours: Mapping[str, Summary], paper, released) -> Table:
    columns: list[tuple[str, Callable[[Estimate], str], list[Estimate]]] = []
    for kind in ("mean", "median"):
        for source, numbers in (("paper", paper), ("released code", released), ("ours", ours)):
            values = [getattr(numbers[name], kind) if name in numbers else NOTHING for name in ours]
            if any(np.isfinite(value.value) for value in values) or source == "ours":
                columns.append((f"{kind}, {source} ", _SHOWN[source], values))
    bold = frozenset((i, j) for j, (_, _, values) in enumerate(columns, 1) for i in leaders(values))
    return Table(
        f"{dataset}: final test {measure}",
        ("method", *(head for head, _, _ in columns)),
        tuple(
            (METHODS[name].label, *(shown(values[i]) for _, shown, values in columns))
            for i, name in enumerate(ours)
        ),
        bold,
    )


def _spread(dataset: str, measure: str, ours: Mapping[str, Summary], paper, released) -> Table:
    columns: dict[str, list[str]] = {
        "runs ": [str(one.runs) for one in ours.values()],
        "diverged ": [f"{one.diverged} ({one.diverged_rate:.1%})" for one in ours.values()],
    }
    if released:
        columns["diverged, released "] = [_lost(released.get(name)) for name in ours]
    for i, head in enumerate(("25 % ", "75 % ", "90 % ")):
        columns[head] = [_digits(one.quantiles[i]) for one in ours.values()]
    if released:
        columns["90 %, released "] = [_digits(released[n].ninety if n in released else np.nan) for n in ours]
    for source, numbers in (("paper", paper), ("released", released)):
        best = [numbers[name].best if name in numbers else np.nan for name in ours]
        if np.isfinite(best).any():
            columns[f"best, {source} "] = [_digits(value) for value in best]
    columns["best "] = [_digits(one.best) for one in ours.values()]
    columns["at best valid. "] = [rounded(one.at_best_validation, 2) for one in ours.values()]
    columns["s a run "] = [_digits(one.seconds) for one in ours.values()]
    plain = next((ours[name].seconds for name in _UNTUNED if name in ours), np.nan)
    columns["x Random "] = [_digits(one.seconds / plain) for one in ours.values()]
    labels = [METHODS[name].label for name in ours]
    return Table(
        f"{dataset}: spread of the final test {measure}, and the best",
        ("method", *columns),
        tuple(zip(labels, *columns.values())),
    )


# Whose seconds a tuning's are compared with.
_UNTUNED = ("Random_Validation", "Random")


def _as_published(estimate: Estimate) -> str:
    return f"{estimate.value:g} ± {estimate.error:g}" if np.isfinite(estimate.value) else "-"


# What others measured is not shown more exactly than they said it.
_SHOWN: dict[str, Callable[[Estimate], str]] = {
    "paper": rounded,
    "released code": _as_published,
    "ours": functools.partial(rounded, digits=2),
}


def leaders(values: Sequence[Estimate]) -> list[int]:
    """Places of the smallest value, and of those within its error of it: what the paper prints bold."""
    numbers = np.array([value.value for value in values])
    if not np.isfinite(numbers).any():
        return []
    least = values[int(np.nanargmin(numbers))]
    limit = least.value + (least.error if np.isfinite(least.error) else 0.0)
    return [i for i, number in enumerate(numbers) if number <= limit]


def _lost(row: Published | None) -> str:
    return "-" if row is None or row.diverged is None else f"{row.diverged} of {row.runs}"


def _digits(value: float) -> str:
    if np.isinf(value):
        return "diverged"
    return "-" if np.isnan(value) else f"{value:.3g}"
