"""Prints a store's leaderboard as the Markdown tables of docs/benchmarks.md.

outeropt leaderboard --suite real --store real.db
python benchmarks/leaderboard_table.py real.db
"""

import argparse
import sys

from outeropt.bench import reporting
from outeropt.bench.leaderboard import Leaderboard
from outeropt.bench.scores import RULESETS
from outeropt.errors import OuteroptError


def table(board: Leaderboard, ruleset: str) -> str:
    """One ruleset: score, interval, the mean speed-up on each task, and the share of diverged trials."""
    header = ["optimizer", "score", "95% interval", *board.tasks, "diverged"]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for row in board.rows_of(ruleset):
        cells = [row.optimizer, f"{row.score:.2f}", f"{row.low:.2f} to {row.high:.2f}"]
        cells += [f"{row.per_task[task]:.2f}" if task in row.per_task else "" for task in board.tasks]
        lines.append(f"| {' | '.join([*cells, f'{row.diverged:.0%}'])} |")
    return "\n".join(lines)


def main() -> int:
    """Reads, scores, prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store")
    parser.add_argument("--curve", default="train/loss")
    args = parser.parse_args()
    try:
        board, _ = reporting.ranked(reporting.read(args.store), args.curve)
    except OuteroptError as error:
        print(error, file=sys.stderr)
        return 2
    if board is None:
        print(f"{args.store} has no task that a reference knows.", file=sys.stderr)
        return 2
    for ruleset in RULESETS:
        print(f"\n{ruleset}\n\n{table(board, ruleset)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
