"""Hand-designed and tuning-free optimizers, schedules and wrappers, with their spaces."""

from collections.abc import Callable
from typing import Any

from outeropt.optimizer import Optimizer
from outeropt.optimizers.nesterov_adamw import NAdamW
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
from outeropt.optimizers.teachers.ema_momentum import EMAMomentum
from outeropt.optimizers.teachers.sign_agreement import (
    AdaptiveAddSign,
    AdaptivePowerSign,
    AddSign,
    PowerSign,
)
from outeropt.optimizers.teachers.static_adam import StaticAdam
from outeropt.optimizers.text import from_text
from outeropt.optimizers.wrappers import (
    Accumulate,
    Averaged,
    Cautious,
    ClipAdaptive,
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
    "AdaptiveAddSign",
    "AdaptivePowerSign",
    "AddSign",
    "Averaged",
    "Cautious",
    "ClipAdaptive",
    "ClipByGlobalNorm",
    "ClipByValue",
    "Constant",
    "Cosine",
    "DecoupledWeightDecay",
    "Description",
    "EMAMomentum",
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
    "PowerSign",
    "Schedule",
    "ScheduleFree",
    "Scheduled",
    "SharpnessAware",
    "StaticAdam",
    "Step",
    "Tail",
    "WeightDecay",
    "describe",
    "from_optax",
    "from_text",
    "get",
    "names",
    "opt_list",
    "prefixes",
    "static_arguments",
]


def __getattr__(name: str) -> Callable[..., Optimizer]:
    """Every registered name as a function: `optimizers.adam(1e-3, b1=0.95)` is `get("adam", ...)`."""
    if name.startswith("_") or name not in names():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def make(learning_rate: Any = None, **hyperparameters: Any) -> Optimizer:
        given = {} if learning_rate is None else {"learning_rate": learning_rate}
        return get(name, **given, **hyperparameters)

    make.__name__ = make.__qualname__ = name
    return make
