"""Where families run: all of them on all devices, one after the other, or each on devices of its own."""

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
from jaxtyping import Array, Float, Key, PyTree

from outeropt.compiling import for_loops
from outeropt.errors import ConfigError
from outeropt.metatraining.devices import AXIS, mesh_for, replicate
from outeropt.metatraining.processes import Together
from outeropt.metatraining.program import (
    MetaState,
    Recipe,
    advance,
    begin,
    descended,
    estimated,
    particle_specs,
)
from outeropt.optimizer import Optimizer


Spread = Literal["particles", "families"]


class AllTogether:
    """The particles of each family are shared by all devices: one program, which does many outer steps.

    Args:
      recipe: of the run.
      devices: which may be used; None for all.

    Attributes:
      together: the processes that take part.
      size: how many devices do.
    """

    def __init__(self, recipe: Recipe, devices: Sequence[Any] | None):
        self._mesh = mesh_for(recipe.estimator.particles, devices)
        self.together = Together(self._mesh)
        self.size = self._mesh.size

    def placed(self, recipe: Recipe) -> Recipe:
        """The recipe with its arrays on the devices."""
        return replicate(recipe, self._mesh)

    def begin(self, recipe: Recipe, start: Optimizer, key: Key[Array, ""], steps: int) -> MetaState:
        """The state before the first outer step; see `program.begin`."""
        return begin(recipe, start, key, steps, self._mesh)

    def advance(
        self, recipe: Recipe, key: Key[Array, ""], count: int, state: MetaState, names: tuple[str, ...]
    ) -> tuple[MetaState, Float[np.ndarray, "count columns"]]:
        """Some outer steps, at most `ROWS`: the next state, and a row of scalars for each."""
        state, rows = advance((recipe, key, jnp.int32(count)), state, self._mesh, names)
        return state, np.asarray(rows)[:count]


class Apart:
    """Each family has a group of devices, which share its particles: a program for each, side by side.

    After each outer step the gradients are averaged on the first device, and all groups go on from the new
    meta-parameters. Programs are also compiled side by side, and a group has the data of its family alone.

    Args:
      recipe: of the run.
      devices: which may be used; None for all.

    Raises:
      ConfigError: there are fewer devices than families, or devices of several processes.

    Attributes:
      together: this process alone.
      size: how many devices take part.
    """

    def __init__(self, recipe: Recipe, devices: Sequence[Any] | None):
        devices = jax.devices() if devices is None else devices
        families = len(recipe.systems)
        if len(devices) < families:
            raise ConfigError(
                f"{families} families cannot have devices of their own, as there are {len(devices)}; "
                "let them share all devices (--spread particles), or learn on fewer families."
            )
        groups = np.array_split(np.asarray(devices, object), families)
        self._meshes = [mesh_for(recipe.estimator.particles, list(group)) for group in groups]
        together = Mesh(np.concatenate([mesh.devices for mesh in self._meshes]), (AXIS,))
        self.together = Together(together)
        self.size = together.size
        if self.together.several:
            raise ConfigError(
                "Families with devices of their own are of one process; let several processes share all "
                "particles (--spread particles)."
            )
        self._first = SingleDeviceSharding(devices[0])
        self._threads = ThreadPoolExecutor(families)

    def placed(self, recipe: Recipe) -> Recipe:
        """The recipe with each family's data on its devices, and small numbers on the host."""
        systems = tuple(replicate(system, mesh) for system, mesh in zip(recipe.systems, self._meshes))
        estimator, outer = _on_host((recipe.estimator, recipe.outer))
        return Recipe(systems, estimator, outer)

    def begin(self, recipe: Recipe, start: Optimizer, key: Key[Array, ""], steps: int) -> MetaState:
        """The state before the first outer step."""
        first = Mesh(np.asarray([self._meshes[0].devices[0]]), (AXIS,))
        # Only the shapes of the families' data count; on the host they may have been anywhere.
        state = begin(_on_host(recipe), start, key, steps, first)
        particles = tuple(
            _placed(own, particle_specs(recipe.estimator, own), mesh)
            for own, mesh in zip(state.particles, self._meshes)
        )
        rest = jax.device_put((state.theta, state.outer, state.step), self._first)
        return MetaState(rest[0], rest[1], particles, rest[2])

    def advance(
        self, recipe: Recipe, key: Key[Array, ""], count: int, state: MetaState, names: tuple[str, ...]
    ) -> tuple[MetaState, Float[np.ndarray, "count columns"]]:
        """Some outer steps: the next state, and a row of scalars for each."""
        estimate, descend = _programs(self._meshes[0].devices[0].platform)
        key, rows = jax.device_put(key, self._first), []

        def one(family: int, state: MetaState):
            mesh = self._meshes[family]
            shared = jax.device_put((state.theta, state.step, key), NamedSharding(mesh, PartitionSpec()))
            given = (recipe.estimator, recipe.systems[family], *shared, np.int32(family))
            found, particles = estimate(given, state.particles[family], mesh)
            return jax.device_put(found, self._first), particles

        for _ in range(count):
            now = state
            found = list(self._threads.map(lambda family: one(family, now), range(len(self._meshes))))  # noqa: B023
            estimates, particles = zip(*found)
            moved = MetaState(state.theta, state.outer, (), state.step)
            moved, row = descend(recipe.outer, moved, estimates, key, names)
            state = MetaState(moved.theta, moved.outer, particles, moved.step)
            rows.append(row)
        return state, np.stack([np.asarray(row) for row in rows])


PLACES: dict[Spread, Callable[[Recipe, Sequence[Any] | None], AllTogether | Apart]] = {
    "particles": AllTogether,
    "families": Apart,
}


def _placed(tree: PyTree, specs: PyTree, mesh: Mesh) -> PyTree:
    return jax.device_put(tree, jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs))


def _on_host(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: np.asarray(leaf) if eqx.is_array(leaf) else leaf, tree)


@functools.cache
def _programs(platform: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The estimate on one family, and the update by all of them."""
    jit: Any = eqx.filter_jit
    options = for_loops(platform)
    return jit(_estimate, donate="all-except-first", compiler_options=options), jit(
        _descend, compiler_options=options
    )


def _estimate(given: tuple, particles: Any, mesh: Mesh):
    estimator, system, theta, step, key, family = given
    arrays, static = eqx.partition((estimator, system, theta), eqx.is_array)
    own, own_static = eqx.partition(particles, eqx.is_array)
    specs, everywhere = particle_specs(estimator, own), PartitionSpec()

    def on_device(arrays, own, step, key, family):
        estimator, system, theta = eqx.combine(arrays, static)
        particles = eqx.combine(own, own_static)
        found, after = estimated(estimator, system, theta, particles, family, key, step, AXIS)
        return found, eqx.filter(after, eqx.is_array)

    shared = jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(everywhere, specs, everywhere, everywhere, everywhere),
        out_specs=(everywhere, specs),
        check_vma=False,
    )
    found, after = shared(arrays, own, step, key, family)
    return found, eqx.combine(after, own_static)


def _descend(outer: Optimizer, state: MetaState, estimates: tuple, key: Any, names: tuple[str, ...]):
    state, values = descended(outer, state, (), estimates, key)
    return state, jnp.stack([values[name] for name in names])
