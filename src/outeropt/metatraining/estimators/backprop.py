"""Backpropagation through unrolls: of truncations, and of whole trajectories."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from outeropt import tree
from outeropt.errors import ConfigError
from outeropt.metatraining.estimators.base import (
    Estimate,
    check_theta,
    mean_over_devices,
    particle_keys,
    report,
)
from outeropt.metatraining.estimators.trajectories import Trajectories, Truncated, mean_loss
from outeropt.metatraining.estimators.whole import Whole
from outeropt.metatraining.system import System


class Backprop(Truncated):
    """Truncated backpropagation through time. Biased: what theta did before the truncation is not seen.

    The gradient of the mean loss over the truncation, with the state at its beginning taken as given. No
    noise but that of the particles' setups and data; where trajectories are chaotic the gradient is useless
    all the same (Metz et al. 2019, arXiv 1810.10180).

    Attributes:
      rematerialise: recompute each step in the backward pass instead of keeping its intermediate values: one
        more forward pass, and only the states of the steps in memory.
    """

    rematerialise: bool = eqx.field(static=True, default=False, kw_only=True)

    def init(
        self, system: System, theta: PyTree, key: PRNGKeyArray, outer_step: int | Int[Array, ""]
    ) -> Trajectories:
        check_theta(theta)
        return self.waiting(system, theta, key, outer_step)

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
        step: Any = jax.checkpoint(system.step) if self.rematerialise else system.step

        def loss(thetas):
            before = self.restarted(system, thetas, state, keys, outer_step)
            inner, outcomes = jax.vmap(lambda *one: self.unroll(step, *one))(thetas, before, keys)
            losses, steps = mean_loss(outcomes, axis=1)
            return jnp.sum(losses), (losses, steps, before, inner)

        # A theta for each particle gives a gradient for each, so that one that is not finite can be left out.
        # The restart is inside: the initial state may depend on theta.
        thetas = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (*keys.shape, *leaf.shape)), theta)
        grads, (losses, steps, before, inner) = jax.grad(loss, has_aux=True)(thetas)
        estimate, finite = _over_particles(losses, grads, steps, state.over, axis)
        return estimate, self.moved_on(before, inner, finite)


class FullBackprop(Whole):
    """Backpropagation through whole trajectories: the exact gradient for the particles' setups and data.

    Attributes:
      length: inner steps of every trajectory, at least 1. Part of the compiled program.
      rematerialise: recompute each step in the backward pass instead of keeping its intermediate values: one
        more forward pass, and only the states of the steps in memory.
    """

    length: int = eqx.field(static=True, kw_only=True)
    rematerialise: bool = eqx.field(static=True, default=False, kw_only=True)

    def __check_init__(self):
        if not isinstance(self.length, int) or self.length < 1:
            raise ConfigError(
                f"Trajectories of length {self.length!r} cannot be differentiated; give a number of steps."
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
        step: Any = jax.checkpoint(system.step) if self.rematerialise else system.step

        def loss(theta, key):
            return self.run(system, step, theta, self.length, key)

        each = jax.vmap(jax.value_and_grad(loss), in_axes=(None, 0))
        losses, grads = each(theta, keys)
        every = jnp.ones(state.shape, bool)
        estimate, _ = _over_particles(losses, grads, every, every, axis)
        return estimate, state


def _over_particles(
    losses: Float[Array, " rows"],
    grads: PyTree,
    steps: Bool[Array, " rows"],
    restarts: Bool[Array, " rows"],
    axis: str | None,
) -> tuple[Estimate, Bool[Array, " rows"]]:
    """The estimate from each particle's loss and gradient, and which of them are finite."""
    finite = jnp.isfinite(losses) & jax.vmap(tree.all_finite)(grads)
    zeros = jax.tree.map(jnp.zeros_like, grads)
    grads = jax.vmap(tree.where)(finite, grads, zeros)
    loss, diagnostics = report(losses, finite & steps, ~finite, restarts, axis)
    return Estimate(mean_over_devices(grads, axis), loss, diagnostics), finite
