"""Estimators of the outer gradient, behind one protocol: `Estimator`."""

from outeropt.metatraining.estimators.backprop import Backprop, FullBackprop
from outeropt.metatraining.estimators.base import Estimate, Estimator
from outeropt.metatraining.estimators.es import FullES, TruncatedES
from outeropt.metatraining.estimators.es_single import ESSingle
from outeropt.metatraining.estimators.forward import ForwardMode
from outeropt.metatraining.estimators.pes import PES


ESTIMATORS: dict[str, type[Estimator]] = {
    "backprop": Backprop,
    "full_backprop": FullBackprop,
    "full_es": FullES,
    "truncated_es": TruncatedES,
    "pes": PES,
    "es_single": ESSingle,
    "forward_mode": ForwardMode,
}
"""By the name that configurations use."""

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
    "TruncatedES",
]
