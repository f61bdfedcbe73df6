"""Whole trajectories, run from their beginning to their end for each estimate, and their meta-loss."""

from collections.abc import Callable
from typing import Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from outeropt.errors import ConfigError
from outeropt.metatraining.estimators.base import STEPS, Estimator, check_theta, numbers, start_keys
from outeropt.metatraining.estimators.trajectories import counted
from outeropt.metatraining.system import Outcome, System


Reduction = Literal["mean", "last", "min"]


class Whole(Estimator):
    """An estimator that begins all its trajectories anew and runs each to its end, at every estimate.

    Its state is the particles' numbers alone.

    Attributes:
      reduction: the meta-loss of a trajectory is the `"mean"` of the losses that count, the `"last"` of them,
        or the smallest (`"min"`).
    """

    reduction: Reduction = eqx.field(static=True, default="mean", kw_only=True)

    def __check_init__(self):
        if self.reduction not in get_args(Reduction):
            raise ConfigError(f"Reduction {self.reduction!r} is unknown; it is mean, last or min.")

    def init(
        self, system: System, theta: PyTree, key: PRNGKeyArray, outer_step: int | Int[Array, ""]
    ) -> Int[Array, " particles"]:
        del system, key, outer_step
        check_theta(theta)
        return numbers(self.particles)

    def run(
        self,
        system: System,
        step: Callable,
        theta: PyTree,
        length: int | Int[Array, ""],
        key: PRNGKeyArray,
        sides: tuple[int, ...] = (),
    ) -> Float[Array, "*sides"]:
        """The meta-loss of one particle's trajectory; not finite if no step counts.

        Args:
          system: what is run.
          step: its step, or a rematerialised version.
          theta: the meta-parameters.
          length: inner steps. A Python number gives a differentiable loop, an array one that serves all
            lengths.
          key: the particle's key.
          sides: the shape of a step's loss.
        """
        _, setup_key, init_key = start_keys(key)
        setup = system.draw(setup_key)
        inner = system.init(theta, setup, jnp.asarray(length, jnp.int32), init_key)
        steps_key = jax.random.fold_in(key, STEPS)

        def body(t, carry):
            inner, tally = carry
            now = jnp.asarray(t, jnp.int32)
            inner, outcome = step(theta, setup, inner, now, jax.random.fold_in(steps_key, now))
            return inner, self._tallied(tally, outcome)

        start = jnp.full(sides, {"mean": 0.0, "last": jnp.nan, "min": jnp.inf}[self.reduction])
        _, (value, steps) = jax.lax.fori_loop(0, length, body, (inner, (start, jnp.zeros_like(start))))
        return value / steps if self.reduction == "mean" else value

    def _tallied(self, tally: tuple[Array, Array], outcome: Outcome) -> tuple[Array, Array]:
        """The reduction and the number of steps so far, one step later."""
        value, steps = tally
        loss = counted(outcome.loss, outcome.counts)
        steps = steps + outcome.counts.astype(jnp.float32)
        if self.reduction == "mean":
            return value + loss, steps
        best = jnp.minimum(value, loss) if self.reduction == "min" else loss
        return jnp.where(outcome.counts, best, value), steps
