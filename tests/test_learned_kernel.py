"""The GPU kernel of the per-parameter network, in JAX's interpreter and as a program for a GPU."""

import importlib
import math
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from outeropt.learned import kernel
from outeropt.learned.per_parameter import Layer


# By its path: the package may give the function the module's name.
engine = importlib.import_module("outeropt.learned.per_parameter")


def sources_of(shape, seed=0):
    """A full array of two channels, and arrays that are constant along the first or the last axis."""
    normal = np.random.default_rng(seed).standard_normal
    given = normal((2, *shape)), normal((1, 1, *shape[1:])), normal((1, *shape[:-1], 1))
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), given)


def features(sources):
    """Five features with one operation each that a kernel may lack: roots, logarithms, limits, products."""
    (a, b), (first,), (last,) = sources
    root = jax.lax.rsqrt(jnp.square(b) + 1e-6)
    return [a, root, jnp.clip(first, -0.5, 0.5) * last, jnp.log(jnp.abs(last) + 1e-8), a * first * last]


def network(width, seed=0, hidden_layers=2, inputs=5, outputs=2):
    normal = np.random.default_rng(seed).standard_normal
    sizes = [inputs, *(width,) * hidden_layers, outputs]
    pairs = [(normal((a, b)) / a**0.5, 0.3 * normal(b)) for a, b in pairwise(sizes)]
    return tuple(Layer(*(jnp.asarray(x, jnp.float32) for x in pair)) for pair in pairs)


def exact(layers, sources, shape):
    """The network written down in full, in float64: `[outputs, *shape]`."""
    layers, sources = jax.tree.map(lambda x: np.asarray(x, np.float64), (layers, sources))
    (a, b), (first,), (last,) = sources
    made = [a, 1 / np.sqrt(b * b + 1e-6), np.clip(first, -0.5, 0.5) * last, np.log(np.abs(last) + 1e-8)]
    x = np.stack([np.broadcast_to(feature, shape) for feature in (*made, a * first * last)], axis=-1)
    for i, (weight, bias) in enumerate(layers):
        x = (np.maximum(x, 0.0) if i else x) @ weight + bias
    return np.moveaxis(x, -1, 0)


def run(layers, sources, shape):
    def outputs(layers, sources):
        return kernel.fused(features, shape, layers, sources, interpret=True)

    assert kernel.covers(shape, sources)
    out = jax.jit(outputs)(layers, sources)
    assert all(x.shape == shape and x.dtype == jnp.float32 for x in out)
    return np.stack(out)


def assert_close(got, want, relative=2e-6):
    np.testing.assert_allclose(got, want, rtol=0, atol=relative * np.abs(want).max())


# Tiles that fill, that are cut at one edge or both; several tiles and several programs along each axis.
SHAPES = [(1,), (13,), (300,), (8, 64), (9, 70), (70, 9), (1, 70), (3, 2, 9, 5), (2, 1, 40)]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape(shape, monkeypatch):
    monkeypatch.setattr(kernel, "TILE", 32)
    monkeypatch.setattr(kernel, "ROW", 8)
    monkeypatch.setattr(kernel, "STEPS", 2)
    given = network(32), sources_of(shape), shape
    assert_close(run(*given), exact(*given))


def test_its_own_tiles():
    given = network(4), sources_of((37, 43)), (37, 43)
    assert_close(run(*given), exact(*given))


@pytest.mark.parametrize(
    ("width", "hidden_layers", "outputs"), [(4, 1, 1), (17, 3, 5), (64, 2, 2), (4, 0, 3)]
)
def test_every_network(width, hidden_layers, outputs):
    layers = network(width, hidden_layers=hidden_layers, outputs=outputs)
    given = layers, sources_of((5, 6)), (5, 6)
    assert_close(run(*given), exact(*given))


@pytest.mark.parametrize(("shape", "steps"), [((40, 9), (2, 1)), ((9, 40), (1, 2)), ((4, 8), (1, 1))])
def test_a_program_takes_tiles_along_the_axis_that_has_more(shape, steps, monkeypatch):
    monkeypatch.setattr(kernel, "TILE", 32)
    monkeypatch.setattr(kernel, "ROW", 8)
    monkeypatch.setattr(kernel, "STEPS", 2)
    plan = kernel._plan(1, *shape)
    assert plan.steps == steps
    assert math.prod(plan.tile) == 32


