"""What tests of the MLP optimizers' engine share: small sources and networks, and what is right for them."""

import functools
import importlib
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np


# By its path: the package may give the function the module's name.
engine = importlib.import_module("outeropt.learned.per_parameter")

# These programs are small and run once, so most of a test is compiling; at this level they compile in a fifth
# of the time.
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
quickly = functools.partial(jax.jit, compiler_options=QUICK)

SHAPES = [(7,), (1,), (5, 4), (6, 1), (1, 6), (1, 1), (3, 1, 5), (2, 2, 7), (3, 3, 2, 4), (1, 4, 1, 3)]
SHARED = 3


def sources_of(shape, seed=0):
    """Full arrays, and arrays that are constant along the first or the last axis."""
    normal = np.random.default_rng(seed).standard_normal
    given = (2.0 * normal((2, *shape)), 0.1 * normal((1, 1, *shape[1:])), 30.0 * normal((1, *shape[:-1], 1)))
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), given)


def features(sources):
    """Seven features: plain, constant along axes, products, in mixed order."""
    full, first, last = sources
    product = full[0] * first[0] * last[0]
    return [full[0], first[0], full[1] * first[0], last[0], full[1], last[0] * last[0], product]


def network(width, seed=0, hidden_layers=2, outputs=2, inputs=7 + SHARED):
    normal = np.random.default_rng(seed).standard_normal
    sizes = [inputs, *(width,) * hidden_layers, outputs]
    weights = [(normal((a, b)) / a**0.5, 0.3 * normal(b)) for a, b in pairwise(sizes)]
    return [engine.Layer(*(jnp.asarray(x, jnp.float32) for x in pair)) for pair in weights]


def plain(layers, made, shape, shared=None, xp=jnp):
    """What the engine computes, written down in full: `[outputs, *shape]`."""
    x = xp.stack([xp.broadcast_to(feature, shape) for feature in made], axis=-1)
    axes = tuple(range(len(shape)))
    x = x / xp.sqrt(1e-5 + xp.mean(x * x, axis=axes, keepdims=True))
    if shared is not None:
        x = xp.concatenate([x, xp.broadcast_to(shared, (*shape, shared.size))], axis=-1)
    for i, (weight, bias) in enumerate(layers):
        x = (xp.maximum(x, 0.0) if i else x) @ weight
        x = x + xp.broadcast_to(bias, x.shape)
    return xp.moveaxis(x, -1, 0)


def exact(layers, sources, shape, shared=None):
    """The plain form in float64."""
    given = jax.tree.map(lambda x: np.asarray(x, np.float64), (layers, sources, shared))
    return plain(given[0], features(given[1]), shape, given[2], np)


def assert_close(got, want, relative=2e-6):
    np.testing.assert_allclose(got, want, rtol=0, atol=relative * np.abs(want).max())


def inner(a, b):
    """The inner product of two trees."""
    return sum(jax.tree.leaves(jax.tree.map(lambda x, y: jnp.sum(x * y), a, b)))


def assert_derivatives(function, given, relative):
    """Forward and reverse derivatives along one direction against central differences."""
    normal = np.random.default_rng(4).standard_normal
    way = jax.tree.map(lambda x: jnp.asarray(normal(x.shape), jnp.float32), given)
    weights = jax.tree.map(
        lambda x: jnp.asarray(normal(x.shape), jnp.float32), jax.eval_shape(function, given)
    )

    @quickly
    def measure(given):
        value, forward = jax.jvp(function, (given,), (way,))
        backward = jax.grad(lambda x: inner(weights, function(x)))(given)
        return inner(weights, value), inner(weights, forward), inner(backward, way)

    ends = [measure(jax.tree.map(lambda x, d, e=eps: x + e * d, given, way))[0] for eps in (1e-2, -1e-2)]
    _, forward, backward = measure(given)
    slope = (ends[0] - ends[1]) / 2e-2
    assert abs(slope) > 0.1
    np.testing.assert_allclose(forward, slope, rtol=relative)
    np.testing.assert_allclose(backward, slope, rtol=relative)
