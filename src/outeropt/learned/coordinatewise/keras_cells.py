"""Recurrent cells as Keras defines and initialises them, and their Keras weights.

The optimizers of "Optimizer Amalgamation" (Huang et al. 2022, arXiv 2203.06474) are made of these. Their
weights are named `lstm0.kernel`, `lstm0.recurrent_kernel`, `lstm0.bias`, `delta.kernel`, `delta.bias` etc.

An architecture with a stack of LSTMs in its field `lstms` reads such weights by

    @property
    def published_names(self):
        return {**lstm_names("lstms", 2), **dense_names("head", "delta")}
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from outeropt.errors import ConfigError
from outeropt.learned.networks import Linear


# For each layer the hidden state, which is also its output, and the cell.
LSTMState = tuple[tuple[Float[Array, "hidden coordinates"], Float[Array, "hidden coordinates"]], ...]

_glorot_uniform = jax.nn.initializers.glorot_uniform()
_orthogonal = jax.nn.initializers.orthogonal()


def dense(inputs: int, outputs: int, key: PRNGKeyArray) -> Linear:
    """An affine map whose weight is at first uniform within `sqrt(6 / (inputs + outputs))` (Glorot)."""
    kernel = _glorot_uniform(key, (inputs, outputs), jnp.float32)
    return eqx.tree_at(lambda layer: layer.weight, Linear(inputs, outputs, None), kernel)


class LSTM(eqx.Module):
    """A long short-term memory cell (Hochreiter and Schmidhuber 1997) that runs on many coordinates at once.

    With `[i, f, g, o] = W^T x + U^T h + b`:

        c' = sigmoid(f) c + sigmoid(i) tanh(g)      h' = sigmoid(o) tanh(c')

    Features stand in the first axis and coordinates in the second, where the four gates are whole blocks of
    memory and each operation on one of them a single long loop.

    Attributes:
      kernel: W, Glorot-uniform at first.
      recurrent_kernel: U, with orthonormal rows at first.
      bias: b, zeros at first but for the forget gate's, which is 1.
    """

    kernel: Float[Array, "inputs gates"]
    recurrent_kernel: Float[Array, "hidden gates"]
    bias: Float[Array, " gates"]

    def __init__(self, inputs: int, hidden: int, key: PRNGKeyArray):
        kernel_key, recurrent_key = jax.random.split(key)
        self.kernel = _glorot_uniform(kernel_key, (inputs, 4 * hidden), jnp.float32)
        self.recurrent_kernel = _orthogonal(recurrent_key, (hidden, 4 * hidden), jnp.float32)
        self.bias = jnp.zeros(4 * hidden, jnp.float32).at[hidden : 2 * hidden].set(1.0)

    def __call__(
        self,
        x: Float[Array, "inputs coordinates"],
        state: tuple[Float[Array, "hidden coordinates"], Float[Array, "hidden coordinates"]],
    ) -> tuple[Float[Array, "hidden coordinates"], Float[Array, "hidden coordinates"]]:
        """The next (hidden, cell) from the last one; the output is the hidden part."""
        hidden, cell = state
        # One product is faster than two.
        weight = jnp.concatenate([self.kernel, self.recurrent_kernel])
        i, f, g, o = jnp.split(weight.T @ jnp.concatenate([x, hidden]) + self.bias[:, None], 4)
        cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jax.nn.sigmoid(o) * jnp.tanh(cell), cell


class LSTMStack(eqx.Module):
    """LSTMs, each reading the hidden state of the one before.

    For derivatives only inputs and states are kept: the way back computes the gates anew, which takes less
    time than to read them from memory (benchmarks/coordinatewise.py).

    Attributes:
      layers: from the inputs to the output.
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
            following.append(layer(x, last))
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
            following.append(layer(out, last))
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
    """`published_names` of an `LSTMStack` in `field`."""
    parts = [(index, part) for index in range(layers) for part in ("kernel", "recurrent_kernel", "bias")]
    return {f"{field}.layers.{index}.{part}": f"lstm{index}.{part}" for index, part in parts}


def _layers(inputs: tuple[int, ...], hidden_sizes: tuple[int, ...], key: PRNGKeyArray) -> tuple[LSTM, ...]:
    if not hidden_sizes or min(hidden_sizes) < 1:
        raise ConfigError(
            f"hidden_sizes = {hidden_sizes} gives no stack of LSTMs; give a positive size for each "
            "layer, such as (20, 20)."
        )
    keys = jax.random.split(key, len(hidden_sizes))
    return tuple(LSTM(n, hidden, k) for n, hidden, k in zip(inputs, hidden_sizes, keys))


def _zeros(layers: tuple[LSTM, ...], coordinates: int) -> LSTMState:
    shapes = [(len(layer.recurrent_kernel), coordinates) for layer in layers]
    # Each an array of its own: a state with shared arrays could not be donated.
    return tuple((jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32)) for shape in shapes)
