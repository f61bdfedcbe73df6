"""How a model is told that it trains: by the argument that it has for this."""

import inspect
from collections.abc import Callable
from typing import Any


# Arguments that are true in training, and arguments that are true at evaluation.
TRAINING = ("train", "training", "is_training")
EVALUATION = ("deterministic", "use_running_average", "inference", "is_eval")


def flags(call: Callable[..., Any], training: bool) -> dict[str, bool]:
    """Those of the known arguments that a function has, as they are in training or at evaluation."""
    named = inspect.signature(call).parameters
    values = dict.fromkeys(TRAINING, training) | dict.fromkeys(EVALUATION, not training)
    return {name: value for name, value in values.items() if name in named}


def takes(call: Callable[..., Any], argument: str) -> bool:
    """Whether a function has an argument of this name."""
    return argument in inspect.signature(call).parameters
