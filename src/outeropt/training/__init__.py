"""Training as pure functions: the inner step, an unroll of it, evaluation, and a whole run."""

from outeropt.training import convolution
from outeropt.training.inner import (
    TrainState,
    evaluate,
    inner_step,
    renewed,
    restart,
    start,
    training_loss,
    unroll,
    window,
)
from outeropt.training.run import Run, cadence, check, mask_diverged, train


convolution.install()

__all__ = [
    "Run",
    "TrainState",
    "cadence",
    "check",
    "evaluate",
    "inner_step",
    "mask_diverged",
    "renewed",
    "restart",
    "start",
    "train",
    "training_loss",
    "unroll",
    "window",
]
