"""Grafting: the length of one optimizer's step in the direction of another's."""

from typing import Any, NamedTuple

from jaxtyping import Array, PRNGKeyArray

from outeropt.optimizer import Optimizer, OptState, Params
from outeropt.optimizers.wrappers.base import norm, prefixed, ratio, scale
from outeropt.space import Space


class GraftState(NamedTuple):
    """States of the two optimizers of a `Graft`."""

    magnitude: OptState
    direction: OptState


class Graft(Optimizer):
    """The update of `direction`, scaled to the norm of the update of `magnitude`, all leaves together.

    `u = d * |m| / |d|` (Agarwal et al., "Disentangling Adaptive Gradient Methods from Learning Rates", 2020,
    arXiv 2002.11803, algorithm 1, globally rather than layer by layer). Where `d` is zero, so is `u`.

    Attributes:
      magnitude: gives the length of the step.
      direction: gives its direction; its learning rate drops out.
    """

    magnitude: Optimizer
    direction: Optimizer

    def init(
        self, params: Params, *, num_steps: int | Array | None = None, key: PRNGKeyArray | None = None
    ) -> OptState:
        return GraftState(
            self.magnitude.init(params, num_steps=num_steps, key=key),
            self.direction.init(params, num_steps=num_steps, key=key),
        )

    def update(
        self, grads: Params, state: OptState, params: Params, **context: Any
    ) -> tuple[Params, OptState]:
        lengths, magnitude = self.magnitude.update(grads, state.magnitude, params, **context)
        updates, direction = self.direction.update(grads, state.direction, params, **context)
        return scale(ratio(norm(lengths), norm(updates)), updates), GraftState(magnitude, direction)

    @property
    def spaces(self) -> dict[str, Space]:
        return {
            **prefixed("magnitude", self.magnitude.spaces),
            **prefixed("direction", self.direction.spaces),
        }
