"""How much tuning an optimizer needs, read off an archive without further runs.

Sources: Dodge et al. 2019, "Show Your Work", arXiv 1909.03004 (expected best of k draws with replacement);
Tang et al. 2020, "Showing Your Work Doesn't Always Work", arXiv 2004.13705 (the unbiased form, without
replacement); Sivaprasad et al. 2020, "Optimizer Benchmarking Needs to Account for Hyperparameter Tuning",
arXiv 1910.11758.
"""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from outeropt.bench import scores
from outeropt.bench.normalizer import Normalizer
from outeropt.best_of import chances


if TYPE_CHECKING:
    from outeropt.store.archive import Archive


def expected_best(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Expected largest of k values drawn without replacement, for k = 1..n.

    With `v_1 <= ... <= v_n`: `E_k = sum_i v_i C(i - 1, k - 1) / C(n, k)`, exact. It is the unbiased estimate
    for k trials of a random search of which n trials have been run.

    Args:
      values: a score of each trial, higher is better, finite (negate losses).
    """
    return chances(len(values)) @ np.sort(np.asarray(values, np.float64))[::-1]


def expected_best_with_replacement(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Expected largest of k values drawn with replacement, for k = 1..n.

    `E_k = sum_i v_i ((i / n)^k - ((i - 1) / n)^k)`, the form of Dodge et al. 2019: lower than the unbiased
    one for k > 1, unless all values are equal.

    Args:
      values: a score of each trial, higher is better, finite.
    """
    v = np.sort(np.asarray(values, np.float64))
    n = len(v)
    below = np.arange(n + 1) / n
    powers = below[None, :] ** np.arange(1, n + 1)[:, None]
    return np.diff(powers, axis=1) @ v


def attempts_within(values: Float[np.ndarray, " n"], share: float = 0.05) -> float:
    """Expected number of draws without replacement until a value within `share` of the best turns up.

    `(n + 1) / (m + 1)` with m of n values at least `(1 - share) * best`.

    Args:
      values: a score of each trial, higher is better, not negative.
      share: how far below the best is good enough, in [0, 1).
    """
    values = np.asarray(values, np.float64)
    good = np.count_nonzero(values >= (1 - share) * values.max())
    return float((len(values) + 1) / (good + 1))


@dataclasses.dataclass(frozen=True)
class Tunability:
    """What tuning buys on one task.

    Attributes:
      task: name of the task.
      set: name of the hyperparameter set.
      expected: expected speed-up of the best of k settings drawn at random from the set, for k = 1..n.
      attempts: expected settings to try until one is within 5% of the set's best.
      ease: `expected[0] / expected[-1]`, the part of the best that a single draw gets, in [0, 1]; 0 if every
        setting failed.
    """

    task: str
    set: str
    expected: Float[np.ndarray, " n"]
    attempts: float
    ease: float


def tunability(archive: "Archive", normalizer: Normalizer, curve: str = "train/loss") -> Tunability:
    """Tunability of one set on one task, by mean speed-up over seeds (a diverged trial counts 0).

    The draws are from the archive's settings: for a grid, they stand for a search on the grid's own scale.

    Raises:
      UnknownName: the normalizer does not know the task, or the archive lacks the curve.
    """
    means = scores.speedups(archive, normalizer, curve).mean(axis=1)
    expected = expected_best(means)
    ease = float(expected[0] / expected[-1]) if expected[-1] > 0 else 0.0
    return Tunability(archive.task, archive.set, expected, attempts_within(means), ease)
