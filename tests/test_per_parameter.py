"""The engine of the MLP optimizers against what it stands for: concatenate, normalise, multiply."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine_fixtures import (
    SHAPES,
    SHARED,
    assert_close,
    assert_derivatives,
    engine,
    exact,
    features,
    network,
    plain,
    quickly,
    sources_of,
)
from outeropt.learned.moments import FEATURES, Moments, moment_features


def run(layers, sources, shape, shared=None):
    """The engine in a compiled program of its own."""

    def outputs(layers, sources, shared):
        return engine.per_parameter(layers, features, sources, shape, shared)

    out = quickly(outputs)(layers, sources, shared)
    assert all(x.shape == shape and x.dtype == jnp.float32 for x in out)
    return np.stack(out)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("width", [4, 16])
def test_every_shape(width, shape, monkeypatch):
    monkeypatch.setattr(engine, "BLOCK", 10)  # blocks, and a remainder wherever the length allows
    shared = jnp.array([0.5, -1.0, 2.0])
    given = (network(width), sources_of(shape), shape, shared)
    assert_close(run(*given), exact(*given))


@pytest.mark.parametrize("block", [1, 4, 12, 24, 59, 60, 10_000])
def test_every_cut_into_blocks(block, monkeypatch):
    monkeypatch.setattr(engine, "BLOCK", block)
    given = (network(16, inputs=7), sources_of((3, 5, 4)), (3, 5, 4))
    assert_close(run(*given), exact(*given))


@pytest.mark.parametrize("width", [4, 16])
@pytest.mark.parametrize("hidden_layers", [0, 1, 3])
def test_every_depth(width, hidden_layers, monkeypatch):
    monkeypatch.setattr(engine, "BLOCK", 10)
    layers = network(width, hidden_layers=hidden_layers, outputs=width, inputs=7)
    given = (layers, sources_of((5, 4)), (5, 4))
    assert_close(run(*given), exact(*given))


def test_the_widest_layer_decides_the_form():
    """Narrow programs have no matrix product, wide ones do; the outputs are part of the width."""

    def products(layers):
        program = jax.make_jaxpr(lambda s: engine.per_parameter(layers, features, s, (5, 4)))
        return "dot_general" in str(program(sources_of((5, 4))))

    assert not products(network(engine.NARROW, inputs=7))
    assert products(network(engine.NARROW + 1, inputs=7))
    assert products(network(4, outputs=engine.NARROW + 1, inputs=7))


@pytest.mark.parametrize("width", [4, 16])
def test_vmap_over_networks_and_over_tensors(width, monkeypatch):
    monkeypatch.setattr(engine, "BLOCK", 10)
    shape, shared = (5, 4), jnp.array([0.5, -1.0, 2.0])
    nets = [network(width, seed) for seed in range(3)]
    tensors = [sources_of(shape, seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *nets)
    many = jax.tree.map(lambda *leaves: jnp.stack(leaves), *tensors)

    def one(layers, sources):
        return jnp.stack(engine.per_parameter(layers, features, sources, shape, shared))

    over_nets = quickly(jax.vmap(one, (0, None)))(stacked, tensors[0])
    over_both = quickly(jax.vmap(one))(stacked, many)
    for i in range(3):
        assert_close(over_nets[i], exact(nets[i], tensors[0], shape, shared))
        assert_close(over_both[i], exact(nets[i], tensors[i], shape, shared))


@pytest.mark.parametrize("width", [4, 16])
def test_gradients_equal_those_of_the_plain_form(width, monkeypatch):
    monkeypatch.setattr(engine, "BLOCK", 10)
    shape = (5, 4)
    weights = sources_of(shape, seed=3)[0]

    def value(form):
        def of(layers, sources, shared):
            return jnp.sum(weights * form(layers, sources, shared))

        return quickly(jax.grad(of, argnums=(0, 1, 2)))

    given = (network(width), sources_of(shape), jnp.array([0.5, -1.0, 2.0]))
    ours = value(lambda ls, s, t: jnp.stack(engine.per_parameter(ls, features, s, shape, t)))(*given)
    theirs = value(lambda ls, s, t: plain(ls, features(s), shape, t))(*given)
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-5), ours, theirs)


@pytest.mark.parametrize("width", [4, 16])
def test_gradients_against_finite_differences(width, monkeypatch):
    """Every other unit is always on and the rest are always off, so no step crosses a kink."""
    monkeypatch.setattr(engine, "BLOCK", 10)
    shape = (5, 4)
    *hidden, last = network(width, inputs=7)
    far = 20.0 * jnp.where(jnp.arange(width) % 2 == 0, 1.0, -1.0)
    layers = [*(engine.Layer(0.3 * layer.weight, far) for layer in hidden), last]

    def outputs(given):
        return engine.per_parameter(given[0], features, given[1], shape)

    assert_derivatives(outputs, (layers, sources_of(shape)), 1e-2)


def test_mean_squares_and_their_derivatives_to_second_order():
    made = features(sources_of((5, 4)))
    scaled = [x / jnp.max(jnp.abs(x)) for x in made]
    np.testing.assert_allclose(
        engine.mean_squares(scaled), [np.mean(np.square(x)) for x in scaled], rtol=1e-6
    )
    assert_derivatives(engine.mean_squares, scaled, 1e-3)

    def gradient(features):
        return jax.grad(lambda x: jnp.sum(jnp.square(engine.mean_squares(x))))(features)

    assert_derivatives(gradient, scaled, 1e-2)


def test_derivatives_at_zero_are_finite():
    shape = (5, 4)
    zeros = jax.tree.map(jnp.zeros_like, sources_of(shape))

    layers = network(4, inputs=7)

    def value(sources):
        return sum(jnp.sum(out) for out in engine.per_parameter(layers, features, sources, shape))

    grads = quickly(jax.grad(value))(zeros)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize(("width", "block", "limit"), [(4, 16_384, 6), (32, 1024, 4)])
def test_no_array_of_all_features(width, block, limit, monkeypatch):
    """Temporary memory stays at a few times the tensor, where all inputs together are 39 times."""
    monkeypatch.setattr(engine, "BLOCK", block)
    shape = (256, 256)
    tensor = jax.ShapeDtypeStruct(shape, jnp.float32)
    sources = jax.eval_shape(lambda x: Moments.zeros(x).sources(x, x), tensor)
    layers = network(width, inputs=FEATURES + SHARED)

    def run(sources, shared):
        return engine.per_parameter(layers, moment_features, sources, shape, shared)

    compiled = jax.jit(run).lower(sources, jax.ShapeDtypeStruct((SHARED,), jnp.float32)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < limit * 4 * 256 * 256
