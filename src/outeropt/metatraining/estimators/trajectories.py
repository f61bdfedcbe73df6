"""Trajectories that are unrolled a truncation at a time.

Trajectories begin between unrolls only: where the last one is over, a state that was made for the
purpose takes its place. A program has one initialisation for all particles, behind a branch that is not taken
while no trajectory is over, instead of one in every step.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray, PyTree

from outeropt import tree
from outeropt.errors import ConfigError
from outeropt.metatraining.estimators.base import OFFSET, STEPS, Estimator, numbers, particle_keys, start_keys
from outeropt.metatraining.lengths import Lengths
from outeropt.metatraining.system import Outcome, System


class Trajectories(eqx.Module):
    """Where each particle is; one particle's part of it where functions say so.

    Attributes:
      number: the particle's number.
      length: inner steps of its trajectory; 0 while it has none.
      elapsed: inner steps done; before there is a trajectory, those that the first one skips.
      setup: what the system drew for it.
      inner: the system's state.
    """

    number: Int[Array, " particles"]
    length: Int[Array, " particles"]
    elapsed: Int[Array, " particles"]
    setup: PyTree
    inner: PyTree

    @property
    def over(self) -> Bool[Array, " particles"]:
        """Whether the next unroll begins a new trajectory."""
        return self.elapsed >= self.length


class Truncated(Estimator):
    """An estimator that unrolls some steps per estimate and goes on from there in the next.

    Attributes:
      truncation: inner steps per estimate, at least 1.
      lengths: how long trajectories are.
      random_offset: the first trajectory of each particle skips U{0, ..., random_offset - 1} of its steps
        (modulo its length), so that particles are not all at the same place ever after.
    """

    truncation: int = eqx.field(static=True, default=20, kw_only=True)
    lengths: Lengths = eqx.field(kw_only=True)
    random_offset: int = eqx.field(static=True, default=0, kw_only=True)

    def __check_init__(self):
        if self.truncation < 1 or self.random_offset < 0:
            raise ConfigError(
                f"Truncation {self.truncation} and random offset {self.random_offset} are not possible; the "
                "truncation is at least 1 and the offset at least 0."
            )
        if not isinstance(self.lengths, Lengths):
            raise ConfigError(
                f"lengths={self.lengths!r} says not how long trajectories are; give Constant(n), "
                "LogUniform(low, high), Scheduled(schedule) or Endless()."
            )

    def waiting(
        self, system: System, theta: PyTree, key: PRNGKeyArray, outer_step: int | Array
    ) -> Trajectories:
        """Particles without a trajectory, which the first unroll begins. Computes nothing of the system."""
        number = numbers(self.particles)

        def start():
            setup = system.draw(key)
            return setup, system.init(theta, setup, jnp.int32(1), key)

        def blank(leaf):
            return jax.lax.full((self.particles, *leaf.shape), 0, leaf.dtype)

        def offset(own):
            return jax.random.randint(jax.random.fold_in(own, OFFSET), (), 0, max(self.random_offset, 1))

        setup, inner = jax.tree.map(blank, jax.eval_shape(start))
        elapsed = jax.vmap(offset)(particle_keys(key, outer_step, number))
        return Trajectories(number, jnp.zeros_like(number), elapsed, setup, inner)

    def restarted(
        self,
        system: System,
        theta: PyTree,
        trajectories: Trajectories,
        keys: Key[Array, " rows"],
        outer_step: int | Array,
        theta_axis: PyTree = 0,
    ) -> Trajectories:
        """The same trajectories, but new ones where the last are over.

        Args:
          theta: meta-parameters, with a leading axis of particles.
          theta_axis: None for parts of theta that have no such axis, as for `vmap`.
        """

        def one(theta, old, key):
            length_key, setup_key, init_key = start_keys(key)
            length = self.lengths.draw(length_key, outer_step)
            setup = system.draw(setup_key)
            inner = system.init(theta, setup, length, init_key)
            elapsed = jnp.where(old.length == 0, old.elapsed % length, 0)
            new = Trajectories(old.number, length, elapsed, setup, inner)
            return tree.where(old.over, new, old)

        return jax.lax.cond(
            jnp.any(trajectories.over),
            lambda: jax.vmap(one, in_axes=(theta_axis, 0, 0))(theta, trajectories, keys),
            lambda: trajectories,
        )

    def unroll(
        self, step: Callable, theta: PyTree, one: Trajectories, key: PRNGKeyArray
    ) -> tuple[PyTree, Outcome]:
        """One particle's truncation.

        Args:
          step: the system's step.
          theta: the meta-parameters.
          one: the particle's trajectory.
          key: the particle's key.

        Returns:
          The system's state after it, and outcomes with a leading axis of steps. Steps after the end of the
          trajectory do not count, and losses that do not count are 0.
        """
        steps_key = jax.random.fold_in(key, STEPS)

        def body(inner, t):
            now = one.elapsed + t
            inner, outcome = step(theta, one.setup, inner, now, jax.random.fold_in(steps_key, t))
            counts = outcome.counts & (now < one.length)
            return inner, Outcome(counted(outcome.loss, counts), counts, outcome.fresh)

        return jax.lax.scan(body, one.inner, jnp.arange(self.truncation, dtype=jnp.int32))

    def moved_on(
        self, trajectories: Trajectories, inner: PyTree, finite: Bool[Array, " rows"]
    ) -> Trajectories:
        """After an unroll; a particle that failed is over."""
        elapsed = jnp.where(finite, trajectories.elapsed + self.truncation, trajectories.length)
        return Trajectories(trajectories.number, trajectories.length, elapsed, trajectories.setup, inner)


def counted(loss: Array, counts: Array) -> Float[Array, "..."]:
    """The loss as float32 where it counts, else 0."""
    return jnp.where(counts, loss.astype(jnp.float32), 0.0)


def mean_loss(outcome: Outcome, axis: int = 0) -> tuple[Float[Array, "..."], Bool[Array, "..."]]:
    """The mean over the steps that count (0 if there are none), and whether there are any."""
    steps = jnp.sum(outcome.counts.astype(jnp.float32), axis=axis)
    return jnp.sum(outcome.loss, axis=axis) / jnp.maximum(steps, 1.0), steps > 0
