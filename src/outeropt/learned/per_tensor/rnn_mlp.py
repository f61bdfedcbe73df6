"""RNNMLP: a recurrent network over tensors that talks to a small network over parameters."""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from outeropt import tree
from outeropt.errors import ConfigError, OuteroptError
from outeropt.learned.base import LearnedOptimizer
from outeropt.learned.features import TIME_SCALES, accumulate, product
from outeropt.learned.networks import LSTM, MLP, Linear, check_sizes
from outeropt.learned.per_parameter import per_parameter
from outeropt.learned.per_tensor.loss_tracking import GradientRange, LossTracker
from outeropt.learned.per_tensor.tensor_statistics import log_magnitude, means_and_variances, safe_sqrt
from outeropt.optimizer import OptState, Params


# What the recurrent network sees of a tensor besides messages. g: gradient, v: parameters, ms: momenta, rms:
# second moments; signs apart, means, variances and norms are log magnitudes. Weights of others expect the
# names in alphabetical order.
_FEATURES = (
    *("is_scalar", "shape_0", "shape_1", "shape_2", "shape_3", "train_loss_feat", "valid_loss_feat"),
    *("mean_v_mag", "mean_ms_mag", "mean_rms", "var_v", "var_ms", "var_rms", "norm_weight", "g_norm"),
    *("mean_v_sign", "mean_ms_sign", "mean_sign"),
)
_BY_NAME = np.argsort(_FEATURES)

# Standard deviation of a normal variable cut off at two.
_CUT = 0.8796256610342398


def sin_embedding(step: Int[Array, ""] | int) -> Float[Array, " scales"]:
    """`sin(step / (pi s))` for each of the eleven `TIME_SCALES` s."""
    return jnp.sin(jnp.asarray(step, jnp.float32) / jnp.asarray(np.multiply(np.pi, TIME_SCALES), jnp.float32))


class RNNMLPState(NamedTuple):
    """State of `RNNMLP`. Rows of tensors are in the order of the leaves of the parameters.

    Attributes:
      momenta: moving averages of the gradients, `[decays, *shape]` for each tensor; a scalar's shape is (1,).
      squares: moving averages of their squares.
      hidden: output of the recurrent network.
      cell: its memory.
      from_mlp: what the network over parameters told the recurrent one, for each tensor.
      from_lstm: what the recurrent network told itself, one message from all tensors.
      train_loss: average of training losses.
      valid_loss: average of validation losses.
      gradient_range: how large gradients usually are.
      step: number of updates so far.
    """

    momenta: list[Float[Array, "decays *shape"]]
    squares: list[Float[Array, "decays *shape"]]
    hidden: Float[Array, "tensors lstm"]
    cell: Float[Array, "tensors lstm"]
    from_mlp: Float[Array, "tensors to_lstm"]
    from_lstm: Float[Array, " to_itself"]
    train_loss: LossTracker
    valid_loss: LossTracker
    gradient_range: GradientRange
    step: Int[Array, ""]


