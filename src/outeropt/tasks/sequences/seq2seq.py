"""Encoder-decoder transformers that translate sentences of a made-up language.

`Translation_Transformer_6L512` has the size of the base model of Vaswani et al. 2017: 6 + 6 blocks of width
512, 8 heads of 64, hidden layers of 2048.
"""

import functools
import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from outeropt.errors import ConfigError
from outeropt.task import Split, Task
from outeropt.tasks.attention import attend, causal, self_attend
from outeropt.tasks.layers import dropout, fan_in_normal, part, prefixed, stacked_fan_in_normal
from outeropt.tasks.norms import layer_norm
from outeropt.tasks.sequences.language import counted_token_loss, embed
from outeropt.tasks.sequences.translation import BEGIN, PAD, LanguagePair, language_pair


Tokens = Int[Array, "batch length"]


class Seq2SeqTransformer(Task):
    """Translates sentences: reads the source, and each word of the target given the right ones before it.

    An encoder whose words attend to each other, and a decoder whose words attend to those before them and to
    the encoded source (Vaswani et al. 2017, arXiv 1706.03762). Norms come before each part of a block,
    positions are learned, linear maps have no biases, hidden layers are relus. Blocks are equal in shape:
    their parameters lie stacked on the leading axis, and scans run them.

    Parameters: `source_embedding`, `target_embedding`, `source_position`, `target_position`; for the blocks
    of the encoder `encoder_qkv`, `encoder_out`, `encoder_up`, `encoder_down`, `encoder_scale` and
    `encoder_offset`; of the decoder the same and `decoder_ask`, `decoder_told`, `decoder_heard` (queries,
    keys and values, output of its attention to the source); `scale` and `offset` of both last norms; `head`.

    Attributes:
      data: sentences `source` and `target`.
      layers: blocks of the encoder, and of the decoder.
      width: width of the residual streams.
      heads: attention heads; must divide `width`.
      hidden: units of each block's hidden layer.
      dropout: probability of dropping an entry of the embeddings or of what a part of a block adds, in
        [0, 1).

    Raises:
      ConfigError: the heads do not divide the width.
    """

    name: str = eqx.field(static=True)
    data: LanguagePair
    layers: int = eqx.field(static=True)
    width: int = eqx.field(static=True)
    heads: int = eqx.field(static=True)
    hidden: int = eqx.field(static=True)
    dropout: float = eqx.field(static=True, default=0.0)

    def __check_init__(self):
        if self.width % self.heads:
            raise ConfigError(f"{self.heads} heads do not divide a width of {self.width}; use a divisor.")

    def init(self, key: PRNGKeyArray) -> tuple[dict[str, Array], None]:
        """Weights by fan-in; what writes to a residual stream is smaller by the root of its writers."""
        width, data = self.width, self.data
        embedding_key, encoder_key, decoder_key, head_key = jax.random.split(key, 4)
        lengths = {
            "source_embedding": data.source_vocabulary,
            "target_embedding": data.target_vocabulary,
            "source_position": data.source_length,
            "target_position": data.target_length,
        }
        tables = zip(lengths.items(), jax.random.split(embedding_key, len(lengths)))
        return {
            **{name: jax.random.normal(k, (rows, width)) / math.sqrt(width) for (name, rows), k in tables},
            **prefixed(self._blocks(encoder_key, 2, {}), "encoder"),
            **prefixed(self._blocks(decoder_key, 3, {"ask": 1, "told": 2}), "decoder"),
            "scale": jnp.ones((2, width)),
            "offset": jnp.zeros((2, width)),
            "head": fan_in_normal(head_key, (width, data.target_vocabulary)),
        }, None

    def _blocks(self, key: PRNGKeyArray, parts: int, more: dict[str, int]) -> dict[str, Array]:
        """Parameters of all blocks of `parts` parts, with further maps that are some widths wide."""
        width, hidden = self.width, self.hidden
        small = 1 / math.sqrt(parts * self.layers)
        shapes = {
            "qkv": ((width, 3 * width), 1.0),
            "out": ((width, width), small),
            "up": ((width, hidden), 1.0),
            "down": ((hidden, width), small),
            **{name: ((width, widths * width), 1.0) for name, widths in more.items()},
            **({"heard": ((width, width), small)} if more else {}),
        }
        keys = zip(shapes.items(), jax.random.split(key, len(shapes)))
        return {
            **{name: stacked_fan_in_normal(k, self.layers, shape, gain) for (name, (shape, gain)), k in keys},
            "scale": jnp.ones((self.layers, parts, width)),
            "offset": jnp.zeros((self.layers, parts, width)),
        }

    def loss(self, params, state, batch, key):
        """Cross entropy in nats a word of the target, with `accuracy` (of words) and `exact` (of sentences).

        Padding does not count. Every word is predicted from the right ones before it.
        """
        logits = self.logits(params, batch["source"], batch["target"], key)
        loss, metrics = translation_loss(logits, batch["target"])
        return loss, (state, metrics)

    def logits(
        self, params: dict[str, Array], source: Tokens, target: Tokens, key: PRNGKeyArray | None
    ) -> Float[Array, "batch length vocabulary"]:
        """Scores of every word of the target given those before it; without a key there is no dropout."""
        keys = None
        if key is not None and self.dropout:
            keys = jax.random.split(key, (2, self.layers + 1, 3))
        heard = (source != PAD)[:, None, None]
        encoded = self._embedded(params, "source", source, None if keys is None else keys[0, -1, 0])

        def encoder(x, scanned):
            p, k = scanned
            x = self._part(x, p, 0, k, lambda y: self_attend(y @ p["qkv"], self.heads, heard) @ p["out"])
            return self._part(x, p, 1, k, lambda y: jax.nn.relu(y @ p["up"]) @ p["down"]), None

        encoded = self._run(encoder, encoded, part(params, "encoder"), None if keys is None else keys[0])
        encoded = layer_norm(encoded, params["scale"][0], params["offset"][0])

        def attend_source(y, p):
            k, v = jnp.split(encoded @ p["told"], 2, axis=-1)
            return attend(y @ p["ask"], k, v, self.heads, heard) @ p["heard"]

        before = causal(target.shape[1])

        def decoder(x, scanned):
            p, k = scanned
            x = self._part(x, p, 0, k, lambda y: self_attend(y @ p["qkv"], self.heads, before) @ p["out"])
            x = self._part(x, p, 1, k, lambda y: attend_source(y, p))
            return self._part(x, p, 2, k, lambda y: jax.nn.relu(y @ p["up"]) @ p["down"]), None

        known = jnp.concatenate([jnp.full_like(target[:, :1], BEGIN), target[:, :-1]], axis=1)
        x = self._embedded(params, "target", known, None if keys is None else keys[1, -1, 0])
        x = self._run(decoder, x, part(params, "decoder"), None if keys is None else keys[1])
        return layer_norm(x, params["scale"][1], params["offset"][1]) @ params["head"]

    def _embedded(self, params, language, tokens, key):
        positions = params[f"{language}_position"][None, : tokens.shape[1]]
        return dropout(embed(params[f"{language}_embedding"], tokens) + positions, self.dropout, key)

    def _part(self, x, p, i, keys, function):
        """One part of a block, added to the residual stream."""
        y = function(layer_norm(x, p["scale"][i], p["offset"][i]))
        return x + dropout(y, self.dropout, None if keys is None else keys[i])

    def _run(self, block, x, params, keys):
        return jax.lax.scan(block, x, (params, None if keys is None else keys[:-1]))[0]

    def batch(self, split: Split, key: PRNGKeyArray) -> dict[str, Tokens]:
        """Sentences and their translations."""
        return self.data.batch(split, key)

    @property
    def minimum(self) -> float:
        """0: there is one right translation."""
        return 0.0


