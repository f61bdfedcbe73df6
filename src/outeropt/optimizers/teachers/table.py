"""The table's fifth part: teachers of "Optimizer Amalgamation" that differ from optax's optimizers."""

from outeropt.optimizers.entry import Entry, Paper
from outeropt.optimizers.teachers.ema_momentum import EMAMomentum
from outeropt.optimizers.teachers.sign_agreement import (
    AdaptiveAddSign,
    AdaptivePowerSign,
    AddSign,
    PowerSign,
)
from outeropt.optimizers.teachers.static_adam import StaticAdam


AMALGAMATION = Paper("Optimizer Amalgamation", "Huang and others", 2022, "2203.06474")

_SIGNS = Paper("Neural Optimizer Search with Reinforcement Learning", "Bello and others", 2017, "1709.07417")

TEACHERS: dict[str, Entry] = {
    "adaptive_addsign": Entry(AdaptiveAddSign, _SIGNS),
    "adaptive_powersign": Entry(AdaptivePowerSign, _SIGNS),
    "addsign": Entry(AddSign, _SIGNS),
    "ema_momentum": Entry(EMAMomentum, AMALGAMATION),
    "powersign": Entry(PowerSign, _SIGNS),
    "static_adam": Entry(StaticAdam, AMALGAMATION),
}
