"""Antithetic pairs that are unrolled a truncation at a time, both sides from where they are."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PRNGKeyArray, PyTree

from outeropt.metatraining.estimators.antithetic import Antithetic, Compared, Pair
from outeropt.metatraining.estimators.trajectories import Trajectories, Truncated, mean_loss
from outeropt.metatraining.system import Outcome, System


class TruncatedPairs(Truncated, Antithetic):
    """An estimator of antithetic pairs, a truncation per estimate."""

    def waiting_pairs(
        self, system: System, theta: PyTree, key: PRNGKeyArray, outer_step: int | Array
    ) -> Trajectories:
        """Pairs without a trajectory; their `inner` has axes of particles and sides."""
        both = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), theta)
        return self.waiting(Pair(system), both, key, outer_step)

    def advanced(
        self,
        system: System,
        thetas: PyTree,
        trajectories: Trajectories,
        keys: Key[Array, " rows"],
        outer_step: int | Array,
    ) -> tuple[Trajectories, Outcome]:
        """One truncation of each pair, after new trajectories where the last were over.

        Args:
          thetas: meta-parameters with axes of particles and sides.

        Returns:
          The trajectories after it, and outcomes with axes of particles, steps and sides.
        """
        pair = Pair(system)
        trajectories = self.restarted(pair, thetas, trajectories, keys, outer_step)

        def one(theta, trajectory, key):
            return self.unroll(pair.step, theta, trajectory, key)

        inner, outcomes = jax.vmap(one)(thetas, trajectories, keys)
        return self.moved_on(trajectories, inner, comparison(outcomes).finite), outcomes


def comparison(outcomes: Outcome) -> Compared:
    """The pairs' mean losses over the truncation."""
    losses, steps = mean_loss(outcomes, axis=1)
    return Compared(losses, jnp.any(steps, axis=1))
