"""Persistent evolution strategies: unbiased gradients from truncations."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray, PyTree

from outeropt import tree
from outeropt.metatraining.estimators import antithetic
from outeropt.metatraining.estimators.antithetic import Compared
from outeropt.metatraining.estimators.base import Estimate, check_theta, particle_keys, weighted_sum
from outeropt.metatraining.estimators.sharing import everyone, over_shares, shares
from outeropt.metatraining.estimators.trajectories import Trajectories
from outeropt.metatraining.estimators.truncated_pairs import TruncatedPairs, comparison
from outeropt.metatraining.system import Outcome, System


class PESState(eqx.Module):
    """Pairs under way, and what has perturbed each of them so far.

    Attributes:
      trajectories: where each pair is.
      score: the sum of `e / s^2` over the truncations of the trajectory, one theta per particle. Every device
        keeps those of all particles, so that the gradient need not cross the network.
    """

    trajectories: Trajectories
    score: PyTree


class Told(eqx.Module):
    """What devices tell each other of their pairs.

    Attributes:
      compared: the losses.
      key: gives the truncation's perturbation again.
      over: whether the pair began a trajectory.
      old: the difference of losses from before the system started anew on its own.
      new: the difference from then on.
      share: the share of steps from then on.
      fresh: whether it did.
    """

    compared: Compared
    key: Key[Array, " rows"]
    over: Bool[Array, " rows"]
    old: Float[Array, " rows"]
    new: Float[Array, " rows"]
    share: Float[Array, " rows"]
    fresh: Bool[Array, " rows"]


class PES(TruncatedPairs):
    """Antithetic persistent evolution strategies.

    Each truncation draws a new perturbation, and its difference of losses is credited to all perturbations of
    the trajectory so far (Vicol et al. 2021, arXiv 2112.13835):

        x_i <- x_i + e_i / s^2      g = mean_i x_i (L(theta + e_i) - L(theta - e_i)) / 2

    with `L` the mean loss over the truncation, from the states of the two sides. Unbiased for the smoothed
    meta-loss; the variance grows with the number of truncations in a trajectory. Summing `e / s^2` instead of
    `e` keeps it so when `std` changes within a trajectory.

    Where a system starts anew on its own, losses from there on are credited to this truncation's perturbation
    alone, which is also all that the sum keeps.
    """

    def init(
        self, system: System, theta: PyTree, key: PRNGKeyArray, outer_step: int | Int[Array, ""]
    ) -> PESState:
        check_theta(theta)
        zeros = jax.tree.map(lambda leaf: jnp.zeros((self.particles, *leaf.shape), leaf.dtype), theta)
        return PESState(self.waiting_pairs(system, theta, key, outer_step), zeros)

    def estimate(
        self,
        system: System,
        theta: PyTree,
        state: PESState,
        key: PRNGKeyArray,
        outer_step: int | Int[Array, ""],
        axis: str | None = None,
    ) -> tuple[Estimate, PESState]:
        before = state.trajectories
        keys = particle_keys(key, outer_step, before.number)
        noise = antithetic.perturbations(keys, theta)
        thetas = antithetic.sides(theta, antithetic.scaled(noise, self.std))
        after, outcomes = self.advanced(system, thetas, before, keys, outer_step)

        told = everyone(_told(outcomes, keys, before.over), axis)
        parts = self._parts(told)
        if shares(axis) == 1:
            total, score = self._credited(noise, state.score, told, parts)
        else:
            total, score = over_shares(
                lambda rows: self._credited(antithetic.perturbations(rows[1].key, theta), *rows),
                (state.score, told, parts),
                axis,
            )
        count = told.over.shape[0]
        old, new = jax.tree.map(lambda leaf: leaf / count, total)
        gradient = jax.tree.map(lambda a, b, like: (a + b).astype(like.dtype), old, new, theta)
        return told.compared.estimate(gradient, told.over), PESState(after, score)

    def everywhere(self, state: PESState) -> PESState:
        return PESState(super().everywhere(state.trajectories), jax.tree.map(lambda _: True, state.score))

    def _credited(
        self, noise: PyTree, score: PyTree, told: Told, parts: tuple[Float[Array, " rows"], ...]
    ) -> tuple[tuple[PyTree, PyTree], PyTree]:
        """Sums of both parts of the differences times what they are credited to, and the next scores."""
        old, new = parts
        own = antithetic.scaled(noise, 1.0 / self.std)
        kept = jax.vmap(tree.where)(told.over, jax.tree.map(jnp.zeros_like, own), score)
        score = jax.tree.map(jnp.add, kept, own)
        total = weighted_sum(0.5 * old, score), weighted_sum(0.5 * new, own)
        return total, jax.vmap(tree.where)(told.fresh, own, score)

    def _parts(self, told: Told) -> tuple[Float[Array, " particles"], Float[Array, " particles"]]:
        """What stands for the difference's two parts, of all particles."""
        if self.shaping == "none":
            return self.clipped(told.old), self.clipped(told.new)
        # A sign or rank belongs to the whole truncation; each part gets its share of the steps.
        whole = self.shaped(told.old + told.new)
        return whole * (1.0 - told.share), whole * told.share


def _told(outcomes: Outcome, keys: Key[Array, " rows"], over: Bool[Array, " rows"]) -> Told:
    """What the truncation says of this device's pairs."""
    compared = comparison(outcomes)
    counts = jnp.all(outcomes.counts, axis=2)
    fresh = jnp.cumsum(jnp.any(outcomes.fresh, axis=2).astype(jnp.int32), axis=1) > 0
    steps = jnp.maximum(jnp.sum(counts.astype(jnp.float32), axis=1), 1.0)
    use = counts & jnp.expand_dims(compared.finite, 1)
    differences = jnp.where(use, outcomes.loss[..., 0] - outcomes.loss[..., 1], 0.0)
    old = jnp.sum(jnp.where(fresh, 0.0, differences), axis=1) / steps
    new = jnp.sum(jnp.where(fresh, differences, 0.0), axis=1) / steps
    share = jnp.sum((counts & fresh).astype(jnp.float32), axis=1) / steps
    return Told(compared, keys, over, old, new, share, fresh[:, -1])
