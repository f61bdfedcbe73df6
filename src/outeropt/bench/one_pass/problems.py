"""What the study runs on: its tables of regression, and its three larger problems.

Clarke, Oldewage and Hernandez-Lobato 2022 (arXiv 2110.10461), section 4: steps, restarts and batches are
theirs. They evaluate at every step; here evaluations are as many as a curve needs.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from outeropt import data
from outeropt.bench import restarts
from outeropt.bench.restarts import Restarts
from outeropt.store import Archive
from outeropt.tasks import regression


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem of the study, and how its losses are told.

    Attributes:
      task: name of the task for methods that need validation rows.
      measure: what the tables call a loss.
      steps: inner steps of a run.
      restarts: how many the paper has of each method.
      eval_every: inner steps between evaluations.
      eval_batches: batches of an evaluation.
      last_eval_batches: the same after the last step.
      table: name of the dataset whose target's units losses are told in; None where they have none.
      factor: what losses in these units are multiplied by.
      threshold: a final test loss, as it is told, from which on the paper counts a run as diverged.
      clipped: whether gradients are clipped to a norm of 0.25.
    """

    task: str
    measure: str = "MSE"
    steps: int = 4000
    restarts: int = 200
    eval_every: int = 100
    # A batch of a table is the whole split.
    eval_batches: int = 1
    last_eval_batches: int = 1
    table: str | None = None
    factor: float = 1.0
    threshold: float | None = None
    clipped: bool = False

    def in_units(self, archive: Archive) -> Archive:
        """An archive with losses in the target's own units, where it has some."""
        if self.table is None:
            return archive
        variance = data.target_deviation(self.table) ** 2
        losses = {name: curve * variance for name, curve in archive.curves.items() if name.endswith("/loss")}
        return dataclasses.replace(archive, curves={**archive.curves, **losses})

    def runs(self, archive: Archive) -> Restarts:
        """The runs of an archive in the target's units, with losses as they are told."""
        found = restarts.restarts(archive, self.factor)
        if self.measure != "perplexity":
            return found
        return dataclasses.replace(found, test=_exp(found.test), valid=_exp(found.valid))


def _exp(losses: Float[np.ndarray, "runs T"]) -> Float[np.ndarray, "runs T"]:
    with np.errstate(over="ignore"):
        return np.exp(losses)


def _table(name: str) -> Problem:
    """kin8nm's losses are small, and the paper prints them times 1000."""
    task, table = f"UCI_{name.capitalize()}", f"uci_{name}"
    if name == "kin8nm":
        return Problem(task, "MSE x 1000", table=table, factor=1000.0)
    return Problem(task, table=table)


TABLES: dict[str, Problem] = {name: _table(name) for name in regression.UCI}

# Epochs: ten of 50 000 rows; 72 of 332 windows, rounded to updates of hyperparameters; 72 of 45 000 rows.
# The last evaluations are of as many rows as the test split has, or three times as many windows.
LARGE: dict[str, Problem] = {
    "fashion_mnist": Problem(
        "FashionMnist_MLP50",
        "cross-entropy",
        steps=10_000,
        restarts=100,
        eval_every=100,
        eval_batches=5,
        last_eval_batches=200,
        threshold=1e3,
    ),
    "penn_treebank": Problem(
        "StreamLM_Ptb_LSTM650x2_seq70",
        "perplexity",
        steps=23_910,
        restarts=50,
        eval_every=797,
        eval_batches=2,
        last_eval_batches=90,
        threshold=1e5,
        clipped=True,
    ),
    "cifar10": Problem(
        "ResNet18_Cifar10_ImageNet_BS100",
        "cross-entropy",
        steps=32_400,
        restarts=50,
        eval_every=324,
        eval_batches=5,
        last_eval_batches=100,
    ),
}

STUDIES: dict[str, Mapping[str, Problem]] = {"one-pass-uci": TABLES, "one-pass-large": LARGE}
PROBLEMS: dict[str, Problem] = {**TABLES, **LARGE}
