"""The smallest learned optimizers: SGD, momentum and Adam whose few hyperparameters are meta-learned.

Their meta-parameters are logarithms, so that every value is allowed and a step of the outer loop changes a
hyperparameter by a factor. The parametrisation is that of the library learned_optimization (Metz et al. 2022,
arXiv 2203.11860).
"""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from outeropt.errors import ConfigError
from outeropt.learned.base import LearnedOptimizer
from outeropt.optimizer import OptState, Params


class LearnableSGD(LearnedOptimizer):
    """Gradient descent with a meta-learned learning rate: `update = -exp(log_learning_rate) g`.

    Attributes:
      log_learning_rate: logarithm of the learning rate.
      initial_learning_rate: where it starts, above 0.
    """

    log_learning_rate: Float[Array, ""]
    initial_learning_rate: float = eqx.field(static=True)

    def __init__(self, *, key: PRNGKeyArray | None = None, initial_learning_rate: float = 0.01):
        """Nothing is random: `key` is ignored.

        Raises:
          ConfigError: the learning rate is not above 0.
        """
        del key
        self.log_learning_rate = _log("initial_learning_rate", initial_learning_rate)
        self.initial_learning_rate = initial_learning_rate

    @property
    def published_names(self) -> dict[str, str]:
        return {"log_learning_rate": "log_lr"}

    def init(self, params: Params, *, num_steps: Any = None, key: PRNGKeyArray | None = None) -> OptState:
        """There is no state: an empty tuple."""
        del params, num_steps, key
        return ()

    def update(
        self, grads: Params, state: OptState, params: Params, **context: Any
    ) -> tuple[Params, OptState]:
        del context
        learning_rate = jnp.exp(self.log_learning_rate)

        def one(grad, param):
            return (-learning_rate * _wide(grad)).astype(param.dtype)

        return jax.tree.map(one, grads, params), state


class LearnableSGDM(LearnedOptimizer):
    """Gradient descent with meta-learned learning rate and momentum.

    With momentum `b = 1 - exp(log_one_minus_momentum)`:

        m = b m + g                    update = -exp(log_learning_rate) m

    Attributes:
      log_learning_rate: logarithm of the learning rate.
      log_one_minus_momentum: logarithm of one minus the momentum; positive values make the momentum negative.
      initial_learning_rate: where the learning rate starts, above 0.
      initial_momentum: where the momentum starts, below 1.
    """

    log_learning_rate: Float[Array, ""]
    log_one_minus_momentum: Float[Array, ""]
    initial_learning_rate: float = eqx.field(static=True)
    initial_momentum: float = eqx.field(static=True)

    def __init__(
        self,
        *,
        key: PRNGKeyArray | None = None,
        initial_learning_rate: float = 0.01,
        initial_momentum: float = 0.9,
    ):
        """Nothing is random: `key` is ignored.

        Raises:
          ConfigError: a value is outside its range.
        """
        del key
        self.log_learning_rate = _log("initial_learning_rate", initial_learning_rate)
        self.log_one_minus_momentum = _log_one_minus("initial_momentum", initial_momentum)
        self.initial_learning_rate = initial_learning_rate
        self.initial_momentum = initial_momentum

    @property
    def published_names(self) -> dict[str, str]:
        return {"log_learning_rate": "log_lr", "log_one_minus_momentum": "one_minus_momentum"}

    def init(self, params: Params, *, num_steps: Any = None, key: PRNGKeyArray | None = None) -> OptState:
        """The momentum: zeros in the form of the parameters."""
        del num_steps, key
        return _zeros(params)

    def update(
        self, grads: Params, state: OptState, params: Params, **context: Any
    ) -> tuple[Params, OptState]:
        del context
        learning_rate = jnp.exp(self.log_learning_rate)
        decay = 1.0 - jnp.exp(self.log_one_minus_momentum)
        momentum = jax.tree.map(lambda m, g: decay * m + _wide(g), state, grads)
        updates = jax.tree.map(lambda m, p: (-learning_rate * m).astype(p.dtype), momentum, params)
        return updates, momentum


class LearnableAdamState(NamedTuple):
    """State of `LearnableAdam`.

    Attributes:
      step: steps taken.
      mean: moving average of the gradients.
      square: moving average of their squares.
    """

    step: Int[Array, ""]
    mean: Params
    square: Params


