"""Small networks that learned optimizers are made of. Their array leaves are meta-parameters."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from outeropt.compiling import jit_once
from outeropt.errors import ConfigError


class Linear(eqx.Module):
    """An affine map.

    Attributes:
      weight: truncated normal of standard deviation 1/sqrt(inputs) at first, or zeros.
      bias: zeros at first.
    """

    weight: Float[Array, "inputs outputs"]
    bias: Float[Array, " outputs"]

    def __init__(self, inputs: int, outputs: int, key: PRNGKeyArray | None):
        """`key` None starts from zero weights."""
        self.weight, self.bias = _initial(key, inputs, outputs)

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        out = x @ self.weight
        return out + jnp.broadcast_to(self.bias, out.shape)

    def by_features(self, x: Float[Array, "inputs batch"]) -> Float[Array, "outputs batch"]:
        """The same map with the features in the first axis."""
        return self.weight.T @ x + self.bias[:, None]


class MLP(eqx.Module):
    """Affine maps with ReLU between them.

    Attributes:
      layers: from the inputs to the outputs.
    """

    layers: tuple[Linear, ...]

    def __init__(self, inputs: int, hidden: tuple[int, ...], outputs: int, key: PRNGKeyArray):
        self.layers = _layers(key, (inputs, *hidden, outputs))

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        for layer in self.layers[:-1]:
            x = jax.nn.relu(layer(x))
        return self.layers[-1](x)


class LSTM(eqx.Module):
    """A long short-term memory cell whose forget gate starts open (Jozefowicz et al. 2015).

    With `[i, g, f, o] = [x, h] W + b`: `c' = sigmoid(f + 1) c + sigmoid(i) tanh(g)`,
    `h' = sigmoid(o) tanh(c')`.

    Attributes:
      gates: the map from inputs and hidden state to the four gates, in the order i, g, f, o.
    """

    gates: Linear

    def __init__(self, inputs: int, hidden: int, key: PRNGKeyArray):
        self.gates = Linear(inputs + hidden, 4 * hidden, key)

    def __call__(
        self,
        x: Float[Array, "*batch inputs"],
        state: tuple[Float[Array, "*batch hidden"], Float[Array, "*batch hidden"]],
    ) -> tuple[Float[Array, "*batch hidden"], Float[Array, "*batch hidden"]]:
        """The next (hidden, cell) from the last one; the output is the hidden part."""
        hidden, cell = state
        i, g, f, o = jnp.split(self.gates(jnp.concatenate([x, hidden], axis=-1)), 4, axis=-1)
        cell = jax.nn.sigmoid(f + 1.0) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jax.nn.sigmoid(o) * jnp.tanh(cell), cell


def check_sizes(**sizes: int) -> None:
    """Refuses numbers of units, layers and the like that make no network.

    Raises:
      ConfigError: one is below 1.
    """
    for name, size in sizes.items():
        if size < 1:
            raise ConfigError(f"{name} must be at least 1, not {size}.")


# Compiled as one, because a program for each small operation takes seconds to compile.
@functools.partial(jit_once, static_argnums=(1, 2))
def _initial(key: PRNGKeyArray | None, inputs: int, outputs: int) -> tuple[Array, Array]:
    bias = jnp.zeros((outputs,), jnp.float32)
    if key is None:
        return jnp.zeros((inputs, outputs), jnp.float32), bias
    weight = jax.random.truncated_normal(key, -2.0, 2.0, (inputs, outputs), jnp.float32)
    return weight / inputs**0.5, bias


@functools.partial(jit_once, static_argnums=1)
def _layers(key: PRNGKeyArray, sizes: tuple[int, ...]) -> tuple[Linear, ...]:
    keys = jax.random.split(key, len(sizes) - 1)
    return tuple(Linear(a, b, k) for a, b, k in zip(sizes, sizes[1:], keys))
