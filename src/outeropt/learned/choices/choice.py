"""The choice between Adam and RMSProp."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from outeropt.learned.choices.base import ChoicePolicy, mean_shares, mixed
from outeropt.learned.choices.selection import check_selection
from outeropt.learned.coordinatewise import coordinates, keras_cells, scaled
from outeropt.learned.coordinatewise.base import check_warm_up
from outeropt.learned.coordinatewise.keras_cells import LSTMStack, LSTMState
from outeropt.learned.coordinatewise.scaled import Averages
from outeropt.learned.networks import Linear
from outeropt.optimizer import Params


class ChoiceState(NamedTuple):
    """State of `Choice`.

    Attributes:
      averages: of the gradient and its square.
      lstms: the network's state.
      shares: mean weight of each member in the last step.
    """

    averages: Averages
    lstms: LSTMState
    shares: Float[Array, " members"]


class Choice(ChoicePolicy):
    """A `ChoicePolicy` between Adam's direction and RMSProp's, at one learning rate.

        x = [m~, g~] = scaled.scaled(g, averages)          u = -rate [m / sqrt(v + eps), g~]

    The first member has no constant denominators, so that its steps are a third as long as those of
    `static_adam`. Huang et al., "Optimizer amalgamation", 2022, arXiv 2203.06474, in the form of its code.

    Attributes:
      lstms: the network.
      scores: the map from its output to the members' scores.
      hidden_sizes: hidden units of each layer.
      rate: the learning rate of both members.
      selection: see `ChoicePolicy`.
      hardness: see `ChoicePolicy`.
      decays: of the averages of the gradient and of its square.
      eps: added to the mean square.
      warmup_steps: see `Coordinatewise`.
      warmup_rate: see `Coordinatewise`.
    """

    lstms: LSTMStack
    scores: Linear
    hidden_sizes: tuple[int, ...] = eqx.field(static=True)
    rate: float = eqx.field(static=True)
    selection: str = eqx.field(static=True)
    hardness: float = eqx.field(static=True)
    decays: tuple[float, float] = eqx.field(static=True)
    eps: float = eqx.field(static=True)
    warmup_steps: int = eqx.field(static=True)
    warmup_rate: float = eqx.field(static=True)

    def __init__(
        self,
        *,
        key: PRNGKeyArray | None = None,
        hidden_sizes: tuple[int, ...] = (20, 20),
        rate: float = 1e-3,
        selection: str = "soft",
        hardness: float = 10.0,
        decays: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-10,
        warmup_steps: int = 0,
        warmup_rate: float = 0.05,
    ):
        """Raises `ConfigError` for an unknown `selection`, or sizes and numbers that are not allowed."""
        self.hidden_sizes, self.rate = tuple(hidden_sizes), rate
        self.selection, self.hardness = check_selection(selection, hardness)
        self.decays, self.eps = scaled.check_averages(decays, eps)
        self.warmup_steps, self.warmup_rate = check_warm_up(warmup_steps, warmup_rate)
        lstm_key, score_key = jax.random.split(jax.random.key(0) if key is None else key)
        self.lstms = LSTMStack(2, self.hidden_sizes, lstm_key)
        self.scores = keras_cells.dense(self.hidden_sizes[-1], len(self.members), score_key)

    @property
    def members(self) -> tuple[str, ...]:
        return "adam", "rmsprop"

    def start(
        self, params: Params, *, num_steps: int | Array | None = None, key: PRNGKeyArray | None = None
    ) -> ChoiceState:
        del num_steps, key
        count = sum(coordinates.sizes(params))
        shares = jnp.zeros((len(self.members),), jnp.float32)
        return ChoiceState(scaled.zeros(count), self.lstms.zeros(count), shares)

    def step(
        self, grads: Params, state: ChoiceState, params: Params, **context: Any
    ) -> tuple[Params, ChoiceState]:
        grad = coordinates.flatten(grads)
        averages = scaled.averaged(grad, state.averages, self.decays)
        mean, grad = scaled.scaled(grad, averages, self.decays, self.eps)
        weights, _, lstms = self.choose(jnp.stack([mean, grad]), state.lstms, context)
        adam = averages.mean * jax.lax.rsqrt(averages.square + self.eps)
        move = self.rate * mixed(weights, jnp.stack([adam, grad]))
        return coordinates.restore(-move, params), ChoiceState(averages, lstms, mean_shares(weights))

    def watch(self, grads: Params, state: ChoiceState, params: Params, **context: Any) -> ChoiceState:
        del params, context
        averages = scaled.averaged(coordinates.flatten(grads), state.averages, self.decays)
        return state._replace(averages=averages)
