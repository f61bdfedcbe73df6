"""The contract of an estimator of the outer gradient, and what all estimators share: keys, means, a report.

The estimator never sees an optimizer or a task: it unrolls a `System`. Particles are rows: every leaf of an
estimator's state has a leading axis for them, the randomness of a row derives from the key, the outer step
and the particle's number, and rows meet only in means. So the rows of a state can be shared among devices,
but for those that every device keeps of all particles (`everywhere`).
"""

import abc
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray, PyTree

from outeropt import tree
from outeropt.errors import ConfigError
from outeropt.metatraining.system import System


# Streams of a particle's randomness in one outer step.
NOISE, START, STEPS, OFFSET = range(4)


class Estimate(eqx.Module):
    """An estimate of the outer gradient.

    Attributes:
      grad: the gradient, with the structure, shapes and dtypes of theta. To be descended on.
      loss: the mean meta-loss over particles whose losses are finite; NaN if there are none.
      diagnostics: scalars by name. `skipped`: particles whose losses were not finite. `restarts`: particles
        that began a trajectory. `loss_std`: standard deviation of the meta-loss over particles.
        `difference` (antithetic pairs): mean absolute difference of the two losses of a pair.
    """

    grad: PyTree
    loss: Float[Array, ""]
    diagnostics: dict[str, Float[Array, ""]]


class Estimator(eqx.Module):
    """Estimates the gradient of the meta-loss with respect to theta, from unrolls of many particles.

    Array leaves are numbers that may be tuned while meta-training goes on (the perturbations' standard
    deviation), all else is static.

    Attributes:
      particles: trajectories, or antithetic pairs of them, at least 1.
      reports: names of the diagnostics.
    """

    reports: ClassVar[tuple[str, ...]] = ("loss_std", "restarts", "skipped")
    particles: int = eqx.field(static=True, default=16, kw_only=True)

    def __check_init__(self):
        if self.particles < 1:
            raise ConfigError(f"{self.particles} particles estimate nothing; give at least 1.")

    @abc.abstractmethod
    def init(
        self, system: System, theta: PyTree, key: PRNGKeyArray, outer_step: int | Int[Array, ""]
    ) -> PyTree:
        """The state before the first estimate.

        Args:
          system: what is unrolled.
          theta: the meta-parameters, any pytree of floating arrays.
          key: randomness.
          outer_step: number of the outer step at which meta-training begins.

        Returns:
          A pytree of arrays whose first axis counts particles.

        Raises:
          ConfigError: theta has a leaf that is not a floating array.
        """

    @abc.abstractmethod
    def estimate(
        self,
        system: System,
        theta: PyTree,
        state: PyTree,
        key: PRNGKeyArray,
        outer_step: int | Int[Array, ""],
        axis: str | None = None,
    ) -> tuple[Estimate, PyTree]:
        """One estimate.

        Args:
          system: what is unrolled.
          theta: the meta-parameters.
          state: what `init` or the last `estimate` gave; inside `shard_map(..., check_vma=False)`, one
            device's rows of it, and all rows of what is `everywhere`.
          key: randomness, which is folded with `outer_step` and each particle's number. It may be the same
            for all outer steps.
          outer_step: number of this outer step.
          axis: inside `shard_map`, the name of the mesh axis over which particles are shared.

        Returns:
          The estimate, equal on all devices, and the next state.
        """

    def everywhere(self, state: PyTree) -> PyTree:
        """Which leaves of a state every device keeps for all particles, where devices share them.

        Returns:
          The structure of the state, with a bool for each leaf. By default none: each device has its rows.
        """
        return jax.tree.map(lambda _: False, state)


def numbers(particles: int) -> Int[Array, " particles"]:
    """The particles' numbers, which stand for their randomness."""
    return jnp.arange(particles, dtype=jnp.int32)


def particle_keys(
    key: PRNGKeyArray, outer_step: int | Array, number: Int[Array, " rows"]
) -> Key[Array, " rows"]:
    """A key for each particle and outer step."""
    own, _ = jax.random.split(jax.random.fold_in(key, outer_step))
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(own, number)


def shared_key(key: PRNGKeyArray, outer_step: int | Array) -> Key[Array, ""]:
    """A key for what all particles share in one outer step."""
    return jax.random.split(jax.random.fold_in(key, outer_step))[1]


def start_keys(key: PRNGKeyArray) -> Key[Array, "3"]:
    """Keys for the length, the setup and the initial state of a trajectory that a particle begins."""
    return jax.random.split(jax.random.fold_in(key, START), 3)


def check_theta(theta: PyTree) -> None:
    """Refuses meta-parameters that cannot be perturbed or differentiated."""
    if not jax.tree.leaves(theta):
        raise ConfigError("Theta has no leaves: there is nothing to learn.")
    for name, leaf in tree.named_leaves(theta).items():
        if not (tree.is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating)):
            kind = f"a {leaf.dtype} array" if tree.is_array(leaf) else repr(leaf)
            raise ConfigError(
                f"Meta-parameter {name or 'theta'} is {kind}; every leaf of theta must be a floating array. "
                "Make it a static field, or part of the system."
            )


def total(values: Array, axis: str | None) -> Array:
    """The sum over the rows of all devices."""
    summed = jnp.sum(values, axis=0)
    return summed if axis is None else jax.lax.psum(summed, axis)


def weighted_sum(weights: Float[Array, " rows"], rows: PyTree) -> PyTree:
    """The sum of `weights[i] * rows[i]` in float32, leaf by leaf."""

    def one(leaf):
        # Not a matrix product: those may be rounded to fewer digits on accelerators.
        wide = leaf.astype(jnp.float32) * weights.reshape((-1,) + (1,) * (leaf.ndim - 1))
        return jnp.sum(wide, axis=0)

    return jax.tree.map(one, rows)


def mean_over_devices(rows: PyTree, axis: str | None) -> PyTree:
    """The mean over the rows of all devices, leaf by leaf: an exchange of the size of one row."""
    count = total(jnp.ones(jax.tree.leaves(rows)[0].shape[0]), axis)
    return jax.tree.map(lambda leaf: (total(leaf.astype(jnp.float32), axis) / count).astype(leaf.dtype), rows)


def report(
    losses: Float[Array, " rows"],
    valid: Bool[Array, " rows"],
    skipped: Bool[Array, " rows"],
    restarts: Bool[Array, " rows"],
    axis: str | None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The mean meta-loss over valid particles, and the diagnostics that all estimators give.

    Args:
      losses: the meta-loss of each particle.
      valid: particles that had at least one step that counts, and finite losses.
      skipped: particles whose losses, or gradients, were not finite.
      restarts: particles that began a trajectory.
      axis: mesh axis of the particles, if they are shared.
    """
    weight = valid.astype(jnp.float32)
    count = total(weight, axis)
    mean = total(jnp.where(valid, losses, 0.0), axis) / count
    square = total(jnp.where(valid, jnp.square(losses - mean), 0.0), axis) / count
    return mean, {
        "skipped": total(skipped.astype(jnp.float32), axis),
        "restarts": total(restarts.astype(jnp.float32), axis),
        "loss_std": jnp.sqrt(square),
    }
