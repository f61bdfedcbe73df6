"""Optimizers that tune an optimizer inside while they train: control, hypergradients."""

from typing import Any

from outeropt.optimizers.entry import Entry, Paper
from outeropt.optimizers.own_table import Prefix
from outeropt.optimizers.registry import add_source, get, register
from outeropt.selftuning.control.disturbances import AdamScaled, Clipped, Disturbance, Raw, Transformed
from outeropt.selftuning.control.metaopt import MetaOpt
from outeropt.selftuning.default import SELF_TUNING, default
from outeropt.selftuning.driven import DrivenHyperparameters, driven
from outeropt.selftuning.driving import LinearController, NetworkController
from outeropt.selftuning.files import freeze, load, save, tunes_itself
from outeropt.selftuning.hypergradient import HypergradientDescent, hypergradient, tower
from outeropt.selftuning.onepass.baydin import Baydin
from outeropt.selftuning.onepass.best_response import OnePass
from outeropt.selftuning.onepass.forward import ForwardMode
from outeropt.selftuning.onepass.methods import Method, random_start, study_methods, tuning_methods
from outeropt.selftuning.onepass.random_start import RandomStart
from outeropt.selftuning.onepass.stepped import Stepped
from outeropt.selftuning.onepass.unrolled import Unrolled
from outeropt.selftuning.study_names import SOURCE, WORD


_CONTROL = Paper("Online Control for Meta-optimization", "Chen and Hazan", 2023, "2301.07902")


def _metaopt() -> dict[str, Any]:
    # What benchmarks/selftuning.py found best, whether a batch is always the same or always another: Adam's
    # direction, one coefficient, and a meta-optimizer whose steps fade.
    return {
        "base": get("sgd", learning_rate=1e-4),
        "meta": get("inverse_sqrt:adam", learning_rate=3e-4, warmup_steps=100.0, eps_root=1e-24),
        "disturbance": AdamScaled(b1=0.95),
        "memory": 1,
    }


register(
    entries={
        "metaopt": Entry(MetaOpt, _CONTROL, _metaopt),
    },
    combinations={"self_tuning": SELF_TUNING},
    prefixes={
        "driven": Prefix(driven, "a learned controller drives the learning rate"),
        "hypergradient": Prefix(hypergradient, "hypergradient descent on the learning rate"),
        "metaopt": Prefix(MetaOpt, "a learned controller mixes past gradients into the step"),
        "one_pass": Prefix(OnePass, "the learning rate tuned against the validation loss, every ten steps"),
        "stepped": Prefix(Stepped, "the learning rate multiplied every ten steps"),
    },
)

add_source(WORD, SOURCE)

__all__ = [
    "AdamScaled",
    "Baydin",
    "Clipped",
    "Disturbance",
    "DrivenHyperparameters",
    "ForwardMode",
    "HypergradientDescent",
    "LinearController",
    "MetaOpt",
    "Method",
    "NetworkController",
    "OnePass",
    "RandomStart",
    "Raw",
    "Stepped",
    "Transformed",
    "Unrolled",
    "default",
    "freeze",
    "load",
    "random_start",
    "save",
    "study_methods",
    "tower",
    "tunes_itself",
    "tuning_methods",
]
