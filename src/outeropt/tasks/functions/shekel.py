"""Shekel's foxholes: a test function of four parameters."""

import jax.numpy as jnp

from outeropt.tasks.functions.surface import Surface


_CENTRES = (
    (4, 4, 4, 4),
    (1, 1, 1, 1),
    (8, 8, 8, 8),
    (6, 6, 6, 6),
    (3, 7, 3, 7),
    (2, 9, 2, 9),
    (5, 5, 3, 3),
    (8, 1, 8, 1),
    (6, 2, 6, 2),
    (7, 3.6, 7, 3.6),
)
_WIDTHS = (0.1, 0.2, 0.2, 0.4, 0.4, 0.6, 0.3, 0.7, 0.5, 0.5)


def _shekel(x):
    squares = jnp.sum((x[None] - jnp.asarray(_CENTRES, x.dtype)) ** 2, axis=1)
    return -jnp.sum(1 / (squares + jnp.asarray(_WIDTHS, x.dtype)))


SHEKEL = Surface(
    _shekel,
    ((0, 10),) * 4,
    -10.53640982,
    ((4.000746875, 4.000592941, 3.999663399, 3.999509801),),
    "Shekel 1971; JY's Shekel 10",
)
