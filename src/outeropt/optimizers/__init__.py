"""Hand-designed and tuning-free optimizers, schedules and wrappers, with their spaces."""

from outeropt.optimizers.nadamw import NAdamW
from outeropt.optimizers.opt_list import opt_list
from outeropt.optimizers.optax_optimizer import OptaxOptimizer, from_optax, static_arguments
from outeropt.optimizers.registry import Description, describe, get, names, prefixes
from outeropt.optimizers.schedules import (
    Constant,
    Cosine,
    Exponential,
    InverseSqrt,
    Linear,
    PiecewiseLinear,
    Schedule,
    Step,
    Tail,
)
from outeropt.optimizers.wrappers import (
    Accumulate,
    Averaged,
    Cautious,
    ClipByGlobalNorm,
    ClipByValue,
    DecoupledWeightDecay,
    Graft,
    Lookahead,
    Mars,
    Mechanic,
    Scheduled,
    ScheduleFree,
    SharpnessAware,
    WeightDecay,
)


__all__ = [
    "Accumulate",
    "Averaged",
    "Cautious",
    "ClipByGlobalNorm",
    "ClipByValue",
    "Constant",
    "Cosine",
    "DecoupledWeightDecay",
    "Description",
    "Exponential",
    "Graft",
    "InverseSqrt",
    "Linear",
    "Lookahead",
    "Mars",
    "Mechanic",
    "NAdamW",
    "OptaxOptimizer",
    "PiecewiseLinear",
    "Schedule",
    "ScheduleFree",
    "Scheduled",
    "SharpnessAware",
    "Step",
    "Tail",
    "WeightDecay",
    "describe",
    "from_optax",
    "get",
    "names",
    "opt_list",
    "prefixes",
    "static_arguments",
]
