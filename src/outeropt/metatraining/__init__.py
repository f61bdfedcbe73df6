"""Meta-training: estimators of the outer gradient, and the loop that descends on it."""

from outeropt.metatraining import lengths
from outeropt.metatraining.estimators import (
    ESTIMATORS,
    PES,
    Backprop,
    ESSingle,
    Estimate,
    Estimator,
    ForwardMode,
    FullBackprop,
    FullES,
    TruncatedES,
)
from outeropt.metatraining.inner_training import InnerTraining
from outeropt.metatraining.population import PopulationTraining
from outeropt.metatraining.run import MetaTraining, metatrain
from outeropt.metatraining.system import Outcome, System
from outeropt.metatraining.validation import Validation


__all__ = [
    "ESTIMATORS",
    "PES",
    "Backprop",
    "ESSingle",
    "Estimate",
    "Estimator",
    "ForwardMode",
    "FullBackprop",
    "FullES",
    "InnerTraining",
    "MetaTraining",
    "Outcome",
    "PopulationTraining",
    "System",
    "TruncatedES",
    "Validation",
    "lengths",
    "metatrain",
]
