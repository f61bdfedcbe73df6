"""Where the tuned hyperparameters are: their coordinates, ranges and values."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from outeropt.errors import OuteroptError
from outeropt.optimizer import Optimizer, Params, resolve
from outeropt.selftuning import sensitivity
from outeropt.selftuning.sensitivity import Chart, Coordinates
from outeropt.space import Space


Ranges = tuple[tuple[str, tuple[float, float]], ...]
Settings = tuple[tuple[str, float, Space], ...]

_DECADE = math.log(10.0)


def ranges_of(given: Mapping[str, tuple[float, float]] | Ranges) -> Ranges:
    """Ranges by name in a form that can be hashed."""
    pairs = given.items() if isinstance(given, Mapping) else given
    return tuple((name, (float(low), float(high))) for name, (low, high) in pairs)


def settings_of(given: Mapping[str, tuple[float, Space]] | Settings) -> Settings:
    """Settings of a loss by name, each with its start and its space, in a form that can be hashed."""
    rows = [(name, *pair) for name, pair in given.items()] if isinstance(given, Mapping) else given
    return tuple((name, float(start), space) for name, start, space in rows)


class Point(NamedTuple):
    """Where the tuned hyperparameters are.

    Attributes:
      shared: coordinates of the leaves that all parameters share.
      own: coordinates of the learning rate that every parameter has for itself; None where it is shared.
      settings: coordinates of settings of the training loss.
    """

    shared: Float[Array, " leaves"]
    own: Params | None
    settings: Float[Array, " settings"]


class Charts(NamedTuple):
    """The coordinates of all parts of a point.

    Attributes:
      shared: of the leaves that all parameters share.
      own: of the learning rate that every parameter has for itself; None where it is shared.
      settings: of settings of the training loss.
    """

    shared: Chart
    own: Chart | None
    settings: Chart

    @classmethod
    def of(
        cls,
        base: Optimizer,
        tune: Sequence[str],
        coordinates: Coordinates,
        ranges: Ranges,
        per_parameter: bool,
        settings: Settings,
    ) -> "Charts":
        """For leaves of an optimizer.

        Raises:
          UnknownName: the optimizer has no such leaf.
          OuteroptError: nothing is tuned, a leaf or setting has no such coordinates, or `per_parameter` has
            no learning rate to spread.
        """
        full = [resolve(name, base.hyperparameters) for name in tune]
        if not full and not settings:
            raise OuteroptError('No leaf is named to be tuned; name one, such as ("learning_rate",).')
        own = [name for name in full if per_parameter and name.split(".")[-1] == "learning_rate"]
        if per_parameter and len(own) != 1:
            raise OuteroptError(
                f"per_parameter gives every parameter its own learning_rate; it is not among {tuple(tune)}."
            )
        within = {resolve(name, base.hyperparameters): ends for name, ends in ranges}

        def chart(names):
            its = {name: ends for name, ends in within.items() if name in names}
            return sensitivity.chart(base, names, coordinates, ranges=its)

        shared = [name for name in full if name not in own]
        spaces = tuple(sensitivity.COORDINATES[coordinates](space) for _, _, space in settings)
        return cls(
            chart(shared) if shared else Chart((), (), ()),
            chart(own) if own else None,
            Chart(tuple(name for name, _, _ in settings), spaces, sensitivity.units(coordinates, spaces)),
        )

    def start(self, base: Optimizer, params: Params, settings: Settings) -> Point:
        """The point at the optimizer's leaves and the settings' starts."""
        shared, own = self.shared.read(base), None
        if self.own is not None:
            rate = self.own.read(base)[0]
            own = jax.tree.map(lambda leaf: jnp.full_like(leaf, rate, dtype=rate.dtype), params)
        starts = self.settings.coordinates({name: jnp.asarray(start) for name, start, _ in settings})
        return Point(shared, own, starts.astype(shared.dtype))

    def clip(self, point: Point) -> Point:
        """The nearest point in range."""
        shared, own, settings = self.shared.clip(point.shared), point.own, self.settings.clip(point.settings)
        if self.own is not None:
            low, high = self.own.ends(shared.dtype)
            own = jax.tree.map(lambda leaf: jnp.clip(leaf, low[0], high[0]), own)
        return Point(shared, own, settings)

    def slower(self, point: Point) -> Point:
        """The point with a tenth of the learning rate."""
        moves = [_slower(self.shared, i) for i in range(len(self.shared.names))]
        factors, steps = (jnp.asarray(part, point.shared.dtype) for part in zip(*moves or [(1.0, 0.0)]))
        shared, own = factors * point.shared - steps if moves else point.shared, point.own
        if self.own is not None:
            factor, step = _slower(self.own, 0)
            own = jax.tree.map(lambda leaf: factor * leaf - step, own)
        return self.clip(Point(shared, own, point.settings))

    def rates(self, own: Params) -> Params:
        """The learning rate of every parameter."""
        chart = self.own
        assert chart is not None
        return jax.tree.map(lambda leaf: chart.value(0, leaf), own)

    def middle(self, own: Params) -> Float[Array, ""]:
        """Their mean in coordinates, a geometric one for logarithms, as a learning rate."""
        assert self.own is not None
        leaves = [leaf.ravel() for leaf in jax.tree.leaves(own)]
        return self.own.value(0, jnp.mean(jnp.concatenate(leaves)))


def is_rate(name: str) -> bool:
    """Whether a leaf is a learning rate, or the logarithm of one."""
    return name.endswith("learning_rate")


def _slower(chart: Chart, index: int) -> tuple[float, float]:
    """What a coordinate is multiplied by, and what is taken off it, for a tenth of a learning rate."""
    name, space = chart.names[index], chart.spaces[index]
    if not is_rate(name):
        return 1.0, 0.0
    if space.scale == "log" or name.split(".")[-1] == "log_learning_rate":
        return 1.0, _DECADE / chart.units[index]
    return 0.1, 0.0
