"""Sequences for language models: random crops of a token stream, text or a Markov walk."""

import bisect
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from outeropt import data
from outeropt.data.draw import rows as random_rows
from outeropt.errors import OuteroptError
from outeropt.task import Split
from outeropt.tasks.losses import accuracy, softmax_cost, softmax_cross_entropy


Sequences = dict[str, Int[Array, "batch length"]]

# Up to this size of vocabulary a product with one-hot rows is cheaper than a gather, whose gradient is a
# scatter.
_ONE_HOT_VOCABULARY = 256

# Tokens of the Markov source by split.
_WALKS = {"train": 2**19, "valid": 2**16, "test": 2**16}


class TokenData(eqx.Module):
    """Random crops of one token stream per split.

    Attributes:
      splits: for each of train, valid and test the whole text as token numbers, in order.
      batch_size: crops in a batch, their starts drawn uniformly with replacement.
      length: tokens that a model reads in one crop.

    Raises:
      OuteroptError: a split is too short for one crop.
    """

    splits: dict[str, Int[Array, " tokens"]]
    batch_size: int = eqx.field(static=True)
    length: int = eqx.field(static=True)

    def __check_init__(self):
        for split, stream in self.splits.items():
            if stream.shape[0] <= self.length:
                raise OuteroptError(
                    f"Split {split!r} has {stream.shape[0]} tokens; sequences of {self.length} need at least "
                    f"{self.length + 1}. Give a longer text or a smaller length."
                )

    def batch(self, split: Split, key: PRNGKeyArray) -> Sequences:
        """Crops `obs` and the same shifted by one, `target`, both (batch_size, length)."""
        stream = self.splits[split]
        starts = random_rows(key, self.batch_size, stream.shape[0] - self.length)
        index = starts[:, None] + jnp.arange(self.length + 1)[None]
        crops = stream.at[index].get(mode="promise_in_bounds")
        return {"obs": crops[:, :-1], "target": crops[:, 1:]}


@functools.cache
def markov_chain(vocabulary: int, order: int) -> tuple[np.ndarray, np.ndarray]:
    """A fixed random chain: each context's next token has Dirichlet(1/4) probabilities.

    Returns:
      Probabilities of the next token (contexts, vocabulary), and stationary probabilities of contexts
      (contexts,).
    """
    # RandomState's streams are frozen for good, so the task stays the same with every numpy.
    random = np.random.RandomState(0)
    contexts = vocabulary**order
    table = random.dirichlet(np.full(vocabulary, 0.25), contexts)
    stationary = np.full(contexts, 1 / contexts)
    for _ in range(2000):
        joint = stationary[:, None] * table
        stationary = joint.reshape(vocabulary, -1, vocabulary).sum(axis=0).reshape(contexts)
    return table, stationary


@functools.cache
def markov_streams(vocabulary: int, order: int) -> dict[str, Int[Array, " tokens"]]:
    """One long walk along the fixed chain for each split; sampling in advance keeps batches a mere gather."""
    table, stationary = markov_chain(vocabulary, order)
    rows = [row.tolist() for row in np.cumsum(table, axis=1)]
    streams = {}
    for seed, (split, length) in enumerate(_WALKS.items()):
        random = np.random.RandomState(seed + 1)
        context = int(random.choice(len(rows), p=stationary))
        walk = []
        for draw in random.random_sample(length).tolist():
            token = min(bisect.bisect_right(rows[context], draw), vocabulary - 1)
            walk.append(token)
            context = (context * vocabulary + token) % len(rows)
        streams[split] = jnp.asarray(walk, jnp.int32)
    return streams


def markov(vocabulary: int, order: int, batch_size: int, length: int) -> tuple[TokenData, float]:
    """Crops of the fixed chain, and the smallest mean cross entropy in nats that a model of it can reach.

    A model that reads `length` tokens knows 1, 2, ... of them when it predicts the next, so the minimum is
    `(H_1 + ... + H_length) / length`, where `H_j = H(x_{j+1} | x_1 ... x_j)` is the chain's entropy rate from
    `j = order` on. (A model that learned the training walk by heart could go a few thousandths lower.)
    """
    table, stationary = markov_chain(vocabulary, order)
    joint = (stationary[:, None] * table).reshape((vocabulary,) * (order + 1))
    blocks = [_entropy(joint.sum(axis=tuple(range(order + 1 - size)))) for size in range(1, order + 2)]
    conditional = np.diff(blocks)
    known = [conditional[min(j, order) - 1] for j in range(1, length + 1)]
    return TokenData(markov_streams(vocabulary, order), batch_size, length), float(np.mean(known))


def _entropy(probabilities: np.ndarray) -> float:
    positive = probabilities[probabilities > 0]
    return float(-np.sum(positive * np.log(positive)))


def source(name: str, batch_size: int, length: int) -> tuple[TokenData, int, float | None]:
    """The sequences that a language task reads.

    Args:
      name: `"markov16"` (16 tokens, order 2, no data needed), or a name that `outeropt.data.tokens` takes.
      batch_size: sequences in a batch.
      length: tokens that a model reads in one sequence.

    Returns:
      The sequences, the size of the vocabulary, and the smallest loss a model can reach where that is known.
    """
    if name == "markov16":
        sequences, minimum = markov(16, 2, batch_size, length)
        return sequences, 16, minimum
    splits, vocabulary = data.tokens(name)
    return TokenData(splits, batch_size, length), vocabulary, None


def embed(table: Float[Array, "vocabulary width"], ids: Int[Array, "*shape"]) -> Float[Array, "*shape width"]:
    """Rows of the embedding table."""
    vocabulary = table.shape[0]
    if vocabulary <= _ONE_HOT_VOCABULARY:
        return jax.nn.one_hot(ids, vocabulary, dtype=table.dtype) @ table
    return table.at[ids].get(mode="promise_in_bounds")


def next_token_loss(
    logits: Float[Array, "batch length vocabulary"], target: Int[Array, "batch length"]
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Cross entropy in nats, averaged over all tokens, and the accuracy of the likeliest token."""
    rows, labels = logits.reshape(-1, logits.shape[-1]), target.reshape(-1)
    return softmax_cross_entropy(rows, labels), {"accuracy": accuracy(rows, labels)}


def counted_token_loss(
    logits: Float[Array, "*tokens vocabulary"], target: Int[Array, "*tokens"], counts: Bool[Array, "*tokens"]
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The same, averaged over those tokens that count."""
    tokens = jnp.sum(counts).astype(jnp.float32)
    costs = jnp.where(counts, softmax_cost(logits, target), 0.0)
    right = (jnp.argmax(logits, axis=-1).astype(target.dtype) == target) & counts
    return jnp.sum(costs) / tokens, {"accuracy": jnp.sum(right).astype(jnp.float32) / tokens}