def test_vmap_over_networks_and_over_tensors(monkeypatch):
    monkeypatch.setattr(kernel, "TILE", 32)
    shape = (5, 20)
    nets, tensors = (
        [make(16, seed) for seed in range(2)] for make in (network, lambda _, s: sources_of(shape, s))
    )
    stacked, many = (jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees) for trees in (nets, tensors))

    def one(layers, sources):
        return jnp.stack(kernel.fused(features, shape, layers, sources, interpret=True))

    over_nets = jax.jit(jax.vmap(one, (0, None)))(stacked, tensors[0])
    over_both = jax.jit(jax.vmap(one))(stacked, many)
    for i in range(2):
        assert_close(over_nets[i], exact(nets[i], tensors[0], shape))
        assert_close(over_both[i], exact(nets[i], tensors[i], shape))


def test_what_it_covers():
    """Three groups of axes, however many axes; nothing empty."""
    x = jnp.zeros((1, 2, 3, 4, 5))
    assert kernel.covers((2, 3, 4, 5), (x,))
    assert kernel.covers((2, 3, 4, 5), (x, jnp.zeros((1, 2, 3, 1, 5))))
    assert kernel.covers((2, 3, 4, 5), (x, jnp.zeros((3, 2, 3, 1, 5)), jnp.zeros((3, 2, 3, 4, 1))))
    assert not kernel.covers((2, 3, 4, 5), (x, jnp.zeros((1, 2, 1, 4, 1))))
    assert kernel.covers((2, 1, 4, 1), (jnp.zeros((1, 2, 1, 4, 1)),))
    assert not kernel.covers((0, 3), (jnp.zeros((1, 0, 3)),))


@pytest.mark.parametrize("shape", [(300,), (37, 43), (3, 3, 20, 40)])
def test_it_becomes_a_program_for_a_gpu(shape):
    """Lowering, which needs no GPU, fails where Triton lacks an operation or a size is no power of two."""

    def outputs(layers, sources):
        return kernel.fused(features, shape, layers, sources)

    for function, batch in ((outputs, ()), (jax.vmap(outputs), (3,))):
        given = jax.tree.map(
            lambda x, batch=batch: jax.ShapeDtypeStruct((*batch, *x.shape), x.dtype),
            (network(32), sources_of(shape)),
        )
        program = jax.jit(function).trace(*given).lower(lowering_platforms=("cuda",)).as_text()
        assert "triton" in program
        assert "stablehlo.dot_general" not in program


def test_products_have_the_precision_that_was_asked_for():
    """Full precision by `jax.default_matmul_precision`; otherwise what JAX's own products have on a GPU."""

    def products(precision):
        with jax.default_matmul_precision(precision):
            program = jax.make_jaxpr(lambda ls, s: kernel.fused(features, (40,), ls, s))
            return str(program(network(16), sources_of((40,))))

    assert "HIGHEST" in products("highest")
    assert "HIGHEST" not in products(None)


def gpu_program(layers, sources, shape):
    def outputs(layers, sources):
        return engine.per_parameter(layers, features, sources, shape)

    return jax.jit(outputs).trace(layers, sources).lower(lowering_platforms=("cuda",)).as_text()


def test_wide_networks_use_it_on_a_gpu(monkeypatch):
    shape = (5, 6)
    wide, narrow = network(engine.NARROW + 1), network(engine.NARROW)
    assert "triton" not in gpu_program(wide, sources_of(shape), shape)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "triton" in gpu_program(wide, sources_of(shape), shape)
    assert "triton" not in gpu_program(narrow, sources_of(shape), shape)


def test_a_gpu_machine_s_cpu_and_derivatives_go_without_it(monkeypatch):
    shape = (5, 6)
    layers, sources = network(engine.NARROW + 1), sources_of(shape)

    def value(layers, sources):
        return jnp.stack(engine.per_parameter(layers, features, sources, shape))

    def slopes(layers, sources):
        return jax.grad(lambda *given: jnp.sum(jnp.square(value(*given))))(layers, sources)

    want = value(layers, sources), slopes(layers, sources)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    got = jax.jit(value)(layers, sources), jax.jit(slopes)(layers, sources)
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-5), got, want)
    assert (
        "triton" not in jax.jit(slopes).trace(layers, sources).lower(lowering_platforms=("cuda",)).as_text()
    )