class LearnableAdam(LearnedOptimizer):
    """Adam with meta-learned learning rate, decays and epsilon.

    With `c1 = exp(log_one_minus_b1)` and `c2 = exp(log_one_minus_b2)`, both at most 1, and t counted from 1:

        m = (1 - c1) m + c1 g                      v = (1 - c2) v + c2 g^2
        m' = m / (1 - (1 - c1)^t)                  v' = v / (1 - (1 - c2)^t)
        update = -exp(log_learning_rate) m' / (sqrt(v' + eps_root) + exp(log_eps))

    Kingma and Ba 2014 (arXiv 1412.6980); `eps_root` keeps gradients through the root finite.

    Attributes:
      log_learning_rate: logarithm of the learning rate.
      log_one_minus_b1: logarithm of one minus the decay of the mean.
      log_one_minus_b2: logarithm of one minus the decay of the square.
      log_eps: logarithm of epsilon.
      initial_learning_rate: where the learning rate starts, above 0.
      initial_b1: where the decay of the mean starts, below 1.
      initial_b2: where the decay of the square starts, below 1.
      initial_eps: where epsilon starts, above 0.
      eps_root: added to the square inside the root, above 0; not learned.
    """

    log_learning_rate: Float[Array, ""]
    log_one_minus_b1: Float[Array, ""]
    log_one_minus_b2: Float[Array, ""]
    log_eps: Float[Array, ""]
    initial_learning_rate: float = eqx.field(static=True)
    initial_b1: float = eqx.field(static=True)
    initial_b2: float = eqx.field(static=True)
    initial_eps: float = eqx.field(static=True)
    eps_root: float = eqx.field(static=True)

    def __init__(
        self,
        *,
        key: PRNGKeyArray | None = None,
        initial_learning_rate: float = 1e-3,
        initial_b1: float = 0.9,
        initial_b2: float = 0.999,
        initial_eps: float = 1e-8,
        eps_root: float = 1e-8,
    ):
        """Nothing is random: `key` is ignored.

        Raises:
          ConfigError: a value is outside its range.
        """
        del key
        self.log_learning_rate = _log("initial_learning_rate", initial_learning_rate)
        self.log_one_minus_b1 = _log_one_minus("initial_b1", initial_b1)
        self.log_one_minus_b2 = _log_one_minus("initial_b2", initial_b2)
        self.log_eps = _log("initial_eps", initial_eps)
        _log("eps_root", eps_root)
        self.initial_learning_rate = initial_learning_rate
        self.initial_b1 = initial_b1
        self.initial_b2 = initial_b2
        self.initial_eps = initial_eps
        self.eps_root = eps_root

    @property
    def published_names(self) -> dict[str, str]:
        return {
            "log_learning_rate": "log_lr",
            "log_one_minus_b1": "one_minus_beta1",
            "log_one_minus_b2": "one_minus_beta2",
            "log_eps": "log_epsilon",
        }

    def init(self, params: Params, *, num_steps: Any = None, key: PRNGKeyArray | None = None) -> OptState:
        """Zeros."""
        del num_steps, key
        return LearnableAdamState(jnp.int32(0), _zeros(params), _zeros(params))

    def update(
        self, grads: Params, state: OptState, params: Params, **context: Any
    ) -> tuple[Params, OptState]:
        del context
        c1, c2 = (jnp.minimum(jnp.exp(x), 1.0) for x in (self.log_one_minus_b1, self.log_one_minus_b2))
        learning_rate, eps = jnp.exp(self.log_learning_rate), jnp.exp(self.log_eps)
        step = state.step + 1
        unbias1, unbias2 = _unbias(c1, step), _unbias(c2, step)
        mean = jax.tree.map(lambda m, g: (1.0 - c1) * m + c1 * _wide(g), state.mean, grads)
        square = jax.tree.map(lambda v, g: (1.0 - c2) * v + c2 * jnp.square(_wide(g)), state.square, grads)

        def one(m, v, param):
            move = m * unbias1 / (jnp.sqrt(v * unbias2 + self.eps_root) + eps)
            return (-learning_rate * move).astype(param.dtype)

        return jax.tree.map(one, mean, square, params), LearnableAdamState(step, mean, square)


def _unbias(c: Float[Array, ""], step: Int[Array, ""]) -> Float[Array, ""]:
    """`1 / (1 - (1 - c)^step)`, which makes up for an average that started at zero."""
    # By the logarithm of the decay, since 1 - (1 - c)^step alone loses digits where c is small. A decay of
    # zero has none.
    log_decay = jnp.log1p(-jnp.minimum(c, 1.0 - 1e-6))
    return -1.0 / jnp.expm1(step.astype(jnp.float32) * log_decay)


def _log(name: str, value: float) -> Float[Array, ""]:
    if not value > 0:
        raise ConfigError(f"{name} must be above 0, not {value}.")
    return jnp.float32(math.log(value))


def _log_one_minus(name: str, value: float) -> Float[Array, ""]:
    if not value < 1:
        raise ConfigError(f"{name} must be below 1, not {value}.")
    return jnp.float32(math.log(1.0 - value))


def _wide(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """In float32, for narrow types hold neither small decays nor squares."""
    return x.astype(jnp.float32)


def _zeros(params: Params) -> Params:
    return jax.tree.map(lambda p: jnp.zeros_like(p, dtype=jnp.float32), params)
