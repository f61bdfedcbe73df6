"""A whole run as one pure function, and what is asked of it."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from outeropt.errors import ConfigError, OuteroptError, first_line
from outeropt.optimizer import Optimizer
from outeropt.task import Task
from outeropt.training.inner import TrainState, evaluate, inner_step, renewed, start, window


class Run(eqx.Module):
    """What `train` returns.

    Attributes:
      state: the state after the last step.
      steps: inner steps at which the curves were evaluated, shape (T,): 0, eval_every, ..., steps.
      curves: arrays (T,) by name: `train/loss`, `valid/loss`, `test/loss`, metrics such as `test/accuracy`,
        and `inner/loss` (mean training loss since the previous evaluation, NaN at step 0).
    """

    state: TrainState
    steps: Int[Array, " T"]
    curves: dict[str, Float[Array, " T"]]


def train(
    task: Task,
    optimizer: Optimizer,
    *,
    steps: int,
    key: PRNGKeyArray,
    episodes: int = 1,
    eval_every: int | None = None,
    eval_batches: int = 5,
    last_eval_batches: int = 10,
) -> Run:
    """Trains a task from its initial parameters. Pure: `jit`, `vmap` and `grad` work through it.

    Args:
      task: what to train.
      optimizer: what to train it with.
      steps: inner steps of an episode, at least 1.
      key: seeds initial values, batches and evaluations.
      episodes: how many times to train from fresh initial values, one after the other, at least 1. What the
        optimizer learned about training stays (`Optimizer.restart`); the curves go on from episode to
        episode, and the evaluation where two meet is of the end of the first.
      eval_every: inner steps between evaluations; must divide `steps`. None chooses about a hundred
        evaluations.
      eval_batches: batches per split and evaluation.
      last_eval_batches: the same for the evaluation after the last step.

    Returns:
      Final state and curves.

    Raises:
      ConfigError: `steps`, the cadence or a number of batches is not usable.

    Examples:
      >>> import jax, outeropt
      >>> task, adam = outeropt.tasks.get("Quadratic_10"), outeropt.optimizers.get("adam", learning_rate=0.1)
      >>> run = outeropt.train(task, adam, steps=20, eval_every=10, key=jax.random.key(0))
      >>> run.steps.tolist(), sorted(run.curves)
      ([0, 10, 20], ['inner/loss', 'test/loss', 'train/loss', 'valid/loss'])
      >>> bool(run.curves["valid/loss"][-1] < run.curves["valid/loss"][0])
      True
    """
    eval_every = cadence(steps, eval_every, eval_batches, last_eval_batches, episodes)
    return _train(task, optimizer, key, steps, episodes, eval_every, eval_batches, last_eval_batches)


@eqx.filter_jit
def _train(task, optimizer, key, steps, episodes, eval_every, eval_batches, last_eval_batches) -> Run:
    def body(carry, first):
        state, inner = carry
        values = evaluate(task, optimizer, state, first, key, eval_batches) | {"inner/loss": inner}
        if episodes > 1:
            state = renewed(task, optimizer, state, first, key, steps)
        return window(task, optimizer, state, first, eval_every, key), values

    firsts = jnp.arange(0, steps * episodes, eval_every, dtype=jnp.int32)
    begin = start(task, optimizer, key, steps), jnp.float32(jnp.nan)
    (state, inner), curves = jax.lax.scan(body, begin, firsts)
    last = evaluate(task, optimizer, state, steps * episodes, key, last_eval_batches)
    curves = jax.tree.map(lambda curve, end: jnp.append(curve, end), curves, last | {"inner/loss": inner})
    return Run(state, jnp.append(firsts, jnp.int32(steps * episodes)), curves)


def cadence(
    steps: int,
    eval_every: int | None,
    eval_batches: int = 1,
    last_eval_batches: int = 1,
    episodes: int = 1,
) -> int:
    """The inner steps between evaluations: as given, or chosen to give about a hundred evaluations.

    Raises:
      ConfigError: `steps`, `episodes` or a number of batches is not positive, or `eval_every` does not divide
        `steps`.
    """
    if episodes < 1:
        raise ConfigError(f"episodes = {episodes} is not allowed; train for at least 1 episode.")
    if steps < 1:
        raise ConfigError(f"steps = {steps} is not allowed; train for at least 1 step.")
    for name, count in (("eval_batches", eval_batches), ("last_eval_batches", last_eval_batches)):
        if count < 1:
            raise ConfigError(f"{name} = {count} is not allowed; evaluate on at least 1 batch.")
    if eval_every is None:
        return next(d for d in range(max(1, steps * episodes // 100), steps + 1) if steps % d == 0)
    if eval_every < 1 or steps % eval_every:
        close = min((d for d in range(1, steps + 1) if steps % d == 0), key=lambda d: abs(d - eval_every))
        raise ConfigError(f"eval_every = {eval_every} does not divide steps = {steps}; {close} would.")
    return eval_every


def check(task: Task, optimizer: Optimizer) -> None:
    """Checks that an optimizer can train a task, by shapes only: nothing is computed or compiled.

    Raises:
      OuteroptError: one line that says what the optimizer raised.
    """

    def one(key):
        return inner_step(task, optimizer, start(task, optimizer, key, 1), 0, key)[0]

    try:
        eqx.filter_eval_shape(one, jax.random.key(0))
    except OuteroptError:
        raise
    except Exception as error:
        raise OuteroptError(f"The optimizer cannot train {task.name}: {first_line(error)}.") from error


def mask_diverged(
    curves: dict[str, Any], steps: Any, diverged_at: Any, episodes: int = 1
) -> dict[str, np.ndarray]:
    """Curves on the host, with NaN from each trial's divergence on and in place of infinities.

    Args:
      curves: arrays (..., T) by name.
      steps: inner steps of the evaluations, shape (T,).
      diverged_at: first bad step, shape (...); negative if there is none.
      episodes: of the run; a divergence ends with its episode.
    """
    bad, steps = np.asarray(diverged_at)[..., None], np.asarray(steps)
    length = steps[-1] // episodes
    gone = (bad >= 0) & (steps > bad) & (steps <= (bad // length + 1) * length)
    return {
        name: np.where(gone | ~np.isfinite(curve), np.float32(np.nan), np.asarray(curve, np.float32))
        for name, curve in ((name, np.asarray(curve)) for name, curve in curves.items())
    }
