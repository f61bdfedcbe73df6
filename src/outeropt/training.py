"""Training as one pure function: the inner step, an unroll of it, evaluation, and a whole run."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from outeropt import _convolution
from outeropt.errors import ConfigError, OuteroptError, first_line
from outeropt.optimizer import Optimizer
from outeropt.task import SPLITS, Task
from outeropt.tree import stack


_convolution.install()

# Streams of one seed: batches and updates, evaluations, and initial values never share a key.
_INIT, _STEPS, _EVALUATION = range(3)


class TrainState(eqx.Module):
    """Everything that changes from inner step to inner step.

    Attributes:
      params: the task's parameters.
      model: the task's model state, or None.
      opt: the optimizer's state.
      diverged_at: first inner step whose training loss was not finite; -1 while there is none.
    """

    params: PyTree
    model: PyTree
    opt: PyTree
    diverged_at: Int[Array, ""]


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


def start(
    task: Task, optimizer: Optimizer, key: PRNGKeyArray, num_steps: int | Array | None = None
) -> TrainState:
    """The state before the first inner step of the run that `key` seeds."""
    task_key, optimizer_key = jax.random.split(jax.random.fold_in(key, _INIT))
    params, model = task.init(task_key)
    opt = optimizer.init(params, num_steps=num_steps, key=optimizer_key)
    return TrainState(params, model, opt, jnp.int32(-1))


def inner_step(
    task: Task, optimizer: Optimizer, state: TrainState, step: int | Array, key: PRNGKeyArray
) -> tuple[TrainState, Float[Array, ""]]:
    """One inner step: a batch, its gradient, the optimizer's update.

    Args:
      step: the number of this step, from 0.
      key: the run's key; the step's own randomness is derived from it and `step`.

    Returns:
      The next state, and the training loss at the parameters before the update.
    """
    step_key = jax.random.fold_in(jax.random.fold_in(key, _STEPS), step)
    batch_key, loss_key, valid_key, update_key = jax.random.split(step_key, 4)
    batch = task.batch("train", batch_key)

    def loss_fn(params):
        return task.loss(params, state.model, batch, loss_key)

    def value_fn(params):
        return loss_fn(params)[0]

    def valid_fn(params):
        return task.loss(params, state.model, task.batch("valid", valid_key), None)[0]

    (loss, (model, _)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    updates, opt = optimizer.update(
        grads,
        state.opt,
        state.params,
        value=loss,
        grad=grads,
        value_fn=value_fn,
        valid_fn=valid_fn,
        key=update_key,
        step=step,
    )
    params = jax.tree.map(lambda p, u: p + u.astype(p.dtype), state.params, updates)
    bad = ~jnp.isfinite(loss) & (state.diverged_at < 0)
    diverged_at = jnp.where(bad, jnp.asarray(step, jnp.int32), state.diverged_at)
    return TrainState(params, model, opt, diverged_at), loss


def unroll(
    task: Task,
    optimizer: Optimizer,
    state: TrainState,
    key: PRNGKeyArray,
    *,
    first: int | Array = 0,
    length: int,
) -> tuple[TrainState, Float[Array, " length"]]:
    """`length` inner steps from step `first` as one differentiable scan, with the loss of each."""

    def body(carry, step):
        return inner_step(task, optimizer, carry, step, key)

    return jax.lax.scan(body, state, first + jnp.arange(length, dtype=jnp.int32))


def evaluate(
    task: Task,
    optimizer: Optimizer,
    state: TrainState,
    step: int | Array,
    key: PRNGKeyArray,
    batches: int | Array,
) -> dict[str, Float[Array, ""]]:
    """Loss and metrics on `batches` fresh batches of each split, at the optimizer's evaluation point.

    Returns:
      Means by name: `train/loss`, `valid/loss`, `test/loss` and the task's metrics (`test/accuracy`).
    """
    params = optimizer.eval_params(state.opt, state.params)
    step_key = jax.random.fold_in(jax.random.fold_in(key, _EVALUATION), step)

    def on_batch(batch):
        loss, (_, metrics) = task.loss(params, state.model, batch, None)
        return jax.tree.map(lambda value: value.astype(jnp.float32), {"loss": loss, **metrics})

    def on_splits(index):
        # All splits in one call of the loss: a third of the program to compile.
        keys = jax.random.split(jax.random.fold_in(step_key, index), len(SPLITS))
        batches = stack([task.batch(split, k) for split, k in zip(SPLITS, keys)])
        return jax.vmap(on_batch, axis_size=len(SPLITS))(batches)

    shapes = jax.eval_shape(on_splits, 0)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    sums = jax.lax.fori_loop(
        0, batches, lambda index, sums: jax.tree.map(jnp.add, sums, on_splits(index)), zeros
    )
    count = jnp.asarray(batches, jnp.float32)
    return {
        f"{split}/{name}": value[i] / count for i, split in enumerate(SPLITS) for name, value in sums.items()
    }


def window(
    task: Task,
    optimizer: Optimizer,
    state: TrainState,
    first: int | Array,
    length: int | Array,
    key: PRNGKeyArray,
) -> tuple[TrainState, Float[Array, ""]]:
    """`length` inner steps without their losses: the next state and the mean training loss.

    A static `length` gives a differentiable scan, a traced one a while loop that serves every length.
    """

    def body(i, carry):
        state, total = carry
        state, loss = inner_step(task, optimizer, state, first + i, key)
        return state, total + loss.astype(jnp.float32)

    state, total = jax.lax.fori_loop(0, length, body, (state, jnp.float32(0)))
    return state, total / jnp.asarray(length, jnp.float32)


def train(
    task: Task,
    optimizer: Optimizer,
    *,
    steps: int,
    key: PRNGKeyArray,
    eval_every: int | None = None,
    eval_batches: int = 5,
    last_eval_batches: int = 10,
) -> Run:
    """Trains a task from its initial parameters. Pure: `jit`, `vmap` and `grad` work through it.

    Args:
      task: what to train.
      optimizer: what to train it with.
      steps: inner steps, at least 1.
      key: seeds initial values, batches and evaluations.
      eval_every: inner steps between evaluations; must divide `steps`. None chooses about a hundred
        evaluations.
      eval_batches: batches per split and evaluation.
      last_eval_batches: the same for the evaluation after the last step.

    Returns:
      Final state and curves.

    Raises:
      ConfigError: `steps`, the cadence or a number of batches is not usable.
    """
    eval_every = cadence(steps, eval_every, eval_batches, last_eval_batches)
    return _train(task, optimizer, key, steps, eval_every, eval_batches, last_eval_batches)


@eqx.filter_jit
def _train(task, optimizer, key, steps, eval_every, eval_batches, last_eval_batches) -> Run:
    def body(carry, first):
        state, inner = carry
        values = evaluate(task, optimizer, state, first, key, eval_batches) | {"inner/loss": inner}
        return window(task, optimizer, state, first, eval_every, key), values

    firsts = jnp.arange(0, steps, eval_every, dtype=jnp.int32)
    begin = start(task, optimizer, key, steps), jnp.float32(jnp.nan)
    (state, inner), curves = jax.lax.scan(body, begin, firsts)
    last = evaluate(task, optimizer, state, steps, key, last_eval_batches) | {"inner/loss": inner}
    curves = jax.tree.map(lambda curve, end: jnp.append(curve, end), curves, last)
    return Run(state, jnp.append(firsts, jnp.int32(steps)), curves)


def cadence(steps: int, eval_every: int | None, eval_batches: int = 1, last_eval_batches: int = 1) -> int:
    """The inner steps between evaluations: as given, or chosen to give about a hundred evaluations.

    Raises:
      ConfigError: `steps` or a number of batches is not positive, or `eval_every` does not divide `steps`.
    """
    if steps < 1:
        raise ConfigError(f"steps = {steps} is not allowed; train for at least 1 step.")
    for name, count in (("eval_batches", eval_batches), ("last_eval_batches", last_eval_batches)):
        if count < 1:
            raise ConfigError(f"{name} = {count} is not allowed; evaluate on at least 1 batch.")
    if eval_every is None:
        return next(d for d in range(max(1, steps // 100), steps + 1) if steps % d == 0)
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


def mask_diverged(curves: dict[str, Any], steps: Any, diverged_at: Any) -> dict[str, np.ndarray]:
    """Curves on the host, with NaN from each trial's divergence on and in place of infinities.

    Args:
      curves: arrays (..., T) by name.
      steps: inner steps of the evaluations, shape (T,).
      diverged_at: first bad step, shape (...); negative if there is none.
    """
    bad = np.asarray(diverged_at)[..., None]
    gone = (bad >= 0) & (np.asarray(steps) > bad)
    return {
        name: np.where(gone | ~np.isfinite(curve), np.float32(np.nan), np.asarray(curve, np.float32))
        for name, curve in ((name, np.asarray(curve)) for name, curve in curves.items())
    }
