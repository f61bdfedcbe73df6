"""A test function, and the task of minimising it."""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from outeropt.task import Split, Task


Scalar = Float[Array, ""]
Point = Float[Array, "dim"]
Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Surface:
    """One test function.

    Attributes:
      value: the function of a point.
      domain: the box in which it is defined, one interval per coordinate; starting points are uniform in it.
      minimum: its smallest value in the domain; None where nobody knows it.
      minimisers: every point (or for periodic functions some points) where it takes that value.
      source: where the formula comes from.
      walled: the function falls below its minimum outside the domain. There it continues as its value at the
        nearest point of the domain plus the squared distance to it.
      notes: what is peculiar about it, in a sentence.
    """

    value: Callable[[Point], Scalar]
    domain: tuple[Interval, ...]
    minimum: float | None
    minimisers: tuple[tuple[float, ...], ...]
    source: str
    walled: bool = False
    notes: str = ""


class FunctionTask(Task):
    """Minimises a test function from a random point of its domain; there are no data."""

    name: str = eqx.field(static=True)
    surface: Surface = eqx.field(static=True)

    def init(self, key: PRNGKeyArray) -> tuple[Float[Array, "dim"], None]:
        """A uniform point of the domain."""
        low, high = self._corners()
        return jax.random.uniform(key, low.shape, jnp.float32, low, high), None

    def loss(self, params, state, batch, key):
        """The function's value; no metrics."""
        if not self.surface.walled:
            return self.surface.value(params), (state, {})
        point = jnp.clip(params, *self._corners())
        beyond = jnp.sum((params - jax.lax.stop_gradient(point)) ** 2)
        return self.surface.value(point) + beyond, (state, {})

    def batch(self, split: Split, key: PRNGKeyArray) -> None:
        """None: the function is known exactly."""

    @property
    def minimum(self) -> float | None:
        """The function's smallest value, where it is known."""
        return self.surface.minimum

    @property
    def notes(self) -> str:
        """What the task is, what is peculiar about the function, and its source."""
        return " ".join(filter(None, (super().notes, self.surface.notes, f"Source: {self.surface.source}.")))

    def _corners(self) -> tuple[Point, Point]:
        low, high = zip(*self.surface.domain)
        return jnp.asarray(low, jnp.float32), jnp.asarray(high, jnp.float32)


def root(square: Array) -> Array:
    """The square root, with gradient 0 at 0 where the true one is infinite or undefined."""
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)
