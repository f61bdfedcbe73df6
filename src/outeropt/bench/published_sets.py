"""The hyperparameter sets of learned_optimization, as data.

Source: google/learned_optimization, its baselines (names, grids, seeds, lengths) and the defaults of its
optimizers (the fixed hyperparameters).
"""

from typing import Any


LEARNING_RATES = (1e-7, 3e-7, 1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
ACCUMULATED = tuple(2.0**i for i in range(12))

_LR = {"learning_rate": LEARNING_RATES}
_ACCUMULATE = {"every": ACCUMULATED, **_LR}

_ADAM = {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "eps_root": 1e-8}
_RMSPROP = {"decay": 0.9, "eps": 1e-8}

Table = tuple[tuple[str, str, dict[str, Any], dict[str, tuple[float, ...]], str], ...]

PUBLISHED: Table = (
    ("AdaBeliefLR", "adabelief", {"b1": 0.9, "b2": 0.999, "eps": 1e-16, "eps_root": 1e-16}, _LR, "10000_R5"),
    ("AdaGradLR", "adagrad", {"initial_accumulator_value": 0.1, "eps": 1e-7}, _LR, "10000_R5"),
    ("AdafactorLR", "adafactor", {}, _LR, "10000_R5"),
    ("AdamLR", "adam", _ADAM, _LR, "1000_R5 2000_R5 10000_R1 10000_R5 100000_R5 300000_R5"),
    ("AdamLR_GradAccum", "accumulate:adam", _ADAM, _ACCUMULATE, "16384_R3 16384_R5 16384_R32"),
    ("AdamExpDecayLR", "exponential:adam", {"decay": 7e-5, **_ADAM}, _LR, "100000_R5 300000_R5"),
    ("AdamSqrtDecayLR", "inverse_sqrt:adam", {"warmup_steps": 1000.0, **_ADAM}, _LR, "100000_R5 300000_R5"),
    ("AdamWLR", "adamw", {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 1e-4}, _LR, "10000_R5"),
    ("FromageLR", "fromage", {"min_norm": 1e-6}, _LR, "10000_R5"),
    ("Grad10AdamLR", "accumulate:adam", {"every": 10.0, **_ADAM}, _LR, "100000_R5"),
    ("LambLR", "lamb", {"b1": 0.9, "b2": 0.999, "eps": 1e-6, "weight_decay": 0.0}, _LR, "10000_R5"),
    ("LarsLR", "lars", {"weight_decay": 0.0, "trust_coefficient": 1e-3, "momentum": 0.9}, _LR, "10000_R5"),
    ("RAdamLR", "radam", {"b1": 0.9, "b2": 0.999, "eps": 1e-8}, _LR, "10000_R5 100000_R5 300000_R5"),
    ("RMSPropLR", "rmsprop", _RMSPROP, _LR, "10000_R5"),
    ("RMSPropMomLR", "rmsprop", {**_RMSPROP, "momentum": 0.9}, _LR, "10000_R5"),
    ("SGDLR", "sgd", {}, _LR, "2000_R5 10000_R5"),
    ("SGDLR_GradAccum", "accumulate:sgd", {}, _ACCUMULATE, "16384_R5"),
    ("SGDMLR", "momentum", {"momentum": 0.9}, _LR, "2000_R5 10000_R5"),
    ("SGDMLR_GradAccum", "accumulate:momentum", {"momentum": 0.9}, _ACCUMULATE, "16384_R5"),
    ("SM3LR", "sm3", {"momentum": 0.9}, _LR, "10000_R5"),
    ("SM3beta2_999_LR", "sm3", {"momentum": 0.9, "b2": 0.999}, _LR, "10000_R5"),
    ("YogiLR", "yogi", {"b1": 0.9, "b2": 0.999, "eps": 1e-3}, _LR, "10000_R5"),
)
"""Name, optimizer, fixed hyperparameters, grid, and the lengths and seeds that it comes in, as in names."""

_TEN_THOUSANDS = " ".join(f"{steps}_R5" for steps in range(10_000, 100_001, 10_000))

LEARNED: Table = (
    ("LOpt", "learned:", {}, {}, f"1000_R5 2000_R5 5000_R5 10000_R1 {_TEN_THOUSANDS}"),
    ("LOptGradAccum10", "accumulate:learned:", {"every": 10.0}, {}, f"5000_R5 {_TEN_THOUSANDS}"),
    ("GradAccum_LOpt", "accumulate:learned:", {}, {"every": ACCUMULATED}, "16384_R5"),
)
"""As `PUBLISHED`, for learned optimizers; the user's weights complete the optimizer's name."""

LEFT_OUT = {
    "OptList1k_*": "its list of a thousand settings is not ours to copy",
    "GraftedShampoo_LOpt_*": "there is no Shampoo to give a learned optimizer's steps their direction",
    "Shampoo128*": "there is no Shampoo with grafting here yet",
}
"""Sets of learned_optimization that are not offered, by pattern, and why."""

NOTES = {
    "RMSPropMomLR": "Published under RMSPropLR's folder names: raw runs of the two cannot be told apart.",
}
"""What a reader should know of a set, by name."""

_TEACHER_RATES = (5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0)

# Learning rates of the analytical optimizers; 0.05 for the original's 0.5, whose momentum is an average.
_ANALYTICAL = {"adam": 5e-3, "rmsprop": 5e-3, "sgd": 0.2, "momentum": 0.05, "powersign": 0.1, "addsign": 0.1}

AMALGAMATION: Table = (
    *(
        (f"Amalgamation_{name}", name, {"learning_rate": at}, {}, "10000_R10")
        for name, at in _ANALYTICAL.items()
    ),
    *(
        (f"AmalgamationLR_{name}", name, {}, {"learning_rate": _TEACHER_RATES}, "10000_R10")
        for name in _ANALYTICAL
    ),
)
"""As `PUBLISHED`: the analytical optimizers of the amalgamation study (Huang et al. 2022, arXiv 2203.06474),
at its learning rates and at all of its grid, from which it chose by validation loss after 5 epochs."""
