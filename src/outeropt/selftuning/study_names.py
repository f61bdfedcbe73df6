"""`study:NAME`: the optimizers of the study of one-pass tuning, by their names in the paper's code.

Clarke, Oldewage and Hernandez-Lobato 2022 (arXiv 2110.10461). Each draws its hyperparameters when it is
initialised: with another seed it starts from others.
"""

from collections.abc import Mapping

from outeropt.errors import unknown_name
from outeropt.optimizer import Optimizer
from outeropt.optimizers.entry import Paper
from outeropt.optimizers.registry import Source
from outeropt.selftuning.onepass import methods as onepass_methods


WORD = "study"

PAPER = Paper(
    "Scalable One-Pass Optimisation of High-Dimensional Weight-Update Hyperparameters by Implicit "
    "Differentiation",
    "Clarke, Oldewage and Hernandez-Lobato",
    2022,
    "2110.10461",
)


def methods() -> Mapping[str, Optimizer]:
    """The optimizers by name."""
    return onepass_methods.study_methods()


def load(name: str) -> Optimizer:
    """One of them.

    Raises:
      UnknownName: none is called so.
    """
    found = methods()
    if name not in found:
        raise unknown_name("method of the study", name, found, see=", ".join(found))
    return found[name]


# Not among the listed names: they are starting points of a study, and not optimizers to choose from.
SOURCE = Source(load, lambda: [], lambda _: PAPER)
