"""`study:NAME`: the optimizers of the study of one-pass tuning, by their names in the paper's code.

Clarke, Oldewage and Hernandez-Lobato 2022 (arXiv 2110.10461). Each draws its hyperparameters when it is
initialised: with another seed it starts from others. `study:clipped:NAME` is the same on gradients that are
first clipped to a norm of 0.25, as on the Penn Treebank; tuners differentiate through that.
"""

from collections.abc import Mapping

from outeropt import optimizers
from outeropt.errors import unknown_name
from outeropt.optimizer import Optimizer
from outeropt.optimizers.entry import Paper
from outeropt.optimizers.registry import Source
from outeropt.selftuning.onepass import methods as onepass_methods


WORD = "study"
_CLIPPED = "clipped:"

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


def clipped_methods() -> Mapping[str, Optimizer]:
    """The same on clipped gradients."""
    return onepass_methods.study_methods(optimizers.get("clip_norm:heavy_ball", max_norm=0.25))


def load(name: str) -> Optimizer:
    """One of them.

    Raises:
      UnknownName: none is called so.
    """
    found = clipped_methods() if name.startswith(_CLIPPED) else methods()
    name = name.removeprefix(_CLIPPED)
    if name not in found:
        raise unknown_name("method of the study", name, found, see=", ".join(found))
    return found[name]


# Not among the listed names: they are starting points of a study, and not optimizers to choose from.
SOURCE = Source(load, lambda: [], lambda _: PAPER)
