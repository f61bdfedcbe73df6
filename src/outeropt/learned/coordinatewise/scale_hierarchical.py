"""Recurrent units for each parameter, each tensor and the whole, over averages on several time scales."""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from outeropt.errors import ConfigError
from outeropt.learned.coordinatewise import coordinates, keras_cells
from outeropt.learned.coordinatewise.base import Coordinatewise, check_warm_up
from outeropt.learned.coordinatewise.keras_cells import GRU
from outeropt.learned.networks import Linear, check_sizes
from outeropt.optimizer import Params


class ScaleHierarchicalState(NamedTuple):
    """State of `ScaleHierarchical`; coordinates are in the order of `coordinates.flatten`.

    Attributes:
      mean: moving averages of the gradient, one for each time scale.
      square: the same of its square.
      log_rate: moving average of the logarithm of the learning rate.
      relative_rate: the last log rate less its mean over the tensor.
      param_hidden: hidden state of each coordinate's unit.
      tensor_hidden: hidden state of each tensor's unit.
      global_hidden: hidden state of the unit above them.
    """

    mean: Float[Array, "coordinates timescales"]
    square: Float[Array, "coordinates timescales"]
    log_rate: Float[Array, " coordinates"]
    relative_rate: Float[Array, "coordinates 1"]
    param_hidden: Float[Array, "coordinates param_units"]
    tensor_hidden: Float[Array, "tensors tensor_units"]
    global_hidden: Float[Array, " global_units"]


