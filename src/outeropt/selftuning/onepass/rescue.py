"""The way back for a run that a learning rate was too high for."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from outeropt import tree
from outeropt.optimizer import OptState, Params


class Anchor(NamedTuple):
    """Where a run goes back to.

    Attributes:
      params: parameters that the training loss was known at.
      base: the base optimizer's state there.
      first: the training loss at the first step.
      rescued: how often the run went back.
    """

    params: Params
    base: OptState
    first: Float[Array, ""]
    rescued: Int[Array, ""]

    @classmethod
    def at(cls, params: Params, base: OptState) -> "Anchor":
        """The anchor before the first step."""
        # Copies: a loop that donates its buffers may not donate one twice.
        params, base = jax.tree.map(jnp.array, (params, base))
        return cls(params, base, jnp.float32(jnp.inf), jnp.zeros((), jnp.int32))

    def begun(self, value: Float[Array, ""], count: Int[Array, ""]) -> "Anchor":
        """With the first loss, if this is the first step."""
        return self._replace(first=jnp.where(count == 0, value.astype(self.first.dtype), self.first))

    def lost(self, value: Float[Array, ""], limit: float) -> Bool[Array, ""]:
        """Whether the loss has risen too high."""
        highest = self.first + (limit - 1.0) * jnp.abs(self.first)
        return ~(value.astype(self.first.dtype) <= highest)

    def way_back(self, params: Params) -> Params:
        """Updates that lead to the anchor."""
        return jax.tree.map(jnp.subtract, self.params, params)

    def moved(self, lost: Array, params: Params, base: OptState) -> "Anchor":
        """The anchor at the end of a block, which moves to where the last step began."""
        params, base = tree.where(lost, (self.params, self.base), (params, base))
        return self._replace(params=params, base=base)
