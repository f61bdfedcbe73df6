"""Recurrent language models: LSTM, GRU, vanilla and identity-initialised cores."""

import dataclasses
import functools
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from outeropt.errors import ConfigError, unknown_name
from outeropt.task import Split, Task
from outeropt.tasks.layers import fan_in_normal, linear
from outeropt.tasks.sequences.language import TokenData, embed, next_token_loss, source


Carry = tuple[Float[Array, "batch hidden"], ...]
Gates = Float[Array, "batch gates"]
Gate = Float[Array, "batch hidden"]


@dataclasses.dataclass(frozen=True)
class Core:
    """One recurrent cell.

    Attributes:
      gates: blocks of `hidden` columns in its weights.
      carries: arrays (batch, hidden) that it carries from step to step; the first is its output.
      step: from the carry, this step's share of the input (with bias) and the recurrent weights, the next
        carry.
    """

    gates: int
    carries: int
    step: Callable[[Carry, Gates, Float[Array, "hidden gates"]], Carry]


def lstm_cell(i: Gate, f: Gate, g: Gate, o: Gate, cell: Gate) -> tuple[Gate, Gate]:
    """Output and cell after a step (Hochreiter and Schmidhuber 1997), from the gates before their functions.

    Args:
      i: input gate.
      f: forget gate.
      g: what may enter the cell.
      o: output gate.
      cell: the cell before.
    """
    cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(cell), cell


def _lstm(carry, inputs, weights):
    """The forget gate starts open (Jozefowicz et al. 2015)."""
    hidden, cell = carry
    i, f, o, g = jnp.split(inputs + hidden @ weights, 4, axis=1)
    return lstm_cell(i, f + 1, g, o, cell)


def _gru(carry, inputs, weights):
    """Cho et al. 2014, with the reset gate after the product, so that a step is one product."""
    (hidden,) = carry
    from_input, from_hidden = jnp.split(inputs, 3, axis=1), jnp.split(hidden @ weights, 3, axis=1)
    update = jax.nn.sigmoid(from_input[0] + from_hidden[0])
    reset = jax.nn.sigmoid(from_input[1] + from_hidden[1])
    candidate = jnp.tanh(from_input[2] + reset * from_hidden[2])
    return (update * hidden + (1 - update) * candidate,)


def _vanilla(carry, inputs, weights):
    """Elman 1990."""
    return (jnp.tanh(inputs + carry[0] @ weights),)


def _irnn(carry, inputs, weights):
    """ReLU units whose recurrent weights start as the identity (Le et al. 2015, arXiv 1504.00941)."""
    return (jax.nn.relu(inputs + carry[0] @ weights),)


CORES: dict[str, Core] = {
    "LSTM": Core(4, 2, _lstm),
    "GRU": Core(3, 1, _gru),
    "VanillaRNN": Core(1, 1, _vanilla),
    "IRNN": Core(1, 1, _irnn),
}


class RNNLM(Task):
    """Predicts each next token from an embedding, recurrent layers and a linear readout.

    Parameters, layers stacked on the leading axis: `embedding`, `w_in`, `w_recurrent`, `bias`, `initial` (the
    learned first carry, from 0), `head`, `head_bias`. Sequences are independent crops; no carry passes
    between batches.

    Attributes:
      data: sequences `obs` and `target`.
      vocabulary: number of tokens.
      core: name of the cell, one of `CORES`.
      hidden: units of a layer.
      embedding: width of the embedding; equals `hidden` if there are several layers.
      layers: recurrent layers.
      lowest: smallest loss a model can reach, where it is known.

    Raises:
      UnknownName: no such core.
      ConfigError: several layers of another width than the embedding.
    """

    name: str = eqx.field(static=True)
    data: TokenData
    vocabulary: int = eqx.field(static=True)
    core: str = eqx.field(static=True)
    hidden: int = eqx.field(static=True)
    embedding: int = eqx.field(static=True)
    layers: int = eqx.field(static=True, default=1)
    lowest: float | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if self.core not in CORES:
            raise unknown_name("recurrent core", self.core, CORES, ", ".join(CORES))
        if self.layers > 1 and self.embedding != self.hidden:
            raise ConfigError(
                f"{self.layers} recurrent layers need an embedding as wide as they are, {self.hidden}; "
                f"not {self.embedding}."
            )

    def init(self, key: PRNGKeyArray) -> tuple[dict[str, Array], None]:
        """Weights by fan-in, unit normal embedding, biases and initial carry 0."""
        cell = CORES[self.core]
        width = cell.gates * self.hidden
        embed_key, in_key, recurrent_key, head_key = jax.random.split(key, 4)
        if self.core == "IRNN":
            recurrent = jnp.broadcast_to(jnp.eye(self.hidden)[None], (self.layers, self.hidden, width))
        else:
            recurrent = self._stacked(recurrent_key, (self.hidden, width))
        return {
            "embedding": jax.random.normal(embed_key, (self.vocabulary, self.embedding)),
            "w_in": self._stacked(in_key, (self.embedding, width)),
            "w_recurrent": recurrent,
            "bias": jnp.zeros((self.layers, width)),
            "initial": jnp.zeros((self.layers, cell.carries, self.hidden)),
            "head": fan_in_normal(head_key, (self.hidden, self.vocabulary)),
            "head_bias": jnp.zeros(self.vocabulary),
        }, None

    def loss(self, params, state, batch, key):
        """Cross entropy in nats a token, with `accuracy`."""
        loss, metrics = next_token_loss(self.logits(params, batch["obs"]), batch["target"])
        return loss, (state, metrics)

    def logits(
        self, params: dict[str, Array], obs: Int[Array, "batch length"]
    ) -> Float[Array, "batch length vocabulary"]:
        """Scores of the next token after each token."""
        cell = CORES[self.core]
        x = embed(params["embedding"], obs.T)
        for layer in range(self.layers):
            weights = params["w_recurrent"][layer]

            def step(carry, inputs, weights=weights):
                carry = cell.step(carry, inputs, weights)
                return carry, carry[0]

            start = tuple(
                jnp.broadcast_to(params["initial"][layer, i][None], (obs.shape[0], self.hidden))
                for i in range(cell.carries)
            )
            x = jax.lax.scan(step, start, linear(x, params["w_in"][layer], params["bias"][layer]))[1]
        return linear(x.swapaxes(0, 1), params["head"], params["head_bias"])

    def batch(self, split: Split, key: PRNGKeyArray) -> dict[str, Int[Array, "batch length"]]:
        """Sequences and their next tokens."""
        return self.data.batch(split, key)

    @property
    def minimum(self) -> float | None:
        """Smallest loss a model can reach, where it is known."""
        return self.lowest

    def _stacked(self, key: PRNGKeyArray, shape: tuple[int, int]) -> Float[Array, "layers inputs units"]:
        return jax.vmap(lambda one: fan_in_normal(one, shape))(jax.random.split(key, self.layers))


