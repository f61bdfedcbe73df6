"""The inner step, an unroll of it, and evaluation."""

import functools
from collections.abc import Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from outeropt import tree
from outeropt.optimizer import Optimizer, resolve
from outeropt.task import SPLITS, Task


# Streams of one seed: batches and updates, evaluations, and initial values never share a key.
_INIT, _STEPS, _EVALUATION, _RESTART = range(4)


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


def start(
    task: Task, optimizer: Optimizer, key: PRNGKeyArray, num_steps: int | Array | None = None
) -> TrainState:
    """The state before the first inner step of the run that `key` seeds."""
    task_key, optimizer_key = jax.random.split(jax.random.fold_in(key, _INIT))
    params, model = task.init(task_key)
    opt = optimizer.init(params, num_steps=num_steps, key=optimizer_key)
    return TrainState(params, model, opt, jnp.int32(-1))


def restart(
    task: Task,
    optimizer: Optimizer,
    state: TrainState,
    step: int | Array,
    key: PRNGKeyArray,
    num_steps: int | Array | None = None,
) -> TrainState:
    """The state before another episode, which begins at inner step `step`.

    The task starts from fresh initial values, and the optimizer from what it learned (`Optimizer.restart`).

    Args:
      num_steps: inner steps of the episode.
    """
    step_key = jax.random.fold_in(jax.random.fold_in(key, _RESTART), step)
    task_key, optimizer_key = jax.random.split(step_key)
    params, model = task.init(task_key)
    opt = optimizer.restart(state.opt, params, num_steps=num_steps, key=optimizer_key)
    return TrainState(params, model, opt, state.diverged_at)


def renewed(
    task: Task,
    optimizer: Optimizer,
    state: TrainState,
    step: int | Array,
    key: PRNGKeyArray,
    num_steps: int | Array,
) -> TrainState:
    """`restart` where an episode of `num_steps` steps ended just before `step`, else the state as it is."""
    return jax.lax.cond(
        (step > 0) & (step % num_steps == 0),
        lambda: restart(task, optimizer, state, step, key, num_steps),
        lambda: state,
    )


