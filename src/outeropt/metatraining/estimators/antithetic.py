"""Antithetic pairs: what all evolution strategies share.

A particle is a pair of trajectories, with theta + e and theta - e, on the same setup and with the same keys.
What does not depend on theta (which task, which batch) is computed once for both, and noise that both see
cancels in the difference of their losses.
"""

import itertools
from typing import ClassVar, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray, PyTree

from outeropt.errors import ConfigError
from outeropt.metatraining.estimators.base import NOISE, Estimate, Estimator, report, weighted_sum
from outeropt.metatraining.estimators.sharing import over_shares, shares
from outeropt.metatraining.system import Outcome, System
from outeropt.optimizers.schedules import number


Shaping = Literal["none", "sign", "rank"]


class Pair(System):
    """Both trajectories of a pair as one system: theta, states and losses have a leading axis of sides."""

    system: System

    def draw(self, key: PRNGKeyArray) -> PyTree:
        return self.system.draw(key)

    def init(self, theta: PyTree, setup: PyTree, length: Int[Array, ""], key: PRNGKeyArray) -> PyTree:
        return jax.vmap(self.system.init, in_axes=(0, None, None, None))(theta, setup, length, key)

    def step(
        self, theta: PyTree, setup: PyTree, state: PyTree, step: Int[Array, ""], key: PRNGKeyArray
    ) -> tuple[PyTree, Outcome]:
        return jax.vmap(self.system.step, in_axes=(0, None, 0, None, None))(theta, setup, state, step, key)


class Antithetic(Estimator):
    """An estimator that compares antithetic pairs.

    With `s` the perturbations' standard deviation and `d` the difference of a pair's losses, an estimate is a
    mean over pairs of `e d / (2 s^2)`.

    Attributes:
      std: standard deviation of the perturbations, above 0. An array leaf: it can be tuned or annealed.
      clip: differences of losses are clipped to [-clip, clip]; None leaves them as they are.
      shaping: what stands for the difference of losses. `"none"`: itself. `"sign"`: its sign. `"rank"`: its
        centred rank, in (-1, 1), among the differences of all particles and their negatives.
    """

    reports: ClassVar[tuple[str, ...]] = (*Estimator.reports, "difference")
    std: Float[Array, ""] = eqx.field(converter=number, default=0.01, kw_only=True)
    clip: float | None = eqx.field(static=True, default=None, kw_only=True)
    shaping: Shaping = eqx.field(static=True, default="none", kw_only=True)

    def __check_init__(self):
        if self.shaping not in get_args(Shaping):
            raise ConfigError(f"Shaping {self.shaping!r} is unknown; it is none, sign or rank.")
        if self.clip is not None and not self.clip > 0:
            raise ConfigError(f"Differences cannot be clipped at {self.clip}; give a number above 0.")
        if not isinstance(self.std, Tracer) and not np.all(np.asarray(self.std) > 0):
            raise ConfigError(f"Perturbations of standard deviation {self.std} are not possible; give > 0.")

    def clipped(self, differences: Float[Array, " rows"]) -> Float[Array, " rows"]:
        """Differences within what `clip` allows."""
        return differences if self.clip is None else jnp.clip(differences, -self.clip, self.clip)

    def shaped(self, differences: Float[Array, " particles"]) -> Float[Array, " particles"]:
        """What stands for the differences of all particles: clipped, then their sign or rank. 0 stays 0."""
        differences = self.clipped(differences)
        if self.shaping == "none":
            return differences
        sign = jnp.sign(differences)
        return sign * magnitude_ranks(jnp.abs(differences)) if self.shaping == "rank" else sign


