"""The optimizers of this package for PyTorch: native `torch.optim.Optimizer`s, with no JAX at run time.

    optimizer = outeropt.torch.Prodigy(model.parameters())
    optimizer = outeropt.torch.get("prodigy", model.parameters(), weight_decay=0.01)
    optimizer = outeropt.torch.load("runs/my_metatraining", model.parameters(), num_steps=10_000)

Updates are those of the optimizers of the same names in `outeropt.optimizers`, to rounding.
"""

from collections.abc import Callable
from typing import Any

import torch

from outeropt.errors import unknown_name
from outeropt.torch.learned.adafac_mlp import AdafacMLP
from outeropt.torch.learned.mlp_nominal import MLPNominal
from outeropt.torch.learned.named import NAMED as LEARNED
from outeropt.torch.learned.named import load
from outeropt.torch.learned.rnnprop import RNNProp
from outeropt.torch.optimizer import Optimizer, Params
from outeropt.torch.selftuning.control.metaopt import MetaOpt
from outeropt.torch.selftuning.default import SelfTuning
from outeropt.torch.selftuning.hypergradient import HypergradientDescent
from outeropt.torch.selftuning.meta import MetaAdam, MetaDescent
from outeropt.torch.selftuning.named import NAMED as SELF_TUNING
from outeropt.torch.selftuning.onepass.best_response import OnePass
from outeropt.torch.tuning_free.adagrad_norm import AdaGradNorm
from outeropt.torch.tuning_free.cocob import COCOB
from outeropt.torch.tuning_free.dadapt_adagrad import DAdaptAdaGrad
from outeropt.torch.tuning_free.dadapt_adam import DAdaptAdam
from outeropt.torch.tuning_free.dadapt_adan import DAdaptAdan
from outeropt.torch.tuning_free.dadapt_lion import DAdaptLion
from outeropt.torch.tuning_free.dadapt_sgd import DAdaptSGD
from outeropt.torch.tuning_free.dog import DoG, DoWG
from outeropt.torch.tuning_free.ldog import LDoG
from outeropt.torch.tuning_free.mechanic import Mechanic
from outeropt.torch.tuning_free.momo import Momo, MomoAdam
from outeropt.torch.tuning_free.polyak_sgd import PolyakSGD
from outeropt.torch.tuning_free.prodigy import Prodigy
from outeropt.torch.tuning_free.prodigy_schedule_free import ProdigyScheduleFree
from outeropt.torch.tuning_free.schedule_free import ScheduleFreeAdamW, ScheduleFreeRAdam, ScheduleFreeSGD
from outeropt.torch.tuning_free.table import TUNING_FREE


__all__ = [
    "COCOB",
    "AdaGradNorm",
    "AdafacMLP",
    "DAdaptAdaGrad",
    "DAdaptAdam",
    "DAdaptAdan",
    "DAdaptLion",
    "DAdaptSGD",
    "DoG",
    "DoWG",
    "HypergradientDescent",
    "LDoG",
    "MLPNominal",
    "Mechanic",
    "MetaAdam",
    "MetaDescent",
    "MetaOpt",
    "Momo",
    "MomoAdam",
    "OnePass",
    "Optimizer",
    "PolyakSGD",
    "Prodigy",
    "ProdigyScheduleFree",
    "RNNProp",
    "ScheduleFreeAdamW",
    "ScheduleFreeRAdam",
    "ScheduleFreeSGD",
    "SelfTuning",
    "get",
    "load",
    "names",
]

_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {**TUNING_FREE, **LEARNED, **SELF_TUNING}


def names() -> list[str]:
    """What `get` takes."""
    return sorted(_OPTIMIZERS)


def get(name: str, params: Params, **settings: Any) -> torch.optim.Optimizer:
    """An optimizer by the name that it has everywhere in this package.

    Args:
      name: one of `names()`.
      params: parameters or groups of them, as for `torch.optim.Optimizer`.
      **settings: what its class takes.

    Raises:
      UnknownName: there is no such optimizer in PyTorch.
      OuteroptError: a setting is not allowed.
    """
    if name not in _OPTIMIZERS:
        raise unknown_name("PyTorch optimizer", name, _OPTIMIZERS, see=", ".join(names()))
    return _OPTIMIZERS[name](params, **settings)
