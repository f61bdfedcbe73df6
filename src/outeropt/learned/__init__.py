"""Learned optimizers: architectures whose array leaves are meta-parameters, and weights for them."""

from outeropt.learned.architectures import ARCHITECTURES, paper
from outeropt.learned.base import LearnedOptimizer
from outeropt.learned.choices.choice import Choice
from outeropt.learned.choices.choice_large import ChoiceLarge
from outeropt.learned.choices.choice_pool import ChoicePool
from outeropt.learned.coordinatewise.coordinate_lstm import CoordinateLSTM
from outeropt.learned.coordinatewise.rnnprop import RNNProp
from outeropt.learned.coordinatewise.rnnprop_extended import RNNPropExtended
from outeropt.learned.coordinatewise.scale_basic import ScaleBasic
from outeropt.learned.coordinatewise.scale_hierarchical import ScaleHierarchical
from outeropt.learned.files import about, build, load
from outeropt.learned.learnable import LearnableAdam, LearnableSGD, LearnableSGDM
from outeropt.learned.mlps.adafac_mlp import AdafacMLP
from outeropt.learned.mlps.celo2 import Celo2
from outeropt.learned.mlps.mlp_nominal import MLPNominal
from outeropt.learned.mlps.per_parameter_mlp import PerParameterMLP
from outeropt.learned.per_tensor.hyper import HyperV2
from outeropt.learned.per_tensor.nn_adam import NNAdam
from outeropt.learned.per_tensor.rnn_mlp import RNNMLP
from outeropt.learned.published import load_published, read_arrays
from outeropt.optimizers.registry import Source, add_source
from outeropt.weight_files import names


add_source("learned", Source(load, names, paper))

__all__ = [
    "ARCHITECTURES",
    "RNNMLP",
    "AdafacMLP",
    "Celo2",
    "Choice",
    "ChoiceLarge",
    "ChoicePool",
    "CoordinateLSTM",
    "HyperV2",
    "LearnableAdam",
    "LearnableSGD",
    "LearnableSGDM",
    "LearnedOptimizer",
    "MLPNominal",
    "NNAdam",
    "PerParameterMLP",
    "RNNProp",
    "RNNPropExtended",
    "ScaleBasic",
    "ScaleHierarchical",
    "about",
    "build",
    "load",
    "load_published",
    "names",
    "read_arrays",
]
