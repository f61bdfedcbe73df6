"""A student and its teachers on one task, side by side: the same start, the same minibatches."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from outeropt import training, tree
from outeropt.amalgamation.losses import Losses
from outeropt.amalgamation.scaling import ScaledTask, draw_scale
from outeropt.optimizer import Optimizer
from outeropt.optimizers.arithmetic import squared_norm
from outeropt.task import Task
from outeropt.training import TrainState


class Runners(eqx.Module):
    """What goes on from unroll to unroll.

    The student trains the task in scaled coordinates, the teachers in the task's own. Distances are measured
    in scaled ones.

    Attributes:
      student: its training state.
      teachers: theirs, one each.
      scale: factors of the coordinates, shaped like the task's parameters.
      step: inner steps since the start.
    """

    student: TrainState
    teachers: tuple[TrainState, ...]
    scale: PyTree
    step: Int[Array, ""]


class Lead(eqx.Module):
    """The part of an unroll of N steps with K teachers that does not depend on the student.

    Attributes:
      teachers: their states after it.
      paths: their parameters after each step, an array for each tensor with a first axis of N.
      losses: their training losses before each step.
      initial: those of the parameters at the start of the unroll, on the same minibatches.
    """

    teachers: tuple[TrainState, ...]
    paths: tuple[PyTree, ...]
    losses: Float[Array, "N K"]
    initial: Float[Array, " N"]


class Course(eqx.Module):
    """What happened in an unroll of N steps with K teachers.

    Attributes:
      losses: the student's training losses before each step.
      initial: those of the parameters at the start of the unroll, on the same minibatches.
      distances: of the student from each teacher after each step (`Losses.distance`).
      counts: steps before the student's loss, or a parameter of it, ceased to be finite.
      teacher_losses: theirs before each step.
    """

    losses: Float[Array, " N"]
    initial: Float[Array, " N"]
    distances: Float[Array, "N K"]
    counts: Bool[Array, " N"]
    teacher_losses: Float[Array, "N K"]


def start(
    task: Task,
    student: Optimizer,
    teachers: tuple[Optimizer, ...],
    spread: Float[Array, ""] | float,
    num_steps: int | Array,
    key: PRNGKeyArray,
) -> Runners:
    """All at the same initial parameters, with fresh states and a fresh scale.

    Args:
      task: what they train.
      student: the optimizer that is learned.
      teachers: those that it learns from.
      spread: of the scale (`scaling.draw_scale`); 0 for none.
      num_steps: inner steps of the episode, for optimizers that plan for it.
      key: randomness.
    """
    key, scale_key = jax.random.split(key)
    followers = tuple(training.start(task, teacher, key, num_steps) for teacher in teachers)
    shapes = jax.eval_shape(lambda: task.init(key)[0])
    scale = draw_scale(shapes, spread, scale_key)
    first = training.start(ScaledTask(task, scale), student, key, num_steps)
    return Runners(first, followers, scale, jnp.int32(0))


def warm_up(
    task: Task,
    student: Optimizer,
    teachers: tuple[Optimizer, ...],
    runners: Runners,
    rate: Float[Array, ""] | float,
    key: PRNGKeyArray,
    length: int,
) -> Runners:
    """An unroll in which all share one trajectory of plain SGD, in the task's own coordinates.

    Optimizers watch it (`Optimizer.observe`): averages of gradients advance, what an LSTM remembers of its
    own updates does not.
    """
    scaled = ScaledTask(task, runners.scale)

    def body(carried, step):
        params, model, states = carried

        def loss(params):
            return training.training_loss(task, params, model, step, key)

        grads = jax.grad(loss)(params)
        held = jax.tree.map(jnp.multiply, grads, runners.scale)
        students = student.observe(held, states[0], scaled.held(params))
        observed = [teacher.observe(grads, state, params) for teacher, state in zip(teachers, states[1:])]
        params = jax.tree.map(lambda p, g: p - rate * g, params, grads)
        return (params, model, (students, *observed)), None

    params, model = scaled.unscaled(runners.student.params), runners.student.model
    states = (runners.student.opt, *(state.opt for state in runners.teachers))
    steps = runners.step + jnp.arange(length, dtype=jnp.int32)
    (params, model, (own, *observed)), _ = jax.lax.scan(body, (params, model, states), steps)
    first = TrainState(scaled.held(params), model, own, runners.student.diverged_at)
    followers = tuple(
        TrainState(params, model, opt, state.diverged_at) for opt, state in zip(observed, runners.teachers)
    )
    return Runners(first, followers, runners.scale, runners.step + length)


def unroll(
    task: Task,
    student: Optimizer,
    teachers: tuple[Optimizer, ...],
    runners: Runners,
    losses: Losses,
    key: PRNGKeyArray,
    length: int,
    *,
    rematerialise: bool = False,
) -> tuple[Runners, Course]:
    """`length` inner steps of everyone: `follow` behind `lead`."""
    ahead = lead(task, teachers, runners, key, length)
    return follow(task, student, runners, ahead, losses, key, rematerialise=rematerialise)


def lead(
    task: Task, teachers: tuple[Optimizer, ...], runners: Runners, key: PRNGKeyArray, length: int
) -> Lead:
    """What does not depend on the student: `length` inner steps of the teachers, and the initial losses.

    Nothing of it is kept for the way back, and it serves any number of students. A teacher that is too far
    away for a distance stays where it was.
    """
    first = ScaledTask(task, runners.scale).unscaled(runners.student.params)

    def body(states, step):
        moved = [
            training.inner_step(task, teacher, state, step, key) for teacher, state in zip(teachers, states)
        ]
        # Distances are squares, which cease to be finite before the parameters do.
        near = [jnp.isfinite(squared_norm(new.params)) for new, _ in moved]
        states = tuple(tree.where(ok, new, old) for ok, (new, _), old in zip(near, moved, states))
        initial = training.training_loss(task, first, runners.student.model, step, key)
        found = jnp.stack([loss for _, loss in moved]) if moved else jnp.zeros(0)
        return states, (tuple(state.params for state in states), found, initial)

    steps = runners.step + jnp.arange(length, dtype=jnp.int32)
    after, (paths, losses, initial) = jax.lax.scan(body, runners.teachers, steps)
    return jax.lax.stop_gradient(Lead(after, paths, losses, initial))


def follow(
    task: Task,
    student: Optimizer,
    runners: Runners,
    ahead: Lead,
    losses: Losses,
    key: PRNGKeyArray,
    *,
    rematerialise: bool = False,
) -> tuple[Runners, Course]:
    """The student's inner steps beside those of `lead`, differentiable with respect to the student.

    A student whose loss or parameters cease to be finite stays where it was, and later steps do not count.

    Args:
      key: that of `lead`, for the same minibatches.
      rematerialise: recompute each inner step on the way back in place of keeping its intermediate values.
    """
    scaled = ScaledTask(task, runners.scale)
    start = jax.lax.stop_gradient(runners.student)
    length = len(ahead.initial)

    def body(carried, given):
        state, alive = carried
        step, places = given
        moved, loss = training.inner_step(scaled, student, state, step, key)
        counts = alive & jnp.isfinite(loss)
        alive = counts & tree.all_finite(moved.params)
        state = tree.where(alive, moved, state)
        gaps = [losses.distance(state.params, scaled.held(place)) for place in places]
        return (state, alive), (loss, jnp.stack(gaps) if gaps else jnp.zeros(0), counts)

    step: Any = jax.checkpoint(body) if rematerialise else body
    steps = runners.step + jnp.arange(length, dtype=jnp.int32)
    (last, _), (own, gaps, counts) = jax.lax.scan(step, (start, jnp.bool_(True)), (steps, ahead.paths))
    after = Runners(last, ahead.teachers, runners.scale, runners.step + length)
    return after, Course(own, ahead.initial, gaps, counts, ahead.losses)
