"""Classical two-dimensional test functions, with their minima.

Sources: S. Surjanovic and D. Bingham, *Virtual Library of Simulation Experiments* (SFU); M. Jamil and X.-S.
Yang, "A literature survey of benchmark functions for global optimization problems", IJMMNO 4(2), 2013 (JY
below). Each entry also says where the function was first used.
"""

import dataclasses
import functools
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from outeropt.task import Split, Task


Scalar = Float[Array, ""]
Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Surface:
    """One test function.

    Attributes:
      value: the function of the two coordinates.
      domain: the box in which it is defined, one interval per coordinate; starting points are uniform in it.
      minimum: its smallest value in the domain.
      minimisers: every point (or for periodic functions some points) where it takes that value.
      source: where the formula comes from.
      walled: the function falls below its minimum outside the domain. There it continues as its value at the
        nearest point of the domain plus the squared distance to it.
    """

    value: Callable[[Scalar, Scalar], Scalar]
    domain: tuple[Interval, Interval]
    minimum: float
    minimisers: tuple[tuple[float, float], ...]
    source: str
    walled: bool = False


class FunctionTask(Task):
    """Minimises a two-dimensional test function from a random point of its domain; there are no data."""

    name: str = eqx.field(static=True)
    surface: Surface = eqx.field(static=True)

    def init(self, key: PRNGKeyArray) -> tuple[Float[Array, "2"], None]:
        """A uniform point of the domain."""
        low, high = self._corners()
        return jax.random.uniform(key, (2,), jnp.float32, low, high), None

    def loss(self, params, state, batch, key):
        """The function's value; no metrics."""
        point = params
        if self.surface.walled:
            point = jnp.clip(params, *self._corners())
        value = self.surface.value(point[0], point[1])
        if self.surface.walled:
            value = value + jnp.sum((params - jax.lax.stop_gradient(point)) ** 2)
        return value, (state, {})

    def batch(self, split: Split, key: PRNGKeyArray) -> None:
        """None: the function is known exactly."""

    @property
    def minimum(self) -> float:
        """The function's smallest value."""
        return self.surface.minimum

    def _corners(self) -> tuple[Float[Array, "2"], Float[Array, "2"]]:
        low, high = zip(*self.surface.domain)
        return jnp.asarray(low, jnp.float32), jnp.asarray(high, jnp.float32)


def _root(square: Scalar) -> Scalar:
    """The square root, with gradient 0 at 0 where the true one is infinite or undefined."""
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)


def _radius(x, y):
    return _root(x**2 + y**2)


def _box(low: float, high: float) -> tuple[Interval, Interval]:
    return (low, high), (low, high)


def _signs(a: float, b: float) -> tuple[tuple[float, float], ...]:
    return (a, b), (a, -b), (-a, b), (-a, -b)


def _ackley(x, y):
    waves = jnp.exp((jnp.cos(2 * jnp.pi * x) + jnp.cos(2 * jnp.pi * y)) / 2)
    return -20 * jnp.exp(-0.2 * _radius(x, y) / jnp.sqrt(2.0)) - waves + 20 + jnp.e


def _branin(x, y):
    bend = y - 5.1 / (4 * jnp.pi**2) * x**2 + 5 / jnp.pi * x - 6
    return bend**2 + 10 * (1 - 1 / (8 * jnp.pi)) * jnp.cos(x) + 10


def _cross_in_tray(x, y):
    # exp(100) overflows float32, so (|s| exp(a) + 1)^0.1 is taken through its logarithm.
    height = jnp.abs(jnp.sin(x) * jnp.sin(y)) + 1e-30
    exponent = jnp.abs(100 - _radius(x, y) / jnp.pi)
    return -1e-4 * jnp.exp(0.1 * jax.nn.softplus(jnp.log(height) + exponent))


def _de_jong_5(x, y):
    line = jnp.asarray([-32.0, -16.0, 0.0, 16.0, 32.0])
    holes = (x - jnp.tile(line, 5)) ** 6 + (y - jnp.repeat(line, 5)) ** 6 + jnp.arange(1.0, 26.0)
    return 1 / (0.002 + jnp.sum(1 / holes))


def _goldstein_price(x, y):
    first = 1 + (x + y + 1) ** 2 * (19 - 14 * x + 3 * x**2 - 14 * y + 6 * x * y + 3 * y**2)
    second = 30 + (2 * x - 3 * y) ** 2 * (18 - 32 * x + 12 * x**2 + 48 * y - 36 * x * y + 27 * y**2)
    return first * second


def _levy(x, y):
    v, w = 1 + (x - 1) / 4, 1 + (y - 1) / 4
    middle = (v - 1) ** 2 * (1 + 10 * jnp.sin(jnp.pi * v + 1) ** 2)
    return jnp.sin(jnp.pi * v) ** 2 + middle + (w - 1) ** 2 * (1 + jnp.sin(2 * jnp.pi * w) ** 2)


