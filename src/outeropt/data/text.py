"""Text datasets: sequences of token ids on the device."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from outeropt.data import registry
from outeropt.data.formats import read_bytes
from outeropt.data.locate import locate


END_OF_LINE = "<eos>"


def tokens(name: str) -> tuple[dict[str, Int[Array, " tokens"]], int]:
    """A text as integer tokens, split into train, valid and test.

    Args:
      name: `"ptb"` (words and one `<eos>` a line; ids by falling frequency in the training text, ties in
        alphabetical order), `"tinyshakespeare"` (characters, ids in alphabetical order), `"ptb_bytes"` or
        `"tinyshakespeare_bytes"` (a byte is its own id).

    Returns:
      One int32 sequence per split, in the order of the text and shared by all callers, and the number of
      different ids. The Penn Treebank has a split of its own; of Tiny Shakespeare the first 90 % are train,
      the next 5 % valid and the last 5 % test.

    Raises:
      UnknownName: no dataset has this name.
      OuteroptError: the dataset is not a text.
      MissingData: a file is neither on this machine nor to be had.
      CorruptData: a file fails its checksum.
    """
    registry.get(name, "tokens")
    with jax.ensure_compile_time_eval():
        return dict(_tokens(name)), len(vocabulary(name))


@functools.lru_cache(maxsize=8)
def vocabulary(name: str) -> tuple[str, ...]:
    """The words or characters that the ids of a text stand for, in the order of the ids.

    Raises:
      The errors of `tokens`.
    """
    registry.get(name, "tokens")
    if name.endswith("_bytes"):
        return tuple(chr(byte) for byte in range(256))
    text = _text(name)
    if name == "ptb":
        counts = collections.Counter(_words(text["train"]))
        return tuple(sorted(counts, key=lambda word: (-counts[word], word)))
    return tuple(sorted(set("".join(part.decode("ascii") for part in text.values()))))


@functools.lru_cache(maxsize=8)
def _tokens(name: str) -> dict[str, Array]:
    text = _text(name)
    if name.endswith("_bytes"):
        ids = {split: np.frombuffer(part, np.uint8) for split, part in text.items()}
    elif name == "ptb":
        number = {word: index for index, word in enumerate(vocabulary(name))}
        ids = {split: np.array([number[word] for word in _words(part)]) for split, part in text.items()}
    else:
        number_of = np.zeros(256, np.int32)
        number_of[[ord(character) for character in vocabulary(name)]] = np.arange(len(vocabulary(name)))
        ids = {split: number_of[np.frombuffer(part, np.uint8)] for split, part in text.items()}
    return {split: jnp.asarray(part.astype(np.int32)) for split, part in ids.items()}


def _text(name: str) -> dict[str, bytes]:
    dataset = registry.get(name)
    parts = [read_bytes(path) for path in locate(dataset).paths]
    if len(parts) == 3:
        return dict(zip(("train", "valid", "test"), parts))
    text, first, second = parts[0], int(0.9 * len(parts[0])), int(0.95 * len(parts[0]))
    return {"train": text[:first], "valid": text[first:second], "test": text[second:]}


def _words(text: bytes) -> list[str]:
    lines = text.decode("ascii").removesuffix("\n").split("\n")
    return [word for line in lines for word in (*line.split(), END_OF_LINE)]
