"""Who is in a picture: the leaderboard's contestants, with the look that they keep in every one."""

import dataclasses
from collections.abc import Sequence

from outeropt.bench import scores
from outeropt.bench.leaderboard import Leaderboard
from outeropt.bench.pictures.style import Look, look
from outeropt.bench.scores import Entry, Ruleset
from outeropt.store.archive import Archive


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A hyperparameter set over the tasks it has run, as pictures show it.

    Attributes:
      name: unique among all: the label, with "as is" where a tuned one has the same label.
      label: the leaderboard's label, unique within the ruleset.
      set: name of the hyperparameter set.
      ruleset: `"tuned"` or `"as is"`.
      look: colour, dash and marker of the label, the same under both rulesets; as-is lines are thinner.
      archives: by task.
    """

    name: str
    label: str
    set: str
    ruleset: Ruleset
    look: Look
    archives: dict[str, Archive]

    @property
    def line(self) -> dict:
        """Keyword arguments for `Axes.plot`."""
        thin = {"linewidth": 0.9, "alpha": 0.7} if self.ruleset == "as is" else {"linewidth": 1.6}
        return {**self.look.line(), **thin}


def order(leaderboard: Leaderboard | None) -> list[str]:
    """Labels in the order that all pictures share: by tuned score, then those that only play as is."""
    rows = leaderboard.rows if leaderboard else ()
    by_ruleset = sorted(rows, key=lambda row: scores.RULESETS.index(row.ruleset))
    return list(dict.fromkeys(row.optimizer for row in by_ruleset))


def contestants(archives: Sequence[Archive], leaderboard: Leaderboard | None = None) -> list[Contestant]:
    """Groups archives as the leaderboard does and gives each contestant its look.

    Args:
      archives: one for each set and task.
      leaderboard: gives labels and order to those it has; the others follow by name.

    Raises:
      OuteroptError: two archives of one set on one task.
    """
    # A leaderboard of fewer tasks than these may have had fewer sets to tell apart, and so shorter labels.
    known = {
        (row.optimizer.removesuffix(f" ({row.set})"), row.set): row.optimizer
        for row in (leaderboard.rows if leaderboard else ())
    }
    labelled = [(known.get(_key(entry), entry.optimizer), entry) for entry in scores.entries(archives)]
    place = {
        name: i for i, name in enumerate(dict.fromkeys([*order(leaderboard), *(n for n, _ in labelled)]))
    }
    labelled.sort(key=lambda pair: (place[pair[0]], scores.RULESETS.index(pair[1].ruleset)))
    tuned = {label for label, entry in labelled if entry.ruleset == "tuned"}
    return [
        Contestant(
            name=f"{label}, as is" if entry.ruleset == "as is" and label in tuned else label,
            label=label,
            set=entry.set,
            ruleset=entry.ruleset,
            look=look(place[label]),
            archives=entry.archives,
        )
        for label, entry in labelled
    ]


def _key(entry: Entry) -> tuple[str, str]:
    """The optimizer's own name and the set."""
    return next(iter(entry.archives.values())).optimizer, entry.set
