"""Forward-mode differentiation: tangents that travel with the trajectory."""

import itertools
from collections.abc import Callable
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray, PyTree

from outeropt import tree
from outeropt.errors import ConfigError
from outeropt.metatraining.estimators.antithetic import perturbations
from outeropt.metatraining.estimators.base import (
    Estimate,
    check_theta,
    mean_over_devices,
    numbers,
    particle_keys,
    report,
)
from outeropt.metatraining.estimators.trajectories import Trajectories, Truncated, mean_loss
from outeropt.metatraining.system import Outcome, System


class ForwardState(eqx.Module):
    """Trajectories whose `inner` holds the system's state and its tangents.

    Attributes:
      trajectories: where each particle is.
      direction_key: gives the trajectory's directions again in each truncation; they are not kept.
    """

    trajectories: Trajectories
    direction_key: Key[Array, " particles"]


class Dual(System):
    """A system together with its derivatives along some directions, by forward-mode differentiation.

    Theta is a pair: the meta-parameters, and directions with a leading axis. The state is a pair alike, with
    tangents of the floating leaves; a loss is a vector, of the loss itself and its slope in each direction.
    """

    system: System

    def draw(self, key: PRNGKeyArray) -> PyTree:
        return self.system.draw(key)

    def init(self, theta: PyTree, setup: PyTree, length: Int[Array, ""], key: PRNGKeyArray) -> PyTree:
        value, directions = theta

        def start(value):
            return eqx.partition(self.system.init(value, setup, length, key), eqx.is_inexact_array)

        floats, tangents, rest = _pushed(start, (value,), (directions,))
        return eqx.combine(floats, rest), tangents

    def step(
        self, theta: PyTree, setup: PyTree, state: PyTree, step: Int[Array, ""], key: PRNGKeyArray
    ) -> tuple[PyTree, Outcome]:
        (value, directions), (inner, tangents) = theta, state
        floats, rest = eqx.partition(inner, eqx.is_inexact_array)

        def move(value, floats):
            new, outcome = self.system.step(value, setup, eqx.combine(floats, rest), step, key)
            floats, others = eqx.partition(new, eqx.is_inexact_array)
            return (floats, outcome.loss.astype(jnp.float32)), (others, outcome.counts, outcome.fresh)

        (floats, loss), (tangents, slopes), (rest, counts, fresh) = _pushed(
            move, (value, floats), (directions, tangents)
        )
        losses = jnp.concatenate([jnp.expand_dims(loss, 0), slopes])
        return (eqx.combine(floats, rest), tangents), Outcome(losses, counts, fresh)


def _pushed(function: Callable, primals: tuple, tangents: tuple) -> tuple[PyTree, PyTree, PyTree]:
    """Values, their tangents along each direction, and the rest: `function` gives values and a rest."""

    def one(tangents):
        return jax.jvp(function, primals, tangents, has_aux=True)

    return jax.vmap(one, out_axes=(None, 0, None))(tangents)


