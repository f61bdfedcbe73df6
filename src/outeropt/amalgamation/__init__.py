"""Amalgamation: many optimizers distilled into one. Huang et al. 2022, arXiv 2203.06474."""

from outeropt.amalgamation.losses import Losses
from outeropt.amalgamation.perturbations import PERTURBATIONS, Perturbation
from outeropt.amalgamation.run import Amalgamation, Watcher, amalgamate
from outeropt.amalgamation.strategies import STRATEGIES, Curriculum, Repeat, Simple, Strategy


__all__ = [
    "PERTURBATIONS",
    "STRATEGIES",
    "Amalgamation",
    "Curriculum",
    "Losses",
    "Perturbation",
    "Repeat",
    "Simple",
    "Strategy",
    "Watcher",
    "amalgamate",
]