def inner_step(
    task: Task,
    optimizer: Optimizer,
    state: TrainState,
    step: int | Array,
    key: PRNGKeyArray,
    due: bool | None = None,
) -> tuple[TrainState, Float[Array, ""]]:
    """One inner step: a batch, its gradient, the optimizer's update.

    Args:
      step: the number of this step, from 0.
      key: the run's key; the step's own randomness is derived from it and `step`.
      due: whether the step ends a bar of the optimizer's `rhythm`; None where that is not known beforehand.

    Returns:
      The next state, and the training loss at the parameters before the update.
    """
    batch_key, loss_key, valid_key, update_key = _step_keys(key, step)
    batch = task.batch("train", batch_key)
    played = with_leaves(task, optimizer.task_settings(state.opt))

    def loss_fn(params):
        return played.loss(params, state.model, batch, loss_key)

    def loss_at(params, settings):
        return with_leaves(task, settings).loss(params, state.model, batch, loss_key)[0]

    def value_fn(params):
        return loss_fn(params)[0]

    def value_at(params, earlier):
        ago = jnp.asarray(step, jnp.int32) - jnp.asarray(earlier, jnp.int32)
        return training_loss(played, params, task.rewound(state.model, ago), earlier, key)

    def valid_fn(params):
        return task.loss(params, state.model, task.batch("valid", valid_key), None)[0]

    (loss, (model, _)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    known = {} if due is None else {"due": (optimizer.rhythm, due)}
    updates, opt = optimizer.update(
        grads,
        state.opt,
        state.params,
        value=loss,
        grad=grads,
        value_fn=value_fn,
        value_at=value_at,
        valid_fn=valid_fn,
        loss_at=loss_at,
        key=update_key,
        step=step,
        **known,
    )
    params = jax.tree.map(lambda p, u: p + u.astype(p.dtype), state.params, updates)
    bad = ~jnp.isfinite(loss) & (state.diverged_at < 0)
    diverged_at = jnp.where(bad, jnp.asarray(step, jnp.int32), state.diverged_at)
    return TrainState(params, model, opt, diverged_at), loss


def training_loss(
    task: Task, params: PyTree, model: PyTree, step: int | Array, key: PRNGKeyArray
) -> Float[Array, ""]:
    """The loss of any parameters on the minibatch that `inner_step` draws at `step` of the run of `key`.

    A batch is a function of its key: what an earlier step saw need not be kept. `model` is the model state of
    that step, where the loss depends on it.
    """
    batch_key, loss_key, _, _ = _step_keys(key, step)
    return task.loss(params, model, task.batch("train", batch_key), loss_key)[0]


def with_leaves(task: Task, values: Mapping[str, Array]) -> Task:
    """The task with some of its numeric leaves replaced, by name.

    Raises:
      UnknownName: the task has no such leaf.
    """
    if not values:
        return task
    leaves = tree.named_leaves(eqx.filter(task, eqx.is_inexact_array))
    return tree.with_leaves(task, {resolve(name, leaves): value for name, value in values.items()})


def _step_keys(key: PRNGKeyArray, step: int | Array) -> PRNGKeyArray:
    """Keys of one step: its batch, its loss, its validation batch, its update."""
    return jax.random.split(jax.random.fold_in(jax.random.fold_in(key, _STEPS), step), 4)


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
      Means by name: `train/loss`, `valid/loss`, `test/loss` and the task's metrics (`test/accuracy`); the
      optimizer's own diagnostics as `optimizer/NAME`.
    """
    params = optimizer.eval_params(state.opt, state.params)
    step_key = jax.random.fold_in(jax.random.fold_in(key, _EVALUATION), step)

    def on_batch(batch):
        loss, (_, metrics) = task.loss(params, state.model, batch, None)
        return jax.tree.map(lambda value: value.astype(jnp.float32), {"loss": loss, **metrics})

    def on_splits(index):
        keys = jax.random.split(jax.random.fold_in(step_key, index), len(SPLITS))
        batches = [task.batch(split, k) for split, k in zip(SPLITS, keys)]
        if len({str(jax.tree.map(jnp.shape, batch)) for batch in batches}) > 1:  # full batches
            return tree.stack([on_batch(batch) for batch in batches])
        # All splits in one call of the loss: a third of the program to compile.
        return jax.vmap(on_batch, axis_size=len(SPLITS))(tree.stack(batches))

    shapes = jax.eval_shape(on_splits, 0)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    sums = jax.lax.fori_loop(
        0, batches, lambda index, sums: jax.tree.map(jnp.add, sums, on_splits(index)), zeros
    )
    count = jnp.asarray(batches, jnp.float32)
    means = {
        f"{split}/{name}": value[i] / count for i, split in enumerate(SPLITS) for name, value in sums.items()
    }
    own = optimizer.diagnostics(state.opt)
    return means | {f"optimizer/{name}": value.astype(jnp.float32) for name, value in own.items()}


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

    def body(i, carry, due=None):
        state, total = carry
        state, loss = inner_step(task, optimizer, state, first + i, key, due)
        return state, total + loss.astype(jnp.float32)

    begun = state, jnp.float32(0)
    if isinstance(length, int) or optimizer.rhythm == 1:
        state, total = jax.lax.fori_loop(0, length, body, begun)
    else:
        state, total = _in_rhythm(body, first, length, optimizer.rhythm, begun)
    return state, total / jnp.asarray(length, jnp.float32)


def _in_rhythm(body, first, length, rhythm, begun):
    """The steps of each bar but its last in a loop of their own, so that no step asks whether it is due.

    What a due step does beyond the others is compiled together with its gradient, and shares its parts.
    """

    def bar(loop):
        i, carry = loop
        last = jnp.minimum(i + rhythm - 1 - (first + i) % rhythm, length)
        carry = jax.lax.fori_loop(i, last, functools.partial(body, due=False), carry)
        carry = jax.lax.cond(last < length, lambda: body(last, carry, due=True), lambda: carry)
        return last + 1, carry

    _, ended = jax.lax.while_loop(lambda loop: loop[0] < length, bar, (jnp.int32(0), begun))
    return ended
