"""What a search may change: some leaves of an optimizer, and the spaces that they live in."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from outeropt._sweep import Settings
from outeropt._sweep.settings import stack
from outeropt.errors import ConfigError
from outeropt.optimizer import Optimizer, resolve
from outeropt.space import Space


Point = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Domain:
    """The spaces of the tuned leaves, by full leaf name, in the order given.

    Attributes:
      spaces: by leaf name.
    """

    spaces: Mapping[str, Space]

    def __len__(self) -> int:
        return len(self.spaces)

    def point(self, fractions: Iterable[float]) -> Point:
        """The point at these fractions of the spaces (`Space.at`), one for each leaf."""
        return {name: space.at(float(u)) for (name, space), u in zip(self.spaces.items(), fractions)}

    def fractions(self, point: Mapping[str, float]) -> Float[np.ndarray, " leaves"]:
        """Where a point lies in the unit cube: the inverse of `point`."""
        return np.array([space.fraction(point[name]) for name, space in self.spaces.items()])

    def settings(self, optimizer: Optimizer, points: Sequence[Point]) -> Settings:
        """The optimizer at every point, stacked."""
        return stack([optimizer.replace(point) for point in points])


def domain(optimizer: Optimizer, tune: Sequence[str] | Mapping[str, Space] | None = None) -> Domain:
    """The domain of a search.

    Args:
      optimizer: whose leaves are searched.
      tune: names of leaves (whole, or a unique dotted ending), or a mapping of names to narrower spaces; None
        stands for every learning rate, and where there is none for every leaf that has a space.

    Raises:
      UnknownName: no leaf has that name, or more than one.
      ConfigError: a leaf has no space, is named twice, or there is nothing to tune.
    """
    own = optimizer.spaces
    if tune is None:
        tune = [name for name in own if name.rpartition(".")[2] == "learning_rate"] or list(own)
    spaces: dict[str, Space] = {}
    for name in tune:
        full = resolve(name, optimizer.hyperparameters)
        space = tune[name] if isinstance(tune, Mapping) else own.get(full)
        if space is None:
            with_space = f"tune one of: {', '.join(own)}" if own else "no leaf of this optimizer has one"
            raise ConfigError(f"{full} has no space to search; {with_space}.")
        if full in spaces:
            raise ConfigError(f"{full} is to be tuned twice; name it once.")
        if full in own:
            # A space that reaches beyond what the leaf allows would fail in the middle of the search.
            own[full].check(full, [space.low, space.high])
        spaces[full] = space
    if not spaces:
        raise ConfigError("There is nothing to tune: this optimizer has no leaf with a space.")
    return Domain(spaces)