class RNNMLP(LearnedOptimizer):
    """A hierarchy of two networks: an LSTM for each tensor and an MLP for each parameter.

    At every step the LSTM reads statistics of its tensor, training and validation loss in units of the
    training loss's fluctuation, the mean of the MLP's messages from this tensor, and the mean of its own last
    messages from all tensors. The MLP reads, for each parameter, normalised gradient, value and moments, the
    time, sizes, and a message from the LSTM of its tensor. With its outputs d, r and a message:

        update = -step_multiplier * d * exp(magnitude_rate * r)

    Gradients are clipped to ten times their usual size first. Metz et al., "Tasks, stability, architecture,
    and compute", 2020, arXiv 2009.11243, with the constants of the authors' code.

    Needs `value` in the update. A step with `is_valid=True` takes `value` for a validation loss: it enters
    that loss's average and advances the time; parameters and all else stay, and its gradient is ignored.

    Attributes:
      initial_from_mlp: messages to the LSTM before the first step.
      initial_from_lstm: the LSTM's message to itself before the first step.
      first_hidden: the LSTM's output before the first step, zero at first.
      first_cell: its memory before the first step, zero at first.
      lstm: the network over tensors.
      to_mlp: from the LSTM's output to its message to the MLP.
      to_itself: from the LSTM's output to its message to itself.
      mlp: the network over parameters.
      step_multiplier: scale of the updates.
      magnitude_rate: scale of r.
      hidden_size: width of the MLP.
      hidden_layers: its hidden layers, at least 1.
      from_mlp_size: length of messages from the MLP.
      from_lstm_size: length of the LSTM's message to itself.
      lstm_to_ff: length of messages from the LSTM to the MLP.
      lstm_hidden_size: width of the LSTM.
      decays: decays of the moving averages, each in [0, 1). Published weights were made with the default.
    """

    initial_from_mlp: Float[Array, " to_lstm"]
    initial_from_lstm: Float[Array, " to_itself"]
    first_hidden: Float[Array, " lstm"]
    first_cell: Float[Array, " lstm"]
    lstm: LSTM
    to_mlp: Linear
    to_itself: Linear
    mlp: MLP
    step_multiplier: float = eqx.field(static=True)
    magnitude_rate: float = eqx.field(static=True)
    hidden_size: int = eqx.field(static=True)
    hidden_layers: int = eqx.field(static=True)
    from_mlp_size: int = eqx.field(static=True)
    from_lstm_size: int = eqx.field(static=True)
    lstm_to_ff: int = eqx.field(static=True)
    lstm_hidden_size: int = eqx.field(static=True)
    decays: tuple[float, ...] = eqx.field(static=True)

    def __init__(
        self,
        *,
        key: PRNGKeyArray | None = None,
        step_multiplier: float = 0.001,
        magnitude_rate: float = 0.001,
        hidden_size: int = 32,
        hidden_layers: int = 2,
        from_mlp_size: int = 16,
        from_lstm_size: int = 18,
        lstm_to_ff: int = 17,
        lstm_hidden_size: int = 64,
        decays: tuple[float, ...] = (0.5, 0.9, 0.99, 0.999, 0.9999),
    ):
        """Random meta-parameters; `key` None is `jax.random.key(0)`.

        Raises:
          ConfigError: a setting is out of range.
        """
        self.step_multiplier = step_multiplier
        self.magnitude_rate = magnitude_rate
        self.hidden_size = hidden_size
        self.hidden_layers = hidden_layers
        self.from_mlp_size = from_mlp_size
        self.from_lstm_size = from_lstm_size
        self.lstm_to_ff = lstm_to_ff
        self.lstm_hidden_size = lstm_hidden_size
        self.decays = tuple(decays)
        check_sizes(**{name: size for name, size in self.settings.items() if isinstance(size, int)})
        if not self.decays or not all(0.0 <= decay < 1.0 for decay in self.decays):
            raise ConfigError(f"decays are {self.decays}; give one or more numbers in [0, 1).")
        keys = jax.random.split(jax.random.key(0) if key is None else key, 6)
        self.initial_from_lstm, self.initial_from_mlp = (
            jax.random.truncated_normal(k, -2.0, 2.0, (n,)) / (_CUT * n**0.5)
            for k, n in zip(keys, (from_lstm_size, from_mlp_size))
        )
        self.first_hidden = jnp.zeros((lstm_hidden_size,), jnp.float32)
        self.first_cell = jnp.zeros((lstm_hidden_size,), jnp.float32)
        self.lstm = LSTM(from_lstm_size + from_mlp_size + len(_FEATURES), lstm_hidden_size, keys[2])
        self.to_mlp = Linear(lstm_hidden_size, lstm_to_ff, keys[3])
        self.to_itself = Linear(lstm_hidden_size, from_lstm_size, keys[4])
        # A parameter's own features, the time, the number of tensors, norm and size of this one, the message.
        inputs = 3 + 4 * len(self.decays) + len(TIME_SCALES) + 3 + lstm_to_ff
        self.mlp = MLP(inputs, (hidden_size,) * hidden_layers, 2 + from_mlp_size, keys[5])

    @property
    def published_names(self) -> dict[str, str]:
        mlp = {
            f"mlp.layers.{i}.{ours}": f"ffmod_params/mlp/~/linear_{i}/{theirs}"
            for i in range(self.hidden_layers + 1)
            for ours, theirs in (("weight", "w"), ("bias", "b"))
        }
        return {
            "initial_from_mlp": "initial_from_mlp",
            "initial_from_lstm": "initial_from_lstm",
            "first_hidden": "lstm_init_state/hidden",
            "first_cell": "lstm_init_state/cell",
            "lstm.gates.weight": "rnn_params/rnn/linear/w",
            "lstm.gates.bias": "rnn_params/rnn/linear/b",
            "to_mlp.weight": "rnn_to_ff_params/rnn_to_ff/w",
            "to_mlp.bias": "rnn_to_ff_params/rnn_to_ff/b",
            "to_itself.weight": "rnn_to_in_params/rnn_to_in/w",
            "to_itself.bias": "rnn_to_in_params/rnn_to_in/b",
            **mlp,
        }

    def init(
        self, params: Params, *, num_steps: int | Array | None = None, key: PRNGKeyArray | None = None
    ) -> OptState:
        del num_steps, key
        leaves = [jnp.atleast_1d(leaf) for leaf in jax.tree.leaves(params)]
        momenta, squares = (
            [tree.zeros_beside(leaf, len(self.decays), dtype=jnp.float32) for leaf in leaves]
            for _ in range(2)
        )
        rows = (self.first_hidden, self.first_cell, self.initial_from_mlp)
        return RNNMLPState(
            momenta,
            squares,
            *(_rows(row, len(leaves)) for row in rows),
            from_lstm=self.initial_from_lstm,
            train_loss=LossTracker(0.9),
            valid_loss=LossTracker(0.95),
            gradient_range=GradientRange(),
            step=jnp.int32(0),
        )

    def update(
        self, grads: Params, state: OptState, params: Params, **context: Any
    ) -> tuple[Params, OptState]:
        if context.get("value") is None:
            raise OuteroptError(
                "RNNMLP needs the loss, which was not given; call update(grads, state, params, value=loss)."
            )
        value = jnp.asarray(context["value"], jnp.float32)
        is_valid: bool | Bool[Array, ""] = context.get("is_valid", False)
        trained = self._trained(grads, state, params, value)
        if is_valid is False:
            return trained
        seen = state._replace(valid_loss=state.valid_loss.updated(value), step=state.step + 1)
        return tree.where(jnp.asarray(is_valid), (jax.tree.map(jnp.zeros_like, params), seen), trained)

    def _trained(
        self, grads: Params, state: RNNMLPState, params: Params, loss: Float[Array, ""]
    ) -> tuple[Params, RNNMLPState]:
        """A step on a training loss."""
        train_loss = state.train_loss.updated(loss)
        # While there is no validation loss its mean is 0, and that is what published weights expect.
        losses = [train_loss.standardized(x) for x in (loss, state.valid_loss.mean)]

        leaves, structure = jax.tree.flatten(params)
        values = [jnp.atleast_1d(leaf).astype(jnp.float32) for leaf in leaves]
        limit, decays = state.gradient_range.limit, jnp.asarray(self.decays, jnp.float32)
        gs = [jnp.clip(g.astype(jnp.float32), -limit, limit) for g in structure.flatten_up_to(grads)]
        gs = [jnp.atleast_1d(g) for g in gs]
        momenta = [accumulate(decays, m, g) for m, g in zip(state.momenta, gs)]
        squares = [accumulate(decays, v, jnp.square(g)) for v, g in zip(state.squares, gs)]

        sizes = np.array([leaf.size for leaf in leaves], np.float32)
        g_squares, p_squares = (jnp.stack([jnp.mean(jnp.square(x)) for x in xs]) for xs in (gs, values))
        norms = safe_sqrt(jnp.stack([p_squares, g_squares]) * sizes[None])
        numbers = jnp.stack([means_and_variances(x) for x in zip(values, momenta, squares)])
        numbers = jnp.concatenate([numbers, norms.T], axis=1)
        features = _features([leaf.shape for leaf in leaves], jnp.stack(losses), numbers)
        heard = [_rows(state.from_lstm, len(leaves)), state.from_mlp, features]
        hidden, cell = self.lstm(jnp.concatenate(heard, axis=1), (state.hidden, state.cell))

        time = jnp.append(sin_embedding(state.step), jnp.float32(math.log(len(leaves)) - 1.0))
        size = jnp.stack([jnp.log(norms[0] + 1e-8), jnp.log(sizes)], axis=1)
        shared = jnp.concatenate([_rows(time, len(leaves)), size, self.to_mlp(hidden)], axis=1)
        updates, messages = [], []
        for leaf, *sources, about in zip(leaves, gs, values, momenta, squares, shared):
            shape = sources[0].shape
            direction, magnitude, *message = per_parameter(
                self.mlp.layers, _own_features, sources, shape, about
            )
            update = -self.step_multiplier * direction * jnp.exp(self.magnitude_rate * magnitude)
            updates.append(update.reshape(leaf.shape).astype(leaf.dtype))
            messages.append(jnp.mean(jnp.stack(message), axis=tuple(range(1, len(shape) + 1))))
        return structure.unflatten(updates), RNNMLPState(
            momenta=momenta,
            squares=squares,
            hidden=hidden,
            cell=cell,
            from_mlp=jnp.stack(messages),
            from_lstm=jnp.mean(self.to_itself(hidden), axis=0),
            train_loss=train_loss,
            valid_loss=state.valid_loss,
            gradient_range=state.gradient_range.updated(jnp.mean(g_squares)),
            step=state.step + 1,
        )


