"""The table's second part: optax's contributed optimizers.

`optax.contrib.dpsgd` is not here: it needs one gradient per example, which no task gives.
"""

from optax import contrib

from outeropt.optimizers import compositions, spaces
from outeropt.optimizers.entry import Entry, Paper
from outeropt.space import Space


_FACTOR = {"learning_rate": spaces.LEARNING_RATE_FACTOR}

CONTRIB: dict[str, Entry] = {
    "acprop": Entry(
        contrib.acprop,
        Paper(
            "Momentum Centering and Asynchronous Update for Adaptive Gradient Methods",
            "Zhuang and others",
            2021,
            "2110.05454",
        ),
        {"learning_rate": 1e-3},
    ),
    "ademamix": Entry(
        contrib.ademamix,
        Paper(
            "The AdEMAMix Optimizer: Better, Faster, Older",
            "Pagliardini, Ablin and Grangier",
            2024,
            "2409.03137",
        ),
        {"learning_rate": 1e-3},
        {"alpha": Space.linear(0.0, 20.0, allowed=(0.0, 1e3))},
    ),
    "adopt": Entry(
        contrib.adopt,
        Paper(
            "ADOPT: Modified Adam Can Converge with Any beta2 with the Optimal Rate",
            "Taniguchi and others",
            2024,
            "2411.02853",
        ),
        {"learning_rate": 1e-3},
    ),
    "cocob": Entry(
        contrib.cocob,
        Paper(
            "Training Deep Networks without Learning Rates Through Coin Betting",
            "Orabona and Tommasi",
            2017,
            "1705.07795",
        ),
        {},
        {**_FACTOR, "alpha": Space.log(1.0, 1e4, allowed=(0.0, 1e9))},
        tuning_free=True,
    ),
    "dadapt_adamw": Entry(
        contrib.dadapt_adamw,
        Paper("Learning-Rate-Free Learning by D-Adaptation", "Defazio and Mishchenko", 2023, "2301.07733"),
        {},
        {**_FACTOR, "estim_lr0": spaces.ESTIMATE},
        tuning_free=True,
    ),
    "dog": Entry(
        contrib.dog,
        Paper(
            "DoG is SGD's Best Friend: A Parameter-Free Dynamic Step Size Schedule",
            "Ivgi, Hinder and Carmon",
            2023,
            "2302.12022",
        ),
        {},
        {**_FACTOR, "init_step.1": spaces.ESTIMATE},
        tuning_free=True,
    ),
    "dowg": Entry(
        contrib.dowg,
        Paper(
            "DoWG Unleashed: An Efficient Universal Parameter-Free Gradient Descent Method",
            "Khaled, Mishchenko and Jin",
            2023,
            "2305.16284",
        ),
        {},
        {**_FACTOR, "init_estim_sq_dist": spaces.ESTIMATE},
        tuning_free=True,
    ),
    "galore": Entry(
        contrib.galore,
        Paper(
            "GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection",
            "Zhao and others",
            2024,
            "2403.03507",
        ),
        {"learning_rate": 1e-3},
        {"scale": Space.log(0.1, 10.0, allowed=(0.0, 1e3))},
    ),
    "madgrad": Entry(
        contrib.madgrad,
        Paper(
            "Adaptivity without Compromise: A Momentumized, Adaptive, Dual Averaged Gradient Method for "
            "Stochastic Optimization",
            "Defazio and Jelassi",
            2021,
            "2101.11075",
        ),
        {"learning_rate": 1e-2},
    ),
    "muon": Entry(
        contrib.muon,
        Paper("Muon: An optimizer for hidden layers in neural networks", "Jordan and others", 2024),
        {"learning_rate": 2e-2, "adam_learning_rate": 1e-3},
        {
            "adam_learning_rate": spaces.LEARNING_RATE,
            "adam_b1": spaces.MOMENTUM,
            "adam_b2": spaces.SECOND_MOMENT,
            "adam_eps_root": spaces.EPSILON,
            "adam_weight_decay": spaces.WEIGHT_DECAY,
            "consistent_rms": Space.log(0.01, 1.0, allowed=(0.0, 1e3)),
        },
    ),
    "reduce_on_plateau": Entry(
        compositions.reduce_on_plateau,
        Paper("Adam: A Method for Stochastic Optimization", "Kingma and Ba", 2014, "1412.6980"),
        {"learning_rate": 1e-3},
        {"min_scale": Space.log(1e-6, 1e-1, allowed=(0.0, 1.0))},
        needs=("value",),
    ),
    "simplified_ademamix": Entry(
        contrib.simplified_ademamix,
        Paper(
            "Connections between Schedule-Free Optimizers, AdEMAMix, and Accelerated SGD Variants",
            "Morwani and others",
            2025,
            "2502.02431",
        ),
        # Its momentum is a sum, 1 / (1 - b1) times as large as Adam's mean.
        {"learning_rate": 1e-5},
        {"alpha": Space.linear(0.0, 200.0, allowed=(0.0, 1e4))},
    ),
    "sophia": Entry(
        contrib.sophia,
        Paper(
            "Sophia: A Scalable Stochastic Second-order Optimizer for Language Model Pre-training",
            "Liu and others",
            2023,
            "2305.14342",
        ),
        {"learning_rate": 1e-3},
        {
            "gamma": Space.log(1e-3, 1.0, allowed=(0.0, 1e3)),
            "clip_threshold": Space.log(0.1, 10.0, allowed=(0.0, 1e30)),
        },
        needs=("value_fn",),
    ),
}
