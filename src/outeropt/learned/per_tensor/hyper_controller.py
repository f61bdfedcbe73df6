"""The network of HyperV2 that looks at tensors and says how the network of their parameters should be."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from outeropt.learned.networks import LSTM, Linear


class Controller(eqx.Module):
    """The network that looks at tensors.

    Attributes:
      mixing: three maps (unused, pooled over the tensors, each tensor's own) in front of the LSTM, or none.
      lstm: from the mixed features.
      controls: from the LSTM's output to the weights of the networks in the bank.
      step_size: from the LSTM's output to the step size.
      first_hidden: the LSTM's output before the first step, zero at first.
      first_cell: its memory before the first step, zero at first.
    """

    mixing: tuple[Linear, ...]
    lstm: LSTM
    controls: Linear
    step_size: Linear
    first_hidden: Float[Array, " lstm"]
    first_cell: Float[Array, " lstm"]

    def __init__(self, inputs: int, hidden: int, controls: int, mix_layers: bool, key: PRNGKeyArray):
        *mixing, lstm, out, step_size = jax.random.split(key, 6)
        self.mixing = tuple(Linear(inputs, hidden, k) for k in mixing) if mix_layers else ()
        self.lstm = LSTM(hidden if mix_layers else inputs, hidden, lstm)
        self.controls = Linear(hidden, controls, out)
        self.step_size = Linear(hidden, 1, step_size)
        self.first_hidden, self.first_cell = jnp.zeros((2, hidden), jnp.float32)

    def __call__(
        self, x: Float[Array, "tensors inputs"], state: tuple[Array, Array]
    ) -> tuple[Float[Array, "tensors controls"], Float[Array, " tensors"], tuple[Array, Array]]:
        """Controls and step size of each tensor, and the LSTM's next state."""
        if self.mixing:
            _, pooled, own = self.mixing
            most = jnp.max(jax.nn.relu(pooled(x)), axis=0, keepdims=True)
            x = own(x) + most
        state = self.lstm(x, state)
        return self.controls(state[0]), self.step_size(state[0])[:, 0], state
