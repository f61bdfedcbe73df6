"""Disturbances: what a controller remembers of a gradient, and what the base optimizer is given in its place.

Each is a gradient transformation with a state, `disturbance(grads, state, params) -> (w, state)`.
"""

import abc
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from outeropt.errors import unknown_name
from outeropt.optimizer import Optimizer, Params
from outeropt.optimizers import spaces
from outeropt.optimizers.arithmetic import wide_type
from outeropt.optimizers.schedules import number
from outeropt.optimizers.wrappers.base import prefixed
from outeropt.space import Space


class Disturbance(eqx.Module):
    """A gradient transformation whose numbers are leaves. Subclasses are final."""

    own_spaces: ClassVar[dict[str, Space]] = {}

    @property
    def spaces(self) -> dict[str, Space]:
        """Spaces of its leaves, by name."""
        return self.own_spaces

    def init(self, params: Params) -> PyTree:
        """The state before the first gradient."""
        del params
        return ()

    @abc.abstractmethod
    def __call__(self, grads: Params, state: PyTree, params: Params) -> tuple[Params, PyTree]:
        """The disturbance that a gradient is, and the next state."""


class Raw(Disturbance):
    """The gradient itself."""

    def __call__(self, grads: Params, state: PyTree, params: Params) -> tuple[Params, PyTree]:
        del params
        return grads, state


class Clipped(Disturbance):
    """The gradient, clipped entry by entry to [-limit, limit].

    Attributes:
      limit: positive.
    """

    limit: Float[Array, ""] = eqx.field(converter=number, default=1.0)

    own_spaces: ClassVar[dict[str, Space]] = {"limit": Space.log(1e-3, 1e2, allowed=(0.0, 1e9))}

    def __call__(self, grads: Params, state: PyTree, params: Params) -> tuple[Params, PyTree]:
        del params

        def clip(leaf):
            limit = self.limit.astype(leaf.dtype)
            return jnp.clip(leaf, -limit, limit)

        return jax.tree.map(clip, grads), state


class AdamScaledState(NamedTuple):
    """Moving averages of the gradient and its square, in float32 at least, and the steps so far."""

    mean: Params
    square: Params
    count: Int[Array, ""]


class AdamScaled(Disturbance):
    """Adam's direction: `w = m^ / (sqrt(v^ + eps_root) + eps)` with bias-corrected averages `m^` and `v^`.

    Kingma and Ba, "Adam", 2014, arXiv 1412.6980, algorithm 1. `eps_root` must be positive wherever a rollout
    is differentiated: the root has no derivative at the zeros that dead units give.

    Attributes:
      b1: decay of the mean, in [0, 1).
      b2: decay of the square, in [0, 1).
      eps: added to the root.
      eps_root: added inside the root.
    """

    b1: Float[Array, ""] = eqx.field(converter=number, default=0.9)
    b2: Float[Array, ""] = eqx.field(converter=number, default=0.999)
    eps: Float[Array, ""] = eqx.field(converter=number, default=1e-8)
    eps_root: Float[Array, ""] = eqx.field(converter=number, default=1e-12)

    own_spaces: ClassVar[dict[str, Space]] = {
        "b1": spaces.MOMENTUM,
        "b2": spaces.SECOND_MOMENT,
        "eps": spaces.EPSILON,
        "eps_root": spaces.EPSILON,
    }

    def init(self, params: Params) -> AdamScaledState:
        mean, square = (
            jax.tree.map(lambda p: jnp.zeros_like(p, dtype=wide_type(p)), params) for _ in range(2)
        )
        return AdamScaledState(mean, square, jnp.zeros((), jnp.int32))

    def __call__(
        self, grads: Params, state: AdamScaledState, params: Params
    ) -> tuple[Params, AdamScaledState]:
        del params
        count = state.count + 1

        def one(grad, mean, square):
            b1, b2, eps, eps_root = (
                leaf.astype(mean.dtype) for leaf in (self.b1, self.b2, self.eps, self.eps_root)
            )
            g, t = grad.astype(mean.dtype), count.astype(mean.dtype)
            mean = b1 * mean + (1 - b1) * g
            square = b2 * square + (1 - b2) * jnp.square(g)
            root = jnp.sqrt(square / (1 - b2**t) + eps_root)
            return (mean / (1 - b1**t) / (root + eps)).astype(grad.dtype), mean, square

        triples = jax.tree.map(one, grads, state.mean, state.square)
        direction, mean, square = jax.tree.transpose(
            jax.tree.structure(grads), jax.tree.structure((0, 0, 0)), triples
        )
        return direction, AdamScaledState(mean, square, count)


class Transformed(Disturbance):
    """The step of any optimizer, turned round: `w = -update`. Give it a learning rate of 1.

    Attributes:
      optimizer: an `Optimizer`, such as `outeropt.optimizers.from_optax` makes of any optax transformation.
    """

    optimizer: Optimizer

    def init(self, params: Params) -> PyTree:
        return self.optimizer.init(params)

    def __call__(self, grads: Params, state: PyTree, params: Params) -> tuple[Params, PyTree]:
        updates, state = self.optimizer.update(grads, state, params)
        return jax.tree.map(jnp.negative, updates), state

    @property
    def spaces(self) -> dict[str, Space]:
        return prefixed("optimizer", self.optimizer.spaces)


BY_NAME: dict[str, type[Disturbance]] = {"raw": Raw, "clip": Clipped, "adam": AdamScaled}


def as_disturbance(given: str | Disturbance | Optimizer) -> Disturbance:
    """A disturbance by name, as it is, or of an optimizer's step.

    Raises:
      UnknownName: there is none of that name.
    """
    if isinstance(given, Optimizer):
        return Transformed(given)
    if isinstance(given, str):
        if given not in BY_NAME:
            raise unknown_name("disturbance", given, BY_NAME, see=", ".join(BY_NAME))
        return BY_NAME[given]()
    return given
