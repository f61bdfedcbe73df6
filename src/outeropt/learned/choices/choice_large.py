"""The choice among six optimizers that share their averages."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from outeropt.errors import ConfigError
from outeropt.learned.choices.base import ChoicePolicy, decaying, mean_shares, mixed
from outeropt.learned.choices.selection import check_selection
from outeropt.learned.coordinatewise import coordinates, keras_cells, scaled
from outeropt.learned.coordinatewise.base import check_warm_up
from outeropt.learned.coordinatewise.keras_cells import LSTMStack, LSTMState
from outeropt.learned.coordinatewise.scaled import Averages
from outeropt.learned.networks import Linear
from outeropt.optimizer import Params


class ChoiceLargeState(NamedTuple):
    """State of `ChoiceLarge`.

    Attributes:
      averages: of the gradient and its square.
      time: steps so far.
      lstms: the network's state.
      shares: mean weight of each member in the last step.
    """

    averages: Averages
    time: Int[Array, ""]
    lstms: LSTMState
    shares: Float[Array, " members"]


class ChoiceLarge(ChoicePolicy):
    """A `ChoicePolicy` among SGD, momentum, RMSProp, Adam, PowerSign and AddSign.

        m~, g~ = scaled.scaled(g, averages)                q = tanh(g~) tanh(m~)
        x = [g, m, g~, m~, 1 / (1 + t / 2000)]
        u = -[r_0 g, r_1 m, r_2 g~, r_3 m~, r_4 exp(q) g, r_5 (1 + q) g]

    with the learning rates r. Huang et al., "Optimizer amalgamation", 2022, arXiv 2203.06474, in the form of
    its code.

    Attributes:
      lstms: the network.
      scores: the map from its output to the members' scores.
      hidden_sizes: hidden units of each layer.
      rates: the members' learning rates.
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
    rates: tuple[float, ...] = eqx.field(static=True)
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
        rates: tuple[float, ...] = (0.2, 0.5, 0.005, 0.005, 0.1, 0.1),
        selection: str = "soft",
        hardness: float = 10.0,
        decays: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-10,
        warmup_steps: int = 0,
        warmup_rate: float = 0.05,
    ):
        """Raises `ConfigError` for an unknown `selection`, or sizes and numbers that are not allowed."""
        self.hidden_sizes, self.rates = tuple(hidden_sizes), tuple(float(rate) for rate in rates)
        if len(self.rates) != len(self.members):
            raise ConfigError(f"rates = {rates} must be {len(self.members)}: {', '.join(self.members)}.")
        self.selection, self.hardness = check_selection(selection, hardness)
        self.decays, self.eps = scaled.check_averages(decays, eps)
        self.warmup_steps, self.warmup_rate = check_warm_up(warmup_steps, warmup_rate)
        lstm_key, score_key = jax.random.split(jax.random.key(0) if key is None else key)
        self.lstms = LSTMStack(5, self.hidden_sizes, lstm_key)
        self.scores = keras_cells.dense(self.hidden_sizes[-1], len(self.members), score_key)

    @property
    def members(self) -> tuple[str, ...]:
        return "sgd", "momentum", "rmsprop", "adam", "powersign", "addsign"

    def start(
        self, params: Params, *, num_steps: int | Array | None = None, key: PRNGKeyArray | None = None
    ) -> ChoiceLargeState:
        del num_steps, key
        count = sum(coordinates.sizes(params))
        shares, time = jnp.zeros((len(self.members),), jnp.float32), jnp.zeros((), jnp.int32)
        return ChoiceLargeState(scaled.zeros(count), time, self.lstms.zeros(count), shares)

    def step(
        self, grads: Params, state: ChoiceLargeState, params: Params, **context: Any
    ) -> tuple[Params, ChoiceLargeState]:
        g = coordinates.flatten(grads)
        averages = scaled.averaged(g, state.averages, self.decays)
        m = averages.mean
        mean, grad = scaled.scaled(g, averages, self.decays, self.eps)
        time = jnp.broadcast_to(decaying(state.time), g.shape)
        weights, _, lstms = self.choose(jnp.stack([g, m, grad, mean, time]), state.lstms, context)
        agreement = jnp.tanh(grad) * jnp.tanh(mean)
        moves = [g, m, grad, mean, jnp.exp(agreement) * g, (1.0 + agreement) * g]
        move = mixed(weights, jnp.stack([rate * u for rate, u in zip(self.rates, moves)]))
        following = ChoiceLargeState(averages, state.time + 1, lstms, mean_shares(weights))
        return coordinates.restore(-move, params), following

    def watch(
        self, grads: Params, state: ChoiceLargeState, params: Params, **context: Any
    ) -> ChoiceLargeState:
        del params, context
        averages = scaled.averaged(coordinates.flatten(grads), state.averages, self.decays)
        return state._replace(averages=averages, time=state.time + 1)
