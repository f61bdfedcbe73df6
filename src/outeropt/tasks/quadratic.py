"""Quadratics and their relatives: ill-conditioned, rotated, noisy, flat, saddle-shaped and two-player."""

import functools
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from outeropt.task import Split, Task
from outeropt.tasks.wrappers.gradients import with_gradient


Vector = Float[Array, " dim"]


class Quadratic(Task):
    """`1/2 (p - c - e)^T Q^T diag(h) Q (p - c - e)`, averaged over a batch of noise `e ~ N(0, noise^2 I)`.

    With noise this is the noisy quadratic on which learning rates have been studied (Schaul et al. 2013,
    arXiv 1206.1106, section 3): its gradient is exact in the mean. Starting points are standard normal.

    Attributes:
      curvature: eigenvalues h of the Hessian.
      basis: orthonormal rows Q, the eigenvectors; None if they are the coordinate axes.
      center: the minimiser c of the mean loss; None stands for 0.
      noise: standard deviation of each coordinate of the noise; 0 for none.
      batch_size: draws of noise in a batch.
    """

    name: str = eqx.field(static=True)
    curvature: Vector
    basis: Float[Array, "dim dim"] | None = None
    center: Vector | None = None
    noise: float = eqx.field(static=True, default=0.0)
    batch_size: int = eqx.field(static=True, default=1)

    def init(self, key: PRNGKeyArray) -> tuple[Vector, None]:
        """A standard normal point."""
        return jax.random.normal(key, self.curvature.shape, jnp.float32), None

    def loss(self, params, state, batch, key):
        """The quadratic form, averaged over the batch's noise; no metrics."""
        offset = params if self.center is None else params - self.center
        offset = offset[None] if batch is None else offset[None] - batch
        along = offset if self.basis is None else offset @ self.basis.T
        return 0.5 * jnp.mean(jnp.sum(self.curvature[None] * along**2, axis=1)), (state, {})

    def batch(self, split: Split, key: PRNGKeyArray) -> Float[Array, "batch dim"] | None:
        """Noise; None where there is none."""
        if not self.noise:
            return None
        return self.noise * jax.random.normal(key, (self.batch_size, *self.curvature.shape))

    @property
    def minimum(self) -> float:
        """Smallest value of the mean loss, `1/2 noise^2 sum(h)`."""
        return 0.5 * self.noise**2 * float(jnp.sum(self.curvature))


class Landscape(Task):
    """A function of many parameters with its minimum at 0, from normal starting points; there are no data.

    Attributes:
      value: the function.
      dim: number of parameters.
      spread: standard deviation of the starting point's coordinates.
    """

    name: str = eqx.field(static=True)
    value: Callable[[Vector], Float[Array, ""]] = eqx.field(static=True)
    dim: int = eqx.field(static=True)
    spread: float = eqx.field(static=True, default=1.0)

    def init(self, key: PRNGKeyArray) -> tuple[Vector, None]:
        """A normal point."""
        return self.spread * jax.random.normal(key, (self.dim,)), None

    def loss(self, params, state, batch, key):
        """The function's value; no metrics."""
        return self.value(params), (state, {})

    def batch(self, split: Split, key: PRNGKeyArray) -> None:
        """None: the function is known exactly."""

    @property
    def minimum(self) -> float:
        """0."""
        return 0.0


class MinMax(Task):
    """A game: x descends and y ascends `f = a/2 |x|^2 + x^T M y - a/2 |y|^2`, whose equilibrium is 0.

    The loss is the mean squared distance to the equilibrium, so that it can be compared, but its gradient is
    the game's: `(df/dx, -df/dy)`. At `a = 0` plain gradient descent spirals outwards (Mescheder et al. 2018,
    arXiv 1801.04406, section 2).

    Attributes:
      coupling: the matrix M.
      attraction: the number a, at least 0.
    """

    name: str = eqx.field(static=True)
    coupling: Float[Array, "dim dim"]
    attraction: float = eqx.field(static=True)

    def init(self, key: PRNGKeyArray) -> tuple[dict[str, Vector], None]:
        """Standard normal positions of both players."""
        points = jax.random.normal(key, (2, self.coupling.shape[0]))
        return {"x": points[0], "y": points[1]}, None

    def loss(self, params, state, batch, key):
        """Distance to the equilibrium, with the game's gradient and its `value`."""
        x, y = params["x"], params["y"]
        push = {
            "x": self.attraction * x + self.coupling @ y,
            "y": self.attraction * y - self.coupling.T @ x,
        }
        game = 0.5 * self.attraction * (x @ x - y @ y) + x @ self.coupling @ y
        return with_gradient(0.5 * jnp.mean(x**2 + y**2), params, push), (state, {"value": game})

    def batch(self, split: Split, key: PRNGKeyArray) -> None:
        """None: the game is known exactly."""

    @property
    def minimum(self) -> float:
        """0, at the equilibrium."""
        return 0.0


