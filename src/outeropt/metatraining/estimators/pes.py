"""Persistent evolution strategies: unbiased gradients from truncations."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from outeropt import tree
from outeropt.metatraining.estimators import antithetic
from outeropt.metatraining.estimators.base import Estimate, check_theta, particle_keys, weighted_mean
from outeropt.metatraining.estimators.trajectories import Trajectories
from outeropt.metatraining.estimators.truncated_pairs import TruncatedPairs, comparison
from outeropt.metatraining.system import Outcome, System


class PESState(eqx.Module):
    """Pairs under way, and what has perturbed each of them so far.

    Attributes:
      trajectories: where each pair is.
      score: the sum of `e / s^2` over the truncations of the trajectory, one theta per particle.
    """

    trajectories: Trajectories
    score: PyTree


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

        own = antithetic.scaled(noise, 1.0 / self.std)
        kept = jax.vmap(tree.where)(before.over, jax.tree.map(jnp.zeros_like, own), state.score)
        score = jax.tree.map(jnp.add, kept, own)
        compared = comparison(outcomes)
        old, new, fresh = self._parts(outcomes, compared.finite, axis)
        gradient = jax.tree.map(
            jnp.add, weighted_mean(0.5 * old, score, axis), weighted_mean(0.5 * new, own, axis)
        )
        score = jax.vmap(tree.where)(fresh, own, score)
        return compared.estimate(gradient, before.over, axis), PESState(after, score)

    def _parts(
        self, outcomes: Outcome, finite: Bool[Array, " rows"], axis: str | None
    ) -> tuple[Float[Array, " rows"], Float[Array, " rows"], Bool[Array, " rows"]]:
        """The difference's part from before and after the system started anew, and whether it did."""
        counts = jnp.all(outcomes.counts, axis=2)
        fresh = jnp.cumsum(jnp.any(outcomes.fresh, axis=2).astype(jnp.int32), axis=1) > 0
        steps = jnp.maximum(jnp.sum(counts.astype(jnp.float32), axis=1), 1.0)
        use = counts & jnp.expand_dims(finite, 1)
        differences = jnp.where(use, outcomes.loss[..., 0] - outcomes.loss[..., 1], 0.0)
        old = jnp.sum(jnp.where(fresh, 0.0, differences), axis=1) / steps
        new = jnp.sum(jnp.where(fresh, differences, 0.0), axis=1) / steps
        if self.shaping == "none":
            return self.clipped(old), self.clipped(new), fresh[:, -1]
        # A sign or rank belongs to the whole truncation; each part gets its share of the steps.
        share = jnp.sum((counts & fresh).astype(jnp.float32), axis=1) / steps
        whole = self.shaped(old + new, axis)
        return whole * (1.0 - share), whole * share, fresh[:, -1]
