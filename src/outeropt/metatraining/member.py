"""One member of a population: a run whose state and numbers can be replaced between two outer steps."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from outeropt import tree
from outeropt.metatraining.run import MetaTraining
from outeropt.optimizer import Optimizer
from outeropt.task import TaskFamily


class Member(MetaTraining):
    """A run of a population, advanced, copied and given new numbers from outside."""

    @property
    def identity(self) -> str:
        """The content hash of its recipe."""
        return self._identity

    @property
    def families(self) -> list[TaskFamily]:
        """What it learns on, with the data where the devices have them."""
        return [system.family for system in self._recipe.systems]  # pyright: ignore

    @property
    def theta(self) -> Optimizer:
        """What is learned, as it is now."""
        return self._state.theta

    @property
    def kept(self) -> PyTree:
        """All that changes, for a checkpoint."""
        return self._kept()

    def restore(self, kept: PyTree, done: int) -> None:
        """Goes on from what a checkpoint held."""
        self._state, self._best, curves, scores = kept
        self._curves, self._scores = np.array(curves), np.array(scores)
        self.done = done

    def take_over(self, other: "Member") -> None:
        """Goes on from another member's state. Its curves, scores and best optimizer stay its own."""

        def copy(leaf):
            # The program gives away the memory of a state that it goes on from.
            return jax.device_put(leaf, leaf.sharding, may_alias=False) if eqx.is_array(leaf) else leaf

        self._state = jax.tree.map(copy, other._state)

    def retune(self, values: Mapping[str, Any]) -> None:
        """Replaces numbers by their names in the recipe."""

        def new(path, leaf):
            name = tree.leaf_name(path)
            return jnp.asarray(values[name], leaf.dtype) if name in values else leaf

        # Placed like the other leaves, so that the program is the same.
        self._recipe = self._places.placed(jax.tree_util.tree_map_with_path(new, self._recipe))
