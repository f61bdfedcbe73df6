"""Optimizers that draw their hyperparameters when they start, in place of those of one-pass tuning."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from outeropt.optimizer import Optimizer


class Drawn(NamedTuple):
    """Momentum, and log10 of learning rate and weight decay, log-odds of momentum."""

    buffer: dict
    raw: jax.Array


class DrawnSGD(Optimizer):
    """Heavy-ball SGD from random hyperparameters, which move towards a goal by `pull` a step.

    Attributes:
      pull: share of the way to the goal that a step takes, one for each hyperparameter.
      goal: raw learning rate, weight decay and momentum.
    """

    pull: jax.Array = eqx.field(converter=lambda value: jnp.asarray(value, jnp.float32), default=(0.0,) * 3)
    goal: jax.Array = eqx.field(
        converter=lambda value: jnp.asarray(value, jnp.float32), default=(-1.2, -4.5, 1.5)
    )

    def init(self, params, *, num_steps=None, key=None):
        rate, decay, momentum = jax.random.uniform(key, (3,))
        raw = jnp.stack([5 * rate - 6, 5 * decay - 7, jax.scipy.special.logit(momentum)])
        return Drawn(jax.tree.map(jnp.zeros_like, params), raw)

    def update(self, grads, state, params, **context):
        rate, decay, momentum = self._natural(state.raw)
        buffer = jax.tree.map(lambda b, g, p: momentum * b + g + decay * p, state.buffer, grads, params)
        raw = state.raw + self.pull * (self.goal - state.raw)
        return jax.tree.map(lambda b: -rate * b, buffer), Drawn(buffer, raw)

    def diagnostics(self, state):
        names = ("learning_rate", "weight_decay", "momentum")
        return dict(zip(names, self._natural(state.raw)))

    def _natural(self, raw):
        return 10.0 ** raw[0], 10.0 ** raw[1], jax.nn.sigmoid(raw[2])


def stand_ins(plain=None):
    """One for each optimizer of the study."""
    del plain
    return {
        "Random": DrawnSGD(),
        "Random_SteppedLR": DrawnSGD((0.0005, 0, 0), (-4, 0, 0)),
        "Lorraine": DrawnSGD((0, 0.001, 0)),
        "Baydin": DrawnSGD((0.0004, 0, 0)),
        "Ours_LR": DrawnSGD((0.002, 0.001, 0)),
        "Ours_LR_Momentum": DrawnSGD((0.003, 0.001, 0.002)),
        "Ours_HDLR_Momentum": DrawnSGD((0.004, 0.001, 0.002)),
        "DiffThroughOpt": DrawnSGD((0.003, 0.002, 0.002)),
    }
