"""Decoder-only transformer language models."""

import functools
import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from outeropt.errors import ConfigError
from outeropt.task import Split, Task
from outeropt.tasks.attention import causal, self_attend
from outeropt.tasks.layers import dropout, fan_in_normal, stacked_fan_in_normal
from outeropt.tasks.norms import layer_norm
from outeropt.tasks.sequences.language import TokenData, embed, next_token_loss, source


class TransformerLM(Task):
    """Predicts each next token by causal attention (Vaswani et al. 2017), norms before each half-block.

    Every block is `x += attention(norm(x))`, `x += mlp(norm(x))` with a GELU layer four times as wide;
    positions are learned; linear maps have no biases. Parameters, blocks stacked on the leading axis and
    scanned: `embedding`, `position`, `qkv`, `out`, `up`, `down`, `norm_scale` and `norm_offset` (two rows a
    block, then the last norm), `head`.

    Attributes:
      data: sequences `obs` and `target`.
      vocabulary: number of tokens.
      width: width of the residual stream.
      heads: attention heads; must divide `width`.
      layers: blocks.
      dropout: probability of dropping an entry of the embedding or of a half-block's output, in [0, 1).
      lowest: smallest loss a model can reach, where it is known.

    Raises:
      ConfigError: the heads do not divide the width.
    """

    name: str = eqx.field(static=True)
    data: TokenData
    vocabulary: int = eqx.field(static=True)
    width: int = eqx.field(static=True)
    heads: int = eqx.field(static=True)
    layers: int = eqx.field(static=True)
    dropout: float = eqx.field(static=True, default=0.0)
    lowest: float | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if self.width % self.heads:
            raise ConfigError(f"{self.heads} heads do not divide a width of {self.width}; use a divisor.")

    def init(self, key: PRNGKeyArray) -> tuple[dict[str, Array], None]:
        """Weights by fan-in; what writes to the residual stream is smaller by `sqrt(2 layers)`."""
        keys = dict(
            zip(("embedding", "position", "qkv", "out", "up", "down", "head"), jax.random.split(key, 7))
        )
        width, norms = self.width, 2 * self.layers + 1
        residual = 1 / math.sqrt(2 * self.layers)

        def stacked(name, shape, gain=1.0):
            return stacked_fan_in_normal(keys[name], self.layers, shape, gain)

        return {
            "embedding": jax.random.normal(keys["embedding"], (self.vocabulary, width)) / math.sqrt(width),
            "position": jax.random.normal(keys["position"], (self.data.length, width)) / math.sqrt(width),
            "qkv": stacked("qkv", (width, 3 * width)),
            "out": stacked("out", (width, width), residual),
            "up": stacked("up", (width, 4 * width)),
            "down": stacked("down", (4 * width, width), residual),
            "norm_scale": jnp.ones((norms, width)),
            "norm_offset": jnp.zeros((norms, width)),
            "head": fan_in_normal(keys["head"], (width, self.vocabulary)),
        }, None

    def loss(self, params, state, batch, key):
        """Cross entropy in nats a token, with `accuracy`."""
        loss, metrics = next_token_loss(self.logits(params, batch["obs"], key), batch["target"])
        return loss, (state, metrics)

    def logits(
        self, params: dict[str, Array], obs: Int[Array, "batch length"], key: PRNGKeyArray | None
    ) -> Float[Array, "batch length vocabulary"]:
        """Scores of the next token after each token; without a key there is no dropout."""
        scale, offset = params["norm_scale"], params["norm_offset"]
        blocks = {name: params[name] for name in ("qkv", "out", "up", "down")}
        blocks["scale"] = scale[:-1].reshape(self.layers, 2, self.width)
        blocks["offset"] = offset[:-1].reshape(self.layers, 2, self.width)
        keys = jax.random.split(key, (self.layers + 1, 2)) if key is not None and self.dropout else None

        def drop(x, key):
            return dropout(x, self.dropout, key)

        def block(x, scanned):
            weights, keys = scanned
            first, second = (None, None) if keys is None else keys
            y = layer_norm(x, weights["scale"][0], weights["offset"][0])
            y = self_attend(y @ weights["qkv"], self.heads, causal(obs.shape[1]))
            x = x + drop(y @ weights["out"], first)
            y = layer_norm(x, weights["scale"][1], weights["offset"][1])
            return x + drop(jax.nn.gelu(y @ weights["up"]) @ weights["down"], second), None

        x = embed(params["embedding"], obs) + params["position"][None, : obs.shape[1]]
        x = drop(x, None if keys is None else keys[-1, 0])
        x, _ = jax.lax.scan(block, x, (blocks, None if keys is None else keys[:-1]))
        return layer_norm(x, scale[-1], offset[-1]) @ params["head"]

    def batch(self, split: Split, key: PRNGKeyArray) -> dict[str, Int[Array, "batch length"]]:
        """Sequences and their next tokens."""
        return self.data.batch(split, key)

    @property
    def minimum(self) -> float | None:
        """Smallest loss a model can reach, where it is known."""
        return self.lowest


def _build(
    name: str,
    dataset: str,
    layers: int,
    width: int,
    heads: int,
    length: int,
    batch_size: int,
    dropout: float = 0.0,
) -> TransformerLM:
    sequences, vocabulary, lowest = source(dataset, batch_size, length)
    return TransformerLM(name, sequences, vocabulary, width, heads, layers, dropout, lowest)


# Dataset, layers, width, heads, sequence length, batch size, and dropout if any.
_TABLE = {
    "TransformerLM_Markov16_1layer_16width_seq16": ("markov16", 1, 16, 2, 16, 16),
    "TransformerLM_Markov16_1layer_32width": ("markov16", 1, 32, 4, 32, 64),
    "TransformerLM_Markov16_2layer_64width": ("markov16", 2, 64, 4, 32, 64),
    "TransformerLM_TinyShakespeare_1layer_32width": ("tinyshakespeare", 1, 32, 4, 32, 32),
    "TransformerLM_TinyShakespeare_2layer_64width": ("tinyshakespeare", 2, 64, 4, 64, 32),
    "TransformerLM_TinyShakespeare_2layer_64width_Dropout01": ("tinyshakespeare", 2, 64, 4, 64, 32, 0.1),
    "TransformerLM_TinyShakespeare_3layer_128width": ("tinyshakespeare", 3, 128, 4, 64, 64),
    "TransformerLM_TinyShakespeare_5layer_256width_Dropout01": ("tinyshakespeare", 5, 256, 8, 128, 32, 0.1),
    "TransformerLM_TinyShakespeareBytes_2layer_64width": ("tinyshakespeare_bytes", 2, 64, 4, 64, 32),
    "TransformerLM_PtbBytes_1layer_32width": ("ptb_bytes", 1, 32, 4, 32, 32),
    "TransformerLM_PtbBytes_3layer_128width": ("ptb_bytes", 3, 128, 4, 64, 64),
    "TransformerLM_Ptb_1layer_32width": ("ptb", 1, 32, 4, 32, 32),
    "TransformerLM_Ptb_2layer_64width": ("ptb", 2, 64, 4, 32, 32),
    "TransformerLM_Ptb_3layer_128width": ("ptb", 3, 128, 4, 64, 32),
}

TASKS: dict[str, Callable[[], Task]] = {
    name: functools.partial(_build, name, *row) for name, row in _TABLE.items()
}
