"""Numbers of meta-training that a population tunes: their names, where to look, and how they move."""

from collections.abc import Mapping

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from outeropt import tree
from outeropt.errors import ConfigError, UnknownName, unknown_name
from outeropt.metatraining.estimators import Estimator
from outeropt.optimizer import Optimizer
from outeropt.space import Space


def numbers(estimator: Estimator, outer: Optimizer) -> dict[str, float]:
    """What can be tuned: floating scalar leaves, as `"estimator.std"` or `"outer.inner.learning_rate"`."""
    leaves = tree.named_leaves(eqx.filter({"estimator": estimator, "outer": outer}, eqx.is_inexact_array))
    return {name: float(leaf) for name, leaf in leaves.items() if leaf.ndim == 0}


def usual(estimator: Estimator, outer: Optimizer) -> dict[str, Space]:
    """What is tuned unless said otherwise: the perturbations' `std` and the outer learning rate.

    Returns:
      Spaces by name, on a log scale from a tenth of each number to ten times it. Numbers that do not exist,
      or are not positive, are left out.
    """
    return {
        name: Space.log(value / 10, value * 10)
        for name, value in numbers(estimator, outer).items()
        if value > 0 and (name == "estimator.std" or name.endswith(".learning_rate"))
    }


def resolved(tuned: Mapping[str, Space], found: Mapping[str, float]) -> dict[str, Space]:
    """Spaces by the full names of what they are for, sorted.

    Args:
      tuned: spaces by name; where only one number of `outer` ends in `.learning_rate`, it may be called
        `"outer.learning_rate"`, and so on.
      found: what `numbers` gave.

    Raises:
      ConfigError: there is no space, or one that cannot be searched by factors.
      UnknownName: a name means no number, or several.
      OutOfSpace: a number lies outside its space.
    """
    if not tuned:
        raise ConfigError(f"Nothing is tuned; {_there_are(found)}")
    spaces = {_full(name, found): space for name, space in tuned.items()}
    for name, space in spaces.items():
        if space.scale == "choice" or space.low <= 0:
            raise ConfigError(
                f"{name} is moved by factors, which needs a range of positive numbers; given was {space}."
            )
        space.check(name, found[name])
    return dict(sorted(spaces.items()))


def moved(
    space: Space, values: Float[Array, " members"], ratios: Float[Array, " members"]
) -> Float[Array, " members"]:
    """Values times ratios, kept inside the space.

    On a logit space the odds, `x / (1 - x)`, are multiplied, so that a decay of 0.99 moves away from 1 as
    easily as towards it.
    """
    if space.scale == "logit":
        return space.clip(space.from_unconstrained(space.to_unconstrained(values) + jnp.log(ratios)))
    return space.clip(values * ratios)


def _full(name: str, found: Mapping[str, float]) -> str:
    if name in found:
        return name
    head, _, rest = name.partition(".")
    ends = [full for full in found if full.startswith(f"{head}.") and full.endswith(f".{rest}")]
    if len(ends) == 1:
        return ends[0]
    if ends:
        raise UnknownName(f"Number {name!r} is ambiguous; say which: {', '.join(ends)}.")
    raise UnknownName(f"{unknown_name('number to tune', name, found)} {_there_are(found).capitalize()}")


def _there_are(found: Mapping[str, float]) -> str:
    return f"numbers that can be are {', '.join(found)}." if found else "there is no number that can be."
