"""Sharpness-aware minimization."""

from typing import Any, ClassVar

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from outeropt.errors import OuteroptError
from outeropt.optimizer import Optimizer, OptState, Params
from outeropt.optimizers.schedules import number
from outeropt.optimizers.wrappers.base import Wrapper, add_scaled, norm, ratio
from outeropt.space import Space


class SharpnessAware(Wrapper):
    """Gives the inner optimizer the gradient at the worst point nearby, `params + rho * g / |g|`.

    Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization", 2020, arXiv
    2010.01412, algorithm 1. Needs `value_fn` and costs a second gradient on the same minibatch.

    Attributes:
      inner: the optimizer inside.
      rho: radius of the neighbourhood, at least 0.
    """

    inner: Optimizer
    rho: Float[Array, ""] = eqx.field(converter=number, default=0.05)

    own_spaces: ClassVar[dict[str, Space]] = {"rho": Space.log(1e-3, 1.0, allowed=(0.0, 1e3))}

    @property
    def gradients(self) -> float:
        return self.inner.gradients + 1.0

    def init(
        self, params: Params, *, num_steps: int | Array | None = None, key: PRNGKeyArray | None = None
    ) -> OptState:
        return self.inner.init(params, num_steps=num_steps, key=key)

    def update(
        self, grads: Params, state: OptState, params: Params, **context: Any
    ) -> tuple[Params, OptState]:
        if context.get("value_fn") is None:
            raise OuteroptError(
                "Sharpness-aware minimization needs `value_fn`, which was not given; "
                "call update(grads, state, params, value_fn=loss)."
            )
        worst = add_scaled(params, ratio(self.rho, norm(grads)), grads)
        return self.inner.update(jax.grad(context["value_fn"])(worst), state, params, **context)
