"""Language models that read a text in order: the hidden state goes on from batch to batch.

So reads the Penn Treebank of Clarke, Oldewage and Hernandez-Lobato 2022 (arXiv 2110.10461).
"""

import functools
import math
from collections.abc import Callable, Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from outeropt import data
from outeropt.data import draw
from outeropt.errors import ConfigError, OuteroptError
from outeropt.task import ModelState, Split, Task
from outeropt.tasks.layers import linear
from outeropt.tasks.sequences.language import counted_token_loss, embed, markov_streams
from outeropt.tasks.sequences.rnn import lstm_cell


Window = dict[str, Int[Array, "streams length"]]
Carry = Float[Array, "layers 2 streams hidden"]

NO_TOKEN = -1


class Streams(eqx.Module):
    """A text cut into streams of equal length that are read side by side, in windows one after the other.

    Attributes:
      splits: for each of train, valid and test the tokens, a row for each place in the streams. The last row
        of train, which is only predicted there, is the first of valid, which is only read.
      length: rows that a window reads. The last window of a split has what is left.

    Raises:
      OuteroptError: a split has no row to predict.
    """

    splits: dict[str, Int[Array, "rows streams"]]
    length: int = eqx.field(static=True)

    def __check_init__(self):
        for split, rows in self.splits.items():
            if rows.shape[0] < 2:
                raise OuteroptError(
                    f"Split {split!r} has {rows.shape[0]} rows of {rows.shape[1]} streams, too few to "
                    "predict one from another. Give a longer text or fewer streams."
                )

    @property
    def streams(self) -> int:
        """Streams side by side."""
        return self.splits["train"].shape[1]

    def windows(self, split: Split) -> int:
        """Windows from the beginning of a split to its end."""
        return math.ceil((self.splits[split].shape[0] - 1) / self.length)

    def window(self, split: Split, index: Int[Array, ""]) -> Window:
        """The tokens `obs` of one window and the next of each, `target`; -1 behind the end of the split."""
        rows = self.splits[split]
        places, last = index * self.length + jnp.arange(self.length + 1), rows.shape[0] - 1
        tokens = rows.at[jnp.minimum(places, last)].get(mode="promise_in_bounds")
        target = jnp.where((places[1:] <= last)[:, None], tokens[1:], NO_TOKEN)
        return {"obs": tokens[:-1].T, "target": target.T}

    def batch(self, split: Split, key: PRNGKeyArray) -> Window:
        """A random window of a split with the one `before` it, -1 where there is none."""
        index = draw.rows(key, 1, self.windows(split))[0]
        before = self.window(split, jnp.maximum(index - 1, 0))["obs"]
        return {**self.window(split, index), "before": jnp.where(index > 0, before, NO_TOKEN)}


