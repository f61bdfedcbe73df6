"""One step of torch's own optimizers as a function of everything, to be differentiated."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from outeropt.errors import OuteroptError


Rule = Callable[[Tensor, Tensor, Mapping[str, Any], Mapping[str, Any]], Tensor]
"""`(parameter, gradient, state before the step, settings of the group) -> parameter after the step`."""


def sgd(param: Tensor, grad: Tensor, state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
    """As `torch.optim.SGD`."""
    grad = -grad if group["maximize"] else grad
    direction = grad + group["weight_decay"] * param
    buffer = state.get("momentum_buffer")
    # A group without momentum has no buffer, and needs none.
    if buffer is None:
        # The first gradient is taken whole.
        mixed = direction
    else:
        mixed = group["momentum"] * buffer + (1.0 - group["dampening"]) * direction
    if group["nesterov"]:
        mixed = direction + group["momentum"] * mixed
    return param - group["lr"] * mixed


def adam(param: Tensor, grad: Tensor, state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
    """As `torch.optim.Adam` and `torch.optim.AdamW`."""
    (b1, b2), lr, decay = group["betas"], group["lr"], group["weight_decay"]
    grad = -grad if group["maximize"] else grad
    if not group["decoupled_weight_decay"]:
        grad = grad + decay * param
    mean, square = (state.get(name, torch.zeros_like(param)) for name in ("exp_avg", "exp_avg_sq"))
    time = state["step"].to(param) + 1.0 if "step" in state else torch.ones_like(param.sum())
    mean = b1 * mean + (1.0 - b1) * grad
    square = b2 * square + (1.0 - b2) * grad**2
    if group["amsgrad"]:
        square = torch.maximum(square, state.get("max_exp_avg_sq", torch.zeros_like(square)))
    root = torch.sqrt(square / (1.0 - b2**time)) + group["eps"]
    step = mean / (1.0 - b1**time) / root
    if group["decoupled_weight_decay"]:
        step = step + decay * param
    return param - lr * step


RULES: dict[type[torch.optim.Optimizer], Rule] = {
    torch.optim.SGD: sgd,
    torch.optim.Adam: adam,
    torch.optim.AdamW: adam,
}


def rule_of(optimizer: torch.optim.Optimizer) -> Rule:
    """The rule of an optimizer.

    Raises:
      OuteroptError: it has none here.
    """
    if type(optimizer) not in RULES:
        names = ", ".join(f"torch.optim.{kind.__name__}" for kind in RULES)
        raise OuteroptError(
            f"OnePass differentiates the steps of {names}, not those of {type(optimizer).__name__}; "
            "HypergradientDescent tunes the learning rate of any."
        )
    return RULES[type(optimizer)]
