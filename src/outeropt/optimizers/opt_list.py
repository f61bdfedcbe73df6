"""A list of tuned NAdamW configurations to be tried in order, instead of a search.

After Metz et al., "Using a thousand optimization tasks to learn hyperparameter search strategies", 2020,
arXiv 2002.11887. The list, `opt_list.json`, comes from our own search on our own tasks
(`benchmarks/make_opt_list.py`).
"""

import numpy as np

from outeropt.errors import UnknownName
from outeropt.optimizer import Optimizer
from outeropt.optimizers.own_table import configurations
from outeropt.optimizers.registry import get


def opt_list(index: int) -> Optimizer:
    """The tuned configuration number `index`, best first: NAdamW with a cosine schedule.

    Raises:
      UnknownName: the list is not that long.
    """
    count = len(configurations())
    if not 0 <= index < count:
        raise UnknownName(
            f"The tuned list has {count} configurations, numbered from 0; {index} is not one of them."
        )
    return get(f"opt_list_{index}")


def greedy(losses: np.ndarray, count: int) -> list[int]:
    """Orders configurations so that trying the first few is the best use of few trials.

    Each next configuration is the one that most lowers the mean over tasks of the best loss so far (section
    4.1 of the paper). Ties go to the better mean by itself, then to the earlier one.

    Args:
      losses: shape (configurations, tasks), normalised so that tasks count equally; NaN or infinity stand for
        divergence and count as the task's worst.
      count: how many to choose, at most the number of configurations.

    Returns:
      Indices in the order to be tried.
    """
    finite = np.where(np.isfinite(losses), losses, -np.inf)
    filled = np.where(np.isfinite(losses), losses, finite.max(axis=0, keepdims=True))
    alone = filled.mean(axis=1)
    best = np.full(losses.shape[1], np.inf)
    chosen: list[int] = []
    for _ in range(count):
        together = np.minimum(filled, best).mean(axis=1)
        together[chosen] = np.inf
        order = np.lexsort((np.arange(len(alone)), alone, together))
        chosen.append(int(order[0]))
        best = np.minimum(best, filled[chosen[-1]])
    return chosen
