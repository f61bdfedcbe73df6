"""Spaces of hyperparameters whose names mean the same in every optimizer.

Each gives the range worth searching and, as `allowed`, everything that is not a mistake. The
tables override them where an optimizer differs.
"""

from outeropt.space import Space


LEARNING_RATE = Space.log(1e-7, 10.0, allowed=(0.0, 1e3))
LEARNING_RATE_FACTOR = Space.log(1e-2, 1e2, allowed=(0.0, 1e6))
"""For methods that find the learning rate themselves and only multiply it."""
ESTIMATE = Space.log(1e-9, 1e-2, allowed=(0.0, 1e3))
"""For the first estimate of a learning rate or distance, which methods raise by themselves."""
MOMENTUM = Space.logit(0.5, 0.999, allowed=(0.0, 1.0))
SECOND_MOMENT = Space.logit(0.8, 0.99999, allowed=(0.0, 1.0))
EPSILON = Space.log(1e-10, 1e-2, allowed=(0.0, 1e4))
WEIGHT_DECAY = Space.log(1e-7, 1.0, allowed=(0.0, 1e3))
FRACTION = Space.linear(0.0, 1.0)

BY_NAME: dict[str, Space] = {
    "learning_rate": LEARNING_RATE,
    "b1": MOMENTUM,
    "b2": SECOND_MOMENT,
    "b3": SECOND_MOMENT,
    "beta": MOMENTUM,
    "betas.0": MOMENTUM,
    "betas.1": SECOND_MOMENT,
    "momentum": MOMENTUM,
    "decay": SECOND_MOMENT,
    "eps": EPSILON,
    "eps_root": EPSILON,
    "weight_decay": WEIGHT_DECAY,
}
"""By leaf name, for any optax factory."""
