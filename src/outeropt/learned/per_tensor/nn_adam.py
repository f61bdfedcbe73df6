"""NNAdam: Adam whose hyperparameters a small recurrent network moves, for each tensor by itself."""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from outeropt.errors import ConfigError
from outeropt.learned.base import LearnedOptimizer
from outeropt.learned.networks import LSTM, Linear, check_sizes
from outeropt.learned.per_tensor.tensor_statistics import log_magnitude, means_and_variances
from outeropt.optimizer import OptState, Params


# What the network sees of a tensor. g: gradient, m: momentum, p: parameters, rms: second moment; `mag` is a
# log magnitude. Weights of others expect the names in alphabetical order.
_FEATURES = (
    *("lr", "beta1", "beta2", "epsilon", "is_bias", "is_scalar"),
    *("mean_g_mag", "mean_m_mag", "mean_p_mag", "mean_rms", "var_g", "var_m", "var_p", "var_rms"),
    *("mean_gabs_mag", "mean_g_sign", "mean_m_sign", "mean_p_sign", "mean_sign"),
)
_BY_NAME = np.argsort(_FEATURES)

# Ranges of learning rate, 1 - beta1, 1 - beta2 and epsilon.
_RANGES = np.array([(1e-8, 1e3), (math.exp(-10.0), 1.0), (math.exp(-10.0), 1.0), (1e-11, 1e4)])
_LOWEST, _HIGHEST = (0.1 * np.log(_RANGES)).astype(np.float32).T


class NNAdamState(NamedTuple):
    """State of `NNAdam`. Rows of tensors are in the order of the leaves of the parameters.

    Attributes:
      mean: moving averages of the gradients.
      square: moving averages of their squares.
      codes: `0.1 log` of learning rate, 1 - beta1, 1 - beta2 and epsilon of each tensor.
      hidden: output of the network.
      cell: its memory.
    """

    mean: list[Float[Array, "*shape"]]
    square: list[Float[Array, "*shape"]]
    codes: Float[Array, "tensors 4"]
    hidden: Float[Array, "tensors lstm"]
    cell: Float[Array, "tensors lstm"]


