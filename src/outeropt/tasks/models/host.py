"""Calls of Python from inside a compiled program, that get plain numpy arrays.

`jax.pure_callback` first puts the arguments back on a device. On CPU that waits for a thread of the pool
whose threads may all be inside such calls: programs on two devices, or on one core, then never end. Here the
arguments come as they are, so that a call needs nothing of JAX.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from outeropt.errors import OuteroptError


# `(lanes, arrays) -> arrays`: all arrays have so many leading axes of lanes; where one does not vary it has
# length 1.
Function = Callable[[int, Sequence[np.ndarray]], Sequence[np.ndarray]]


def call(
    function: Function,
    results: Sequence[jax.ShapeDtypeStruct],
    *arguments: jax.Array,
    linear: int = 0,
) -> list[jax.Array]:
    """What a function of numpy arrays gives, inside or outside of a compiled program.

    Args:
      function: pure, and equal to itself when it is made again: programs are shared by it. It calls nothing
        of JAX.
      results: what it gives for one lane.
      *arguments: what it takes for one lane.
      linear: how many of the last arguments it is linear in, by a symmetric matrix: what it gives has their
        shapes, and reverse differentiation calls it once more.
    """
    found = tuple(ShapedArray(result.shape, result.dtype) for result in results)
    return _call.bind(*arguments, function=function, results=found, lanes=(), linear=linear)


_call = Primitive("outeropt_host_call")
_call.multiple_results = True


@_call.def_abstract_eval
def _shapes(*_, results, lanes, **__):
    return [ShapedArray((*lanes, *result.shape), result.dtype) for result in results]


@_call.def_impl
def _run(*arguments, **how):
    return jax.jit(functools.partial(_call.bind, **how))(*arguments)


def _lower(ctx, *arguments, function, results, lanes, **_):
    def run(*arrays):
        given = function(len(lanes), [np.asarray(array) for array in arrays])
        return tuple(
            np.ascontiguousarray(array, result.dtype).reshape((*lanes, *result.shape))
            for array, result in zip(given, results, strict=True)
        )

    found, _, _ = mlir.emit_python_callback(
        ctx,
        run,
        None,
        list(arguments),
        ctx.avals_in,
        ctx.avals_out,
        has_side_effect=False,
        returns_token=False,
    )
    return found


def _batch(arguments, axes, *, lanes, **how):
    (count,) = {a.shape[axis] for a, axis in zip(arguments, axes) if axis is not None}
    moved = [a[None] if axis is None else jnp.moveaxis(a, axis, 0) for a, axis in zip(arguments, axes)]
    found = _call.bind(*moved, lanes=(count, *lanes), **how)
    return found, [0] * len(found)


def _differentiate(primals, tangents, *, linear, **how):
    split = len(primals) - linear
    if not linear or any(type(tangent) is not ad.Zero for tangent in tangents[:split]):
        raise OuteroptError(
            "This needs derivatives of a PyTorch model of third order, or of what it gives beside its loss; "
            "there are those of first and second order of the loss."
        )
    moved = [ad.instantiate_zeros(tangent) for tangent in tangents[split:]]
    return (
        _call.bind(*primals, linear=linear, **how),
        _call.bind(*primals[:split], *moved, linear=linear, **how),
    )


def _transpose(cotangents, *arguments, linear, **how):
    split = len(arguments) - linear
    given = [ad.instantiate_zeros(cotangent) for cotangent in cotangents]
    return [None] * split + list(_call.bind(*arguments[:split], *given, linear=linear, **how))


mlir.register_lowering(_call, _lower, cacheable=False)
batching.primitive_batchers[_call] = _batch
ad.primitive_jvps[_call] = _differentiate
ad.primitive_transposes[_call] = _transpose
