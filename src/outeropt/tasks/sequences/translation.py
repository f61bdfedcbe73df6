"""A pair of made-up languages: sentences of one, drawn by a key, and their translations into the other.

The first language has clauses `[and] the (old) cat sees the (small) dog (under the (big) tree)`. The second
says the same with other words, and differs from the first in what translators must learn:

* *dictionary*: every word has its counterpart, within its class;
* *order*: adjectives follow their noun, and the verb ends the clause, behind objects and places;
* *agreement*: nouns have one of three genders, which decides the forms of their article and adjective, and
  the ending behind the verb is the one of its subject;
* *insertion*: a marker precedes the object if that is one of the animate nouns.

A sentence's translation is a function of the sentence, so the smallest cross entropy is 0.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from outeropt.task import SPLITS, Split


PAD, BEGIN, END = 0, 1, 2
GENDERS = 3

# Where the words of the source begin, and in the target the marker, the endings and the words.
_SPECIAL = 3
_MARKER = _SPECIAL
_ENDING = _MARKER + 1
_FORMS = _ENDING + GENDERS

# Word classes in the order of their token numbers, and the slots of a clause that they fill.
CLASSES = ("and", "article", "preposition", "adjective", "noun", "verb")
_PHRASE = ("article", "adjective", "noun")
SLOTS = ("and", *_PHRASE, "verb", *_PHRASE, "preposition", *_PHRASE)
_NOUN_SLOTS = np.asarray([3, 7, 11])

# Adjective of the subject, object, its adjective, place, its adjective.
_CHANCES = (0.5, 0.75, 0.5, 0.5, 0.5)


class LanguagePair(eqx.Module):
    """Endless sentences and their translations, padded to one length.

    Attributes:
      translation: for every token of the source its token in the target, in the first gender if it has three.
      gender: of each noun, 0 to 2.
      animate: whether a noun takes the marker as an object.
      words: number of source words of each of `CLASSES`.
      clauses: most clauses in a sentence; their number is uniform.
      batch_size: sentences in a batch.
    """

    translation: Int[Array, " source"]
    gender: Int[Array, " nouns"]
    animate: Bool[Array, " nouns"]
    words: tuple[int, ...] = eqx.field(static=True)
    clauses: int = eqx.field(static=True)
    batch_size: int = eqx.field(static=True)

    def batch(self, split: Split, key: PRNGKeyArray) -> dict[str, Int[Array, "batch length"]]:
        """`source` and `target`: words, `END`, then `PAD` to the longest length. Splits share no key."""
        words_key, parts_key, clauses_key = jax.random.split(jax.random.fold_in(key, SPLITS.index(split)), 3)
        shape = (self.batch_size, self.clauses)
        said = jnp.arange(self.clauses)[None] < jax.random.randint(
            clauses_key, (self.batch_size, 1), 1, self.clauses + 1
        )
        chances = jnp.asarray(_CHANCES)[None, None]
        parts = (jax.random.uniform(parts_key, (*shape, len(_CHANCES))) < chances) & said[..., None]
        joined = said & (jnp.arange(self.clauses) > 0)[None]
        # Subject, object, place: whether each is there, and whether it has an adjective.
        there = (said, parts[..., 1], parts[..., 3])
        described = (parts[..., 0], parts[..., 1] & parts[..., 2], parts[..., 3] & parts[..., 4])

        words = self._words(words_key, shape)
        subject, thing, place = ((here, has, here) for here, has in zip(there, described))
        present = (joined, *subject, said, *thing, there[2], *place)

        others = jnp.moveaxis(self.translation.at[words].get(mode="promise_in_bounds"), -1, 0)
        nouns = words[..., _NOUN_SLOTS] - self.starts[CLASSES.index("noun")]
        gender = jnp.moveaxis(self.gender.at[nouns].get(mode="promise_in_bounds"), -1, 0)
        animate = self.animate.at[nouns[..., 1]].get(mode="promise_in_bounds")

        def phrase(i):
            noun = _NOUN_SLOTS[i]
            yield others[noun - 2] + gender[i], there[i]
            yield others[noun], there[i]
            yield others[noun - 1] + gender[i], described[i]

        told = (
            (others[SLOTS.index("and")], joined),
            *phrase(0),
            (jnp.full(shape, _MARKER, jnp.int32), there[1] & animate),
            *phrase(1),
            (others[SLOTS.index("preposition")], there[2]),
            *phrase(2),
            (others[SLOTS.index("verb")], said),
            (_ENDING + gender[0], said),
        )
        return {
            "source": _packed(words, jnp.stack(present, axis=-1)),
            "target": _packed(*(jnp.stack(part, axis=-1) for part in zip(*told))),
        }

    def _words(self, key: PRNGKeyArray, shape: tuple[int, int]) -> Int[Array, "batch clauses slots"]:
        """A word for every slot; of n words of a class the r first have probability sqrt(r / n) together."""
        classes = np.asarray([CLASSES.index(slot) for slot in SLOTS])
        start, count = (jnp.asarray(np.asarray(x)[classes])[None, None] for x in (self.starts, self.words))
        rank = jnp.square(jax.random.uniform(key, (*shape, len(SLOTS)))) * count.astype(jnp.float32)
        return start + jnp.minimum(rank.astype(jnp.int32), count - 1)

    @property
    def starts(self) -> tuple[int, ...]:
        """The first source token of each class."""
        return tuple(_SPECIAL + sum(self.words[:i]) for i in range(len(CLASSES)))

    @property
    def source_vocabulary(self) -> int:
        """Number of source tokens."""
        return _SPECIAL + sum(self.words)

    @property
    def target_vocabulary(self) -> int:
        """Number of target tokens."""
        forms = sum(count * _forms(name) for name, count in zip(CLASSES, self.words))
        return _FORMS + forms

    @property
    def source_length(self) -> int:
        """Tokens of a padded source sentence."""
        return self.clauses * len(SLOTS)

    @property
    def target_length(self) -> int:
        """Tokens of a padded target sentence: a marker and an ending more in every clause."""
        return self.clauses * (len(SLOTS) + 2)


def _forms(name: str) -> int:
    return GENDERS if name in ("article", "adjective") else 1


def _packed(
    words: Int[Array, "batch clauses slots"], present: Bool[Array, "batch clauses slots"]
) -> Int[Array, "batch length"]:
    """The words that are present one after the other, then `END`, then `PAD`.

    No sentence has words in all slots: the first clause has no `and`.
    """
    words, present = (x.reshape(x.shape[0], -1) for x in (words, present))
    place = jnp.cumsum(present, axis=1, dtype=jnp.int32)
    here = jnp.arange(words.shape[1], dtype=jnp.int32)[None]
    # A product with one-hot rows: scatters are slow on CPU.
    hits = present[:, :, None] & (place[:, :, None] - 1 == here[:, None])
    moved = jnp.sum(jnp.where(hits, words[:, :, None], PAD), axis=1)
    return moved + jnp.where(here == place[:, -1:], END, PAD)


@functools.cache
def language_pair(words: tuple[int, ...], clauses: int, batch_size: int) -> LanguagePair:
    """The fixed pair of languages of this size.

    Args:
      words: number of source words of each of `CLASSES`.
      clauses: most clauses in a sentence.
      batch_size: sentences in a batch.
    """
    # RandomState's streams are frozen for good, so the task stays the same with every numpy.
    random = np.random.RandomState(0)
    translation = list(range(_SPECIAL))
    start = _FORMS
    for name, count in zip(CLASSES, words):
        translation += [start + _forms(name) * int(word) for word in random.permutation(count)]
        start += _forms(name) * count
    nouns = words[CLASSES.index("noun")]
    gender, animate = random.randint(GENDERS, size=nouns), random.random_sample(nouns) < 0.5
    with jax.ensure_compile_time_eval():
        return LanguagePair(
            jnp.asarray(translation, jnp.int32),
            jnp.asarray(gender, jnp.int32),
            jnp.asarray(animate),
            words,
            clauses,
            batch_size,
        )