def random_basis(dim: int) -> Float[Array, "dim dim"]:
    """Orthonormal rows in random directions, always the same for one `dim`."""
    # RandomState's streams are frozen for good, so the task stays the same with every numpy.
    return jnp.asarray(np.linalg.qr(np.random.RandomState(0).standard_normal((dim, dim)))[0], jnp.float32)


def _quadratic(
    name: str,
    dim: int,
    condition: float = 1.0,
    rotated: bool = False,
    noise: float = 0.0,
    batch_size: int = 1,
) -> Quadratic:
    curvature = jnp.asarray(np.geomspace(1 / condition, 1, dim), jnp.float32)
    basis = random_basis(dim) if rotated else None
    return Quadratic(name, curvature, basis, noise=noise, batch_size=batch_size)


def _bilinear(name: str, dim: int, attraction: float) -> MinMax:
    return MinMax(name, random_basis(dim), attraction)


def _log_quadratic(p):
    return jnp.log1p(0.5 * jnp.sum(p**2))


def _sum_quadratic(p):
    return 0.5 * jnp.sum(p) ** 2


def _absolute(p):
    return jnp.sum(jnp.abs(p))


def _double_wells(p):
    return 0.25 * jnp.mean((p**2 - 1) ** 2)


def _rosenbrock(p):
    return jnp.mean(100 * (p[1:] - p[:-1] ** 2) ** 2 + (1 - p[:-1]) ** 2)


# Constructor, dimension, and what else the constructor takes. `cond` is the ratio of the extreme eigenvalues.
_TABLE = {
    "Quadratic_10": (_quadratic, 10, {}),
    "Quadratic_100": (_quadratic, 100, {}),
    "Quadratic_1000": (_quadratic, 1000, {}),
    "Quadratic_10_cond100": (_quadratic, 10, {"condition": 100}),
    "Quadratic_100_cond100": (_quadratic, 100, {"condition": 100}),
    "Quadratic_100_cond1000": (_quadratic, 100, {"condition": 1000}),
    "Quadratic_100_cond10000": (_quadratic, 100, {"condition": 10000}),
    "Quadratic_1000_cond1000": (_quadratic, 1000, {"condition": 1000}),
    "Quadratic_100_cond100_rotated": (_quadratic, 100, {"condition": 100, "rotated": True}),
    "Quadratic_100_cond1000_rotated": (_quadratic, 100, {"condition": 1000, "rotated": True}),
    "NoisyMeanQuadratic_2": (_quadratic, 2, {"noise": 1.0}),
    "NoisyMeanQuadratic_10": (_quadratic, 10, {"noise": 1.0}),
    "NoisyQuadratic_100_cond100": (_quadratic, 100, {"condition": 100, "noise": 0.1}),
    "NoisyQuadratic_100_cond1000_rotated": (
        _quadratic,
        100,
        {"condition": 1000, "rotated": True, "noise": 0.1},
    ),
    "BatchQuadratic_10": (_quadratic, 10, {"noise": 1.0, "batch_size": 128}),
    "LogQuadratic_10": (Landscape, _log_quadratic, {"dim": 10, "spread": 10.0}),
    "SumQuadratic_10": (Landscape, _sum_quadratic, {"dim": 10}),
    "Absolute_10": (Landscape, _absolute, {"dim": 10}),
    "Saddle_10": (Landscape, _double_wells, {"dim": 10, "spread": 1e-3}),
    "Saddle_100": (Landscape, _double_wells, {"dim": 100, "spread": 1e-3}),
    "Rosenbrock_10": (Landscape, _rosenbrock, {"dim": 10}),
    "Rosenbrock_100": (Landscape, _rosenbrock, {"dim": 100}),
    "MinMaxBilinear_10": (_bilinear, 10, {"attraction": 0.0}),
    "MinMaxQuadratic_10": (_bilinear, 10, {"attraction": 0.1}),
}

TASKS: dict[str, Callable[[], Task]] = {
    name: functools.partial(build, name, first, **rest) for name, (build, first, rest) in _TABLE.items()
}
