"""Mechanic: finds the scale of any optimizer's updates."""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from outeropt.optimizer import Optimizer, OptState, Params
from outeropt.optimizers import spaces
from outeropt.optimizers.arithmetic import inner, root, squared_norm, wide_type, widen
from outeropt.optimizers.schedules import number
from outeropt.optimizers.wrappers.base import Wrapper
from outeropt.space import Space


FIRST_PRODUCT = 1e-6
"""What the largest inner product so far starts at."""
EPSILON = 1e-8
"""Keeps quotients finite."""


class MechanicState(NamedTuple):
    """State of `Mechanic`.

    Attributes:
      inner: the inner optimizer's state.
      start: `x_0`, the parameters before the first step.
      scales: `s`, one for each decay; their sum is the scale.
      rewards: `r`, what each has gained.
      largest: `m`, largest inner product so far, decayed.
      squares: `v`, sum of squared inner products so far, decayed.
    """

    inner: OptState
    start: Params
    scales: Float[Array, "decays"]
    rewards: Float[Array, "decays"]
    largest: Float[Array, "decays"]
    squares: Float[Array, "decays"]


class Mechanic(Wrapper):
    """Lets the inner optimizer give directions and finds how far to go along their sum.

    With `u` the inner update at `x`, `x' = x + u`, `s` the sum of the scales, decays `b = 0.9, 0.99, ...` and
    `eps = 1e-8`:

        delta = (x - x_0) / (s + eps)
        h = <delta, g + s_decay * s * |g| / (|x'| + eps) * x'>
        m <- max(b m, |h|)               v <- b^2 v + h^2               r <- max(b r - s_b h, 0)
        s_b <- (m s_init / num_betas + r) / (sqrt(v) + eps)
        x <- x_0 + s (delta + u), with the new `s`

    Cutkosky, Defazio and Mehta, "Mechanic: A Learning Rate Tuner", 2023, arXiv 2306.00144, algorithm 1, and
    in its details the authors' PyTorch package. `optax.contrib.mechanize` differs from the first step on:
    there `s` starts at `s_init` each, `m` at 0, the weight decay looks at `x`, and `h` is clipped to `m` in
    `r`.

    The learning rate inside is still a factor, and may follow a schedule.

    Attributes:
      inner: the optimizer inside.
      s_decay: weight decay of the scale finder, relative to the norms of gradient and parameters, at least 0.
      s_init: the first scale, nearly; too small is safe.
      num_betas: how many decays are tried at once.
    """

    inner: Optimizer
    s_decay: Float[Array, ""] = eqx.field(converter=number, default=0.01)
    s_init: Float[Array, ""] = eqx.field(converter=number, default=1e-8)
    num_betas: int = eqx.field(static=True, default=6)

    own_spaces: ClassVar[dict[str, Space]] = {
        "s_decay": spaces.WEIGHT_DECAY,
        "s_init": spaces.ESTIMATE,
    }

    def init(
        self, params: Params, *, num_steps: int | Array | None = None, key: PRNGKeyArray | None = None
    ) -> OptState:
        zeros = jnp.zeros(self.num_betas, wide_type(params))
        return MechanicState(
            inner=self.inner.init(params, num_steps=num_steps, key=key),
            start=jax.tree.map(jnp.array, params),
            scales=zeros,
            rewards=zeros,
            largest=jnp.full_like(zeros, FIRST_PRODUCT),
            squares=zeros,
        )

    def update(
        self, grads: Params, state: OptState, params: Params, **context: Any
    ) -> tuple[Params, OptState]:
        moves, inside = self.inner.update(grads, state.inner, params, **context)
        wide = state.scales.dtype
        s_decay, s_init = self.s_decay.astype(wide), self.s_init.astype(wide)
        betas = 1.0 - 0.1 ** jnp.arange(1.0, self.num_betas + 1.0, dtype=wide)
        total = jnp.sum(state.scales)
        ahead = jax.tree.map(jnp.add, widen(params), widen(moves))
        way = jax.tree.map(lambda x, x0: x - x0, widen(params), widen(state.start))
        pull = s_decay * total * root(squared_norm(grads)) / (root(squared_norm(ahead)) + EPSILON)
        product = (inner(way, grads) + pull * inner(way, ahead)) / (total + EPSILON)
        largest = jnp.maximum(betas * state.largest, jnp.abs(product))
        squares = jnp.square(betas) * state.squares + jnp.square(product)
        rewards = jnp.maximum(betas * state.rewards - state.scales * product, 0.0)
        scales = (largest * s_init / self.num_betas + rewards) / (root(squares) + EPSILON)
        scale = jnp.sum(scales)
        factor = scale / (total + EPSILON)

        def move(path, u, param):
            # x_0 + scale (delta + u) - x, without the rounding of x_0.
            far = (factor - 1.0).astype(path.dtype) * path + scale.astype(path.dtype) * u.astype(path.dtype)
            return far.astype(param.dtype)

        return jax.tree.map(move, way, moves, params), MechanicState(
            inside, state.start, scales, rewards, largest, squares
        )

    def inner_state(self, state: OptState) -> OptState:
        return state.inner
