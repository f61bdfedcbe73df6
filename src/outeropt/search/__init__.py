"""Search: the hyperparameters of any optimizer, by reading nothing of it but its spaces."""

from outeropt.search.best_of import BestOfK, expected_best_of_k
from outeropt.search.domain import Domain, domain
from outeropt.search.found import Found, Incumbent, Tried
from outeropt.search.full_length import FullLength
from outeropt.search.halving import Halving, Hyperband
from outeropt.search.method import Method
from outeropt.search.population import PopulationBased
from outeropt.search.problem import Problem
from outeropt.search.run import METHODS, planned, search
from outeropt.search.samplers.base import Sampler
from outeropt.search.samplers.bayes import Bayes
from outeropt.search.samplers.cmaes import CMAES
from outeropt.search.samplers.grid import Grid
from outeropt.search.samplers.random import Random
from outeropt.search.samplers.sobol import Sobol


__all__ = [
    "CMAES",
    "METHODS",
    "Bayes",
    "BestOfK",
    "Domain",
    "Found",
    "FullLength",
    "Grid",
    "Halving",
    "Hyperband",
    "Incumbent",
    "Method",
    "PopulationBased",
    "Problem",
    "Random",
    "Sampler",
    "Sobol",
    "Tried",
    "domain",
    "expected_best_of_k",
    "planned",
    "search",
]
