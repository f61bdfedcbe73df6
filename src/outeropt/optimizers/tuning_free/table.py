"""The table's third part: tuning-free optimizers that optax lacks, or has with fewer options."""

from outeropt.optimizers import spaces
from outeropt.optimizers.entry import Entry, Paper
from outeropt.optimizers.tuning_free.adagrad_norm import adagrad_norm
from outeropt.optimizers.tuning_free.dadapt_adagrad import dadapt_adagrad
from outeropt.optimizers.tuning_free.dadapt_adam import dadapt_adam
from outeropt.optimizers.tuning_free.dadapt_adan import dadapt_adan
from outeropt.optimizers.tuning_free.dadapt_lion import dadapt_lion
from outeropt.optimizers.tuning_free.dadapt_sgd import dadapt_sgd
from outeropt.optimizers.tuning_free.ldog import ldog
from outeropt.optimizers.tuning_free.momo import momo, momo_adam
from outeropt.optimizers.tuning_free.prodigy import prodigy
from outeropt.optimizers.tuning_free.prodigy_schedule_free import prodigy_schedule_free
from outeropt.optimizers.tuning_free.schedule_free import (
    schedule_free_adamw,
    schedule_free_radam,
    schedule_free_sgd,
)
from outeropt.space import Space


_DADAPT = Paper("Learning-Rate-Free Learning by D-Adaptation", "Defazio and Mishchenko", 2023, "2301.07733")
_MOMO = Paper("MoMo: Momentum Models for Adaptive Learning Rates", "Schaipp and others", 2023, "2305.07583")
_PRODIGY = Paper(
    "Prodigy: An Expeditiously Adaptive Parameter-Free Learner", "Mishchenko and Defazio", 2023, "2306.06101"
)
_SCHEDULE_FREE = Paper("The Road Less Scheduled", "Defazio and others", 2024, "2405.15682")

_FACTOR = {"learning_rate": spaces.LEARNING_RATE_FACTOR}
_ESTIMATED = {
    **_FACTOR,
    "estim_lr0": spaces.ESTIMATE,
    "estim_lr_coef": Space.log(0.1, 10.0, allowed=(0.0, 1e3)),
    "growth_rate": Space.log(1.01, 10.0, allowed=(1.0, 1e30)),
}
_LOWER_BOUND = {"lower_bound": Space.linear(0.0, 1.0, allowed=(-1e30, 1e30))}
_AVERAGE = {
    "weight_lr_power": Space.linear(0.0, 4.0, allowed=(-10.0, 10.0)),
    "r": Space.linear(0.0, 2.0, allowed=(-10.0, 10.0)),
    "warmup_steps": Space.log(1.0, 1e4, allowed=(0.0, 1e9)),
    # The evaluation point divides by b1.
    "b1": Space.logit(0.5, 0.999, allowed=(1e-6, 1.0)),
}

TUNING_FREE: dict[str, Entry] = {
    "adagrad_norm": Entry(
        adagrad_norm,
        Paper(
            "AdaGrad stepsizes: Sharp convergence over nonconvex landscapes",
            "Ward, Wu and Bottou",
            2018,
            "1806.01811",
        ),
        # It converges for any, though not equally fast: this is why it is not called tuning-free.
        {"learning_rate": 1.0},
        {"initial_accumulator_value": Space.log(1e-6, 1.0, allowed=(0.0, 1e6))},
    ),
    "dadapt_adagrad": Entry(dadapt_adagrad, _DADAPT, {}, _ESTIMATED, tuning_free=True),
    "dadapt_adam": Entry(dadapt_adam, _DADAPT, {}, _ESTIMATED, tuning_free=True),
    "dadapt_adan": Entry(dadapt_adan, _DADAPT, {}, _ESTIMATED, tuning_free=True),
    "dadapt_lion": Entry(dadapt_lion, _DADAPT, {}, _ESTIMATED, tuning_free=True),
    "dadapt_sgd": Entry(dadapt_sgd, _DADAPT, {}, _ESTIMATED, tuning_free=True),
    "ldog": Entry(
        ldog,
        Paper(
            "DoG is SGD's Best Friend: A Parameter-Free Dynamic Step Size Schedule",
            "Ivgi, Hinder and Carmon",
            2023,
            "2302.12022",
        ),
        {},
        {**_FACTOR, "reps_rel": spaces.ESTIMATE},
        tuning_free=True,
    ),
    "momo": Entry(momo, _MOMO, {}, {**_FACTOR, **_LOWER_BOUND}, tuning_free=True, needs=("value",)),
    "momo_adam": Entry(momo_adam, _MOMO, {}, _LOWER_BOUND, tuning_free=True, needs=("value",)),
    "prodigy": Entry(prodigy, _PRODIGY, {}, {**_ESTIMATED, "beta3": spaces.SECOND_MOMENT}, tuning_free=True),
    "prodigy_schedule_free": Entry(
        prodigy_schedule_free, _PRODIGY, {}, {**_AVERAGE, **_ESTIMATED}, tuning_free=True
    ),
    "schedule_free_adamw": Entry(schedule_free_adamw, _SCHEDULE_FREE, {}, _AVERAGE, tuning_free=True),
    "schedule_free_radam": Entry(schedule_free_radam, _SCHEDULE_FREE, {}, _AVERAGE, tuning_free=True),
    "schedule_free_sgd": Entry(schedule_free_sgd, _SCHEDULE_FREE, {}, _AVERAGE, tuning_free=True),
}