class NNAdam(LearnedOptimizer):
    """Adam with hyperparameters of its own for every tensor, which an LSTM moves at every step.

    With the gradient g clipped to [-1000, 1000], and without bias correction:

        m = beta1 m + (1 - beta1) g                    v = beta2 v + (1 - beta2) g^2
        update = -lr (1 + epsilon) m / (epsilon + sqrt(v + 1e-10))

    The factor `1 + epsilon` lets the network turn the second moment off (large epsilon) without having to
    raise the learning rate against it. After the step, with codes c = 0.1 log(lr, 1 - beta1, 1 - beta2,
    epsilon):

        d = c + output_scale * linear(lstm(features))
        c <- d + decay_strength * (c_0 - d)

    clipped to lr in [1e-8, 1e3], beta in [0, 1 - exp(-10)], epsilon in [1e-11, 1e4]. The 19 features of a
    tensor are log magnitudes and signs of means and variances of g, m, v and the parameters, its rank, and
    c itself. The linear map starts at zero, so that an untrained NNAdam is Adam.

    The architecture is that of Metz et al.'s library learned_optimization (arXiv 2203.11860).

    Attributes:
      learning_rate_code: first `0.1 log(lr)`.
      beta1_code: first `0.1 log(1 - beta1)`.
      beta2_code: first `0.1 log(1 - beta2)`.
      epsilon_code: first `0.1 log(epsilon)`.
      first_hidden: the LSTM's output before the first step, zero at first.
      first_cell: its memory before the first step, zero at first.
      lstm: from 19 features.
      controls: from the LSTM's output to the four moves.
      lstm_hidden_size: width of the LSTM.
      output_scale: how far the codes move in a step.
      initial_learning_rate: learning rate before meta-training, in [1e-8, 1e3].
      initial_beta1: decay of the momentum before meta-training, in [0, 1 - exp(-10)].
      initial_beta2: decay of the second moment before meta-training, in [0, 1 - exp(-10)].
      initial_epsilon: epsilon before meta-training, in [1e-11, 1e4].
      decay_strength: how far the codes return to their first values in a step, in [0, 1].
    """

    learning_rate_code: Float[Array, ""]
    beta1_code: Float[Array, ""]
    beta2_code: Float[Array, ""]
    epsilon_code: Float[Array, ""]
    first_hidden: Float[Array, " lstm"]
    first_cell: Float[Array, " lstm"]
    lstm: LSTM
    controls: Linear
    lstm_hidden_size: int = eqx.field(static=True)
    output_scale: float = eqx.field(static=True)
    initial_learning_rate: float = eqx.field(static=True)
    initial_beta1: float = eqx.field(static=True)
    initial_beta2: float = eqx.field(static=True)
    initial_epsilon: float = eqx.field(static=True)
    decay_strength: float = eqx.field(static=True)

    def __init__(
        self,
        *,
        key: PRNGKeyArray | None = None,
        lstm_hidden_size: int = 32,
        output_scale: float = 0.01,
        initial_learning_rate: float = 1e-4,
        initial_beta1: float = 0.9,
        initial_beta2: float = 0.999,
        initial_epsilon: float = 1e-8,
        decay_strength: float = 0.0,
    ):
        """Meta-parameters before meta-training; `key` None is `jax.random.key(0)`.

        Raises:
          ConfigError: a setting is out of range.
        """
        names = ("initial_learning_rate", "initial_beta1", "initial_beta2", "initial_epsilon")
        first = (initial_learning_rate, 1.0 - initial_beta1, 1.0 - initial_beta2, initial_epsilon)
        for name, value, (low, high) in zip(names, first, _RANGES):
            if not low <= value <= high:
                beta = name.startswith("initial_beta")
                given, least, most = (1.0 - value, 1.0 - high, 1.0 - low) if beta else (value, low, high)
                raise ConfigError(f"{name} is {given:g}; NNAdam can hold values from {least:g} to {most:g}.")
        if not 0.0 <= decay_strength <= 1.0:
            raise ConfigError(f"decay_strength is {decay_strength}; it must lie in [0, 1].")
        check_sizes(lstm_hidden_size=lstm_hidden_size)
        self.lstm_hidden_size = lstm_hidden_size
        self.output_scale = output_scale
        self.initial_learning_rate = initial_learning_rate
        self.initial_beta1 = initial_beta1
        self.initial_beta2 = initial_beta2
        self.initial_epsilon = initial_epsilon
        self.decay_strength = decay_strength
        codes = [jnp.float32(0.1 * math.log(value)) for value in first]
        self.learning_rate_code, self.beta1_code, self.beta2_code, self.epsilon_code = codes
        self.first_hidden = jnp.zeros((lstm_hidden_size,), jnp.float32)
        self.first_cell = jnp.zeros((lstm_hidden_size,), jnp.float32)
        self.lstm = LSTM(len(_FEATURES), lstm_hidden_size, jax.random.key(0) if key is None else key)
        self.controls = Linear(lstm_hidden_size, 4, None)

    @property
    def published_names(self) -> dict[str, str]:
        return {
            "learning_rate_code": "per_layer_lr",
            "beta1_code": "per_layer_beta1",
            "beta2_code": "per_layer_beta2",
            "epsilon_code": "per_layer_epsilon",
            "first_hidden": "lstm_init_state/hidden",
            "first_cell": "lstm_init_state/cell",
            "lstm.gates.weight": "rnn_params/rnn/linear/w",
            "lstm.gates.bias": "rnn_params/rnn/linear/b",
            "controls.weight": "rnn_to_controls_params/rnn_to_controls/w",
            "controls.bias": "rnn_to_controls_params/rnn_to_controls/b",
        }

    def init(
        self, params: Params, *, num_steps: int | Array | None = None, key: PRNGKeyArray | None = None
    ) -> OptState:
        del num_steps, key
        leaves = jax.tree.leaves(params)
        mean, square = ([jnp.zeros_like(leaf, dtype=jnp.float32) for leaf in leaves] for _ in range(2))
        rows = (self._first_codes, self.first_hidden, self.first_cell)
        return NNAdamState(mean, square, *(jnp.broadcast_to(row, (len(leaves), row.size)) for row in rows))

    def update(
        self, grads: Params, state: OptState, params: Params, **context: Any
    ) -> tuple[Params, OptState]:
        del context
        # Codes that meta-training or noise moved out of their ranges count as the nearest that are allowed.
        values = jnp.exp(10.0 * _clip(state.codes))
        leaves, structure = jax.tree.flatten(params)
        old = zip(structure.flatten_up_to(grads), leaves, state.mean, state.square)
        updates, means, squares, statistics = [], [], [], []
        for (grad, param, m, v), (rate, rest1, rest2, eps) in zip(old, values):
            g = jnp.clip(grad.astype(jnp.float32), -1000.0, 1000.0)
            m = (1.0 - rest1) * m + rest1 * g
            v = (1.0 - rest2) * v + rest2 * jnp.square(g)
            update = -rate * (1.0 + eps) / (eps + jnp.sqrt(v + 1e-10)) * m
            updates.append(update.astype(param.dtype))
            means.append(m)
            squares.append(v)
            moments = means_and_variances((g, m, param.astype(jnp.float32), v))
            statistics.append(jnp.append(moments, jnp.mean(jnp.abs(g))))
        inputs = _features(state.codes, jnp.stack(statistics), [leaf.ndim for leaf in leaves])
        hidden, cell = self.lstm(inputs, (state.hidden, state.cell))
        codes = state.codes + self.output_scale * self.controls(hidden)
        first = jnp.broadcast_to(self._first_codes, codes.shape)
        codes = _clip(codes + self.decay_strength * (first - codes))
        return structure.unflatten(updates), NNAdamState(means, squares, codes, hidden, cell)

    @property
    def _first_codes(self) -> Float[Array, "4"]:
        return jnp.stack([self.learning_rate_code, self.beta1_code, self.beta2_code, self.epsilon_code])


def _clip(codes: Float[Array, "tensors 4"]) -> Float[Array, "tensors 4"]:
    low, high = (jnp.broadcast_to(bound, codes.shape) for bound in (_LOWEST, _HIGHEST))
    return jnp.clip(codes, low, high)


def _features(
    codes: Float[Array, "tensors 4"], statistics: Float[Array, "tensors 9"], ranks: list[int]
) -> Float[Array, "tensors 19"]:
    """The network's inputs from codes, and means, variances and mean |g| of each tensor."""
    ranks_are = np.stack([np.equal(ranks, 1), np.equal(ranks, 0)], axis=1)
    columns = [
        0.2 * jnp.clip(codes, -5.0, 5.0),
        jnp.asarray(np.where(ranks_are, 1.0, -1.0), jnp.float32),
        0.5 * log_magnitude(statistics),
        jnp.sign(statistics[:, :4]),
    ]
    return jnp.concatenate(columns, axis=1)[:, _BY_NAME]
