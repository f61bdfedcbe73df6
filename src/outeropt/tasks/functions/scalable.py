"""Test functions of any number of parameters, with their minima where they are known.

Sources as in `planar`; BC below is L. Baronti and M. Castellani, "A Python benchmark functions framework for
numerical optimisation problems", arXiv 2406.16195.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from outeropt.tasks.functions.surface import Interval, Point, Scalar, Surface, root


@dataclasses.dataclass(frozen=True)
class Scalable:
    """A test function in any dimension.

    Attributes:
      value: the function of a point of any length.
      interval: domain of every coordinate, by dimension.
      source: where the formula comes from.
      minimum: smallest value in the domain by dimension; None where nobody knows it.
      minimiser: a point where it takes that value, by dimension; None where that is not known.
      least: the lowest dimension in which the function makes sense.
      walled: as `Surface` has it.
      notes: as `Surface` has it.
    """

    value: Callable[[Point], Scalar]
    interval: Callable[[int], Interval]
    source: str
    minimum: Callable[[int], float | None]
    minimiser: Callable[[int], tuple[float, ...] | None]
    least: int = 1
    walled: bool = False
    notes: str = ""

    def at(self, dim: int) -> Surface:
        """The function of `dim` parameters, at least `least`."""
        minimiser = self.minimiser(dim)
        return Surface(
            self.value,
            (self.interval(dim),) * dim,
            self.minimum(dim),
            () if minimiser is None else (minimiser,),
            self.source,
            self.walled,
            self.notes,
        )


def _box(low: float, high: float) -> Callable[[int], Interval]:
    return lambda dim: (low, high)


def _all_at(coordinate: float) -> Callable[[int], tuple[float, ...]]:
    return lambda dim: (coordinate,) * dim


def _each(value: float) -> Callable[[int], float]:
    """A minimum that every coordinate shares in alike."""
    return lambda dim: value * dim


def _zero(dim: int) -> float:
    return 0.0


def _unknown(dim: int) -> None:
    return None


def _in_the_plane(value: float) -> Callable[[int], float | None]:
    """A minimum that is known for two parameters only."""
    return lambda dim: value if dim == 2 else None


def _point_in_the_plane(*point: float) -> Callable[[int], tuple[float, ...] | None]:
    return lambda dim: point if dim == 2 else None


def _numbers(x: Point) -> Point:
    """1, 2, ... for the coordinates."""
    return jnp.arange(1, x.shape[0] + 1, dtype=x.dtype)


def _ackley(x):
    waves = jnp.exp(jnp.mean(jnp.cos(2 * jnp.pi * x)))
    return -20 * jnp.exp(-0.2 * root(jnp.mean(x**2))) - waves + 20 + jnp.e


def _de_jong_3(x):
    return jnp.sum(jnp.floor(x))


def _dixon_price(x):
    return (x[0] - 1) ** 2 + jnp.sum(_numbers(x)[1:] * (2 * x[1:] ** 2 - x[:-1]) ** 2)


def _eggholder(x):
    u, v = x[:-1], x[1:] + 47
    return jnp.sum(-v * jnp.sin(root(jnp.abs(u / 2 + v))) - u * jnp.sin(root(jnp.abs(u - v))))


def _griewank(x):
    return jnp.sum(x**2) / 4000 - jnp.prod(jnp.cos(x / jnp.sqrt(_numbers(x)))) + 1


def _keane(x):
    squares = jnp.cos(x) ** 2
    radius = jnp.sqrt(jnp.maximum(jnp.sum(_numbers(x) * x**2), 1))
    return -jnp.abs(jnp.sum(squares**2) - 2 * jnp.prod(squares)) / radius


def _levy(x):
    w = 1 + (x - 1) / 4
    middle = jnp.sum((w[:-1] - 1) ** 2 * (1 + 10 * jnp.sin(jnp.pi * w[:-1] + 1) ** 2))
    last = (w[-1] - 1) ** 2 * (1 + jnp.sin(2 * jnp.pi * w[-1]) ** 2)
    return jnp.sin(jnp.pi * w[0]) ** 2 + middle + last


def _michalewicz(x):
    return -jnp.sum(jnp.sin(x) * jnp.sin(_numbers(x) * x**2 / jnp.pi) ** 20)


@functools.cache
def _michalewicz_lowest(i: int) -> tuple[float, float]:
    """Where the i-th coordinate's share is lowest, and how low: the function is a sum of such shares."""
    low, high = 0.0, math.pi
    x, best = np.zeros(1), 0
    values = np.zeros(1)
    # There are i valleys: first about a hundred points in each, then ever finer around the lowest.
    for points in (128 * i + 1, *(129,) * 4):
        x = np.linspace(low, high, points)
        values = -np.sin(x) * np.sin(i * x**2 / math.pi) ** 20
        best = int(np.argmin(values))
        low, high = x[max(best - 1, 0)], x[min(best + 1, points - 1)]
    return float(x[best]), float(values[best])


def _michalewicz_minimum(dim: int) -> float:
    return math.fsum(_michalewicz_lowest(i)[1] for i in range(1, dim + 1))


def _michalewicz_minimiser(dim: int) -> tuple[float, ...]:
    return tuple(_michalewicz_lowest(i)[0] for i in range(1, dim + 1))


def _rana(x):
    u, v = x[:-1], x[1:] + 1
    plus, minus = root(jnp.abs(v + u)), root(jnp.abs(v - u))
    return jnp.sum(u * jnp.cos(plus) * jnp.sin(minus) + v * jnp.sin(plus) * jnp.cos(minus))


