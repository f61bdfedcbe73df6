"""RNNProp that also reads the gradient itself, at every layer."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from outeropt.learned.coordinatewise import coordinates, keras_cells, scaled
from outeropt.learned.coordinatewise.base import Coordinatewise, check_warm_up
from outeropt.learned.coordinatewise.keras_cells import ShortcutLSTMStack
from outeropt.learned.coordinatewise.rnnprop import RNNPropState
from outeropt.learned.networks import Linear
from outeropt.optimizer import Params


class RNNPropExtended(Coordinatewise):
    """`RNNProp` with the gradient as a third input and a shortcut around each layer.

        e = [g, m~, g~]                 h, state = LSTMs(e, state), each layer also reading e
        update = -output_scale tanh([h, e] w + b)

    w and b are zero at first, and so is the update. Huang et al., "Optimizer amalgamation", 2022, arXiv
    2203.06474, in the form of its code.

    Attributes:
      lstms: the network.
      head: the map from its output and e to the update.
      hidden_sizes: hidden units of each layer.
      output_scale: what the output is multiplied with.
      decays: of the averages of the gradient and of its square.
      eps: added to the mean square.
      warmup_steps: see `Coordinatewise`.
      warmup_rate: see `Coordinatewise`.
    """

    lstms: ShortcutLSTMStack
    head: Linear
    hidden_sizes: tuple[int, ...] = eqx.field(static=True)
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
        output_scale: float = 1e-3,
        decays: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-10,
        warmup_steps: int = 0,
        warmup_rate: float = 0.05,
    ):
        """Raises `ConfigError` for sizes and numbers that are not allowed."""
        self.hidden_sizes, self.output_scale = tuple(hidden_sizes), output_scale
        self.decays, self.eps = scaled.check_averages(decays, eps)
        self.warmup_steps, self.warmup_rate = check_warm_up(warmup_steps, warmup_rate)
        self.lstms = ShortcutLSTMStack(3, self.hidden_sizes, jax.random.key(0) if key is None else key)
        self.head = Linear(self.hidden_sizes[-1] + 3, 1, None)

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
        x = jnp.stack([grad, *scaled.scaled(grad, averages, self.decays, self.eps)])
        out, lstms = self.lstms(x, state.lstms)
        move = self.output_scale * jnp.tanh(self.head.by_features(out)[0])
        return coordinates.restore(-move, params), RNNPropState(averages, lstms)

    def watch(self, grads: Params, state: RNNPropState, params: Params, **context: Any) -> RNNPropState:
        del params, context
        averages = scaled.averaged(coordinates.flatten(grads), state.averages, self.decays)
        return state._replace(averages=averages)

    @property
    def published_names(self) -> dict[str, str]:
        lstms = keras_cells.lstm_names("lstms", len(self.hidden_sizes))
        return {**lstms, **keras_cells.dense_names("head", "delta")}
