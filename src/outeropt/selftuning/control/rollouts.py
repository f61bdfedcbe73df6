"""Counterfactual rollouts: the loss now, had the coefficients of today played the last steps already."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from outeropt.optimizer import Optimizer, Params
from outeropt.selftuning.control.controllers import Controller
from outeropt.selftuning.control.disturbances import Disturbance
from outeropt.selftuning.control.history import History


Estimator = Literal["gaps", "fake", "cf1", "cf"]

# Steps of a rollout that are written out in the program; longer ones loop.
_UNROLL = 8


class Past(NamedTuple):
    """What a rollout must know of the last steps beside the disturbances, each row as it was before the step.

    Attributes:
      params: parameters.
      base: states of the base optimizer.
      disturbance: states of the disturbance; None where a rollout takes recorded disturbances.
    """

    params: History
    base: History
    disturbance: History | None

    def push(self, params: Params, base: PyTree, disturbance: PyTree) -> "Past":
        """One step more."""
        own = None if self.disturbance is None else self.disturbance.push(disturbance)
        return Past(self.params.push(params), self.base.push(base), own)


class Dynamics(NamedTuple):
    """What moves the parameters, other than the coefficients.

    Attributes:
      controller: what a coefficient is.
      base: the base optimizer.
      disturbance: the transformation of gradients.
      kept: what a step leaves of the parameters.
    """

    controller: Controller
    base: Optimizer
    disturbance: Disturbance
    kept: Float[Array, ""]

    def step(self, params: Params, w: Params, base_state: PyTree, control: Params) -> tuple[Params, PyTree]:
        """`kept * params + base's update on w + control`, and the base optimizer's next state."""
        updates, base_state = self.base.update(w, base_state, params)
        kept = self.kept

        def move(leaf, update, played):
            return kept.astype(leaf.dtype) * leaf + update.astype(leaf.dtype) + played.astype(leaf.dtype)

        return jax.tree.map(move, params, updates, control), base_state


def end(
    dynamics: Dynamics,
    coefficients: PyTree,
    history: History,
    past: Past,
    params: Params,
    horizon: int,
    estimator: Estimator,
    loss_at: Callable[[Params, Array], Array],
) -> Params:
    """Where the parameters would be now, had `coefficients` played the last `horizon` steps.

    From the real parameters of that time on, with the recorded disturbances `w` as constants in the control,
    for each step `s` up to the one before this:

        y_{s+1} = kept y_s + base(v_s) + sum_i M_i w_{s-i}

    where `v_s` is the disturbance of a fresh gradient at `y_s` (`"cf"`; a constant for derivatives in
    `"cf1"`) or the recorded `w_s` (`"fake"`). At the start of a run the rollout is as long as the run so far.
    With coefficients that never changed it ends at the real parameters (Chen and Hazan, "Online Control for
    Meta-optimization", 2023, arXiv 2301.07902).

    Args:
      params: where they are; the end of a rollout at the first step of a run.
      loss_at: `(params, ago) -> loss` on the minibatch of `ago` steps before this one.
    """
    controller, now = dynamics.controller, history.count
    first = jnp.maximum(now - horizon, 0)
    states = past.base.row(first), None if past.disturbance is None else past.disturbance.row(first)
    fixed = jax.lax.stop_gradient if estimator == "cf1" else lambda tree: tree

    def body(carry, h):
        y, (base_state, own_state) = carry
        ago = horizon - h
        if estimator == "fake":
            recorded = history.row(jnp.maximum(now - ago, 0))
            w, own = jax.tree.map(lambda leaf, p: leaf.astype(p.dtype), recorded, y), own_state
        else:
            grads = jax.grad(loss_at)(fixed(y), ago)
            w, own = fixed(dynamics.disturbance(grads, own_state, fixed(y)))
        moved, base = dynamics.step(y, w, base_state, controller.play(coefficients, history, ago - 1))
        # Steps from before the run do not happen.
        happened = (now - ago) >= 0
        new = (moved, (base, own))
        return jax.tree.map(lambda a, b: jnp.where(happened, a, b), new, carry), None

    start = past.params.row(first), states
    steps = jnp.arange(horizon, dtype=jnp.int32)
    ((y, _), _) = jax.lax.scan(body, start, steps, unroll=min(horizon, _UNROLL))
    return jax.tree.map(lambda leaf, real: jnp.where(now > 0, leaf.astype(real.dtype), real), y, params)