def _rosenbrock(x):
    return jnp.sum((1 - x[:-1]) ** 2 + 100 * (x[1:] - x[:-1] ** 2) ** 2)


def _salomon(x):
    radius = root(jnp.sum(x**2))
    return 1 - jnp.cos(2 * jnp.pi * radius) + 0.1 * radius


def _schwefel(x):
    # The constant inside the sum: near the minimum every term is small, so float32 loses no digits.
    return jnp.sum(418.9828872724338 - x * jnp.sin(root(jnp.abs(x))))


def _zakharov(x):
    slope = 0.5 * jnp.sum(_numbers(x) * x)
    return jnp.sum(x**2) + slope**2 + slope**4


SCALABLE: dict[str, Scalable] = {
    "Ackley": Scalable(_ackley, _box(-32.768, 32.768), "Ackley 1987; JY", _zero, _all_at(0)),
    "ChungReynolds": Scalable(
        lambda x: jnp.sum(x**2) ** 2, _box(-100, 100), "Chung and Reynolds 1998; JY", _zero, _all_at(0)
    ),
    "DeJong3": Scalable(
        _de_jong_3, _box(-3.8, 3.8), "De Jong 1975; domain as in BC", _each(-4.0), _all_at(-3.5), walled=True,
        notes="A staircase: its gradient is zero everywhere in the domain, so no descent moves.",
    ),
    "DixonPrice": Scalable(
        _dixon_price, _box(-10, 10), "Dixon and Price 1989; JY", _zero,
        lambda dim: tuple(2.0 ** (2.0**-i - 1) for i in range(dim)),
    ),
    "Eggholder": Scalable(
        _eggholder, _box(-512, 512), "Whitley et al. 1996; JY", _in_the_plane(-959.640663),
        _point_in_the_plane(512, 404.231805), least=2, walled=True,
    ),
    "Exponential": Scalable(
        lambda x: -jnp.exp(-0.5 * jnp.sum(x**2)), _box(-1, 1), "Rahnamayan et al. 2007; JY",
        lambda dim: -1.0, _all_at(0),
    ),
    "Griewank": Scalable(_griewank, _box(-600, 600), "Griewank 1981; JY", _zero, _all_at(0)),
    "Hyperellipsoid": Scalable(
        lambda x: jnp.sum(_numbers(x)[::-1] * x**2), _box(-65.536, 65.536),
        "the rotated hyper-ellipsoid of SFU: a sum over i of x_1^2 + ... + x_i^2", _zero, _all_at(0),
    ),
    "Hypersphere": Scalable(
        lambda x: jnp.sum(x**2), _box(-5, 5), "De Jong 1975; domain as in BC", _zero, _all_at(0)
    ),
    "Keane": Scalable(
        _keane, _box(0, 10), "Keane 1994, without its constraints, as in BC", _in_the_plane(-0.673667521),
        _point_in_the_plane(1.393249069, 0),
        notes="The denominator, the root of a weighted sum of squares, is held at 1 where it would be "
        "smaller: otherwise the function falls without bound towards the origin.",
    ),
    "Levy": Scalable(_levy, _box(-10, 10), "Levy and Montalvo 1985", _zero, _all_at(1)),
    "Michalewicz": Scalable(
        _michalewicz, _box(0, 3.14159265), "Michalewicz 1992", _michalewicz_minimum, _michalewicz_minimiser,
        walled=True,
    ),
    "Rana": Scalable(
        _rana, _box(-512, 512), "Whitley et al. 1996; JY, on a slightly larger box",
        _in_the_plane(-511.732882), _point_in_the_plane(-488.632577, 512), least=2, walled=True,
    ),
    "Rastrigin": Scalable(
        lambda x: jnp.sum(10 + x**2 - 10 * jnp.cos(2 * jnp.pi * x)), _box(-5.12, 5.12), "Rastrigin 1974",
        _zero, _all_at(0),
    ),
    "Rosenbrock": Scalable(
        _rosenbrock, _box(-2.048, 2.048), "Rosenbrock 1960; JY", _zero, _all_at(1), least=2
    ),
    "Salomon": Scalable(_salomon, _box(-100, 100), "Salomon 1996; JY", _zero, _all_at(0)),
    "Schwefel": Scalable(
        _schwefel, _box(-500, 500), "Schwefel 1981", _zero, _all_at(420.9687464), walled=True
    ),
    "Sphere": Scalable(lambda x: jnp.sum(x**2), _box(-5.12, 5.12), "De Jong 1975; JY", _zero, _all_at(0)),
    "StyblinskiTang": Scalable(
        lambda x: jnp.sum(x**4 - 16 * x**2 + 5 * x) / 2, _box(-5, 5), "Styblinski and Tang 1990; JY",
        _each(-39.166165704), _all_at(-2.903534028),
    ),
    "SumOfPowers": Scalable(
        lambda x: jnp.sum(jnp.abs(x) ** (_numbers(x) + 1)), _box(-1, 1), "Rahnamayan et al. 2007; JY",
        _zero, _all_at(0),
    ),
    "Trid": Scalable(
        lambda x: jnp.sum((x - 1) ** 2) - jnp.sum(x[1:] * x[:-1]),
        lambda dim: (-float(dim**2), float(dim**2)),
        "Neumaier; JY", lambda dim: -dim * (dim + 4) * (dim - 1) / 6,
        lambda dim: tuple(float(i * (dim + 1 - i)) for i in range(1, dim + 1)),
    ),
    "Zakharov": Scalable(_zakharov, _box(-5, 10), "JY", _zero, _all_at(0)),
}  # fmt: skip
