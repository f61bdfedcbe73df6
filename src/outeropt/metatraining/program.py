"""The one compiled program of meta-training: outer steps on all families, particles shared by devices."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray, PyTree

from outeropt.compiling import for_loops, jit_once
from outeropt.errors import ConfigError, OuteroptError
from outeropt.metatraining.devices import AXIS
from outeropt.metatraining.estimators import Estimate, Estimator
from outeropt.metatraining.system import Outcome, System
from outeropt.optimizer import Optimizer


# Outer steps that one call can record; more are done by calling again.
ROWS = 256


class MetaState(eqx.Module):
    """Everything that changes from outer step to outer step.

    Attributes:
      theta: the optimizer that is learned.
      outer: the outer optimizer's state.
      particles: the estimator's state for each family, particles first.
      step: outer steps done.
    """

    theta: Optimizer
    outer: PyTree
    particles: tuple[PyTree, ...]
    step: Int[Array, ""]


class Raveled(System):
    """A system whose theta is one vector: what an estimator does to theta is then one operation, not one for
    each leaf, which takes seconds less to compile.

    Attributes:
      system: the same system for theta as it is.
      unravel: from the vector to theta.
    """

    system: System
    unravel: Callable[[Float[Array, " size"]], PyTree] = eqx.field(static=True)

    def draw(self, key: PRNGKeyArray) -> PyTree:
        return self.system.draw(key)

    def init(self, theta: PyTree, setup: PyTree, length: Int[Array, ""], key: PRNGKeyArray) -> PyTree:
        return self.system.init(self.unravel(theta), setup, length, key)

    def step(
        self, theta: PyTree, setup: PyTree, state: PyTree, step: Int[Array, ""], key: PRNGKeyArray
    ) -> tuple[PyTree, Outcome]:
        return self.system.step(self.unravel(theta), setup, state, step, key)


class Recipe(eqx.Module):
    """What stays the same: the families' systems, the estimator, the outer optimizer.

    Attributes:
      systems: one for each family of tasks.
      estimator: of the outer gradient.
      outer: the optimizer of the outer loop.
    """

    systems: tuple[System, ...]
    estimator: Estimator
    outer: Optimizer


def begin(recipe: Recipe, theta: Optimizer, key: Key[Array, ""], steps: int, mesh: Mesh) -> MetaState:
    """The state before the first outer step, placed on the devices.

    Trajectories begin in the program, so this computes little.

    Raises:
      ConfigError: the outer optimizer needs more than the outer loop has.
    """
    shapes = eqx.filter_eval_shape(_begin, recipe, theta, key, steps)
    _check_outer(recipe.outer, shapes)
    shardings = jax.tree.map(
        lambda spec: NamedSharding(mesh, spec), _specs(recipe, eqx.filter(shapes, _is_shape))
    )
    arrays, static = eqx.partition((recipe, theta), eqx.is_array)

    def made(arrays, key):
        recipe, theta = eqx.combine(arrays, static)
        return eqx.filter(_begin(recipe, theta, key, steps), eqx.is_array)

    # One program: those of the single operations would take longer to compile than to be sent for.
    found = jit_once(made, out_shardings=shardings)(arrays, key)
    return eqx.combine(found, eqx.filter(shapes, _is_shape, inverse=True))


def _begin(recipe: Recipe, theta: Optimizer, key: Key[Array, ""], steps: int) -> MetaState:
    vector, unravel = ravel_pytree(theta)
    particles = tuple(
        recipe.estimator.init(Raveled(system, unravel), vector, jax.random.fold_in(key, i), 0)
        for i, system in enumerate(recipe.systems)
    )
    return MetaState(theta, recipe.outer.init(theta, num_steps=steps), particles, jnp.int32(0))


def _check_outer(outer: Optimizer, state: MetaState) -> None:
    def update(state):
        theta = state.theta
        context = {"value": jnp.float32(0), "grad": theta, "key": jax.random.key(0), "step": state.step}
        return outer.update(theta, state.outer, theta, **context)

    try:
        eqx.filter_eval_shape(update, state)
    except OuteroptError as error:
        raise ConfigError(
            f"The outer loop has estimates of a gradient and a loss, and has no value_fn: {error}"
        ) from None


def _is_shape(leaf: Any) -> bool:
    return isinstance(leaf, jax.ShapeDtypeStruct)


def _specs(recipe: Recipe, state: MetaState) -> MetaState:
    """Where the leaves of a state live: particles are shared, everything else is on every device."""

    everywhere = jax.tree.map(lambda _: PartitionSpec(), state)
    particles = tuple(particle_specs(recipe.estimator, own) for own in state.particles)
    return eqx.tree_at(lambda s: s.particles, everywhere, particles)


def particle_specs(estimator: Estimator, particles: PyTree) -> PyTree:
    """Where the leaves of an estimator's state live: rows are shared, but for what is `everywhere`."""
    shared, everywhere = PartitionSpec(AXIS), PartitionSpec()
    return jax.tree.map(lambda whole: everywhere if whole else shared, estimator.everywhere(particles))


