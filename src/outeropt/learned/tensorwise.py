"""The loop over tensors, for learned optimizers that treat each tensor of the parameters by itself."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from outeropt.errors import ConfigError
from outeropt.optimizer import Params
from outeropt.optimizers import schedules


# What may shrink all updates in the course of a run, by name.
SCHEDULES: dict[str, Callable[[], schedules.Schedule] | None] = {
    "constant": None,
    "linear": schedules.Linear,
    "cosine": schedules.Cosine,
}


class State(eqx.Module):
    """What such an optimizer keeps.

    Attributes:
      step: steps taken.
      moments: accumulators of each tensor, in the order of the leaves.
      num_steps: length of the run, where a schedule needs it.
    """

    step: Int[Array, ""]
    moments: list[PyTree]
    num_steps: Float[Array, ""] | None = None


Move = Callable[[Array, Array, PyTree], tuple[Array, PyTree]]


def start(
    zeros: Callable[[Array], PyTree],
    params: Params,
    schedule: str = "constant",
    num_steps: int | Array | None = None,
) -> State:
    """The state before the first step.

    Args:
      zeros: the accumulators of a tensor, of rank 1 or more.
      params: parameters to be optimized.
      schedule: a name in `SCHEDULES`.
      num_steps: length of the run; only a schedule needs it.

    Raises:
      ConfigError: the schedule needs the length, and it is not given.
    """
    moments = [zeros(jnp.atleast_1d(p)) for p in jax.tree.leaves(params)]
    if SCHEDULES[schedule] is None:
        return State(jnp.int32(0), moments)
    if num_steps is None:
        raise ConfigError(
            f"This learned optimizer follows a {schedule} schedule and needs the length of the run: give "
            "num_steps, as in init(params, num_steps=10_000) or as_optax(num_steps=10_000)."
        )
    return State(jnp.int32(0), moments, jnp.asarray(num_steps, jnp.float32))


def scheduled(schedule: str, state: State) -> Float[Array, ""] | float:
    """What the next update is multiplied with: 1, or from 1 at the first step down towards 0 at the end."""
    kind = SCHEDULES[schedule]
    return 1.0 if kind is None else kind()(state.step, state.num_steps)


def known_schedule(name: str) -> str:
    """The name, if it is one in `SCHEDULES`.

    Raises:
      ConfigError: it is not.
    """
    if name not in SCHEDULES:
        raise ConfigError(f"There is no schedule = {name!r}; give one of {', '.join(SCHEDULES)}.")
    return name


def advance(move: Move, grads: Params, state: State, params: Params) -> tuple[Params, State]:
    """Moves each tensor by itself.

    Args:
      move: takes a tensor's gradient, its parameters and its accumulators, and returns the update to be added
        and the next accumulators. It sees float32 arrays of rank 1 or more: a scalar is a vector of length 1.
      grads: gradients, same structure as `params`.
      state: the last state.
      params: current parameters.

    Returns:
      Updates with the shapes and dtypes of the parameters, and the next state.
    """
    leaves, structure = jax.tree.flatten(params)
    updates, moments = [], []
    for grad, param, old in zip(structure.flatten_up_to(grads), leaves, state.moments):
        g, p = (jnp.atleast_1d(x).astype(jnp.float32) for x in (grad, param))
        update, new = move(g, p, old)
        updates.append(update.reshape(param.shape).astype(param.dtype))
        moments.append(new)
    return structure.unflatten(updates), State(state.step + 1, moments, state.num_steps)
