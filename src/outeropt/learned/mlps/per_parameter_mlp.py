"""The per-parameter MLP, also called LOLv2: a network on the gradient and its averages over six horizons."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from outeropt import tree
from outeropt.learned import tensorwise
from outeropt.learned.base import LearnedOptimizer
from outeropt.learned.features import TIME_SCALES, channelwise, tanh_embedding
from outeropt.learned.networks import MLP, check_sizes
from outeropt.learned.per_parameter import Rule, per_parameter_step
from outeropt.learned.tensorwise import State


# Decays of the averages; unlike those of AdafacMLP they are not learned.
DECAYS = (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)

FEATURES = 2 + len(DECAYS)


class PerParameterMLP(LearnedOptimizer):
    """A small network moves each parameter by `-step_mult direction exp(exp_mult magnitude)`.

    Its inputs are 8 normalised features of the parameter (gradient, value, and averages of the gradient with
    the six `DECAYS`) and 11 of the time; its outputs are direction and magnitude. Metz, Maheswaranathan,
    Nixon, Freeman and Sohl-Dickstein 2019, "Understanding and correcting pathologies in the training of
    learned optimizers" (arXiv 1810.10180), in the form and with the constants of the authors' later code.

    Attributes:
      net: the network, 19 inputs and 2 outputs.
      hidden_size: units in each hidden layer.
      hidden_layers: number of hidden layers.
      step_mult: scale of the step.
      exp_mult: scale of the magnitude's exponent.
    """

    net: MLP
    hidden_size: int = eqx.field(static=True)
    hidden_layers: int = eqx.field(static=True)
    step_mult: float = eqx.field(static=True)
    exp_mult: float = eqx.field(static=True)

    def __init__(
        self,
        *,
        key: PRNGKeyArray | None = None,
        hidden_size: int = 32,
        hidden_layers: int = 2,
        step_mult: float = 1e-3,
        exp_mult: float = 1e-3,
    ):
        """Raises `ConfigError` for a number of units or layers below 1."""
        check_sizes(hidden_size=hidden_size, hidden_layers=hidden_layers)
        key = jax.random.key(0) if key is None else key
        self.net = MLP(FEATURES + len(TIME_SCALES), (hidden_size,) * hidden_layers, 2, key)
        self.hidden_size = hidden_size
        self.hidden_layers = hidden_layers
        self.step_mult = step_mult
        self.exp_mult = exp_mult

    @property
    def published_names(self) -> dict[str, str]:
        """Names in learned_optimization's checkpoints."""
        names = {}
        for i in range(self.hidden_layers + 1):
            path = f"mlp/~/linear_{i}"
            names |= {f"net.layers.{i}.weight": f"{path}/w", f"net.layers.{i}.bias": f"{path}/b"}
        return names

    def init(self, params, *, num_steps=None, key=None) -> State:
        """All averages zero."""
        del num_steps, key
        return tensorwise.start(
            lambda param: tree.zeros_beside(param, len(DECAYS), dtype=jnp.float32), params
        )

    def update(self, grads, state: State, params, **context: Any):
        """One step; uses nothing of the context."""
        del context
        time = tanh_embedding(state.step)

        rule = Rule(_look, momentum_features, self._finish)

        def move(grad, param, momentum):
            given = _shares(grad.ndim), grad[None], param[None]
            return per_parameter_step(self.net.layers, rule, momentum, given, param.shape, time)

        return tensorwise.advance(move, grads, state, params)

    def _finish(self, outputs: Sequence[Array], sources: "Sources") -> Array:
        """The update from the network's outputs."""
        del sources
        direction, magnitude = outputs
        return -self.step_mult * direction * jnp.exp(self.exp_mult * magnitude)


class Sources(NamedTuple):
    """What the features are made of."""

    grad: Float[Array, "1 *shape"]
    params: Float[Array, "1 *shape"]
    momentum: Float[Array, "6 *shape"]


def momentum_features(sources: Sources) -> list[Array]:
    """The 8 features of each parameter before normalisation, in the order of the published networks."""
    return [group[i] for group in sources for i in range(len(group))]


def _look(momentum: Array, given: tuple[Array, Array, Array]) -> tuple[Sources, Array]:
    """The sources and the next averages `d old + (1 - d) grad`, from the last ones."""
    shares, grad, params = given
    new = channelwise(lambda old, share, grad: old + share * (grad - old), momentum, shares, grad)
    return Sources(grad, params, new), new


def _shares(rank: int) -> Float[Array, "6 ..."]:
    """`1 - d` for each average."""
    # Float32 arithmetic would put 1 - 0.9999 off by 3e-4 of itself, so the difference is taken before.
    return jnp.asarray(1.0 - np.asarray(DECAYS), jnp.float32).reshape(-1, *(1,) * rank)