class StreamLM(Task):
    """Predicts each next token by LSTM layers whose hidden state goes on from one training batch to the next.

    Where training is in its text is model state, and so is the hidden state: `"window"`, and `"carries"`,
    those before the coming batch, the batch before it, and so on. The training loss reads its rows there and
    not in the batch that it is given, whose key therefore does not matter; with the training step, and with
    nothing else, both move on. Derivatives end at the beginning of a batch (truncated backpropagation). At
    the end of the text the hidden state is cleared and reading begins anew: that is an epoch. A last window
    that is shorter has a batch of its own, whose loss is the mean over fewer tokens.

    Evaluation, of the validation loss that optimizers are offered as well, is of windows at random and does
    not move training. It starts from the hidden state that the same parameters have after the window before,
    read from a cleared one and without derivatives; the first window of a split starts from a cleared state.
    So the expected loss is what reading a split once in order gives as the mean over its windows, but for
    what an LSTM knows of tokens farther away than a window.

    Parameters are PyTorch's `nn.LSTM`: gates in the order input, forget, cell, output; `w_in`, `w_recurrent`,
    `b_in`, `b_recurrent` with layers stacked on the leading axis, with `head`, `head_bias` behind them, all
    uniform in `+-1/sqrt(hidden)`, and the unit normal `embedding`, as wide as a layer.

    Attributes:
      data: the text.
      vocabulary: number of tokens.
      hidden: units of a layer, and width of the embedding.
      layers: LSTM layers.
      kept: how many steps back `rewound` knows the hidden state.

    Raises:
      ConfigError: no state is kept.
    """

    name: str = eqx.field(static=True)
    data: Streams
    vocabulary: int = eqx.field(static=True)
    hidden: int = eqx.field(static=True)
    layers: int = eqx.field(static=True)
    kept: int = eqx.field(static=True, default=10)

    def __check_init__(self):
        if self.kept < 1:
            raise ConfigError(f"kept = {self.kept} is not allowed; keep at least 1 hidden state.")

    def init(self, key: PRNGKeyArray) -> tuple[dict[str, Array], ModelState]:
        """As PyTorch; reading begins at the first window, with a cleared hidden state."""
        gates = 4 * self.hidden
        shapes = {
            "w_in": (self.layers, self.hidden, gates),
            "w_recurrent": (self.layers, self.hidden, gates),
            "b_in": (self.layers, gates),
            "b_recurrent": (self.layers, gates),
            "head": (self.hidden, self.vocabulary),
            "head_bias": (self.vocabulary,),
        }
        embed_key, *keys = jax.random.split(key, 1 + len(shapes))
        bound = self.hidden**-0.5
        params = {
            name: jax.random.uniform(k, shape, jnp.float32, -bound, bound)
            for k, (name, shape) in zip(keys, shapes.items())
        }
        params["embedding"] = jax.random.normal(embed_key, (self.vocabulary, self.hidden), jnp.float32)
        carries = jnp.zeros((self.kept, *self._cleared().shape), jnp.float32)
        return params, {"window": jnp.int32(0), "carries": carries}

    def loss(self, params, state, batch, key):
        """Cross entropy in nats a token, with `accuracy`."""
        if key is None:
            before, fixed = batch["before"], jax.lax.stop_gradient(params)
            _, carry = self.read(fixed, self._cleared(), jnp.maximum(before, 0))
            carry = jnp.where((before[:, :1] >= 0)[None, None], carry, 0.0)
            loss, metrics, _ = self._window_loss(params, carry, batch)
            return loss, (state, metrics)
        rows = self.data.window("train", state["window"])
        loss, metrics, carry = self._window_loss(params, state["carries"][0], rows)
        window = state["window"] + 1
        over = window == self.data.windows("train")
        carry = jax.lax.stop_gradient(jnp.where(over, 0.0, carry))
        carries = jnp.concatenate([carry[None], state["carries"][:-1]])
        return loss, ({"window": jnp.where(over, 0, window), "carries": carries}, metrics)

    def read(
        self, params: dict[str, Array], carry: Carry, obs: Int[Array, "streams length"]
    ) -> tuple[Float[Array, "length streams hidden"], Carry]:
        """What the last layer gives after each token, and the hidden state after the last.

        Args:
          params: parameters.
          carry: hidden state before the first token: outputs and cells of every layer.
          obs: tokens.
        """
        x, after = embed(params["embedding"], obs.T), []
        for layer in range(self.layers):
            weights = params["w_recurrent"][layer]

            def step(carry, inputs, weights=weights):
                hidden, cell = carry
                i, f, g, o = jnp.split(inputs + hidden @ weights, 4, axis=1)
                carry = lstm_cell(i, f, g, o, cell)
                return carry, carry[0]

            bias = params["b_in"][layer] + params["b_recurrent"][layer]
            end, x = jax.lax.scan(step, tuple(carry[layer]), linear(x, params["w_in"][layer], bias))
            after.append(jnp.stack(end))
        return x, jnp.stack(after)

    def rewound(self, state: ModelState, steps: Int[Array, ""]) -> ModelState:
        """The window of `steps` steps ago, with its hidden state or the oldest that is kept."""
        carry = state["carries"].at[jnp.minimum(steps, self.kept - 1)].get(mode="promise_in_bounds")
        window = (state["window"] - steps) % self.data.windows("train")
        return {"window": window, "carries": state["carries"].at[0].set(carry)}

    def batch(self, split: Split, key: PRNGKeyArray) -> Window:
        """A random window with the one before it; training reads its own."""
        return self.data.batch(split, key)

    def _window_loss(
        self, params: dict[str, Array], carry: Carry, rows: Window
    ) -> tuple[Float[Array, ""], dict[str, Array], Carry]:
        x, carry = self.read(params, carry, rows["obs"])
        logits, target = linear(x, params["head"], params["head_bias"]), rows["target"].T
        return *counted_token_loss(logits, target, target != NO_TOKEN), carry

    def _cleared(self) -> Carry:
        return jnp.zeros((self.layers, 2, self.data.streams, self.hidden), jnp.float32)


def cut(text: Mapping[str, Int[Array, " tokens"]], streams: int) -> dict[str, Int[Array, "rows streams"]]:
    """A text as rows of `streams` streams, by split.

    Train and valid, one after the other, become streams of equal length, each a contiguous piece. Of the rows
    that predict another the last are validation, in its share of the text; so it is the tail of every stream.
    Test makes streams of its own. Tokens that are left over at the end are dropped.

    Args:
      text: token numbers of train, valid and test.
      streams: how many.

    Raises:
      ConfigError: no stream.
    """
    if streams < 1:
        raise ConfigError(f"streams = {streams} is not allowed; cut the text into at least 1.")
    both = jnp.concatenate([text["train"], text["valid"]])
    rows, test = (_side_by_side(part, streams) for part in (both, text["test"]))
    train = round((len(rows) - 1) * (1 - len(text["valid"]) / len(both)))
    return {"train": rows[: train + 1], "valid": rows[train:], "test": test}


def _side_by_side(tokens: Int[Array, " tokens"], streams: int) -> Int[Array, "rows streams"]:
    return tokens[: len(tokens) // streams * streams].reshape(streams, -1).T


def _build(name: str, dataset: str, hidden: int, layers: int, streams: int, length: int) -> StreamLM:
    # Concrete arrays even while a caller is being traced: they outlive the trace.
    with jax.ensure_compile_time_eval():
        markov = dataset == "markov16"
        text, vocabulary = (markov_streams(16, 2), 16) if markov else data.tokens(dataset)
        splits = cut(text, streams)
    return StreamLM(name, Streams(splits, length), vocabulary, hidden, layers)


# Dataset, hidden units, layers, streams, window length.
_TABLE = {
    "StreamLM_Markov16_LSTM32_seq16": ("markov16", 32, 1, 16, 16),
    "StreamLM_TinyShakespeare_LSTM128_seq64": ("tinyshakespeare", 128, 1, 64, 64),
    # Clarke, Oldewage and Hernandez-Lobato 2022. They also clip gradients to a norm of 0.25.
    "StreamLM_Ptb_LSTM650x2_seq70": ("ptb", 650, 2, 40, 70),
}

TASKS: dict[str, Callable[[], Task]] = {
    name: functools.partial(_build, name, *row) for name, row in _TABLE.items()
}
