"""How one step of an optimizer depends on some of its leaves, and what the next gradient says about them.

A hypergradient of one step is `<g_t, d u_(t-1) / d z>`: `u_(t-1)` is the update before, `z` a coordinate of a
leaf that it was made with, `g_t` the gradient where it led to.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from outeropt import tree
from outeropt.errors import OuteroptError
from outeropt.optimizer import Optimizer, OptState, Params, resolve
from outeropt.optimizers.arithmetic import inner, quotient, root, squared_norm, widen
from outeropt.space import Space


Coordinates = Literal["plain", "space", "decades"]
Signal = Literal["gradient", "cosine"]
Tuned = tuple[str, ...]


def listed(names: str | Sequence[str]) -> Tuned:
    """Names of leaves, where one alone may stand for a list of one."""
    return (names,) if isinstance(names, str) else tuple(names)


def _plain(space: Space | None) -> Space:
    if space is None:
        return Space.linear(-np.inf, np.inf)
    low, high = space.limits
    # A momentum of 1 never forgets, and its bias correction divides by zero.
    return Space.linear(low, space.high if space.scale == "logit" and high >= 1 else high)


def _own(space: Space | None) -> Space:
    if space is None:
        raise OuteroptError('A leaf without a space has "plain" coordinates only.')
    low, high = space.limits
    if space.scale in ("log", "logit") and low <= 0:
        low = space.low
    if space.scale == "logit" and high >= 1:
        high = space.high
    space._needs_coordinates()
    return Space(low, high, space.scale)


COORDINATES: dict[str, Callable[[Space | None], Space]] = {"plain": _plain, "space": _own, "decades": _own}
"""The range and scale to tune a leaf in, from its space."""

_DECADE = float(np.log(10.0))


@dataclasses.dataclass(frozen=True)
class Chart:
    """Unconstrained coordinates of some scalar leaves of an optimizer, side by side in one vector.

    Attributes:
      names: full names of the leaves.
      spaces: the scale that each leaf is tuned in, and the range that it is kept in.
      units: how much of its space's unconstrained coordinate is one of ours.
    """

    names: tuple[str, ...]
    spaces: tuple[Space, ...]
    units: tuple[float, ...]

    def read(self, optimizer: Optimizer) -> Float[Array, " leaves"]:
        """The coordinates of an optimizer's leaves, moved into their ranges.

        Raises:
          OuteroptError: one of them is not a scalar.
        """
        leaves = optimizer.hyperparameters
        for name in self.names:
            if jnp.ndim(leaves[name]):
                raise OuteroptError(
                    f"{name} has shape {jnp.shape(leaves[name])}; only single numbers are tuned in a run."
                )
        return self.coordinates(leaves)

    def coordinates(self, values: Mapping[str, Array]) -> Float[Array, " leaves"]:
        """The coordinates of values by name, moved into their ranges."""
        return self._stacked([space.clip(values[name]) for name, space in zip(self.names, self.spaces)])

    def clip(self, coordinates: Float[Array, " leaves"]) -> Float[Array, " leaves"]:
        """The nearest coordinates whose values are in range."""
        return jnp.clip(coordinates, *self.ends(coordinates.dtype))

    def ends(self, dtype: Any) -> tuple[Float[Array, " leaves"], Float[Array, " leaves"]]:
        """The smallest and the largest coordinates."""
        low = [jnp.asarray(space.low, dtype) for space in self.spaces]
        high = [jnp.asarray(space.high, dtype) for space in self.spaces]
        return self._stacked(low).astype(dtype), self._stacked(high).astype(dtype)

    def _stacked(self, values: Sequence[Array]) -> Float[Array, " leaves"]:
        triples = zip(self.spaces, self.units, values, strict=True)
        found = [space.to_unconstrained(value) / unit for space, unit, value in triples]
        return jnp.stack(found) if found else jnp.zeros(0, jnp.float32)

    def values(self, coordinates: Float[Array, " leaves"]) -> dict[str, Array]:
        """The leaves' values by name."""
        return {name: self.value(index, coordinates[index]) for index, name in enumerate(self.names)}

    def value(self, index: int, coordinate: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """The value of one leaf at a coordinate, or at many."""
        return self.spaces[index].from_unconstrained(self.units[index] * coordinate)

    def write(self, optimizer: Optimizer, coordinates: Float[Array, " leaves"]) -> Optimizer:
        """The optimizer with its leaves at these coordinates."""
        return tree.with_leaves(optimizer, self.values(coordinates))


def chart(
    optimizer: Optimizer,
    names: Sequence[str],
    coordinates: Coordinates,
    limits: tuple[float, float] | None = None,
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> Chart:
    """Coordinates for some leaves of an optimizer.

    Args:
      optimizer: whose leaves.
      names: the leaves; the last part of a dotted name is enough when it is unique.
      coordinates: `"space"` for those of the leaves' spaces (the logarithm of a learning rate or a weight
        decay, the logit of a momentum), `"decades"` for the same with logarithms to base 10, `"plain"` for
        the leaves themselves. A leaf stays within what its space allows or, at an end where the coordinate
        would be infinite, within what is worth searching.
      limits: a narrower range for all of them; None for none.
      ranges: ranges of some leaves in place of those, by name.

    Raises:
      UnknownName: the optimizer has no such leaf.
      OuteroptError: no leaf is named, or one has no such coordinates.
    """
    if not names:
        raise OuteroptError('No leaf is named to be tuned; name one, such as ("learning_rate",).')
    if coordinates not in COORDINATES:
        raise OuteroptError(f"Coordinates are {', '.join(COORDINATES)}, not {coordinates!r}.")
    full = tuple(resolve(name, optimizer.hyperparameters) for name in names)
    found = [COORDINATES[coordinates](optimizer.spaces.get(name)) for name in full]
    if limits is not None:
        found = [Space(max(s.low, limits[0]), min(s.high, limits[1]), s.scale) for s in found]
    own = {resolve(name, optimizer.hyperparameters): ends for name, ends in (ranges or {}).items()}
    found = [Space(*own[name], s.scale) if name in own else s for name, s in zip(full, found)]
    return Chart(full, tuple(found), units(coordinates, found))


def units(coordinates: Coordinates, spaces: Sequence[Space]) -> tuple[float, ...]:
    """How much of each space's unconstrained coordinate is one of these coordinates."""
    decades = coordinates == "decades"
    return tuple(_DECADE if decades and space.scale == "log" else 1.0 for space in spaces)


def step(
    optimizer: Optimizer,
    where: Chart,
    coordinates: Float[Array, " leaves"],
    grads: Params,
    state: OptState,
    params: Params,
    context: Mapping[str, Any],
) -> tuple[Params, OptState, tuple[Params, ...]]:
    """One step, and its derivatives with respect to the leaves' coordinates.

    The derivative is that of the update alone, by forward mode through any `Optimizer.update`: state,
    parameters and gradient count as constants. It costs about one more update for each leaf.

    Returns:
      The updates, the next state, and for each leaf the derivative of the updates (float32 or wider). Entries
      without a finite derivative (of a square root at 0, where no gradient ever came) count as 0.
    """

    def updates_at(point):
        return where.write(optimizer, point).update(grads, state, params, **context)

    updates, new, tangents = None, None, []
    for direction in jnp.eye(len(where.names), dtype=coordinates.dtype):
        updates, tangent, new = jax.jvp(updates_at, (coordinates,), (direction,), has_aux=True)
        tangents.append(jax.tree.map(lambda leaf: jnp.where(jnp.isfinite(leaf), leaf, 0.0), widen(tangent)))
    return updates, new, tuple(tangents)


def still(where: Chart, params: Params) -> tuple[Params, ...]:
    """The derivatives before the first step: zeros."""
    return tuple(jax.tree.map(jnp.zeros_like, widen(params)) for _ in where.names)


def early_mean(mean: Float[Array, " leaves"], now: Float[Array, " leaves"], count: Array) -> Array:
    """The mean over the steps of an episode, in which step `t` counts `1 / t`, with one step more.

    Of a logarithm it is a geometric mean, and every doubling of the time counts alike: where a run begins the
    next one begins too.

    Args:
      mean: over the steps before.
      now: at this step.
      count: the number of this step, from 1.
    """
    time = count.astype(now.dtype)
    # The sum of the weights is the harmonic number.
    share = 1.0 / (time * (jax.scipy.special.digamma(time + 1.0) + np.euler_gamma))
    return mean + share * (now - mean)


def _cosine(grads: Params, tangent: Params) -> Float[Array, ""]:
    lengths = root(squared_norm(grads)) * root(squared_norm(tangent))
    return quotient(inner(grads, tangent), lengths)


SIGNALS: dict[str, Callable[[Params, Params], Float[Array, ""]]] = {"gradient": inner, "cosine": _cosine}
"""What a gradient says about a leaf, from the derivative of the update that led to it."""


def signals(kind: Signal, grads: Params, tangents: Sequence[Params], dtype: Any) -> Float[Array, " leaves"]:
    """What a gradient says about each leaf: positive where a smaller coordinate would have been better.

    Args:
      kind: `"gradient"` for the hypergradient `<g, d u / d z>`, `"cosine"` for the same divided by `|g|` and
        `|d u / d z|`, which lies in [-1, 1] and knows no scale. (0 where either is zero.)
      grads: gradient after the step.
      tangents: derivatives of the step's updates, by leaf.
      dtype: type of the result.
    """
    return jnp.stack([SIGNALS[kind](grads, tangent).astype(dtype) for tangent in tangents])


def learn(
    meta: Optimizer,
    signal: Any,
    state: OptState,
    values: Any,
    known: Array,
    context: Mapping[str, Any],
    keep: Callable[[Any], Any] = lambda values: values,
) -> tuple[Any, OptState]:
    """One step of the optimizer of an optimizer, unless there is nothing to learn from.

    Args:
      meta: the optimizer that learns.
      signal: gradient with respect to `values`.
      state: its state.
      values: what it optimizes.
      known: whether there was a step to learn from.
      context: the step's context, of which it hears the training loss.
      keep: moves new values into their range.

    Returns:
      New values and state; both as they were if `known` is false or a number is not finite.
    """
    good = known & tree.all_finite(signal)
    # Ones where nothing is learned: the derivative of an unused step must be finite.
    signal = jax.tree.map(lambda leaf: jnp.where(good, leaf, jnp.ones_like(leaf)), signal)
    heard = {"value": context["value"]} if context.get("value") is not None else {}
    moves, new = meta.update(signal, state, values, grad=signal, **heard)
    moved = keep(jax.tree.map(jnp.add, values, moves))
    good = good & tree.all_finite(moved)
    return tree.where(good, moved, values), tree.where(good, new, state)
