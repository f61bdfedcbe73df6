"""A coordinatewise LSTM that sees normalised gradients and steers its own learning rates."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from outeropt.learned.coordinatewise import coordinates, keras_cells
from outeropt.learned.coordinatewise.base import Coordinatewise, check_warm_up
from outeropt.learned.coordinatewise.keras_cells import LSTMStack, LSTMState
from outeropt.learned.networks import Linear
from outeropt.optimizer import Params


class ScaleBasicState(NamedTuple):
    """State of `ScaleBasic`, for all coordinates in the order of `coordinates.flatten`.

    Attributes:
      lstms: the network's state.
      square: moving average of the squared gradient.
      decay: its decay, in [0, 1].
      rate: the learning rate, positive.
    """

    lstms: LSTMState
    square: Float[Array, " coordinates"]
    decay: Float[Array, " coordinates"]
    rate: Float[Array, " coordinates"]


class ScaleBasic(Coordinatewise):
    """The coordinatewise optimizer in the code of "Learned optimizers that scale and generalize".

    For each coordinate by itself, with weights that all share:

        v = d v + (1 - d) g^2                h, state = LSTMs(g / sqrt(v + 1e-16), state)
        d = sigmoid(decay(h))                a = 2 sigmoid(rate_change(h)) a
        update = -a head(h)

    Wichrowska et al. 2017, arXiv 1703.04813 (the code beside the paper), as in the code of Huang et al.,
    "Optimizer amalgamation", 2022, arXiv 2203.06474. That code returns the state that it was given, so its
    state never advances; here it advances, as was evidently meant.

    Attributes:
      lstms: the network.
      head: the map from its output to the update in units of the rate.
      decay: the map to the decay of the average of squares.
      rate_change: the map to the change of the rate.
      hidden_sizes: hidden units of each layer.
      initial_rates: lowest and highest initial rate; each coordinate's is log-uniform between them, drawn
        from the `key` of `init`.
      warmup_steps: see `Coordinatewise`.
      warmup_rate: see `Coordinatewise`.
    """

    lstms: LSTMStack
    head: Linear
    decay: Linear
    rate_change: Linear
    hidden_sizes: tuple[int, ...] = eqx.field(static=True)
    initial_rates: tuple[float, float] = eqx.field(static=True)
    warmup_steps: int = eqx.field(static=True)
    warmup_rate: float = eqx.field(static=True)

    def __init__(
        self,
        *,
        key: PRNGKeyArray | None = None,
        hidden_sizes: tuple[int, ...] = (20, 20),
        initial_rates: tuple[float, float] = (1.0, 1.0),
        warmup_steps: int = 0,
        warmup_rate: float = 0.05,
    ):
        """Raises `ConfigError` for sizes that are not positive, rates that are no range, or no warm-up."""
        self.hidden_sizes = tuple(hidden_sizes)
        self.initial_rates = coordinates.rate_bounds(initial_rates)
        self.warmup_steps, self.warmup_rate = check_warm_up(warmup_steps, warmup_rate)
        keys = jax.random.split(jax.random.key(0) if key is None else key, 4)
        self.lstms = LSTMStack(1, self.hidden_sizes, keys[0])
        self.head, self.decay, self.rate_change = (
            keras_cells.dense(self.hidden_sizes[-1], 1, k) for k in keys[1:]
        )

    def start(
        self, params: Params, *, num_steps: int | Array | None = None, key: PRNGKeyArray | None = None
    ) -> ScaleBasicState:
        del num_steps
        count = sum(coordinates.sizes(params))
        square, decay = (jnp.zeros((count,), jnp.float32) for _ in range(2))
        rate = jnp.exp(coordinates.log_rates(self.initial_rates, count, key))
        return ScaleBasicState(self.lstms.zeros(count), square, decay, rate)

    def step(
        self, grads: Params, state: ScaleBasicState, params: Params, **context: Any
    ) -> tuple[Params, ScaleBasicState]:
        del context
        grad = coordinates.flatten(grads)
        square = _averaged(grad, state)
        out, lstms = self.lstms((grad * jax.lax.rsqrt(square + 1e-16))[None], state.lstms)
        decay = jax.nn.sigmoid(self.decay.by_features(out)[0])
        rate = 2.0 * jax.nn.sigmoid(self.rate_change.by_features(out)[0]) * state.rate
        updates = coordinates.restore(-rate * self.head.by_features(out)[0], params)
        return updates, ScaleBasicState(lstms, square, decay, rate)

    def watch(self, grads: Params, state: ScaleBasicState, params: Params, **context: Any) -> ScaleBasicState:
        del params, context
        return state._replace(square=_averaged(coordinates.flatten(grads), state))

    @property
    def published_names(self) -> dict[str, str]:
        return {
            **keras_cells.lstm_names("lstms", len(self.hidden_sizes)),
            **keras_cells.dense_names("head", "delta"),
            **keras_cells.dense_names("decay", "decay"),
            **keras_cells.dense_names("rate_change", "learning_rate_change"),
        }


def _averaged(grad: Float[Array, " coordinates"], state: ScaleBasicState) -> Float[Array, " coordinates"]:
    """The next average of the square."""
    return (1.0 - state.decay) * jnp.square(grad) + state.decay * state.square