def _build(
    name: str,
    dataset: str,
    core: str,
    hidden: int,
    embedding: int,
    length: int,
    batch_size: int,
    layers: int = 1,
) -> RNNLM:
    sequences, vocabulary, lowest = source(dataset, batch_size, length)
    return RNNLM(name, sequences, vocabulary, core, hidden, embedding, layers, lowest)


# Dataset, core, hidden units, embedding, sequence length, batch size, and layers if more than one.
_TABLE = {
    "RNNLM_Markov16_GRU32_seq16": ("markov16", "GRU", 32, 16, 16, 16),
    "RNNLM_Markov16_LSTM32_seq16": ("markov16", "LSTM", 32, 16, 16, 16),
    "RNNLM_Markov16_VanillaRNN64_seq32": ("markov16", "VanillaRNN", 64, 32, 32, 64),
    "RNNLM_Markov16_IRNN64_seq32": ("markov16", "IRNN", 64, 32, 32, 64),
    "RNNLM_Markov16_GRU64_seq32": ("markov16", "GRU", 64, 32, 32, 64),
    "RNNLM_Markov16_LSTM64_seq32": ("markov16", "LSTM", 64, 32, 32, 64),
    "RNNLM_TinyShakespeare_VanillaRNN128_seq32": ("tinyshakespeare", "VanillaRNN", 128, 64, 32, 128),
    "RNNLM_TinyShakespeare_IRNN128_seq32": ("tinyshakespeare", "IRNN", 128, 64, 32, 128),
    "RNNLM_TinyShakespeare_GRU128_seq32": ("tinyshakespeare", "GRU", 128, 64, 32, 128),
    "RNNLM_TinyShakespeare_LSTM64_seq32": ("tinyshakespeare", "LSTM", 64, 64, 32, 32),
    "RNNLM_TinyShakespeare_LSTM128_seq32": ("tinyshakespeare", "LSTM", 128, 64, 32, 128),
    "RNNLM_TinyShakespeare_LSTM128_seq64": ("tinyshakespeare", "LSTM", 128, 64, 64, 64),
    "RNNLM_TinyShakespeare_LSTM256x2_seq64": ("tinyshakespeare", "LSTM", 256, 256, 64, 64, 2),
    "RNNLM_TinyShakespeareBytes_LSTM128_seq32": ("tinyshakespeare_bytes", "LSTM", 128, 64, 32, 128),
    "RNNLM_PtbBytes_LSTM128_seq32": ("ptb_bytes", "LSTM", 128, 64, 32, 128),
    "RNNLM_PtbBytes_GRU128_seq32": ("ptb_bytes", "GRU", 128, 64, 32, 128),
    "RNNLM_Ptb_VanillaRNN128_seq32": ("ptb", "VanillaRNN", 128, 64, 32, 64),
    "RNNLM_Ptb_GRU128_seq32": ("ptb", "GRU", 128, 64, 32, 64),
    "RNNLM_Ptb_LSTM128_seq32": ("ptb", "LSTM", 128, 64, 32, 64),
    "RNNLM_Ptb_LSTM256_seq32": ("ptb", "LSTM", 256, 128, 32, 64),
}

TASKS: dict[str, Callable[[], Task]] = {
    name: functools.partial(_build, name, *row) for name, row in _TABLE.items()
}
