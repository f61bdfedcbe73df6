"""Optimizers around an optimizer."""

from outeropt.optimizers.wrappers.accumulation import Accumulate
from outeropt.optimizers.wrappers.averaging import Averaged, Lookahead
from outeropt.optimizers.wrappers.cautious import Cautious
from outeropt.optimizers.wrappers.clipping import ClipAdaptive, ClipByGlobalNorm, ClipByValue
from outeropt.optimizers.wrappers.graft import Graft
from outeropt.optimizers.wrappers.mars import Mars
from outeropt.optimizers.wrappers.mechanic import Mechanic
from outeropt.optimizers.wrappers.schedule_free import ScheduleFree
from outeropt.optimizers.wrappers.scheduled import Scheduled
from outeropt.optimizers.wrappers.sharpness import SharpnessAware
from outeropt.optimizers.wrappers.weight_decay import DecoupledWeightDecay, WeightDecay


__all__ = [
    "Accumulate",
    "Averaged",
    "Cautious",
    "ClipAdaptive",
    "ClipByGlobalNorm",
    "ClipByValue",
    "DecoupledWeightDecay",
    "Graft",
    "Lookahead",
    "Mars",
    "Mechanic",
    "ScheduleFree",
    "Scheduled",
    "SharpnessAware",
    "WeightDecay",
]
