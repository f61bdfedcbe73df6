"""AlgoPerf's `tuning_search_space.json`, written for an optimizer and read back."""

import dataclasses
import json
from collections.abc import Collection, Mapping
from pathlib import Path

from outeropt import checkpoint
from outeropt.algoperf.names import COMPLEMENT, LOSS_NAMES, Place, find, leaf_values, name_of
from outeropt.errors import ConfigError
from outeropt.optimizer import Optimizer
from outeropt.space import Space, read_search_space, write_search_space


@dataclasses.dataclass(frozen=True)
class SearchSpace:
    """What a trial may be: spaces that the harness draws from, or a list of settings that it runs in turn.

    Names are those of the optimizer's leaves, and of the loss (`LOSS_NAMES`). One of the two is empty.

    Attributes:
      spaces: spaces by name.
      settings: values by name, the same names in each.

    Raises:
      ConfigError: both are given, or neither; settings of different names.
    """

    spaces: Mapping[str, Space] = dataclasses.field(default_factory=dict)
    settings: tuple[Mapping[str, float], ...] = ()

    def __post_init__(self):
        if bool(self.spaces) == bool(self.settings):
            raise ConfigError(
                "A search space is either spaces by name or a list of settings; give one of them."
            )
        for index, setting in enumerate(self.settings):
            if setting.keys() != self.settings[0].keys():
                raise ConfigError(
                    f"Setting {index} of the search space names {', '.join(setting)}, "
                    f"and the first {', '.join(self.settings[0])}; all must have the same names."
                )


def write(path: str | Path, optimizer: Optimizer, space: SearchSpace | None = None) -> None:
    """Writes a `tuning_search_space.json` for an optimizer.

    AlgoPerf draws on linear and logarithmic scales only. A logit space, as momenta and decays have it, is
    written as the logarithmic range of `one_minus_NAME`, which is nearly the same above one half.

    Args:
      path: the file; an older one is replaced.
      optimizer: whose leaves are tuned.
      space: spaces or settings, by names of leaves, of the loss, or AlgoPerf's own, which are kept with their
        values; None for all spaces of the optimizer. Leaves that it does not name keep their values in the
        submission.

    Raises:
      UnknownName: a name that no leaf, or more than one, has.
      ConfigError: a logit space of a value that is no leaf.
      OuteroptError: the file cannot be written.
    """
    space = SearchSpace(dict(optimizer.spaces)) if space is None else space
    leaves = optimizer.hyperparameters
    if space.spaces:
        text = write_search_space(dict(_written(*entry, leaves) for entry in space.spaces.items()))
    else:
        named = [{_name(name, leaves): value for name, value in each.items()} for each in space.settings]
        text = json.dumps(named, indent=2)
    checkpoint.replace(path, (text + "\n").encode())


def read(path: str | Path, optimizer: Optimizer, *, num_steps: int | None = None) -> SearchSpace:
    """Reads a `tuning_search_space.json` into spaces or settings of an optimizer's leaves.

    Ranges, lists of points (`feasible_points`) and lists of settings are understood, with AlgoPerf's usual
    spellings (`one_minus_beta1`, `warmup_factor`, ...). A logarithmic range of `one_minus_NAME` becomes a
    logit space.

    Args:
      path: the file.
      optimizer: whose leaves are named.
      num_steps: length of the run, for leaves that count steps.

    Raises:
      ConfigError: there is no such file, it is not understood, or a leaf counts steps and `num_steps` is
        None.
      UnknownName: a name that no leaf, or more than one, has.
    """
    try:
        text = Path(path).read_text("utf-8")
    except OSError as error:
        raise ConfigError(f"Search space {path} cannot be read: {error.strerror or error}.") from None
    settings = _settings(text)
    if settings is not None:
        loss = [{name: each[name] for name in each if name in LOSS_NAMES} for each in settings]
        found = [leaf_values(each, optimizer, num_steps) | own for each, own in zip(settings, loss)]
        return SearchSpace(settings=tuple(found))
    spaces: dict[str, Space] = {}
    for name, space in read_search_space(text).items():
        place = None if name in LOSS_NAMES else find(name, optimizer.hyperparameters)
        leaf = place.leaf if place else name
        if leaf in spaces:
            raise ConfigError(
                f"Search space {path} has two names for {leaf}, the second is {name}; keep one."
            )
        spaces[leaf] = _in_leaf(space, place, num_steps) if place else space
    return SearchSpace(spaces)


def _settings(text: str) -> list[dict[str, float]] | None:
    """The settings of a file of the list form; None for any other, which `read_search_space` judges."""
    try:
        document = json.loads(text)
    except ValueError:
        return None
    if not isinstance(document, list):
        return None
    for index, setting in enumerate(document):
        if not isinstance(setting, dict) or not all(
            isinstance(value, int | float) and not isinstance(value, bool) for value in setting.values()
        ):
            raise ConfigError(f"Setting {index} of the search space is not a mapping of names to numbers.")
    return document


def _name(name: str, leaves: Collection[str]) -> str:
    """The name in AlgoPerf's file: its spelling of a leaf's name; its own names as they are."""
    if name in LOSS_NAMES:
        return name
    place = find(name, leaves)
    return name_of(place.leaf, leaves) if place.kind == "same" else name


def _written(name: str, space: Space, leaves: Collection[str]) -> tuple[str, Space]:
    """Name and space of one entry of AlgoPerf's file."""
    written = _name(name, leaves)
    if space.scale != "logit":
        return written, space
    if name in LOSS_NAMES or find(name, leaves).kind != "same":
        raise ConfigError(
            f"{name} has a logit space, which AlgoPerf does not draw from; give a linear or log one."
        )
    return COMPLEMENT + written, Space.log(_round(1.0 - space.high), _round(1.0 - space.low))


def _in_leaf(space: Space, place: Place, num_steps: int | None) -> Space:
    """The space of the leaf, for one of the value under AlgoPerf's name."""
    if place.kind == "same":
        return space
    if space.scale == "choice":
        return Space.choice(*(place.to_leaf(choice, num_steps) for choice in space.choices))
    low, high = sorted(place.to_leaf(end, num_steps) for end in (space.low, space.high))
    if place.kind == "complement" and space.scale == "log":
        return Space.logit(_round(low), _round(high))
    return Space(_round(low), _round(high), space.scale)


def _round(value: float) -> float:
    """Without the digits that a subtraction from 1 leaves: 0.001 for 1 - 0.999."""
    return float(f"{value:.12g}")
