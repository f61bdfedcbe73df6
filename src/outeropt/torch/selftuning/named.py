"""The self-tuning optimizers by the names that they have everywhere in this package."""

import inspect
from collections.abc import Callable
from typing import Any

import torch

from outeropt.torch.optimizer import Params
from outeropt.torch.selftuning.control.disturbances import AdamScaled
from outeropt.torch.selftuning.control.metaopt import MetaOpt
from outeropt.torch.selftuning.default import SelfTuning
from outeropt.torch.selftuning.hypergradient import HypergradientDescent
from outeropt.torch.selftuning.meta import MetaAdam
from outeropt.torch.selftuning.onepass.best_response import OnePass
from outeropt.torch.selftuning.wrapping import Wrapping, checked_rate


def _around(
    wrapping: type[Wrapping], base: Callable[..., torch.optim.Optimizer], **defaults: Any
) -> Callable[..., Wrapping]:
    """Makes both at once, from the settings of both."""
    outer = inspect.signature(wrapping.__init__).parameters

    def make(params: Params, **settings: Any) -> Wrapping:
        settings = {**defaults, **settings}
        checked_rate(wrapping.__name__, settings["lr"])
        inner = base(params, **{name: value for name, value in settings.items() if name not in outer})
        return wrapping(inner, **{name: value for name, value in settings.items() if name in outer})

    return make


# As `outeropt.selftuning` names them, with its defaults.
NAMED: dict[str, Callable[..., Wrapping]] = {
    "hypergradient:adam": _around(HypergradientDescent, torch.optim.Adam, lr=1e-3),
    "metaopt": _around(
        MetaOpt,
        torch.optim.SGD,
        lr=1e-4,
        meta=MetaAdam(3e-4, fading=100.0),
        disturbance=AdamScaled((0.95, 0.999)),
        memory=1,
    ),
    "metaopt:sgd": _around(MetaOpt, torch.optim.SGD, lr=0.01),
    "one_pass:adamw": _around(OnePass, torch.optim.AdamW, lr=1e-3, weight_decay=1e-4),
    "self_tuning": SelfTuning,
}
