"""The tuning-free optimizers of this room by their names."""

from collections.abc import Callable

from outeropt.torch.optimizer import Optimizer
from outeropt.torch.tuning_free.adagrad_norm import AdaGradNorm
from outeropt.torch.tuning_free.cocob import COCOB
from outeropt.torch.tuning_free.dadapt_adagrad import DAdaptAdaGrad
from outeropt.torch.tuning_free.dadapt_adam import DAdaptAdam, dadapt_adamw
from outeropt.torch.tuning_free.dadapt_adan import DAdaptAdan
from outeropt.torch.tuning_free.dadapt_lion import DAdaptLion
from outeropt.torch.tuning_free.dadapt_sgd import DAdaptSGD
from outeropt.torch.tuning_free.dog import DoG, DoWG
from outeropt.torch.tuning_free.ldog import LDoG
from outeropt.torch.tuning_free.mechanic import mechanic_adamw, mechanic_sgd
from outeropt.torch.tuning_free.momo import Momo, MomoAdam
from outeropt.torch.tuning_free.polyak_sgd import PolyakSGD
from outeropt.torch.tuning_free.prodigy import Prodigy
from outeropt.torch.tuning_free.prodigy_schedule_free import ProdigyScheduleFree
from outeropt.torch.tuning_free.schedule_free import ScheduleFreeAdamW, ScheduleFreeRAdam, ScheduleFreeSGD


TUNING_FREE: dict[str, Callable[..., Optimizer]] = {
    "adagrad_norm": AdaGradNorm,
    "cocob": COCOB,
    "dadapt_adagrad": DAdaptAdaGrad,
    "dadapt_adam": DAdaptAdam,
    "dadapt_adamw": dadapt_adamw,
    "dadapt_adan": DAdaptAdan,
    "dadapt_lion": DAdaptLion,
    "dadapt_sgd": DAdaptSGD,
    "dog": DoG,
    "dowg": DoWG,
    "ldog": LDoG,
    "mechanic_adamw": mechanic_adamw,
    "mechanic_sgd": mechanic_sgd,
    "momo": Momo,
    "momo_adam": MomoAdam,
    "polyak_sgd": PolyakSGD,
    "prodigy": Prodigy,
    "prodigy_schedule_free": ProdigyScheduleFree,
    "schedule_free_adamw": ScheduleFreeAdamW,
    "schedule_free_radam": ScheduleFreeRAdam,
    "schedule_free_sgd": ScheduleFreeSGD,
}
