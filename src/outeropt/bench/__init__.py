"""Hyperparameter sets, normalizers, scores, the leaderboard and its pictures. Scores need numpy only."""

from outeropt.bench.leaderboard import Leaderboard, Row
from outeropt.bench.mixed_effects import MixedEffects
from outeropt.bench.normalizer import Normalizer
from outeropt.bench.profiles import Profile
from outeropt.bench.restarts import Restarts, Summary
from outeropt.bench.sets import HyperparameterSet
from outeropt.bench.stability import Family, RunStatistics
from outeropt.bench.statistics import Interval
from outeropt.bench.tunability import Tunability
from outeropt.bench.versus import Comparison, Duel, Standing


__all__ = [
    "Comparison",
    "Duel",
    "Family",
    "HyperparameterSet",
    "Interval",
    "Leaderboard",
    "MixedEffects",
    "Normalizer",
    "Profile",
    "Restarts",
    "Row",
    "RunStatistics",
    "Standing",
    "Summary",
    "Tunability",
]
