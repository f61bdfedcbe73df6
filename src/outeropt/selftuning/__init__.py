"""Optimizers that tune an optimizer inside while they train: control, hypergradients."""

from outeropt.optimizers.entry import Entry, Paper
from outeropt.optimizers.own_table import Prefix
from outeropt.optimizers.registry import get, register
from outeropt.selftuning.control.disturbances import AdamScaled, Clipped, Disturbance, Raw, Transformed
from outeropt.selftuning.control.metaopt import MetaOpt
from outeropt.selftuning.files import freeze, load, save, tunes_itself


_CONTROL = Paper("Online Control for Meta-optimization", "Chen and Hazan", 2023, "2301.07902")
# What learns fastest in benchmarks/selftuning.py: Adam's direction, along the real trajectory.
_DEFAULTS = {"disturbance": "adam", "meta.learning_rate": 1e-4, "memory": 1}

register(
    {
        "metaopt": Entry(
            MetaOpt, _CONTROL, {**_DEFAULTS, "base": get("sgd", learning_rate=1e-4)}, tuning_free=True
        )
    },
    {"metaopt": Prefix(MetaOpt, "a controller that learns to mix past gradients into the step")},
)

__all__ = [
    "AdamScaled",
    "Clipped",
    "Disturbance",
    "MetaOpt",
    "Raw",
    "Transformed",
    "freeze",
    "load",
    "save",
    "tunes_itself",
]