def _levy_13(x, y):
    first = (x - 1) ** 2 * (1 + jnp.sin(3 * jnp.pi * y) ** 2)
    second = (y - 1) ** 2 * (1 + jnp.sin(2 * jnp.pi * y) ** 2)
    return jnp.sin(3 * jnp.pi * x) ** 2 + first + second


def _michalewicz(x, y):
    ridges = jnp.sin(x) * jnp.sin(x**2 / jnp.pi) ** 20 + jnp.sin(y) * jnp.sin(2 * y**2 / jnp.pi) ** 20
    return -ridges


def _shubert(x, y):
    i = jnp.arange(1.0, 6.0)
    return jnp.sum(i * jnp.cos((i + 1) * x + i)) * jnp.sum(i * jnp.cos((i + 1) * y + i))


def _wave(x):
    return x * jnp.sin(_root(jnp.abs(x)))


SURFACES: dict[str, Surface] = {
    "Ackley": Surface(_ackley, _box(-32.768, 32.768), 0.0, ((0, 0),), "Ackley 1987; JY"),
    "Adjiman": Surface(
        lambda x, y: jnp.cos(x) * jnp.sin(y) - x / (y**2 + 1),
        ((-1, 2), (-1, 1)), -2.021806783, ((2, 0.105783467),), "Adjiman et al. 1998; JY", walled=True,
    ),
    "Beale": Surface(
        lambda x, y: (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2,
        _box(-4.5, 4.5), 0.0, ((3, 0.5),), "Beale 1958; JY",
    ),
    "Bird": Surface(
        lambda x, y: (
            jnp.sin(x) * jnp.exp((1 - jnp.cos(y)) ** 2)
            + jnp.cos(y) * jnp.exp((1 - jnp.sin(x)) ** 2)
            + (x - y) ** 2
        ),
        _box(-6.283185307, 6.283185307), -106.764537, ((4.70104, 3.15294), (-1.58214, -3.13024)),
        "Mishra 2006; JY",
    ),
    "Bohachevsky1": Surface(
        lambda x, y: x**2 + 2 * y**2 - 0.3 * jnp.cos(3 * jnp.pi * x) - 0.4 * jnp.cos(4 * jnp.pi * y) + 0.7,
        _box(-100, 100), 0.0, ((0, 0),), "Bohachevsky et al. 1986; JY",
    ),
    "Bohachevsky2": Surface(
        lambda x, y: x**2 + 2 * y**2 - 0.3 * jnp.cos(3 * jnp.pi * x) * jnp.cos(4 * jnp.pi * y) + 0.3,
        _box(-100, 100), 0.0, ((0, 0),), "Bohachevsky et al. 1986; JY",
    ),
    "Bohachevsky3": Surface(
        lambda x, y: x**2 + 2 * y**2 - 0.3 * jnp.cos(3 * jnp.pi * x + 4 * jnp.pi * y) + 0.3,
        _box(-100, 100), 0.0, ((0, 0),), "Bohachevsky et al. 1986; JY",
    ),
    "Booth": Surface(
        lambda x, y: (x + 2 * y - 7) ** 2 + (2 * x + y - 5) ** 2,
        _box(-10, 10), 0.0, ((1, 3),), "JY",
    ),
    "Branin": Surface(
        _branin, ((-5, 10), (0, 15)), 0.397887358,
        ((-3.14159265, 12.275), (3.14159265, 2.275), (9.42477796, 2.475)), "Branin 1972; JY",
    ),
    "Brent": Surface(
        lambda x, y: (x + 10) ** 2 + (y + 10) ** 2 + jnp.exp(-(x**2) - y**2),
        _box(-20, 0), 0.0, ((-10, -10),), "Brent 1960; JY",
    ),
    "Bukin6": Surface(
        lambda x, y: 100 * _root(jnp.abs(y - 0.01 * x**2)) + 0.01 * jnp.abs(x + 10),
        ((-15, -5), (-3, 3)), 0.0, ((-10, 1),), "Bukin 1997; JY",
    ),
    "ChungReynolds": Surface(
        lambda x, y: (x**2 + y**2) ** 2, _box(-100, 100), 0.0, ((0, 0),), "Chung and Reynolds 1998; JY",
    ),
    "CrossInTray": Surface(
        _cross_in_tray, _box(-10, 10), -2.06261187, _signs(1.349406609, 1.349406609), "Mishra 2006; JY",
        walled=True,
    ),
    "Cube": Surface(
        lambda x, y: 100 * (y - x**3) ** 2 + (1 - x) ** 2,
        _box(-10, 10), 0.0, ((1, 1),), "Lavi and Vogel 1966; JY",
    ),
    "DeJong5": Surface(
        _de_jong_5, _box(-65.536, 65.536), 0.998003838, ((-31.97833, -31.97833),), "De Jong 1975",
    ),
    "DekkersAarts": Surface(
        lambda x, y: 1e5 * x**2 + y**2 - (x**2 + y**2) ** 2 + 1e-5 * (x**2 + y**2) ** 4,
        _box(-20, 20), -24776.51834, ((0, 14.9451121), (0, -14.9451121)), "Dekkers and Aarts 1991; JY",
    ),
    "DixonPrice": Surface(
        lambda x, y: (x - 1) ** 2 + 2 * (2 * y**2 - x) ** 2,
        _box(-10, 10), 0.0, ((1, 0.70710678), (1, -0.70710678)), "Dixon and Price 1989; JY",
    ),
    "DropWave": Surface(
        lambda x, y: -(1 + jnp.cos(12 * _radius(x, y))) / (0.5 * (x**2 + y**2) + 2),
        _box(-5.12, 5.12), -1.0, ((0, 0),), "Marcin and Smutnicki 2005",
    ),
    "Easom": Surface(
        lambda x, y: -jnp.cos(x) * jnp.cos(y) * jnp.exp(-((x - jnp.pi) ** 2) - (y - jnp.pi) ** 2),
        _box(-10, 10), -1.0, ((3.14159265, 3.14159265),), "Easom 1990; JY, on a smaller box",
    ),
    "Eggholder": Surface(
        lambda x, y: (
            -(y + 47) * jnp.sin(_root(jnp.abs(x / 2 + y + 47))) - x * jnp.sin(_root(jnp.abs(x - (y + 47))))
        ),
        _box(-512, 512), -959.640663, ((512, 404.231805),), "Whitley et al. 1996; JY", walled=True,
    ),
    "Exponential": Surface(
        lambda x, y: -jnp.exp(-0.5 * (x**2 + y**2)),
        _box(-1, 1), -1.0, ((0, 0),), "Rahnamayan et al. 2007; JY",
    ),
    "FreudensteinRoth": Surface(
        lambda x, y: (x - 13 + ((5 - y) * y - 2) * y) ** 2 + (x - 29 + ((y + 1) * y - 14) * y) ** 2,
        _box(-10, 10), 0.0, ((5, 4),), "Freudenstein and Roth 1963; JY",
    ),
    "GoldsteinPrice": Surface(
        _goldstein_price, _box(-2, 2), 3.0, ((0, -1),), "Goldstein and Price 1971; JY"
    ),
    "GramacyLee": Surface(
        lambda x, y: x * jnp.exp(-(x**2) - y**2),
        _box(-2, 6), -0.428881942, ((-0.70710678, 0),), "Gramacy and Lee 2008",
    ),
    "Griewank": Surface(
        lambda x, y: (x**2 + y**2) / 4000 - jnp.cos(x) * jnp.cos(y / jnp.sqrt(2.0)) + 1,
        _box(-600, 600), 0.0, ((0, 0),), "Griewank 1981; JY",
    ),
    "Himmelblau": Surface(
        lambda x, y: (x**2 + y - 11) ** 2 + (x + y**2 - 7) ** 2,
        _box(-5, 5), 0.0,
        ((3, 2), (-2.805118087, 3.131312518), (-3.779310253, -3.283185991), (3.584428340, -1.848126527)),
        "Himmelblau 1972; JY",
    ),
    "HolderTable": Surface(
        lambda x, y: -jnp.abs(jnp.sin(x) * jnp.cos(y) * jnp.exp(jnp.abs(1 - _radius(x, y) / jnp.pi))),
        _box(-10, 10), -19.2085026, _signs(8.05502347, 9.66459002), "Mishra 2006; JY", walled=True,
    ),
    "Hosaki": Surface(
        lambda x, y: (1 - 8 * x + 7 * x**2 - 7 / 3 * x**3 + x**4 / 4) * y**2 * jnp.exp(-y),
        ((0, 5), (0, 6)), -2.345811576, ((4, 2),), "Bekey and Ung 1974; JY", walled=True,
    ),
    "Levy": Surface(_levy, _box(-10, 10), 0.0, ((1, 1),), "Levy and Montalvo 1985"),
    "Levy13": Surface(_levy_13, _box(-10, 10), 0.0, ((1, 1),), "Levy and Montalvo 1985"),
    "Matyas": Surface(
        lambda x, y: 0.26 * (x**2 + y**2) - 0.48 * x * y, _box(-10, 10), 0.0, ((0, 0),), "JY",
    ),
    "McCormick": Surface(
        lambda x, y: jnp.sin(x + y) + (x - y) ** 2 - 1.5 * x + 2.5 * y + 1,
        ((-1.5, 4), (-3, 4)), -1.913222955, ((-0.547197551, -1.547197551),), "McCormick 1976; JY",
        walled=True,
    ),
    "Michalewicz": Surface(
        _michalewicz, _box(0, 3.14159265), -1.801303410, ((2.202905520, 1.570796327),), "Michalewicz 1992",
        walled=True,
    ),
    "Rastrigin": Surface(
        lambda x, y: 20 + x**2 - 10 * jnp.cos(2 * jnp.pi * x) + y**2 - 10 * jnp.cos(2 * jnp.pi * y),
        _box(-5.12, 5.12), 0.0, ((0, 0),), "Rastrigin 1974",
    ),
    "Rosenbrock": Surface(
        lambda x, y: (1 - x) ** 2 + 100 * (y - x**2) ** 2,
        _box(-2.048, 2.048), 0.0, ((1, 1),), "Rosenbrock 1960; JY",
    ),
    "Salomon": Surface(
        lambda x, y: 1 - jnp.cos(2 * jnp.pi * _radius(x, y)) + 0.1 * _radius(x, y),
        _box(-100, 100), 0.0, ((0, 0),), "Salomon 1996; JY",
    ),
    "Schaffer2": Surface(
        lambda x, y: 0.5 + (jnp.sin(x**2 - y**2) ** 2 - 0.5) / (1 + 0.001 * (x**2 + y**2)) ** 2,
        _box(-100, 100), 0.0, ((0, 0),), "Schaffer 1984; JY",
    ),
    "Schaffer4": Surface(
        lambda x, y: (
            0.5 + (jnp.cos(jnp.sin(jnp.abs(x**2 - y**2))) ** 2 - 0.5) / (1 + 0.001 * (x**2 + y**2)) ** 2
        ),
        _box(-100, 100), 0.292578632, ((0, 1.253131829), (0, -1.253131829), (1.253131829, 0)),
        "Schaffer 1984; JY",
    ),
    "Schwefel": Surface(
        lambda x, y: 837.9657745 - _wave(x) - _wave(y),
        _box(-500, 500), 0.0, ((420.9687464, 420.9687464),), "Schwefel 1981", walled=True,
    ),
    "Shubert": Surface(
        _shubert, _box(-10, 10), -186.7309088, ((-1.42512843, -0.80032110), (-0.80032110, -1.42512843)),
        "Shubert 1972; JY",
    ),
    "SixHumpCamel": Surface(
        lambda x, y: (4 - 2.1 * x**2 + x**4 / 3) * x**2 + x * y + (4 * y**2 - 4) * y**2,
        ((-3, 3), (-2, 2)), -1.031628453, ((0.0898420131, -0.712656403), (-0.0898420131, 0.712656403)),
        "Dixon and Szegö 1978; JY",
    ),
    "Sphere": Surface(lambda x, y: x**2 + y**2, _box(-5.12, 5.12), 0.0, ((0, 0),), "De Jong 1975; JY"),
    "StyblinskiTang": Surface(
        lambda x, y: (x**4 - 16 * x**2 + 5 * x + y**4 - 16 * y**2 + 5 * y) / 2,
        _box(-5, 5), -78.33233141, ((-2.903534028, -2.903534028),), "Styblinski and Tang 1990; JY",
    ),
    "SumOfPowers": Surface(
        lambda x, y: x**2 + jnp.abs(y) ** 3, _box(-1, 1), 0.0, ((0, 0),), "Rahnamayan et al. 2007; JY",
    ),
    "ThreeHumpCamel": Surface(
        lambda x, y: 2 * x**2 - 1.05 * x**4 + x**6 / 6 + x * y + y**2,
        _box(-5, 5), 0.0, ((0, 0),), "Branin 1972; JY",
    ),
    "Trecanni": Surface(
        lambda x, y: x**4 + 4 * x**3 + 4 * x**2 + y**2,
        _box(-5, 5), 0.0, ((0, 0), (-2, 0)), "Dixon and Szegö 1978; JY",
    ),
    "Trid": Surface(
        lambda x, y: (x - 1) ** 2 + (y - 1) ** 2 - x * y, _box(-4, 4), -2.0, ((2, 2),), "Neumaier; JY",
    ),
    "Zakharov": Surface(
        lambda x, y: x**2 + y**2 + (0.5 * x + y) ** 2 + (0.5 * x + y) ** 4,
        _box(-5, 10), 0.0, ((0, 0),), "JY",
    ),
    "Zettl": Surface(
        lambda x, y: (x**2 + y**2 - 2 * x) ** 2 + 0.25 * x,
        _box(-1, 5), -0.003791237, ((-0.02989598, 0),), "Schwefel 1995; JY",
    ),
}  # fmt: skip

TASKS: dict[str, Callable[[], Task]] = {
    f"Function_{name}": functools.partial(FunctionTask, f"Function_{name}", surface)
    for name, surface in SURFACES.items()
}
