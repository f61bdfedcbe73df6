"""The table of optimizers: optax's own aliases, with papers, defaults and spaces.

`contrib_table` continues it with optax's contributed optimizers, and `own_table` with ours. Defaults are
given where the factory leaves a hyperparameter open. Spaces are given where a name is not in
`spaces.BY_NAME`, or means something else here.
"""

import optax

from outeropt.optimizers import compositions, spaces
from outeropt.optimizers.entry import Entry, Paper
from outeropt.space import Space


_ADAM = Paper("Adam: A Method for Stochastic Optimization", "Kingma and Ba", 2014, "1412.6980")
_ADAMW = Paper("Decoupled Weight Decay Regularization", "Loshchilov and Hutter", 2017, "1711.05101")
_NADAM = Paper("Incorporating Nesterov Momentum into Adam", "Dozat", 2016)
_SIGN = Paper(
    "signSGD: Compressed Optimisation for Non-Convex Problems", "Bernstein and others", 2018, "1802.04434"
)

OPTAX: dict[str, Entry] = {
    "adabelief": Entry(
        optax.adabelief,
        Paper(
            "AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed Gradients",
            "Zhuang and others",
            2020,
            "2010.07468",
        ),
        {"learning_rate": 1e-3},
    ),
    "adadelta": Entry(
        optax.adadelta,
        Paper("ADADELTA: An Adaptive Learning Rate Method", "Zeiler", 2012, "1212.5701"),
        {"learning_rate": 1.0},
        {"rho": spaces.SECOND_MOMENT},
    ),
    "adafactor": Entry(
        optax.adafactor,
        Paper(
            "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost",
            "Shazeer and Stern",
            2018,
            "1804.04235",
        ),
        {"learning_rate": 1e-2},
        {
            "decay_rate": Space.linear(0.5, 1.0, allowed=(0.0, 1.0)),
            "clipping_threshold": Space.log(0.1, 10.0, allowed=(0.0, 1e30)),
            "eps": Space.log(1e-30, 1e-6, allowed=(0.0, 1.0)),
            "weight_decay_rate": spaces.WEIGHT_DECAY,
        },
    ),
    "adagrad": Entry(
        optax.adagrad,
        Paper(
            "Adaptive Subgradient Methods for Online Learning and Stochastic Optimization",
            "Duchi, Hazan and Singer",
            2011,
        ),
        {"learning_rate": 1e-2},
        {"initial_accumulator_value": Space.log(1e-6, 1.0, allowed=(0.0, 1e6))},
    ),
    "adam": Entry(optax.adam, _ADAM, {"learning_rate": 1e-3}),
    "adamax": Entry(optax.adamax, _ADAM, {"learning_rate": 1e-3}),
    "adamaxw": Entry(optax.adamaxw, _ADAMW, {"learning_rate": 1e-3}),
    "adamw": Entry(optax.adamw, _ADAMW, {"learning_rate": 1e-3}),
    "adan": Entry(
        optax.adan,
        Paper(
            "Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models",
            "Xie and others",
            2022,
            "2208.06677",
        ),
        {"learning_rate": 1e-3},
    ),
    "amsgrad": Entry(
        optax.amsgrad,
        Paper("On the Convergence of Adam and Beyond", "Reddi, Kale and Kumar", 2018, "1904.09237"),
        {"learning_rate": 1e-3},
    ),
    "fromage": Entry(
        optax.fromage,
        Paper(
            "On the distance between two neural networks and the stability of learning",
            "Bernstein and others",
            2020,
            "2002.03432",
        ),
        {"learning_rate": 1e-2},
        {"min_norm": spaces.EPSILON},
    ),
    "lamb": Entry(
        optax.lamb,
        Paper(
            "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes",
            "You and others",
            2019,
            "1904.00962",
        ),
        {"learning_rate": 1e-3},
    ),
    "lars": Entry(
        optax.lars,
        Paper(
            "Large Batch Training of Convolutional Networks", "You, Gitman and Ginsburg", 2017, "1708.03888"
        ),
        {"learning_rate": 1.0},
        {"trust_coefficient": Space.log(1e-4, 1e-1, allowed=(0.0, 1e3))},
    ),
    "lbfgs": Entry(
        optax.lbfgs,
        Paper("On the limited memory BFGS method for large scale optimization", "Liu and Nocedal", 1989),
        tuning_free=True,
        needs=("value", "grad", "value_fn"),
    ),
    "lion": Entry(
        optax.lion,
        Paper("Symbolic Discovery of Optimization Algorithms", "Chen and others", 2023, "2302.06675"),
        {"learning_rate": 1e-4},
    ),
    "momentum": Entry(
        optax.sgd,
        Paper("Some methods of speeding up the convergence of iteration methods", "Polyak", 1964),
        {"learning_rate": 1e-2, "momentum": 0.9},
    ),
    "nadam": Entry(optax.nadam, _NADAM, {"learning_rate": 1e-3}),
    "nadamw": Entry(optax.nadamw, _NADAM, {"learning_rate": 1e-3}),
    "nesterov": Entry(
        optax.sgd,
        Paper(
            "A method for solving the convex programming problem with convergence rate O(1/k^2)",
            "Nesterov",
            1983,
        ),
        {"learning_rate": 1e-2, "momentum": 0.9, "nesterov": True},
    ),
    "noisy_sgd": Entry(
        optax.noisy_sgd,
        Paper(
            "Adding Gradient Noise Improves Learning for Very Deep Networks",
            "Neelakantan and others",
            2015,
            "1511.06807",
        ),
        {"learning_rate": 1e-2, "key": 0},
        {
            "eta": Space.log(1e-6, 1.0, allowed=(0.0, 1e6)),
            "gamma": Space.linear(0.0, 1.0, allowed=(0.0, 10.0)),
        },
    ),
    "novograd": Entry(
        optax.novograd,
        Paper(
            "Stochastic Gradient Methods with Layer-wise Adaptive Moments for Training of Deep Networks",
            "Ginsburg and others",
            2019,
            "1905.11286",
        ),
        {"learning_rate": 1e-2},
        {"b2": Space.logit(0.1, 0.999, allowed=(0.0, 1.0))},
    ),
    "optimistic_adam_v2": Entry(
        optax.optimistic_adam_v2,
        Paper("Training GANs with Optimism", "Daskalakis and others", 2017, "1711.00141"),
        {"learning_rate": 1e-3},
        {
            "alpha": Space.linear(0.1, 2.0, allowed=(0.0, 100.0)),
            "beta": Space.linear(0.0, 2.0, allowed=(0.0, 100.0)),
        },
    ),
    "optimistic_gradient_descent": Entry(
        optax.optimistic_gradient_descent,
        Paper(
            "A Unified Analysis of Extra-gradient and Optimistic Gradient Methods for Saddle Point Problems",
            "Mokhtari, Ozdaglar and Pattathil",
            2019,
            "1901.08511",
        ),
        {"learning_rate": 1e-2},
        {
            "alpha": Space.linear(0.1, 2.0, allowed=(0.0, 100.0)),
            "beta": Space.linear(0.0, 2.0, allowed=(0.0, 100.0)),
        },
    ),
    "polyak_sgd": Entry(
        optax.polyak_sgd,
        Paper(
            "Stochastic Polyak Step-size for SGD: An Adaptive Learning Rate for Fast Convergence",
            "Loizou and others",
            2020,
            "2002.10542",
        ),
        {},
        {
            "max_learning_rate": spaces.LEARNING_RATE,
            "scaling": Space.log(0.1, 10.0, allowed=(0.0, 1e3)),
            "f_min": Space.linear(0.0, 1.0, allowed=(-1e30, 1e30)),
        },
        tuning_free=True,
        needs=("value",),
    ),
    "radam": Entry(
        compositions.radam,
        Paper(
            "On the Variance of the Adaptive Learning Rate and Beyond", "Liu and others", 2019, "1908.03265"
        ),
        {"learning_rate": 1e-3},
        {"threshold": Space.linear(4.0, 6.0, allowed=(0.0, 1e6))},
    ),
    "rmsprop": Entry(
        optax.rmsprop,
        Paper("Neural Networks for Machine Learning, lecture 6.5: RMSProp", "Tieleman and Hinton", 2012),
        {"learning_rate": 1e-3},
        {"initial_scale": Space.linear(0.0, 1.0, allowed=(0.0, 1e6))},
    ),
    "rprop": Entry(
        optax.rprop,
        Paper(
            "A direct adaptive method for faster backpropagation learning: the RPROP algorithm",
            "Riedmiller and Braun",
            1993,
        ),
        {"learning_rate": 1e-3},
        {
            "eta_minus": Space.linear(0.1, 0.9, allowed=(0.0, 1.0)),
            "eta_plus": Space.linear(1.01, 2.0, allowed=(1.0, 100.0)),
            "min_step_size": Space.log(1e-8, 1e-3, allowed=(0.0, 1e3)),
            "max_step_size": Space.log(1e-3, 100.0, allowed=(0.0, 1e6)),
        },
    ),
    "sgd": Entry(
        optax.sgd,
        Paper("A Stochastic Approximation Method", "Robbins and Monro", 1951),
        {"learning_rate": 1e-2},
    ),
    "sign_sgd": Entry(optax.sign_sgd, _SIGN, {"learning_rate": 1e-3}),
    "signum": Entry(optax.signum, _SIGN, {"learning_rate": 1e-3}),
    "sm3": Entry(
        compositions.sm3,
        Paper("Memory-Efficient Adaptive Optimization", "Anil and others", 2019, "1901.11150"),
        {"learning_rate": 1e-1},
    ),
    "yogi": Entry(
        optax.yogi,
        Paper("Adaptive Methods for Nonconvex Optimization", "Zaheer and others", 2018),
        {"learning_rate": 1e-2},
    ),
}
