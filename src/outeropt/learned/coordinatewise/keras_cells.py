"""Recurrent cells as Keras defines and initialises them, and their Keras weights.

The optimizers of "Optimizer Amalgamation" (Huang et al. 2022, arXiv 2203.06474) are made of these. Their
weights are named `lstm0.kernel`, `lstm0.recurrent_kernel`, `lstm0.bias`, `delta.kernel`, `delta.bias` etc.

An architecture with a stack of LSTMs in its field `lstms` reads such weights by

    @property
    def published_names(self):
        return {**lstm_names("lstms", 2), **dense_names("head", "delta")}

    def from_published(self, arrays):
        return super().from_published(with_gates(arrays, 2))
"""

from collections.abc import Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from outeropt.errors import ConfigError
from outeropt.learned.networks import LSTM, Linear


# For each layer the hidden state, which is also its output, and the cell.
LSTMState = tuple[tuple[Float[Array, "hidden coordinates"], Float[Array, "hidden coordinates"]], ...]

_glorot_uniform = jax.nn.initializers.glorot_uniform()
_orthogonal = jax.nn.initializers.orthogonal()


def dense(inputs: int, outputs: int, key: PRNGKeyArray) -> Linear:
    """An affine map whose weight is at first uniform within `sqrt(6 / (inputs + outputs))` (Glorot)."""
    kernel = _glorot_uniform(key, (inputs, outputs), jnp.float32)
    return eqx.tree_at(lambda layer: layer.weight, Linear(inputs, outputs, None), kernel)


class LSTMStack(eqx.Module):
    """LSTMs, each reading the hidden state of the one before (Hochreiter and Schmidhuber 1997).

    They run on many coordinates at once. Features stand in the first axis, coordinates in the second, and for
    derivatives only inputs and states are kept: the way back computes the gates anew, which takes less time
    than to read them from memory (benchmarks/coordinatewise.py).

    Kernels are Glorot-uniform at first, recurrent kernels have orthonormal rows, and biases are zero but for
    the forget gate's, which is 1.

    Attributes:
      layers: from the inputs to the output. Their bias of the forget gate is stored without the 1 that the
        cell adds.
    """

    layers: tuple[LSTM, ...]

    def __init__(self, inputs: int, hidden_sizes: tuple[int, ...], key: PRNGKeyArray):
        """Raises `ConfigError` unless `hidden_sizes` holds a positive size for each of at least one layer."""
        self.layers = _layers((inputs, *hidden_sizes[:-1]), hidden_sizes, key)

    def zeros(self, coordinates: int) -> LSTMState:
        """The state before the first input."""
        return _zeros(self.layers, coordinates)

    @jax.checkpoint
    def __call__(
        self, x: Float[Array, "inputs coordinates"], state: LSTMState
    ) -> tuple[Float[Array, "hidden coordinates"], LSTMState]:
        """The hidden state of the last layer, and the next state."""
        following = []
        for layer, last in zip(self.layers, state):
            following.append(layer.by_features(x, last))
            x = following[-1][0]
        return x, tuple(following)


class ShortcutLSTMStack(eqx.Module):
    """As `LSTMStack`, but every layer after the first reads the inputs as well, and so does who comes next.

    Attributes:
      layers: from the inputs to the output.
    """

    layers: tuple[LSTM, ...]

    def __init__(self, inputs: int, hidden_sizes: tuple[int, ...], key: PRNGKeyArray):
        """Raises `ConfigError` unless `hidden_sizes` holds a positive size for each of at least one layer."""
        before = (inputs, *(hidden + inputs for hidden in hidden_sizes[:-1]))
        self.layers = _layers(before, hidden_sizes, key)

    def zeros(self, coordinates: int) -> LSTMState:
        """The state before the first input."""
        return _zeros(self.layers, coordinates)

    @jax.checkpoint
    def __call__(
        self, x: Float[Array, "inputs coordinates"], state: LSTMState
    ) -> tuple[Float[Array, "hidden_and_inputs coordinates"], LSTMState]:
        """The hidden state of the last layer and below it the inputs, and the next state."""
        following, out = [], x
        for layer, last in zip(self.layers, state):
            following.append(layer.by_features(out, last))
            out = jnp.concatenate([following[-1][0], x])
        return out, tuple(following)


class GRU(eqx.Module):
    """A gated recurrent unit whose reset gate acts after the recurrent product (Cho et al. 2014).

    With `[az, ar, ah] = x W + b0` and `[bz, br, bh] = h U + b1`:

        z = sigmoid(az + bz)      r = sigmoid(ar + br)      h' = z h + (1 - z) tanh(ah + r bh)

    Attributes:
      kernel: W, Glorot-uniform at first.
      recurrent_kernel: U, with orthonormal rows at first.
      bias: b0 and b1, zeros at first.
    """

    kernel: Float[Array, "inputs gates"]
    recurrent_kernel: Float[Array, "hidden gates"]
    bias: Float[Array, "2 gates"]

    def __init__(self, inputs: int, hidden: int, key: PRNGKeyArray):
        kernel_key, recurrent_key = jax.random.split(key)
        self.kernel = _glorot_uniform(kernel_key, (inputs, 3 * hidden), jnp.float32)
        self.recurrent_kernel = _orthogonal(recurrent_key, (hidden, 3 * hidden), jnp.float32)
        self.bias = jnp.zeros((2, 3 * hidden), jnp.float32)

    def zeros(self, *batch: int) -> Float[Array, "*batch hidden"]:
        """The state before the first input, for a batch of this shape."""
        return jnp.zeros((*batch, self.recurrent_kernel.shape[-2]), jnp.float32)

    def __call__(
        self, x: Float[Array, "*batch inputs"], hidden: Float[Array, "*batch hidden"]
    ) -> Float[Array, "*batch hidden"]:
        """The next hidden state, which is also the output."""
        a, b = x @ self.kernel, hidden @ self.recurrent_kernel
        az, ar, ah = jnp.split(a + jnp.broadcast_to(self.bias[0], a.shape), 3, axis=-1)
        bz, br, bh = jnp.split(b + jnp.broadcast_to(self.bias[1], b.shape), 3, axis=-1)
        z = jax.nn.sigmoid(az + bz)
        return z * hidden + (1.0 - z) * jnp.tanh(ah + jax.nn.sigmoid(ar + br) * bh)


