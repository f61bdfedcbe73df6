"""Evolution strategies with one perturbation for a whole trajectory."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray, PyTree

from outeropt import tree
from outeropt.metatraining.estimators import antithetic
from outeropt.metatraining.estimators.base import Estimate, check_theta, particle_keys
from outeropt.metatraining.estimators.sharing import everyone
from outeropt.metatraining.estimators.trajectories import Trajectories
from outeropt.metatraining.estimators.truncated_pairs import TruncatedPairs, comparison
from outeropt.metatraining.system import System


class ESSingleState(eqx.Module):
    """Pairs under way, and what perturbs each of them.

    Attributes:
      trajectories: where each pair is.
      noise_key: gives the trajectory's perturbation again in each truncation, so that it need not be kept.
      std: standard deviation with which the trajectory began.
    """

    trajectories: Trajectories
    noise_key: Key[Array, " particles"]
    std: Float[Array, " particles"]


class ESSingle(TruncatedPairs):
    """Antithetic evolution strategies with one perturbation per trajectory, reused in all its truncations.

    `g = mean_i e_i (L(theta + e_i) - L(theta - e_i)) / (2 s^2)` with `L` the mean loss over the truncation
    and `e_i` drawn when the trajectory begins: ES-Single (Vicol 2023, arXiv 2304.11153) or noise-reuse
    evolution strategies (Li et al. 2023, arXiv 2304.12180). The mean over a trajectory's truncations is the
    estimate of `FullES`, so it is unbiased for the smoothed meta-loss, and its variance does not grow with
    the number of truncations. Successive estimates share perturbations and are correlated.
    """

    def init(
        self, system: System, theta: PyTree, key: PRNGKeyArray, outer_step: int | Int[Array, ""]
    ) -> ESSingleState:
        check_theta(theta)
        trajectories = self.waiting_pairs(system, theta, key, outer_step)
        keys = particle_keys(key, outer_step, trajectories.number)
        return ESSingleState(trajectories, keys, jnp.broadcast_to(self.std, (self.particles,)))

    def estimate(
        self,
        system: System,
        theta: PyTree,
        state: ESSingleState,
        key: PRNGKeyArray,
        outer_step: int | Int[Array, ""],
        axis: str | None = None,
    ) -> tuple[Estimate, ESSingleState]:
        before = state.trajectories
        keys = particle_keys(key, outer_step, before.number)
        begun = keys, jnp.broadcast_to(self.std, state.std.shape)
        noise_key, std = jax.vmap(tree.where)(before.over, begun, (state.noise_key, state.std))
        noise = antithetic.perturbations(noise_key, theta)
        thetas = antithetic.sides(theta, antithetic.scaled(noise, std))
        after, outcomes = self.advanced(system, thetas, before, keys, outer_step)
        told = comparison(outcomes), noise_key, std, before.over
        compared, all_keys, all_std, over = everyone(told, axis)
        weights = self.shaped(compared.difference)
        gradient = antithetic.gradient(weights, noise, all_keys, all_std, theta, axis)
        return compared.estimate(gradient, over), ESSingleState(after, noise_key, std)
