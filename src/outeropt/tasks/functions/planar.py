"""Test functions of two parameters, with their minima.

Sources: S. Surjanovic and D. Bingham, *Virtual Library of Simulation Experiments* (SFU); M. Jamil and X.-S.
Yang, "A literature survey of benchmark functions for global optimization problems", IJMMNO 4(2), 2013 (JY
below); BC as in `scalable`, where functions that have other sizes as well are. Each entry also says where the
function was first used.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from outeropt.tasks.functions.surface import Interval, Scalar, Surface, root


def _planar(value: Callable[[Scalar, Scalar], Scalar], *facts, **more) -> Surface:
    """A function of two coordinates as one of a point; other arguments as `Surface` has them."""
    return Surface(lambda point: value(point[0], point[1]), *facts, **more)


def _radius(x, y):
    return root(x**2 + y**2)


def _box(low: float, high: float) -> tuple[Interval, Interval]:
    return (low, high), (low, high)


def _signs(a: float, b: float) -> tuple[tuple[float, float], ...]:
    return (a, b), (a, -b), (-a, b), (-a, -b)


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


def _levy_13(x, y):
    first = (x - 1) ** 2 * (1 + jnp.sin(3 * jnp.pi * y) ** 2)
    second = (y - 1) ** 2 * (1 + jnp.sin(2 * jnp.pi * y) ** 2)
    return jnp.sin(3 * jnp.pi * x) ** 2 + first + second


def _pits_and_holes(x, y):
    places = [(0, 0), (20, 0), (0, 20), (-20, 0), (0, -20), (10, 10), (-10, -10), (-10, 10), (10, -10)]
    across, up = jnp.asarray(places, jnp.float32).T
    variance = jnp.asarray([10.5, 14, 16, 12, 9, 0.1, 0.2, 0.25, 0.17], jnp.float32)
    mass = jnp.asarray([2, 2.5, 2.7, 2.5, 2.3, 0.05, 0.3, 0.24, 0.23], jnp.float32)
    squares = (x - across) ** 2 + (y - up) ** 2
    return -jnp.sum(mass / (2 * jnp.pi * variance) * jnp.exp(-squares / (2 * variance)))


def _shubert(x, y):
    i = jnp.arange(1.0, 6.0)
    return jnp.sum(i * jnp.cos((i + 1) * x + i)) * jnp.sum(i * jnp.cos((i + 1) * y + i))


PLANAR: dict[str, Surface] = {
    "Adjiman": _planar(
        lambda x, y: jnp.cos(x) * jnp.sin(y) - x / (y**2 + 1),
        ((-1, 2), (-1, 1)), -2.021806783, ((2, 0.105783467),), "Adjiman et al. 1998; JY", walled=True,
    ),
    "Beale": _planar(
        lambda x, y: (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2,
        _box(-4.5, 4.5), 0.0, ((3, 0.5),), "Beale 1958; JY",
    ),
    "Bird": _planar(
        lambda x, y: (
            jnp.sin(x) * jnp.exp((1 - jnp.cos(y)) ** 2)
            + jnp.cos(y) * jnp.exp((1 - jnp.sin(x)) ** 2)
            + (x - y) ** 2
        ),
        _box(-6.283185307, 6.283185307), -106.764537, ((4.70104, 3.15294), (-1.58214, -3.13024)),
        "Mishra 2006; JY",
    ),
    "Bohachevsky1": _planar(
        lambda x, y: x**2 + 2 * y**2 - 0.3 * jnp.cos(3 * jnp.pi * x) - 0.4 * jnp.cos(4 * jnp.pi * y) + 0.7,
        _box(-100, 100), 0.0, ((0, 0),), "Bohachevsky et al. 1986; JY",
    ),
    "Bohachevsky2": _planar(
        lambda x, y: x**2 + 2 * y**2 - 0.3 * jnp.cos(3 * jnp.pi * x) * jnp.cos(4 * jnp.pi * y) + 0.3,
        _box(-100, 100), 0.0, ((0, 0),), "Bohachevsky et al. 1986; JY",
    ),
    "Bohachevsky3": _planar(
        lambda x, y: x**2 + 2 * y**2 - 0.3 * jnp.cos(3 * jnp.pi * x + 4 * jnp.pi * y) + 0.3,
        _box(-100, 100), 0.0, ((0, 0),), "Bohachevsky et al. 1986; JY",
    ),
    "Booth": _planar(
        lambda x, y: (x + 2 * y - 7) ** 2 + (2 * x + y - 5) ** 2,
        _box(-10, 10), 0.0, ((1, 3),), "JY",
    ),
    "Branin": _planar(
        _branin, ((-5, 10), (0, 15)), 0.397887358,
        ((-3.14159265, 12.275), (3.14159265, 2.275), (9.42477796, 2.475)), "Branin 1972; JY",
    ),
    "Brent": _planar(
        lambda x, y: (x + 10) ** 2 + (y + 10) ** 2 + jnp.exp(-(x**2) - y**2),
        _box(-20, 0), 0.0, ((-10, -10),), "Brent 1960; JY",
    ),
    "Bukin6": _planar(
        lambda x, y: 100 * root(jnp.abs(y - 0.01 * x**2)) + 0.01 * jnp.abs(x + 10),
        ((-15, -5), (-3, 3)), 0.0, ((-10, 1),), "Bukin 1997; JY",
    ),
    "CrossInTray": _planar(
        _cross_in_tray, _box(-10, 10), -2.06261187, _signs(1.349406609, 1.349406609), "Mishra 2006; JY",
        walled=True,
    ),
    "Cube": _planar(
        lambda x, y: 100 * (y - x**3) ** 2 + (1 - x) ** 2,
        _box(-10, 10), 0.0, ((1, 1),), "Lavi and Vogel 1966; JY",
    ),
    "DeJong5": _planar(
        _de_jong_5, _box(-65.536, 65.536), 0.998003838, ((-31.97833, -31.97833),), "De Jong 1975",
    ),
    "DekkersAarts": _planar(
        lambda x, y: 1e5 * x**2 + y**2 - (x**2 + y**2) ** 2 + 1e-5 * (x**2 + y**2) ** 4,
        _box(-20, 20), -24776.51834, ((0, 14.9451121), (0, -14.9451121)), "Dekkers and Aarts 1991; JY",
    ),
    "DropWave": _planar(
        lambda x, y: -(1 + jnp.cos(12 * _radius(x, y))) / (0.5 * (x**2 + y**2) + 2),
        _box(-5.12, 5.12), -1.0, ((0, 0),), "Marcin and Smutnicki 2005",
    ),
    "Easom": _planar(
        lambda x, y: -jnp.cos(x) * jnp.cos(y) * jnp.exp(-((x - jnp.pi) ** 2) - (y - jnp.pi) ** 2),
        _box(-10, 10), -1.0, ((3.14159265, 3.14159265),), "Easom 1990; JY, on a smaller box",
    ),
    "FreudensteinRoth": _planar(
        lambda x, y: (x - 13 + ((5 - y) * y - 2) * y) ** 2 + (x - 29 + ((y + 1) * y - 14) * y) ** 2,
        _box(-10, 10), 0.0, ((5, 4),), "Freudenstein and Roth 1963; JY",
    ),
    "GoldsteinPrice": _planar(
        _goldstein_price, _box(-2, 2), 3.0, ((0, -1),), "Goldstein and Price 1971; JY"
    ),
    "GramacyLee": _planar(
        lambda x, y: x * jnp.exp(-(x**2) - y**2),
        _box(-2, 6), -0.428881942, ((-0.70710678, 0),), "Gramacy and Lee 2008",
    ),
    "Himmelblau": _planar(
        lambda x, y: (x**2 + y - 11) ** 2 + (x + y**2 - 7) ** 2,
        _box(-5, 5), 0.0,
        ((3, 2), (-2.805118087, 3.131312518), (-3.779310253, -3.283185991), (3.584428340, -1.848126527)),
        "Himmelblau 1972; JY",
    ),
    "HolderTable": _planar(
        lambda x, y: -jnp.abs(jnp.sin(x) * jnp.cos(y) * jnp.exp(jnp.abs(1 - _radius(x, y) / jnp.pi))),
        _box(-10, 10), -19.2085026, _signs(8.05502347, 9.66459002), "Mishra 2006; JY", walled=True,
    ),
    "Hosaki": _planar(
        lambda x, y: (1 - 8 * x + 7 * x**2 - 7 / 3 * x**3 + x**4 / 4) * y**2 * jnp.exp(-y),
        ((0, 5), (0, 6)), -2.345811576, ((4, 2),), "Bekey and Ung 1974; JY", walled=True,
    ),
    "Levy13": _planar(_levy_13, _box(-10, 10), 0.0, ((1, 1),), "Levy and Montalvo 1985"),
    "MartinGaddy": _planar(
        lambda x, y: (x - y) ** 2 + ((x + y - 10) / 3) ** 2, _box(-20, 20), 0.0, ((5, 5),),
        "Martin and Gaddy 1982; domain as in BC",
    ),
    "Matyas": _planar(
        lambda x, y: 0.26 * (x**2 + y**2) - 0.48 * x * y, _box(-10, 10), 0.0, ((0, 0),), "JY",
    ),
    "McCormick": _planar(
        lambda x, y: jnp.sin(x + y) + (x - y) ** 2 - 1.5 * x + 2.5 * y + 1,
        ((-1.5, 4), (-3, 4)), -1.913222955, ((-0.547197551, -1.547197551),), "McCormick 1976; JY",
        walled=True,
    ),
    "PichenyGoldsteinPrice": _planar(
        lambda x, y: (jnp.log(_goldstein_price(4 * x - 2, 4 * y - 2)) - 8.693) / 2.427,
        _box(0, 1), -3.129125558, ((0.5, 0.25),), "Picheny et al. 2013, a logarithm of GoldsteinPrice",
    ),
    "PitsAndHoles": _planar(
        _pits_and_holes, _box(-20, 20), -0.238743208, ((-10, -10),), "BC",
        notes="Nine bell-shaped holes, four of them narrow; float32 has no slope left between them.",
    ),
    "Schaffer2": _planar(
        lambda x, y: 0.5 + (jnp.sin(x**2 - y**2) ** 2 - 0.5) / (1 + 0.001 * (x**2 + y**2)) ** 2,
        _box(-100, 100), 0.0, ((0, 0),), "Schaffer 1984; JY",
    ),
    "Schaffer4": _planar(
        lambda x, y: (
            0.5 + (jnp.cos(jnp.sin(jnp.abs(x**2 - y**2))) ** 2 - 0.5) / (1 + 0.001 * (x**2 + y**2)) ** 2
        ),
        _box(-100, 100), 0.292578632, ((0, 1.253131829), (0, -1.253131829), (1.253131829, 0)),
        "Schaffer 1984; JY",
    ),
    "Shubert": _planar(
        _shubert, _box(-10, 10), -186.7309088, ((-1.42512843, -0.80032110), (-0.80032110, -1.42512843)),
        "Shubert 1972; JY",
    ),
    "SixHumpCamel": _planar(
        lambda x, y: (4 - 2.1 * x**2 + x**4 / 3) * x**2 + x * y + (4 * y**2 - 4) * y**2,
        ((-3, 3), (-2, 2)), -1.031628453, ((0.0898420131, -0.712656403), (-0.0898420131, 0.712656403)),
        "Dixon and Szegö 1978; JY",
    ),
    "ThreeHumpCamel": _planar(
        lambda x, y: 2 * x**2 - 1.05 * x**4 + x**6 / 6 + x * y + y**2,
        _box(-5, 5), 0.0, ((0, 0),), "Branin 1972; JY",
    ),
    "Trecanni": _planar(
        lambda x, y: x**4 + 4 * x**3 + 4 * x**2 + y**2,
        _box(-5, 5), 0.0, ((0, 0), (-2, 0)), "Dixon and Szegö 1978; JY",
    ),
    "Zettl": _planar(
        lambda x, y: (x**2 + y**2 - 2 * x) ** 2 + 0.25 * x,
        _box(-1, 5), -0.003791237, ((-0.02989598, 0),), "Schwefel 1995; JY",
    ),
}  # fmt: skip