def outer_step(
    recipe: Recipe, state: MetaState, key: Key[Array, ""], axis: str | None = None
) -> tuple[MetaState, dict[str, Float[Array, ""]]]:
    """One outer step: an estimate on every family, their mean, the outer optimizer's update.

    Args:
      recipe: what stays the same.
      state: the state; its particles may be one device's share.
      key: of the whole run; the step's randomness derives from it and the step's number.
      axis: name of the mesh axis over which particles are shared, if they are.

    Returns:
      The next state, and scalars by name: `meta/loss`, `meta/gradient` (its norm), `loss/<family>`, and
      means of the estimator's diagnostics over families.
    """
    found = [
        estimated(recipe.estimator, system, state.theta, old, i, key, state.step, axis)
        for i, (system, old) in enumerate(zip(recipe.systems, state.particles))
    ]
    estimates, particles = zip(*found)
    return descended(recipe.outer, state, particles, estimates, key)


def estimated(
    estimator: Estimator,
    system: System,
    theta: Optimizer,
    particles: PyTree,
    family: int | Int[Array, ""],
    key: Key[Array, ""],
    step: Int[Array, ""],
    axis: str | None,
) -> tuple[Estimate, PyTree]:
    """The estimate on one family, by its number, and its particles after it; the gradient is one vector."""
    vector, unravel = ravel_pytree(theta)
    own = jax.random.fold_in(jax.random.fold_in(key, step), family)
    return estimator.estimate(Raveled(system, unravel), vector, particles, own, step, axis)


def descended(
    optimizer: Optimizer,
    state: MetaState,
    particles: tuple[PyTree, ...],
    estimates: Sequence[Estimate],
    key: Key[Array, ""],
) -> tuple[MetaState, dict[str, Float[Array, ""]]]:
    """The outer optimizer's update by the mean of the families' gradients; returns what `outer_step` does."""
    count, step_key = len(estimates), jax.random.fold_in(key, state.step)
    _, unravel = ravel_pytree(state.theta)
    mean = functools.reduce(jnp.add, [estimate.grad for estimate in estimates]) / count
    grad = unravel(mean)
    # A family without a loss that counts in this step has none.
    loss = jnp.nanmean(jnp.stack([estimate.loss for estimate in estimates]))
    updates, outer = optimizer.update(
        grad, state.outer, state.theta, value=loss, grad=grad, key=step_key, step=state.step
    )
    theta = jax.tree.map(jnp.add, state.theta, updates)
    values = {"meta/loss": loss, "meta/gradient": jnp.sqrt(jnp.sum(jnp.square(mean)))}
    if count > 1:
        values |= {f"loss/{i}": estimate.loss for i, estimate in enumerate(estimates)}
    for name in estimates[0].diagnostics:
        values[f"meta/{name}"] = jnp.mean(jnp.stack([estimate.diagnostics[name] for estimate in estimates]))
    values = {name: jnp.asarray(value, jnp.float32) for name, value in values.items()}
    return MetaState(theta, outer, particles, state.step + 1), values


def columns(recipe: Recipe) -> tuple[str, ...]:
    """Names of the scalars of an outer step, in the order of the record's columns."""
    losses = [f"loss/{i}" for i in range(len(recipe.systems))] if len(recipe.systems) > 1 else []
    diagnostics = [f"meta/{name}" for name in recipe.estimator.reports]
    return ("meta/loss", "meta/gradient", *losses, *diagnostics)


def advance(
    fixed: tuple[Recipe, Key[Array, ""], Int[Array, ""]], state: MetaState, mesh: Mesh, names: tuple[str, ...]
) -> tuple[MetaState, Float[Array, "rows columns"]]:
    """Some outer steps.

    Args:
      fixed: the recipe, the key of the run, and how many outer steps to do (at most `ROWS`).
      state: given away.
      mesh: the devices that share the particles.
      names: the record's columns.

    Returns:
      The next state and the record, a row for each step; further rows are 0.
    """
    return _program(mesh.devices.flat[0].platform)(fixed, state, mesh, names)


@functools.cache
def _program(platform: str) -> Callable[..., Any]:
    jit: Any = eqx.filter_jit
    return jit(_advance, donate="all-except-first", compiler_options=for_loops(platform))


def _advance(fixed, state: MetaState, mesh: Mesh, names: tuple[str, ...]):
    (recipe, key, count), axis = fixed, AXIS
    arrays, static = eqx.partition((recipe, state), eqx.is_array)
    everywhere, specs = PartitionSpec(), _specs(recipe, arrays[1])

    def on_device(recipe_arrays, state_arrays, key, count):
        recipe = eqx.combine(recipe_arrays, static[0])

        def body(index, loop):
            arrays, rows = loop
            state, values = outer_step(recipe, eqx.combine(arrays, static[1]), key, axis)
            rows = rows.at[index].set(jnp.stack([values[name] for name in names]))
            return eqx.filter(state, eqx.is_array), rows

        rows = jnp.zeros((ROWS, len(names)), jnp.float32)
        return jax.lax.fori_loop(0, count, body, (state_arrays, rows))

    sharded = jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(everywhere, specs, everywhere, everywhere),
        out_specs=(specs, everywhere),
        check_vma=False,
    )
    state_arrays, rows = sharded(arrays[0], arrays[1], key, count)
    return eqx.combine(state_arrays, static[1]), rows