class ForwardMode(Truncated):
    """Forward-mode differentiation along random directions, or along all.

    Each trajectory keeps its directions `v ~ N(0, I)` and carries the tangents of its state from truncation
    to truncation, so the slope `dL/dtheta . v` of a truncation's loss is exact: it sees all that theta did
    since the trajectory began. The estimate is the mean of `(dL/dtheta . v) v` (Baydin et al. 2022, arXiv
    2202.08587; Silver et al. 2021, arXiv 2108.06542): unbiased for the gradient itself, not a smoothed one,
    with a variance that grows with the number of meta-parameters. With `tangents="all"` it is real-time
    recurrent learning (Williams and Zipser 1989): the exact gradient for one tangent per meta-parameter.

    Attributes:
      tangents: directions per particle, at least 1, or `"all"`: every axis of theta.
    """

    tangents: int | Literal["all"] = eqx.field(static=True, default=1, kw_only=True)

    def __check_init__(self):
        if self.tangents != "all" and not (isinstance(self.tangents, int) and self.tangents >= 1):
            raise ConfigError(f"tangents={self.tangents!r} is not possible; give a number from 1, or 'all'.")

    def init(
        self, system: System, theta: PyTree, key: PRNGKeyArray, outer_step: int | Int[Array, ""]
    ) -> ForwardState:
        check_theta(theta)
        direction_keys = particle_keys(key, outer_step, numbers(self.particles))
        one = _axes_of(theta) if self.tangents == "all" else self._drawn(direction_keys[0], theta)
        return ForwardState(self.waiting(Dual(system), (theta, one), key, outer_step), direction_keys)

    def estimate(
        self,
        system: System,
        theta: PyTree,
        state: ForwardState,
        key: PRNGKeyArray,
        outer_step: int | Int[Array, ""],
        axis: str | None = None,
    ) -> tuple[Estimate, ForwardState]:
        before = state.trajectories
        keys = particle_keys(key, outer_step, before.number)
        direction_key = jax.vmap(tree.where)(before.over, keys, state.direction_key)
        dual, along_axes = Dual(system), self.tangents == "all"
        if along_axes:
            directions = _axes_of(theta)
        else:
            directions = jax.vmap(lambda one: self._drawn(one, theta))(direction_key)
        both, theta_axis = (theta, directions), (None, None if along_axes else 0)
        trajectories = self.restarted(dual, both, before, keys, outer_step, theta_axis)

        def one(both, trajectory, key):
            inner, outcomes = self.unroll(dual.step, both, trajectory, key)
            return inner, *mean_loss(outcomes)

        inner, values, steps = jax.vmap(one, in_axes=(theta_axis, 0, 0))(both, trajectories, keys)
        finite = jnp.all(jnp.isfinite(values), axis=1)
        slopes = jnp.where(jnp.expand_dims(finite, 1), values[:, 1:], 0.0)
        grads = _along_axes(slopes, theta) if along_axes else _along(slopes, directions)
        gradient = mean_over_devices(grads, axis)
        loss, diagnostics = report(values[:, 0], finite & steps, ~finite, before.over, axis)
        after = self.moved_on(trajectories, inner, finite)
        return Estimate(gradient, loss, diagnostics), ForwardState(after, direction_key)

    def _drawn(self, key: PRNGKeyArray, theta: PyTree) -> PyTree:
        """One particle's random directions."""
        return perturbations(jax.random.split(key, int(self.tangents)), theta)


def _axes_of(theta: PyTree) -> PyTree:
    """All unit directions, shaped like theta with a leading axis."""
    leaves, structure = jax.tree.flatten(theta)
    count, first, found = sum(leaf.size for leaf in leaves), 0, []
    for leaf in leaves:
        unit = jnp.eye(count, leaf.size, -first, dtype=leaf.dtype)
        found.append(unit.reshape(count, *leaf.shape))
        first += leaf.size
    return jax.tree.unflatten(structure, found)


def _along_axes(slopes: Float[Array, "rows all"], theta: PyTree) -> PyTree:
    """Slopes in all unit directions as gradients shaped like theta."""
    leaves, structure = jax.tree.flatten(theta)
    ends = list(itertools.accumulate(leaf.size for leaf in leaves))
    parts = jnp.split(slopes, ends[:-1], axis=1)
    shaped = [part.reshape(-1, *leaf.shape).astype(leaf.dtype) for part, leaf in zip(parts, leaves)]
    return jax.tree.unflatten(structure, shaped)


def _along(slopes: Float[Array, "rows tangents"], directions: PyTree) -> PyTree:
    """The mean over each particle's directions of slope times direction."""

    def one(leaf):
        weights = slopes.reshape(slopes.shape + (1,) * (leaf.ndim - 2))
        return jnp.mean(leaf.astype(jnp.float32) * weights, axis=1).astype(leaf.dtype)

    return jax.tree.map(one, directions)