def dense_names(field: str, published: str) -> dict[str, str]:
    """`published_names` of an affine map: the leaves of a `Linear` in `field`."""
    return {f"{field}.weight": f"{published}.kernel", f"{field}.bias": f"{published}.bias"}


def gru_names(field: str, published: str) -> dict[str, str]:
    """`published_names` of a `GRU` in `field`."""
    parts = ("kernel", "recurrent_kernel", "bias")
    return {f"{field}.{part}": f"{published}.{part}" for part in parts}


def lstm_names(field: str, layers: int) -> dict[str, str]:
    """`published_names` of an `LSTMStack` in `field`, for arrays that went through `with_gates`."""
    parts = [f"{index}.gates.{part}" for index in range(layers) for part in ("weight", "bias")]
    return {f"{field}.layers.{part}": f"lstm{part}" for part in parts}


def with_gates(arrays: Mapping[str, Array | np.ndarray], layers: int) -> dict[str, Array | np.ndarray]:
    """Published weights, and in addition those of Keras's LSTMs as our `networks.LSTM` holds them.

    Keras has a kernel for the inputs and one for the hidden state, orders the gates i, f, c, o, and its bias
    of the forget gate holds all of it. `networks.LSTM` has one weight for both, the order i, c, f, o, and
    adds 1 to the forget gate.

    Args:
      arrays: weights by path, with `lstmI.kernel` [inputs, 4 hidden], `lstmI.recurrent_kernel`
        [hidden, 4 hidden] and `lstmI.bias` [4 hidden] for each layer I from 0.
      layers: the number of layers.

    Returns:
      The same with `lstmI.gates.weight` [inputs + hidden, 4 hidden] and `lstmI.gates.bias` [4 hidden] for
      each layer, which `lstm_names` refers to.

    Raises:
      ConfigError: an array is missing, or those of a layer do not fit each other.
    """
    converted = dict(arrays)
    for name in [f"lstm{index}" for index in range(layers)]:
        paths = [f"{name}.{part}" for part in ("kernel", "recurrent_kernel", "bias")]
        for path in paths:
            if path not in arrays:
                raise ConfigError(
                    f"The weights have no array {path!r}, which a stack of {layers} LSTMs needs; "
                    f"they have {', '.join(sorted(arrays)[:8])} ..."
                )
        kernel, recurrent, bias = (np.asarray(arrays[path], np.float32) for path in paths)
        hidden = bias.size // 4
        gates = (4 * hidden,)
        if (kernel.shape[1:], recurrent.shape, bias.shape) != (gates, (hidden, *gates), gates):
            raise ConfigError(
                f"{', '.join(paths)} have shapes {kernel.shape}, {recurrent.shape}, {bias.shape}; an LSTM "
                "of Keras has (inputs, 4 hidden), (hidden, 4 hidden), (4 hidden,)."
            )
        weight = np.concatenate([kernel, recurrent])
        i, f, c, o = np.split(np.concatenate([weight, bias[None]]), 4, axis=1)
        f[-1] -= 1.0
        converted[f"{name}.gates.weight"] = np.concatenate([i, c, f, o], axis=1)[:-1]
        converted[f"{name}.gates.bias"] = np.concatenate([i, c, f, o], axis=1)[-1]
    return converted


def _layers(inputs: tuple[int, ...], hidden_sizes: tuple[int, ...], key: PRNGKeyArray) -> tuple[LSTM, ...]:
    if not hidden_sizes or min(hidden_sizes) < 1:
        raise ConfigError(
            f"hidden_sizes = {hidden_sizes} gives no stack of LSTMs; give a positive size for each "
            "layer, such as (20, 20)."
        )
    keys = jax.random.split(key, len(hidden_sizes))
    return tuple(_lstm(n, hidden, k) for n, hidden, k in zip(inputs, hidden_sizes, keys))


def _zeros(layers: tuple[LSTM, ...], coordinates: int) -> LSTMState:
    shapes = [(layer.gates.bias.shape[-1] // 4, coordinates) for layer in layers]
    # Each an array of its own: a state with shared arrays could not be donated.
    return tuple((jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32)) for shape in shapes)


def _lstm(inputs: int, hidden: int, key: PRNGKeyArray) -> LSTM:
    kernel_key, recurrent_key = jax.random.split(key)
    kernel = _glorot_uniform(kernel_key, (inputs, 4 * hidden), jnp.float32)
    recurrent = _orthogonal(recurrent_key, (hidden, 4 * hidden), jnp.float32)
    # The order of the gates does not matter to these distributions.
    weight = jnp.concatenate([kernel, recurrent])
    return eqx.tree_at(lambda cell: cell.gates.weight, LSTM(inputs, hidden, key), weight)
