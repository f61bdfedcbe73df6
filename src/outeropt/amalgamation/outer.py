"""One outer step of amalgamation: attacks, an unroll with its gradient, and the step on the student."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from outeropt import tree
from outeropt.amalgamation import race
from outeropt.amalgamation.losses import Losses
from outeropt.amalgamation.perturbations import Perturbation, Perturbed
from outeropt.amalgamation.race import Course, Runners
from outeropt.errors import ConfigError, OuteroptError
from outeropt.optimizer import Optimizer
from outeropt.optimizers.schedules import number
from outeropt.task import Task


class Recipe(eqx.Module):
    """What stays the same from outer step to outer step.

    Attributes:
      teachers: whom the student imitates.
      losses: what is descended on.
      perturbation: of the student's weights.
      outer: the optimizer of the outer loop.
      spread: of the random scaling of coordinates.
      rematerialise: see `race.unroll`.
    """

    teachers: tuple[Optimizer, ...]
    losses: Losses
    perturbation: Perturbation
    outer: Optimizer
    spread: Float[Array, ""] = eqx.field(converter=number)
    rematerialise: bool = eqx.field(static=True)


class Learner(eqx.Module):
    """What changes from outer step to outer step.

    Attributes:
      student: the optimizer that is learned.
      outer: state of the outer loop's optimizer.
      steps: outer steps done.
    """

    student: Optimizer
    outer: PyTree
    steps: Int[Array, ""]


class Report(eqx.Module):
    """Numbers of one unroll.

    Attributes:
      meta_loss: the student's own loss.
      imitation_loss: its distance from the teachers, as reduced.
      wins: in how many steps each teacher was the farthest.
      teacher_losses: mean training loss of each teacher, as a share of that of the initial parameters, in
        logarithms: what `meta_loss` is for the student where losses are logarithms and weighed alike.
      skipped: 1 where the gradient was not finite and no step was made.
      cut: inner steps after the student's loss ceased to be finite.
    """

    meta_loss: Float[Array, ""]
    imitation_loss: Float[Array, ""]
    wins: Int[Array, " K"]
    teacher_losses: Float[Array, " K"]
    skipped: Int[Array, ""]
    cut: Int[Array, ""]


def begin(recipe: Recipe, student: Optimizer) -> Learner:
    """The state before the first outer step.

    Raises:
      ConfigError: the outer loop's optimizer needs more than a gradient.
    """
    learner = Learner(student, recipe.outer.init(student), jnp.int32(0))
    try:
        eqx.filter_eval_shape(_step, recipe, learner, student, jax.random.key(0))
    except OuteroptError as error:
        raise ConfigError(f"The outer loop has a gradient, and nothing else to offer: {error}") from None
    return learner


def learn(
    task: Task,
    recipe: Recipe,
    learner: Learner,
    runners: Runners,
    imitation: Float[Array, ""],
    key: PRNGKeyArray,
    length: int,
) -> tuple[Learner, Runners, Report]:
    """One outer step: the gradient of an unroll's loss, through second derivatives of the task's loss.

    Args:
      task: what is trained.
      recipe: what stays the same.
      learner: the student and the outer optimizer's state.
      runners: where student and teachers are.
      imitation: weight of the imitation loss.
      key: randomness.
      length: inner steps.

    Returns:
      The next learner, the runners after the unroll, and a report. Where the gradient is not finite, the
      learner is the one given. Hyperparameters stay in the ranges of their spaces; meta-parameters have none.
    """
    data_key, mix_key, offset_key, step_key = jax.random.split(key, 4)
    weights = recipe.losses.mix(imitation, mix_key)

    # Once for all attacks and the step itself.
    ahead = race.lead(task, recipe.teachers, runners, data_key, length)

    def loss(student, offset):
        played = Perturbed(student, offset, recipe.perturbation)
        after, course = race.follow(
            task, played, runners, ahead, recipe.losses, data_key, rematerialise=recipe.rematerialise
        )
        meta, imitated = parts(recipe.losses, course)
        return weights[0] * meta + weights[1] * imitated, (after, course, meta, imitated)

    student = learner.student
    offset = recipe.perturbation.start(student, offset_key)
    for _ in range(recipe.perturbation.attacks):
        slope, _ = jax.grad(loss, argnums=1, has_aux=True)(student, offset)
        offset = recipe.perturbation.climb(student, offset, slope)
    grads, (after, course, meta, imitated) = jax.grad(loss, has_aux=True)(student, offset)
    usable = tree.all_finite(grads)
    stepped = tree.where(usable, _step(recipe, learner, grads, step_key), learner)
    learner = Learner(stepped.student, stepped.outer, learner.steps + 1)
    return learner, after, report(recipe.losses, course, meta, imitated, skipped=~usable)


def _step(recipe: Recipe, learner: Learner, grads: Optimizer, key: PRNGKeyArray) -> Learner:
    updates, outer = recipe.outer.update(grads, learner.outer, learner.student, key=key, step=learner.steps)
    return Learner(_in_range(jax.tree.map(jnp.add, learner.student, updates)), outer, learner.steps)


def _in_range(student: Optimizer) -> Optimizer:
    leaves = student.hyperparameters
    clipped = {name: space.clip(leaves[name]) for name, space in student.spaces.items() if name in leaves}
    return tree.with_leaves(student, clipped)


def watch(
    task: Task, recipe: Recipe, student: Optimizer, runners: Runners, key: PRNGKeyArray, length: int
) -> tuple[Runners, Report]:
    """An unroll without a step on the student, and without perturbation: validation."""
    after, course = race.unroll(task, student, (), runners, recipe.losses, key, length)
    return after, report(recipe.losses, course, *parts(recipe.losses, course), skipped=jnp.bool_(False))


def parts(losses: Losses, course: Course) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Meta-loss and imitation loss of an unroll."""
    return (
        losses.meta(course.losses, course.initial, course.counts),
        losses.imitation(course.distances, course.counts),
    )


def report(losses: Losses, course: Course, meta, imitated, skipped) -> Report:
    """The numbers of an unroll."""
    teachers = course.distances.shape[1]
    farthest = jnp.argmax(course.distances, axis=1) if teachers else jnp.zeros(len(course.losses), jnp.int32)
    wins = (farthest[:, None] == jnp.arange(teachers)[None]) & course.counts[:, None]
    shares = (
        jnp.log(course.teacher_losses + losses.epsilon) - jnp.log(course.initial + losses.epsilon)[:, None]
    )
    return Report(
        meta_loss=meta,
        imitation_loss=imitated,
        wins=jnp.sum(wins.astype(jnp.int32), axis=0),
        teacher_losses=jnp.mean(shares, axis=0),
        skipped=skipped.astype(jnp.int32),
        cut=jnp.sum((~course.counts).astype(jnp.int32)),
    )
