"""RNNProp: an LSTM for each coordinate that reads what Adam and RMSProp would do."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from outeropt.errors import ConfigError
from outeropt.learned.coordinatewise import coordinates, keras_cells, scaled
from outeropt.learned.coordinatewise.base import Coordinatewise, check_warm_up
from outeropt.learned.coordinatewise.keras_cells import LSTMStack, LSTMState
from outeropt.learned.coordinatewise.scaled import Averages
from outeropt.learned.networks import Linear
from outeropt.optimizer import Params


# The step in units of `output_scale`, from the network's output and the scaled mean and gradient.
_MOVES: dict[str, Callable[[Array, Array, Array], Array]] = {
    "update": lambda out, mean, grad: out,
    "adam": lambda out, mean, grad: jnp.exp(out) * mean,
    "rmsprop": lambda out, mean, grad: jnp.exp(out) * grad,
}


class RNNPropState(NamedTuple):
    """State of `RNNProp` and `RNNPropExtended`.

    Attributes:
      averages: of the gradient and its square.
      lstms: the network's state.
    """

    averages: Averages
    lstms: LSTMState


class RNNProp(Coordinatewise):
    """A stack of LSTMs with shared weights that runs on each coordinate by itself and reads scaled gradients.

        m~, g~ = scaled.scaled(g, averages)      h, state = LSTMs([m~, g~], state)      o = tanh(h w + b)
        update = -output_scale o                 for output = "update"
        update = -output_scale exp(o) m~         for output = "adam", a learned rate for Adam's direction
        update = -output_scale exp(o) g~         for output = "rmsprop", the same for RMSProp's

    Lv, Jiang and Li, "Learning gradient descent: better generalization and longer horizons", 2017, arXiv
    1703.03633; in this form, and with the two other outputs, the students of Huang et al.,
    "Optimizer amalgamation", 2022, arXiv 2203.06474.

    Attributes:
      lstms: the network.
      head: the map from its output to o.
      hidden_sizes: hidden units of each layer.
      output: `"update"`, `"adam"` or `"rmsprop"`.
      output_scale: what the output is multiplied with.
      decays: of the averages of the gradient and of its square.
      eps: added to the mean square.
      warmup_steps: see `Coordinatewise`; 100 for the published weights.
      warmup_rate: see `Coordinatewise`.
    """

    lstms: LSTMStack
    head: Linear
    hidden_sizes: tuple[int, ...] = eqx.field(static=True)
    output: str = eqx.field(static=True)
    output_scale: float = eqx.field(static=True)
    decays: tuple[float, float] = eqx.field(static=True)
    eps: float = eqx.field(static=True)
    warmup_steps: int = eqx.field(static=True)
    warmup_rate: float = eqx.field(static=True)

    def __init__(
        self,
        *,
        key: PRNGKeyArray | None = None,
        hidden_sizes: tuple[int, ...] = (20, 20),
        output: str = "update",
        output_scale: float = 0.1,
        decays: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-10,
        warmup_steps: int = 0,
        warmup_rate: float = 0.05,
    ):
        """Raises `ConfigError` for an unknown `output`, or sizes and numbers that are not allowed."""
        if output not in _MOVES:
            raise ConfigError(f"There is no output = {output!r}; give {', '.join(_MOVES)}.")
        self.hidden_sizes = tuple(hidden_sizes)
        self.output, self.output_scale = output, output_scale
        self.decays, self.eps = scaled.check_averages(decays, eps)
        self.warmup_steps, self.warmup_rate = check_warm_up(warmup_steps, warmup_rate)
        lstm_key, head_key = jax.random.split(jax.random.key(0) if key is None else key)
        self.lstms = LSTMStack(2, self.hidden_sizes, lstm_key)
        self.head = keras_cells.dense(self.hidden_sizes[-1], 1, head_key)

    def start(
        self, params: Params, *, num_steps: int | Array | None = None, key: PRNGKeyArray | None = None
    ) -> RNNPropState:
        del num_steps, key
        count = sum(coordinates.sizes(params))
        return RNNPropState(scaled.zeros(count), self.lstms.zeros(count))

    def step(
        self, grads: Params, state: RNNPropState, params: Params, **context: Any
    ) -> tuple[Params, RNNPropState]:
        del context
        grad = coordinates.flatten(grads)
        averages = scaled.averaged(grad, state.averages, self.decays)
        mean, grad = scaled.scaled(grad, averages, self.decays, self.eps)
        out, lstms = self.lstms(jnp.stack([mean, grad]), state.lstms)
        move = _MOVES[self.output](jnp.tanh(self.head.by_features(out)[0]), mean, grad)
        return coordinates.restore(-self.output_scale * move, params), RNNPropState(averages, lstms)

    def watch(self, grads: Params, state: RNNPropState, params: Params, **context: Any) -> RNNPropState:
        del params, context
        averages = scaled.averaged(coordinates.flatten(grads), state.averages, self.decays)
        return state._replace(averages=averages)

    @property
    def published_names(self) -> dict[str, str]:
        lstms = keras_cells.lstm_names("lstms", len(self.hidden_sizes))
        return {**lstms, **keras_cells.dense_names("head", "delta")}
