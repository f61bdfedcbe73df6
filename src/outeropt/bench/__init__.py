"""Hyperparameter sets, normalizers, scores, the leaderboard and its pictures. Scores need numpy only."""

from outeropt.bench.leaderboard import Leaderboard, Row
from outeropt.bench.normalizer import Normalizer
from outeropt.bench.profiles import Profile
from outeropt.bench.restarts import Restarts, Summary
from outeropt.bench.sets import HyperparameterSet
from outeropt.bench.statistics import Interval
from outeropt.bench.tunability import Tunability
from outeropt.bench.versus import Comparison, Duel, Standing


__all__ = [
    "Comparison",
    "Duel",
    "HyperparameterSet",
    "Interval",
    "Leaderboard",
    "Normalizer",
    "Profile",
    "Restarts",
    "Row",
    "Standing",
    "Summary",
    "Tunability",
]