def _rows(row: Float[Array, " n"], count: int) -> Float[Array, "count n"]:
    return jnp.broadcast_to(row, (count, row.size))


def _features(
    shapes: list[tuple[int, ...]], losses: Float[Array, "2"], numbers: Float[Array, "tensors 8"]
) -> Float[Array, "tensors 18"]:
    """The recurrent network's inputs beside the messages.

    Args:
      shapes: of the tensors; dimensions after the fourth are left out.
      losses: standardised training and validation loss.
      numbers: means of parameters, momenta and second moments, their variances, norms of parameters and
        gradient.
    """
    known = [[1.0 if shape == () else -1.0, *np.log((*shape, 1, 1, 1, 1)[:4]) - 1.0] for shape in shapes]
    columns = [
        jnp.asarray(known, jnp.float32),
        _rows(losses, len(shapes)),
        log_magnitude(numbers),
        jnp.sign(numbers[:, :3]),
    ]
    return jnp.concatenate(columns, axis=1)[:, _BY_NAME]


def _own_features(sources: list[Array]) -> list[Array]:
    """Features of each parameter before normalisation, in the order of the published networks.

    Gradient; parameter; logarithm of its size; momenta; second moments; momenta over their roots; one over
    the roots.
    """
    g, p, momenta, squares = sources
    inverse = jax.tree.map(lambda v: jax.lax.rsqrt(v + 1e-6), squares)
    return [g, p, jnp.log(jnp.abs(p) + 1e-8), *momenta, *squares, *product(momenta, inverse), *inverse]