def perturbations(keys: Key[Array, " rows"], theta: PyTree) -> PyTree:
    """Standard normal directions, one for each key, shaped like theta."""

    leaves, structure = jax.tree.flatten(theta)
    ends = list(itertools.accumulate(leaf.size for leaf in leaves))

    def one(key):
        # One draw for all leaves: a generator for each would take longer to compile.
        vector = jax.random.normal(jax.random.fold_in(key, NOISE), (ends[-1],))
        parts = jnp.split(vector, ends[:-1])
        shaped = [part.reshape(leaf.shape).astype(leaf.dtype) for part, leaf in zip(parts, leaves)]
        return jax.tree.unflatten(structure, shaped)

    return jax.vmap(one)(keys)


def scaled(rows: PyTree, factor: Float[Array, "*rows"]) -> PyTree:
    """Rows times one factor, or one for each row."""

    def one(leaf):
        wide = factor.reshape(factor.shape + (1,) * (leaf.ndim - factor.ndim if factor.ndim else 0))
        return leaf * wide.astype(leaf.dtype)

    return jax.tree.map(one, rows)


def sides(theta: PyTree, perturbation: PyTree) -> PyTree:
    """Theta plus and minus each perturbation: leading axes of particles and of the two sides."""

    def one(leaf, e):
        return jnp.stack([jnp.expand_dims(leaf, 0) + e, jnp.expand_dims(leaf, 0) - e], axis=1)

    return jax.tree.map(one, theta, perturbation)


def gradient(
    weights: Float[Array, " particles"],
    noise: PyTree,
    keys: Key[Array, " particles"],
    std: Float[Array, "*particles"],
    theta: PyTree,
    axis: str | None,
) -> PyTree:
    """`mean_i weight_i e_i / (2 s^2)` over all particles, where `e_i = s noise_i`.

    Args:
      weights: of all particles.
      noise: of this device's.
      keys: of all particles; they give their noise again.
      std: one for all, or one for each of all particles.
      theta: what noise is shaped like.
      axis: mesh axis of the particles, if they are shared.
    """
    factors = 0.5 * weights / std
    if shares(axis) == 1:
        total = weighted_sum(factors, noise)
    else:
        total, _ = over_shares(
            lambda share: (weighted_sum(share[0], perturbations(share[1], theta)), ()), (factors, keys), axis
        )
    return jax.tree.map(lambda leaf, like: (leaf / weights.shape[0]).astype(like.dtype), total, theta)


def magnitude_ranks(magnitudes: Float[Array, " particles"]) -> Float[Array, " particles"]:
    """Ranks in (0, 1) among all particles: the share of them that is smaller, ties counted half."""
    ordered = jnp.sort(magnitudes)
    below, upto = (jnp.searchsorted(ordered, magnitudes, side=side) for side in ("left", "right"))
    return (below + upto).astype(jnp.float32) / (2.0 * magnitudes.shape[0])


class Compared(eqx.Module):
    """The losses of antithetic pairs, side by side.

    Attributes:
      losses: of theta plus and of theta minus the perturbation.
      steps: whether the pair had a step that counts.
    """

    losses: Float[Array, "rows 2"]
    steps: Bool[Array, " rows"]

    @property
    def finite(self) -> Bool[Array, " rows"]:
        """Whether both losses are finite."""
        return jnp.all(jnp.isfinite(self.losses), axis=1)

    @property
    def difference(self) -> Float[Array, " rows"]:
        """Plus less minus; 0 where one of them is not finite."""
        return jnp.where(self.finite, self.losses[:, 0] - self.losses[:, 1], 0.0)

    def estimate(self, gradient: PyTree, restarts: Bool[Array, " rows"]) -> Estimate:
        """The estimate with this gradient, and the report on the pairs, which are those of all devices.

        Args:
          gradient: the estimated gradient.
          restarts: pairs that began a trajectory.
        """
        valid = self.finite & self.steps
        loss, diagnostics = report(jnp.mean(self.losses, axis=1), valid, ~self.finite, restarts, None)
        absolute = jnp.sum(jnp.where(valid, jnp.abs(self.difference), 0.0))
        return Estimate(
            gradient, loss, diagnostics | {"difference": absolute / jnp.sum(valid.astype(jnp.float32))}
        )
