"""Evolution strategies on whole trajectories, and on truncations of them."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from outeropt.errors import ConfigError
from outeropt.metatraining.estimators import antithetic
from outeropt.metatraining.estimators.antithetic import Antithetic, Compared, Pair
from outeropt.metatraining.estimators.base import Estimate, check_theta, particle_keys, shared_key
from outeropt.metatraining.estimators.sharing import everyone
from outeropt.metatraining.estimators.trajectories import Trajectories
from outeropt.metatraining.estimators.truncated_pairs import TruncatedPairs, comparison
from outeropt.metatraining.estimators.whole import Whole
from outeropt.metatraining.lengths import Endless, Lengths
from outeropt.metatraining.system import System


class FullES(Whole, Antithetic):
    """Antithetic evolution strategies on whole trajectories.

    `g = mean_i e_i (L(theta + e_i) - L(theta - e_i)) / (2 s^2)`, `e_i ~ N(0, s^2 I)` (Salimans et al. 2017,
    arXiv 1703.03864, with antithetic pairs): unbiased for the gradient of the smoothed meta-loss
    `E_e L(theta + e)`. Its variance grows with the number of meta-parameters, not with the length, and a
    gradient costs whole trajectories.

    All particles of an outer step have one length, and all lengths share a compiled program.

    Attributes:
      lengths: how long trajectories are in each outer step.
    """

    lengths: Lengths = eqx.field(kw_only=True)

    def __check_init__(self):
        if not isinstance(self.lengths, Lengths) or isinstance(self.lengths, Endless):
            raise ConfigError(
                f"lengths={self.lengths!r} do not end whole trajectories; give Constant(n), "
                "LogUniform(low, high) or Scheduled(schedule)."
            )

    def estimate(
        self,
        system: System,
        theta: PyTree,
        state: Int[Array, " rows"],
        key: PRNGKeyArray,
        outer_step: int | Int[Array, ""],
        axis: str | None = None,
    ) -> tuple[Estimate, Int[Array, " rows"]]:
        keys = particle_keys(key, outer_step, state)
        noise = antithetic.perturbations(keys, theta)
        thetas = antithetic.sides(theta, antithetic.scaled(noise, self.std))
        length = self.lengths.draw(shared_key(key, outer_step), outer_step)
        pair = Pair(system)
        losses = jax.vmap(lambda t, k: self.run(pair, pair.step, t, length, k, (2,)))(thetas, keys)
        every = jnp.ones(state.shape, bool)
        compared, keys, every = everyone((Compared(losses, every), keys, every), axis)
        weights = self.shaped(compared.difference)
        gradient = antithetic.gradient(weights, noise, keys, self.std, theta, axis)
        return compared.estimate(gradient, every), state


class TruncatedES(TruncatedPairs):
    """Antithetic evolution strategies on truncations. Biased: what a change of theta did before is not seen.

    The estimate of `FullES`, with the mean loss over the truncation. Both sides of a pair begin at the same
    state, and the next truncation goes on from that of `theta + e`. The baseline that PES corrects (Vicol et
    al. 2021, arXiv 2112.13835).
    """

    def init(
        self, system: System, theta: PyTree, key: PRNGKeyArray, outer_step: int | Int[Array, ""]
    ) -> Trajectories:
        check_theta(theta)
        return self.waiting_pairs(system, theta, key, outer_step)

    def estimate(
        self,
        system: System,
        theta: PyTree,
        state: Trajectories,
        key: PRNGKeyArray,
        outer_step: int | Int[Array, ""],
        axis: str | None = None,
    ) -> tuple[Estimate, Trajectories]:
        keys = particle_keys(key, outer_step, state.number)
        noise = antithetic.perturbations(keys, theta)
        thetas = antithetic.sides(theta, antithetic.scaled(noise, self.std))
        after, outcomes = self.advanced(system, thetas, state, keys, outer_step)
        compared, keys, over = everyone((comparison(outcomes), keys, state.over), axis)
        weights = self.shaped(compared.difference)
        gradient = antithetic.gradient(weights, noise, keys, self.std, theta, axis)
        positive = jax.tree.map(lambda leaf: jnp.stack([leaf[:, 0]] * 2, axis=1), after.inner)
        after = eqx.tree_at(lambda s: s.inner, after, positive)
        return compared.estimate(gradient, over), after