class ScaleHierarchical(Coordinatewise):
    """Gated recurrent units on three levels that choose direction, rate and averaging of each coordinate.

    With p, t, w the hidden states of parameter, tensor and whole, for each time scale s = 0 .. S - 1:

        m_s = average of g with decay sigmoid(mean_decay(p))^(2^-s)
        l_s = average of g^2 with decay sigmoid(square_decay(p))^(2^-s)
        x = [m_s / sqrt(l_s + eps), log(l_s + eps) - its mean over s, relative rate]
        p = GRU([x, t, w], p)                t = GRU([mean of p over the tensor, w], t)
        n = log_rate_change(p) + n_average   n_average = c n_average + (1 - c) n,  c = sigmoid(rate_memory)
        update = -(exp(n) + rate_offset) (direction(p) + shortcut(m_s / sqrt(l_s + eps)))
        w = GRU(mean of t over tensors, w)

    Wichrowska et al., "Learned optimizers that scale and generalize", 2017, arXiv 1703.04813, equations 1-5,
    7, 8 and 10-13 with the direction of appendix D.3 and the shortcut of B.1, in the form of Huang et al.,
    "Optimizer amalgamation", 2022, arXiv 2203.06474. Averages start from zero without bias correction.
    Direction and shortcut start from zero, and so does the update.

    Attributes:
      param_gru: the unit of each coordinate.
      tensor_gru: the unit of each tensor.
      global_gru: the unit above them.
      direction: from a coordinate's hidden state to its direction.
      shortcut: from its normalised averages to its direction.
      log_rate_change: from its hidden state to the change of its log rate.
      mean_decay: from its hidden state to the logit of the decay of the averages of g.
      square_decay: the same for the averages of g^2.
      rate_memory: the logit of the decay of the average of log rates.
      param_units: hidden units of each coordinate.
      tensor_units: hidden units of each tensor.
      global_units: hidden units above them.
      timescales: the number of time scales S, at least 1.
      initial_rates: lowest and highest initial rate; each coordinate's is log-uniform between them, drawn
        from the `key` of `init`.
      rate_offset: added to every rate.
      eps: added to the averages of g^2, positive.
      warmup_steps: see `Coordinatewise`.
      warmup_rate: see `Coordinatewise`.
    """

    param_gru: GRU
    tensor_gru: GRU
    global_gru: GRU
    direction: Linear
    shortcut: Linear
    log_rate_change: Linear
    mean_decay: Linear
    square_decay: Linear
    rate_memory: Float[Array, ""]
    param_units: int = eqx.field(static=True)
    tensor_units: int = eqx.field(static=True)
    global_units: int = eqx.field(static=True)
    timescales: int = eqx.field(static=True)
    initial_rates: tuple[float, float] = eqx.field(static=True)
    rate_offset: float = eqx.field(static=True)
    eps: float = eqx.field(static=True)
    warmup_steps: int = eqx.field(static=True)
    warmup_rate: float = eqx.field(static=True)

    def __init__(
        self,
        *,
        key: PRNGKeyArray | None = None,
        param_units: int = 20,
        tensor_units: int = 10,
        global_units: int = 10,
        timescales: int = 4,
        initial_rates: tuple[float, float] = (1e-3, 1e-3),
        rate_offset: float = 1e-2,
        eps: float = 1e-10,
        warmup_steps: int = 0,
        warmup_rate: float = 0.05,
    ):
        """Raises `ConfigError` for sizes or an `eps` that are not positive, rates that are no range, etc."""
        check_sizes(
            param_units=param_units,
            tensor_units=tensor_units,
            global_units=global_units,
            timescales=timescales,
        )
        if not eps > 0:
            raise ConfigError(f"eps must be above 0, not {eps}.")
        self.param_units, self.tensor_units, self.global_units = param_units, tensor_units, global_units
        self.timescales = timescales
        self.initial_rates = coordinates.rate_bounds(initial_rates)
        self.rate_offset, self.eps = rate_offset, eps
        self.warmup_steps, self.warmup_rate = check_warm_up(warmup_steps, warmup_rate)
        param_key, tensor_key, global_key = jax.random.split(jax.random.key(0) if key is None else key, 3)
        inputs = 2 * timescales + 1 + tensor_units + global_units
        self.param_gru = GRU(inputs, param_units, param_key)
        self.tensor_gru = GRU(param_units + global_units, tensor_units, tensor_key)
        self.global_gru = GRU(tensor_units, global_units, global_key)
        self.direction = Linear(param_units, 1, None)
        self.shortcut = Linear(timescales, 1, None)
        self.log_rate_change = Linear(param_units, 1, None)
        self.mean_decay = _constant(param_units, 0.9)
        self.square_decay = _constant(param_units, 0.999)
        self.rate_memory = jnp.float32(3.2)

    def start(
        self, params: Params, *, num_steps: int | Array | None = None, key: PRNGKeyArray | None = None
    ) -> ScaleHierarchicalState:
        del num_steps
        counts = coordinates.sizes(params)
        total = sum(counts)
        shape = (total, self.timescales)
        return ScaleHierarchicalState(
            jnp.zeros(shape, jnp.float32),
            jnp.zeros(shape, jnp.float32),
            coordinates.log_rates(self.initial_rates, total, key),
            jnp.zeros((total, 1), jnp.float32),
            self.param_gru.zeros(total),
            self.tensor_gru.zeros(len(counts)),
            self.global_gru.zeros(),
        )

    def step(
        self, grads: Params, state: ScaleHierarchicalState, params: Params, **context: Any
    ) -> tuple[Params, ScaleHierarchicalState]:
        del context
        counts = coordinates.sizes(grads)
        mean, square = self._averages(grads, state)
        scaled = mean * jax.lax.rsqrt(square + self.eps)
        log_square = jnp.log(square + self.eps)
        log_square = log_square - _across(jnp.mean(log_square, axis=1, keepdims=True), self.timescales)

        tensor = coordinates.spread(state.tensor_hidden, counts)
        above = _down(state.global_hidden, sum(counts))
        x = jnp.concatenate([scaled, log_square, state.relative_rate, tensor, above], axis=1)
        param_hidden = self.param_gru(x, state.param_hidden)
        average = coordinates.tensor_means(param_hidden, counts)
        above = _down(state.global_hidden, len(counts))
        tensor_hidden = self.tensor_gru(jnp.concatenate([average, above], axis=1), state.tensor_hidden)
        global_hidden = self.global_gru(jnp.mean(tensor_hidden, axis=0), state.global_hidden)

        change = self.log_rate_change(param_hidden)
        log_rate = change + state.log_rate[:, None]
        relative = log_rate - coordinates.spread(coordinates.tensor_means(log_rate, counts), counts)
        # The average moves by its share of the change: no difference of two large numbers.
        following = state.log_rate + jax.nn.sigmoid(-self.rate_memory) * change[:, 0]
        move = (jnp.exp(log_rate) + self.rate_offset) * (self.direction(param_hidden) + self.shortcut(scaled))
        return coordinates.restore(-move[:, 0], params), ScaleHierarchicalState(
            mean, square, following, relative, param_hidden, tensor_hidden, global_hidden
        )

    def watch(
        self, grads: Params, state: ScaleHierarchicalState, params: Params, **context: Any
    ) -> ScaleHierarchicalState:
        del params, context
        mean, square = self._averages(grads, state)
        return state._replace(mean=mean, square=square)

    def _averages(self, grads: Params, state: ScaleHierarchicalState) -> tuple[Array, Array]:
        """The next averages of the gradient and of its square."""
        grad = coordinates.flatten(grads)[:, None]
        mean = self._averaged(self.mean_decay, state.param_hidden, state.mean, grad)
        return mean, self._averaged(self.square_decay, state.param_hidden, state.square, jnp.square(grad))

    def _averaged(
        self,
        decay: Linear,
        hidden: Float[Array, "coordinates param_units"],
        old: Float[Array, "coordinates timescales"],
        new: Float[Array, "coordinates 1"],
    ) -> Float[Array, "coordinates timescales"]:
        """Moving averages with the decays that the old hidden state gives."""
        # From the logarithm of the decay, 1 - decay keeps all its digits; as a difference it would lose four.
        powers = np.float32(0.5) ** np.arange(self.timescales, dtype=np.float32)
        log_decay = jax.nn.log_sigmoid(decay(hidden)) * jnp.asarray(powers)[None]
        return jnp.exp(log_decay) * old - jnp.expm1(log_decay) * _across(new, self.timescales)

    @property
    def published_names(self) -> dict[str, str]:
        return {
            **keras_cells.gru_names("param_gru", "param_gru"),
            **keras_cells.gru_names("tensor_gru", "tensor_gru"),
            **keras_cells.gru_names("global_gru", "global_gru"),
            **keras_cells.dense_names("direction", "d_theta"),
            **keras_cells.dense_names("shortcut", "gradient_shortcut"),
            **keras_cells.dense_names("log_rate_change", "delta_nu"),
            **keras_cells.dense_names("mean_decay", "beta_g"),
            **keras_cells.dense_names("square_decay", "beta_lambda"),
            "rate_memory": "gamma",
        }


def _constant(inputs: int, decay: float) -> Linear:
    """An affine map that is the logit of one decay, whatever its input."""
    bias = jnp.full((1,), math.log(decay / (1.0 - decay)), jnp.float32)
    return eqx.tree_at(lambda layer: layer.bias, Linear(inputs, 1, None), bias)


def _across(column: Float[Array, "rows 1"], columns: int) -> Float[Array, "rows columns"]:
    return jnp.broadcast_to(column, (column.shape[0], columns))


def _down(row: Float[Array, " columns"], rows: int) -> Float[Array, "rows columns"]:
    return jnp.broadcast_to(row[None], (rows, row.shape[0]))