def translation_loss(
    logits: Float[Array, "batch length vocabulary"], target: Tokens
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Mean cross entropy in nats over all words but padding.

    Returns:
      The loss, and `accuracy` (share of words whose likeliest token is right) and `exact` (share of sentences
      with all words right).
    """
    counts = target != PAD
    loss, metrics = counted_token_loss(logits, target, counts)
    right = jnp.argmax(logits, axis=-1).astype(target.dtype) == target
    exact = jnp.all(right | ~counts, axis=1)
    return loss, {**metrics, "exact": jnp.mean(exact.astype(jnp.float32))}


# Words by class, as `translation.CLASSES` orders them.
_VILLAGE = (2, 4, 4, 12, 24, 12)
_TOWN = (2, 4, 8, 64, 256, 64)
_COUNTRY = (4, 8, 32, 1024, 4096, 1024)


def _build(
    name: str,
    words: tuple[int, ...],
    clauses: int,
    batch_size: int,
    layers: int,
    width: int,
    heads: int,
    hidden: int,
    dropout: float = 0.0,
) -> Seq2SeqTransformer:
    sentences = language_pair(words, clauses, batch_size)
    return Seq2SeqTransformer(name, sentences, layers, width, heads, hidden, dropout)


# Words, clauses, batch size, layers, width, heads, hidden units, and dropout if any.
_TABLE = {
    "Translation_Transformer_1L64": (_VILLAGE, 1, 32, 1, 64, 4, 256),
    "Translation_Transformer_2L128": (_TOWN, 2, 64, 2, 128, 4, 512),
    "Translation_Transformer_6L512": (_COUNTRY, 4, 16, 6, 512, 8, 2048),
    "Translation_Transformer_6L512_Dropout01": (_COUNTRY, 4, 16, 6, 512, 8, 2048, 0.1),
}

TASKS: dict[str, Callable[[], Task]] = {
    name: functools.partial(_build, name, *row) for name, row in _TABLE.items()
}
