"""Convolutions that stay fast inside compiled loops on CPU.

XLA's CPU compiler brings convolutions into the one form that its fast kernels take (batch, space, features;
space, in, out) only at the top level of a program. Inside a loop every other form, and so every gradient of a
convolution, runs 10 to 100 times slower (jax issue 12868). `install` has JAX hand XLA the fast form from the
start, with transpositions around it, as XLA itself does at the top level: values and gradients stay the same.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import mlir
from jax.lax import ConvDimensionNumbers


@functools.cache
def install() -> bool:
    """Installs the rule for this process, once; returns whether this version of JAX allows it."""
    try:
        from jax._src.lax.convolution import _conv_general_dilated_lower as general
    except ImportError:
        return False
    plain = functools.partial(general, expand_complex_convolutions=True)

    def lower(ctx, lhs, rhs, *, dimension_numbers, **params):
        if dimension_numbers == _fast(len(dimension_numbers.lhs_spec)):
            return plain(ctx, lhs, rhs, dimension_numbers=dimension_numbers, **params)
        transposed = mlir.lower_fun(_transposed, multiple_results=False)
        return transposed(ctx, lhs, rhs, dimension_numbers=dimension_numbers, **params)

    mlir.register_lowering(jax.lax.conv_general_dilated_p, lower, platform="cpu")
    return True


def _fast(rank: int) -> ConvDimensionNumbers:
    space = tuple(range(1, rank - 1))
    outer = (0, rank - 1, *space)
    return ConvDimensionNumbers(outer, (rank - 1, rank - 2, *range(rank - 2)), outer)


def _transposed(lhs: Any, rhs: Any, *, dimension_numbers: ConvDimensionNumbers, **params: Any) -> Any:
    (batch, features, *space), (out, into, *window), (out_batch, out_features, *out_space) = dimension_numbers
    answer = jax.lax.conv_general_dilated_p.bind(
        jnp.transpose(lhs, (batch, *space, features)),
        jnp.transpose(rhs, (*window, into, out)),
        dimension_numbers=_fast(lhs.ndim),
        **params,
    )
    order = (out_batch, *out_space, out_features)
    return jnp.transpose(answer, [order.index(axis) for axis in range(lhs.ndim)])
