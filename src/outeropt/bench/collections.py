"""Collections: hyperparameter sets that are run together, all under one protocol."""

import dataclasses

from outeropt.bench import sets
from outeropt.bench.sets import HyperparameterSet
from outeropt.errors import unknown_name


@dataclasses.dataclass(frozen=True)
class Collection:
    """Several hyperparameter sets under one name.

    Attributes:
      name: the collection's name, wherever a set's is asked for.
      members: names of its sets.
      seeds: seeds per setting.
      steps: inner steps of each episode.
      episodes: trainings from fresh initial values, one after the other.
      note: what it is for.
    """

    name: str
    members: tuple[str, ...]
    seeds: int
    steps: int
    episodes: int
    note: str

    def sets(
        self,
        *,
        seeds: int | None = None,
        steps: int | None = None,
        episodes: int | None = None,
        eval_every: int | None = None,
    ) -> list[HyperparameterSet]:
        """Its sets, all with these seeds, lengths and cadence; None takes the collection's own.

        An episode is evaluated about twenty times, and its end as finely as the end of the last one.

        Raises:
          ConfigError: a count below 1, or an `eval_every` that does not divide the length.
        """
        steps = self.steps if steps is None else steps
        if eval_every is None:
            eval_every = next((d for d in range(max(1, steps // 20), steps + 1) if steps % d == 0), None)
        protocol = {
            "seeds": self.seeds if seeds is None else seeds,
            "steps": steps,
            "episodes": self.episodes if episodes is None else episodes,
            "eval_every": eval_every,
            "eval_batches": _EVAL_BATCHES,
            "last_eval_batches": _EVAL_BATCHES,
        }
        return [sets.get(name).adapted(**protocol) for name in self.members]


_EVAL_BATCHES = 5

_SELF_TUNING = ("self_tuning", "metaopt", "hypergradient:adam", "driven:adam", "metaopt:sgd")
_TUNING_FREE = (
    "dadapt_adamw", "prodigy", "mechanic_adamw", "dog", "dowg", "cocob", "schedule_free_adamw"
)  # fmt: skip
_TUNED = ("sgd", "momentum", "adam", "adamw")

COLLECTIONS = {
    collection.name: collection
    for collection in (
        Collection(
            "self-tuning-vs-tuned",
            (
                *(f"{name}-default" for name in (*_SELF_TUNING, *_TUNING_FREE)),
                *(f"{name}-lr" for name in _TUNED),
            ),
            seeds=3,
            steps=300,
            episodes=3,
            note="self-tuning and tuning-free optimizers as they are, and others at nine learning rates",
        ),
        Collection(
            "tuned-adam",
            ("adam-lr", "adamw-lr", "nadamw_cosine-lr"),
            seeds=5,
            steps=1000,
            episodes=1,
            note="Adam, AdamW, and NAdamW on a cosine, at nine learning rates each",
        ),
        Collection(
            "tuning-free",
            tuple(f"{name}-default" for name in ("self_tuning", *_TUNING_FREE)),
            seeds=5,
            steps=1000,
            episodes=1,
            note="optimizers that need no tuning, as they are",
        ),
    )
}


def names() -> list[str]:
    """Names of all collections."""
    return list(COLLECTIONS)


def get(name: str) -> Collection:
    """A collection by name.

    Raises:
      UnknownName: no such collection.
    """
    if name not in COLLECTIONS:
        raise unknown_name("collection", name, COLLECTIONS, see=", ".join(COLLECTIONS))
    return COLLECTIONS[name]
