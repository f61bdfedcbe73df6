"""AdafacMLP, also called small_fc: a per-parameter MLP on momenta and Adafactor's second moments."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from outeropt.learned import tensorwise
from outeropt.learned.base import LearnedOptimizer
from outeropt.learned.features import TIME_SCALES, tanh_embedding
from outeropt.learned.moments import FEATURES, Decays, Moments, Sources, beside, look, moment_features
from outeropt.learned.networks import MLP, check_sizes
from outeropt.learned.per_parameter import Rule, per_parameter_step
from outeropt.learned.tensorwise import State


class AdafacMLP(LearnedOptimizer):
    """A small network moves each parameter by `-step_mult direction exp(exp_mult magnitude)`.

    Its inputs are 28 normalised features of the parameter (`moments.moment_features`) and 11 of the time; its
    outputs are direction and magnitude. Metz, Freeman, Harrison, Maheswaranathan and Sohl-Dickstein 2022,
    "Practical tradeoffs between memory, compute, and performance in learned optimizers" (arXiv 2203.11860).

    Updates may follow a schedule over the run, which the paper does not have: that small steps help at the
    end is known beforehand, and takes an evolution strategy long to find.

    Attributes:
      net: the network, 39 inputs and 2 outputs.
      decays: meta-learned decays of the accumulators.
      hidden_size: units in each hidden layer.
      hidden_layers: number of hidden layers.
      step_mult: scale of the step.
      exp_mult: scale of the magnitude's exponent.
      schedule: `"constant"`; or all updates shrink to 0 at the end of the run, in a line (`"linear"`) or half
        a cosine (`"cosine"`). `init` then needs the length of the run.
    """

    net: MLP
    decays: Decays
    hidden_size: int = eqx.field(static=True)
    hidden_layers: int = eqx.field(static=True)
    step_mult: float = eqx.field(static=True)
    exp_mult: float = eqx.field(static=True)
    schedule: str = eqx.field(static=True)

    def __init__(
        self,
        *,
        key: PRNGKeyArray | None = None,
        hidden_size: int = 4,
        hidden_layers: int = 2,
        step_mult: float = 1e-3,
        exp_mult: float = 1e-3,
        schedule: str = "constant",
    ):
        """Raises `ConfigError` for a number of units or layers below 1, or an unknown schedule."""
        check_sizes(hidden_size=hidden_size, hidden_layers=hidden_layers)
        key = jax.random.key(0) if key is None else key
        self.net = MLP(FEATURES + len(TIME_SCALES), (hidden_size,) * hidden_layers, 2, key)
        self.decays = Decays()
        self.hidden_size = hidden_size
        self.hidden_layers = hidden_layers
        self.step_mult = step_mult
        self.exp_mult = exp_mult
        self.schedule = tensorwise.known_schedule(schedule)

    @property
    def published_names(self) -> dict[str, str]:
        """Names in learned_optimization's checkpoints."""
        return checkpoint_names(self.hidden_layers)

    def init(self, params, *, num_steps=None, key=None) -> State:
        """All accumulators zero."""
        del key
        return tensorwise.start(Moments.zeros, params, self.schedule, num_steps)

    def update(self, grads, state: State, params, **context: Any):
        """One step; uses nothing of the context."""
        del context
        time = tanh_embedding(state.step)
        scale = tensorwise.scheduled(self.schedule, state)
        rule = Rule(look, moment_features, self._finish)

        def move(grad, param, moments):
            factored = moments.factored_updated(self.decays, grad)
            given = self.decays.of_averages(grad.ndim), beside(factored, grad, param)
            update, averages = per_parameter_step(
                self.net.layers, rule, moments.averages, given, param.shape, time
            )
            return scale * update, Moments(averages.momentum, averages.rms, factored)

        return tensorwise.advance(move, grads, state, params)

    def _finish(self, outputs: Sequence[Array], sources: Sources) -> Array:
        """The update from the network's outputs."""
        del sources
        direction, magnitude = outputs
        return -self.step_mult * direction * jnp.exp(self.exp_mult * magnitude)


def checkpoint_names(hidden_layers: int) -> dict[str, str]:
    """Names of the leaves of a `net` and of `decays` in learned_optimization's checkpoints."""
    names = {
        "decays.momentum": "momentum_decays",
        "decays.rms": "rms_decays",
        "decays.factored": "adafactor_decays",
    }
    for i in range(hidden_layers + 1):
        names |= {f"net.layers.{i}.weight": f"nn/~/w{i}", f"net.layers.{i}.bias": f"nn/~/b{i}"}
    return names
