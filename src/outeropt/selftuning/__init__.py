"""Optimizers that tune an optimizer inside while they train: control, hypergradients."""

from outeropt.optimizers.entry import Entry, Paper
from outeropt.optimizers.own_table import Prefix
from outeropt.optimizers.registry import get, register
from outeropt.selftuning.control.disturbances import AdamScaled, Clipped, Disturbance, Raw, Transformed
from outeropt.selftuning.control.metaopt import MetaOpt
from outeropt.selftuning.driven import DrivenHyperparameters, driven
from outeropt.selftuning.driving import LinearController, NetworkController
from outeropt.selftuning.files import freeze, load, save, tunes_itself
from outeropt.selftuning.hypergradient import HypergradientDescent, hypergradient, tower


_CONTROL = Paper("Online Control for Meta-optimization", "Chen and Hazan", 2023, "2301.07902")
# What learns fastest in benchmarks/selftuning.py: Adam's direction, along the real trajectory.
_DEFAULTS = {"disturbance": "adam", "meta.learning_rate": 1e-4, "memory": 1}

register(
    entries={
        "metaopt": Entry(MetaOpt, _CONTROL, {**_DEFAULTS, "base": get("sgd", learning_rate=1e-4)}),
    },
    prefixes={
        "driven": Prefix(driven, "a learned controller drives the learning rate"),
        "hypergradient": Prefix(hypergradient, "hypergradient descent on the learning rate"),
        "metaopt": Prefix(MetaOpt, "a learned controller mixes past gradients into the step"),
    },
)

__all__ = [
    "AdamScaled",
    "Clipped",
    "Disturbance",
    "DrivenHyperparameters",
    "HypergradientDescent",
    "LinearController",
    "MetaOpt",
    "NetworkController",
    "Raw",
    "Transformed",
    "freeze",
    "load",
    "save",
    "tower",
    "tunes_itself",
]
