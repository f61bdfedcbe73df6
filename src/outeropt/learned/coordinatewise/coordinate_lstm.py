"""The first learned optimizer of today's kind: one LSTM that reads each coordinate's gradient."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from outeropt.errors import ConfigError
from outeropt.learned.coordinatewise import coordinates, keras_cells
from outeropt.learned.coordinatewise.base import Coordinatewise, check_warm_up
from outeropt.learned.coordinatewise.keras_cells import LSTMStack, LSTMState
from outeropt.learned.networks import Linear
from outeropt.optimizer import Params


# How many inputs the network gets from a gradient.
_INPUTS = {"none": 1, "log": 2}


def log_preprocess(grad: Float[Array, "*shape"]) -> Float[Array, "2 *shape"]:
    """A gradient's magnitude and sign as two numbers of order one.

    With p = 10, `(log|g| / p, sign(g))` where `|g| >= exp(-p)` and `(-1, exp(p) g)` elsewhere. Both are
    continuous. Andrychowicz et al. 2016, appendix A.
    """
    p = 10.0
    size = jnp.log(jnp.maximum(jnp.abs(grad), np.exp(-p))) / p
    return jnp.stack([size, jnp.clip(np.exp(p) * grad, -1.0, 1.0)])


class CoordinateLSTM(Coordinatewise):
    """A stack of LSTMs with shared weights that runs on each coordinate by itself.

        h, state = LSTMs(x, state)          update = -output_scale (h w + b)

    where x is the coordinate's gradient g, or `log_preprocess(g)`. Andrychowicz et al., "Learning to learn by
    gradient descent by gradient descent", 2016, arXiv 1606.04474, section 2.1. The state is the stack's, with
    `[hidden, coordinates]` arrays; coordinates are in the order of `coordinates.flatten`.

    Attributes:
      lstms: the network.
      head: the map from its output to the update.
      hidden_sizes: hidden units of each layer.
      output_scale: what the output is multiplied with.
      preprocess: `"log"` for the paper's preprocessing, which makes gradients of all magnitudes readable;
        `"none"` for gradients as they are.
      warmup_steps: see `Coordinatewise`.
      warmup_rate: see `Coordinatewise`.
    """

    lstms: LSTMStack
    head: Linear
    hidden_sizes: tuple[int, ...] = eqx.field(static=True)
    output_scale: float = eqx.field(static=True)
    preprocess: str = eqx.field(static=True)
    warmup_steps: int = eqx.field(static=True)
    warmup_rate: float = eqx.field(static=True)

    def __init__(
        self,
        *,
        key: PRNGKeyArray | None = None,
        hidden_sizes: tuple[int, ...] = (20, 20),
        output_scale: float = 0.1,
        preprocess: str = "none",
        warmup_steps: int = 0,
        warmup_rate: float = 0.05,
    ):
        """Raises `ConfigError` for an unknown `preprocess`, sizes that are not positive, or no warm-up."""
        if preprocess not in _INPUTS:
            raise ConfigError(f"There is no preprocess = {preprocess!r}; give {' or '.join(_INPUTS)}.")
        self.hidden_sizes = tuple(hidden_sizes)
        self.output_scale = output_scale
        self.preprocess = preprocess
        self.warmup_steps, self.warmup_rate = check_warm_up(warmup_steps, warmup_rate)
        lstm_key, head_key = jax.random.split(jax.random.key(0) if key is None else key)
        self.lstms = LSTMStack(_INPUTS[preprocess], self.hidden_sizes, lstm_key)
        self.head = keras_cells.dense(self.hidden_sizes[-1], 1, head_key)

    def start(
        self, params: Params, *, num_steps: int | Array | None = None, key: PRNGKeyArray | None = None
    ) -> LSTMState:
        del num_steps, key
        return self.lstms.zeros(sum(coordinates.sizes(params)))

    def step(
        self, grads: Params, state: LSTMState, params: Params, **context: Any
    ) -> tuple[Params, LSTMState]:
        del context
        grad = coordinates.flatten(grads)
        x = log_preprocess(grad) if self.preprocess == "log" else grad[None]
        out, state = self.lstms(x, state)
        return coordinates.restore(-self.output_scale * self.head.by_features(out)[0], params), state

    def watch(self, grads: Params, state: LSTMState, params: Params, **context: Any) -> LSTMState:
        del grads, params, context
        return state

    @property
    def published_names(self) -> dict[str, str]:
        lstms = keras_cells.lstm_names("lstms", len(self.hidden_sizes))
        return {**lstms, **keras_cells.dense_names("head", "delta")}
