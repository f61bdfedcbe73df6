"""Weight decay, as part of the loss or apart from it."""

from typing import Any, ClassVar

import equinox as eqx
from jaxtyping import Array, Float, PRNGKeyArray

from outeropt.optimizer import Optimizer, OptState, Params
from outeropt.optimizers import spaces
from outeropt.optimizers.schedules import number
from outeropt.optimizers.wrappers.base import Wrapper, add_scaled, squared_norm
from outeropt.space import Space


class WeightDecay(Wrapper):
    """Optimizes `loss + weight_decay / 2 * |params|^2` (L2 regularisation).

    The inner optimizer sees the gradient `g + weight_decay * params`, and `value`, `grad` and `value_fn` of
    the same regularised loss.

    Attributes:
      inner: the optimizer inside.
      weight_decay: strength, at least 0.
    """

    inner: Optimizer
    weight_decay: Float[Array, ""] = eqx.field(converter=number, default=1e-4)

    own_spaces: ClassVar[dict[str, Space]] = {"weight_decay": spaces.WEIGHT_DECAY}

    def init(
        self, params: Params, *, num_steps: int | Array | None = None, key: PRNGKeyArray | None = None
    ) -> OptState:
        return self.inner.init(params, num_steps=num_steps, key=key)

    def update(
        self, grads: Params, state: OptState, params: Params, **context: Any
    ) -> tuple[Params, OptState]:
        if context.get("value") is not None:
            context["value"] = context["value"] + self._penalty(params)
        if context.get("grad") is not None:
            context["grad"] = add_scaled(context["grad"], self.weight_decay, params)
        if context.get("value_fn") is not None:
            loss = context["value_fn"]
            context["value_fn"] = lambda point: loss(point) + self._penalty(point)
        return self.inner.update(add_scaled(grads, self.weight_decay, params), state, params, **context)

    def _penalty(self, params: Params) -> Float[Array, ""]:
        return 0.5 * self.weight_decay * squared_norm(params)


class DecoupledWeightDecay(Wrapper):
    """Shrinks the parameters by the factor `1 - weight_decay` at each step, beside the inner update.

    Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2017, arXiv 1711.05101, eq. 1. (optax's
    `adamw` multiplies its weight decay by the learning rate; this one does not.)

    Attributes:
      inner: the optimizer inside.
      weight_decay: part of the parameters lost at each step, in [0, 1].
    """

    inner: Optimizer
    weight_decay: Float[Array, ""] = eqx.field(converter=number, default=1e-5)

    own_spaces: ClassVar[dict[str, Space]] = {"weight_decay": Space.log(1e-8, 1e-2, allowed=(0.0, 1.0))}

    def init(
        self, params: Params, *, num_steps: int | Array | None = None, key: PRNGKeyArray | None = None
    ) -> OptState:
        return self.inner.init(params, num_steps=num_steps, key=key)

    def update(
        self, grads: Params, state: OptState, params: Params, **context: Any
    ) -> tuple[Params, OptState]:
        updates, state = self.inner.update(grads, state, params, **context)
        return add_scaled(updates, -self.weight_decay, params), state
