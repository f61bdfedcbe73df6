"""The architectures of learned optimizers by name, with their papers."""

from outeropt.errors import unknown_name
from outeropt.learned.base import LearnedOptimizer
from outeropt.learned.choices.choice import Choice
from outeropt.learned.choices.choice_large import ChoiceLarge
from outeropt.learned.choices.choice_pool import ChoicePool
from outeropt.learned.coordinatewise.coordinate_lstm import CoordinateLSTM
from outeropt.learned.coordinatewise.rnnprop import RNNProp
from outeropt.learned.coordinatewise.rnnprop_extended import RNNPropExtended
from outeropt.learned.coordinatewise.scale_basic import ScaleBasic
from outeropt.learned.coordinatewise.scale_hierarchical import ScaleHierarchical
from outeropt.learned.learnable import LearnableAdam, LearnableSGD, LearnableSGDM
from outeropt.learned.mlps.adafac_mlp import AdafacMLP
from outeropt.learned.mlps.celo2 import Celo2
from outeropt.learned.mlps.mlp_nominal import MLPNominal
from outeropt.learned.mlps.per_parameter_mlp import PerParameterMLP
from outeropt.learned.per_tensor.hyper import HyperV2
from outeropt.learned.per_tensor.nn_adam import NNAdam
from outeropt.learned.per_tensor.rnn_mlp import RNNMLP
from outeropt.optimizer import Optimizer
from outeropt.optimizers.entry import Paper
from outeropt.optimizers.teachers.table import AMALGAMATION


_LEARNED_CODE = Paper("learned_optimization (software)", "Metz, Freeman, Harrison and others", 2022)
_WICHROWSKA = Paper(
    "Learned optimizers that scale and generalize", "Wichrowska and others", 2017, "1703.04813"
)

_PAPERS: dict[type[LearnedOptimizer], Paper] = {
    LearnableSGD: _LEARNED_CODE,
    LearnableSGDM: _LEARNED_CODE,
    LearnableAdam: _LEARNED_CODE,
    PerParameterMLP: Paper(
        "Understanding and correcting pathologies in the training of learned optimizers",
        "Metz and others",
        2018,
        "1810.10180",
    ),
    AdafacMLP: Paper(
        "Practical tradeoffs between memory, compute, and performance in learned optimizers",
        "Metz and others",
        2022,
        "2203.11860",
    ),
    MLPNominal: Paper(
        "A closer look at learned optimization: stability, robustness, and inductive biases",
        "Harrison, Metz and Sohl-Dickstein",
        2022,
        "2209.11208",
    ),
    NNAdam: _LEARNED_CODE,
    RNNMLP: Paper(
        "Tasks, stability, architecture, and compute: training more effective learned optimizers, and using "
        "them to train themselves",
        "Metz and others",
        2020,
        "2009.11243",
    ),
    HyperV2: Paper(
        "VeLO: training versatile learned optimizers by scaling up", "Metz and others", 2022, "2211.09760"
    ),
    Celo2: Paper("Celo2 (ICLR 2026)", "Moudgil and others", 2026, "2602.19142"),
    CoordinateLSTM: Paper(
        "Learning to learn by gradient descent by gradient descent",
        "Andrychowicz and others",
        2016,
        "1606.04474",
    ),
    RNNProp: Paper(
        "Learning gradient descent: better generalization and longer horizons",
        "Lv, Jiang and Li",
        2017,
        "1703.03633",
    ),
    RNNPropExtended: AMALGAMATION,
    Choice: AMALGAMATION,
    ChoiceLarge: AMALGAMATION,
    ChoicePool: AMALGAMATION,
    ScaleBasic: _WICHROWSKA,
    ScaleHierarchical: _WICHROWSKA,
}

ARCHITECTURES: dict[str, type[LearnedOptimizer]] = {kind.__name__: kind for kind in _PAPERS}


def paper(optimizer: Optimizer) -> Paper:
    """Where the architecture of a learned optimizer comes from.

    Raises:
      UnknownName: it is of no registered architecture.
    """
    for kind, found in _PAPERS.items():
        if isinstance(optimizer, kind):
            return found
    raise unknown_name("architecture", type(optimizer).__name__, ARCHITECTURES)
