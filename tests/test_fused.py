"""The GPU kernels of the learned update: interpreted against float64, and as programs for a GPU."""

import functools
import itertools
import re

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
    quickly,
    sources_of,
)
from outeropt import learned, tree
from outeropt.learned import fused


# Axes of equal length, of length 1, and of neither.
RANK_4 = [(3, 3, 2, 4), (2, 2, 2, 2), (3, 1, 4, 2), (1, 4, 1, 3)]


# Several programs, several steps in each, and rests in both, on small tensors.
SMALL_BLOCKS = {"BLOCK": 8, "WIDE_BLOCK": 4, "SUM_BLOCK": 4, "SUM_BLOCKS": 2}
OWN_BLOCKS = {name: getattr(fused, name) for name in SMALL_BLOCKS}


@pytest.fixture
def gpu(monkeypatch):
    """Programs are made as on a machine with a GPU."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


@pytest.fixture
def interpreted(gpu, monkeypatch):
    """And the kernels are interpreted, on whatever device, with small blocks."""
    for name, value in SMALL_BLOCKS.items():
        monkeypatch.setattr(fused, name, value)
    monkeypatch.setattr(
        jax.lax, "platform_dependent", lambda *given, cuda, default: cuda(*given, interpret=True)
    )


def outputs(features, shape, layers, sources, shared=None):
    return jnp.stack(engine.per_parameter(layers, features, sources, shape, shared))


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape(shape, interpreted):
    shared = jnp.array([0.5, -1.0, 2.0])
    layers, sources = network(4), sources_of(shape)
    got = quickly(functools.partial(outputs, features, shape))(layers, sources, shared)
    assert got.shape == (2, *shape) and got.dtype == jnp.float32
    assert_close(got, exact(layers, sources, shape, shared))


def of_all_kinds(shape, seed=0):
    """A source for each set of axes on which it may depend; those of even number have two channels."""
    normal = np.random.default_rng(seed).standard_normal
    kinds = itertools.product(*((1, n) if n > 1 else (1,) for n in shape))
    sources = [normal(kind if i % 2 else (2, *kind)) for i, kind in enumerate(kinds)]
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), sources)


def one_by_one(sources):
    """All channels."""
    return [x for i, source in enumerate(sources) for x in ([source] if i % 2 else source)]


@pytest.mark.parametrize("shape", [(5,), (3, 3), (3, 4, 2), *RANK_4])
def test_sources_may_lack_any_axes(shape, interpreted):
    sources = of_all_kinds(shape)
    count = len(one_by_one(sources))
    rule = engine.outputs_of(one_by_one)
    values = quickly(functools.partial(fused.mean_squares, rule, shape, interpret=True))((), sources)
    made = [np.asarray(x, np.float64) for x in one_by_one(sources)]
    np.testing.assert_allclose(values, [np.mean(x * x) for x in made], rtol=1e-6)

    # Without hidden layers each output is a sum of features, in which a wrong entry would be seen.
    layers = network(4, hidden_layers=0, outputs=1, inputs=count)
    got, _ = quickly(functools.partial(fused.step, rule, shape, interpret=True))(layers, (), sources)
    weight, bias = (np.asarray(x, np.float64) for x in layers[0])
    total = sum(np.broadcast_to(x, shape)[..., None] * row for x, row in zip(made, weight)) + bias
    assert_close(np.stack(got), np.moveaxis(total, -1, 0))


@pytest.mark.parametrize(
    ("width", "hidden_layers", "outputs_"), [(5, 0, 2), (3, 1, 1), (4, 2, 3), (17, 2, 2), (4, 3, 4)]
)
def test_every_network(width, hidden_layers, outputs_, interpreted):
    layers, shape = network(width, hidden_layers=hidden_layers, outputs=outputs_, inputs=7), (5, 4)
    got = quickly(functools.partial(outputs, features, shape))(layers, sources_of(shape))
    assert_close(got, exact(layers, sources_of(shape), shape))


@pytest.mark.parametrize("width", [4, 32])
def test_its_own_blocks(width, interpreted, monkeypatch):
    """More than a program's share of parameters, and a rest."""
    for name, value in OWN_BLOCKS.items():
        monkeypatch.setattr(fused, name, value)
    shape = (97, 101)
    layers = network(width, inputs=7)
    got = quickly(functools.partial(outputs, features, shape))(layers, sources_of(shape))
    assert_close(got, exact(layers, sources_of(shape), shape))


@pytest.mark.parametrize("shape", [(4, 4), *RANK_4])
def test_lanes_equal_single_runs(shape, interpreted):
    """Over networks, over tensors, over both at once, over one inside of the other, along other axes."""
    nets = [network(4, seed, inputs=7) for seed in range(3)]
    tensors = [sources_of(shape, seed) for seed in range(3)]
    one = functools.partial(outputs, features, shape)
    stacked, many = tree.stack(nets), tree.stack(tensors)
    last = jax.tree.map(lambda x: jnp.moveaxis(x, 0, -1), (stacked, many))

    @quickly
    def lanes(stacked, many, last):
        first_net, first_tensor = tree.take(stacked, 0), tree.take(many, 0)
        return (
            jax.vmap(one, (0, None))(stacked, first_tensor),
            jax.vmap(one, (None, 0))(first_net, many),
            jax.vmap(one)(stacked, many),
            jax.vmap(one, -1)(*last),
            jax.vmap(jax.vmap(one, (None, 0)), (0, None))(stacked, many),
        )

    over_nets, over_tensors, over_both, other_axes, nested = lanes(stacked, many, last)
    for i in range(3):
        assert_close(over_nets[i], exact(nets[i], tensors[0], shape))
        assert_close(over_tensors[i], exact(nets[0], tensors[i], shape))
        assert_close(over_both[i], exact(nets[i], tensors[i], shape))
        assert_close(other_axes[i], over_both[i])
        for j in range(3):
            assert_close(nested[i, j], exact(nets[i], tensors[j], shape))


@pytest.mark.parametrize("width", [4, 16])
def test_derivatives_against_finite_differences(width, interpreted):
    """Every other unit is always on and the rest are always off, so no step crosses a kink."""
    shape = (5, 4)
    *hidden, last = network(width, inputs=7)
    far = 20.0 * jnp.where(jnp.arange(width) % 2 == 0, 1.0, -1.0)
    layers = [*(engine.Layer(0.3 * layer.weight, far) for layer in hidden), last]

    def all_outputs(given):
        return engine.per_parameter(given[0], features, given[1], shape)

    assert_derivatives(all_outputs, (layers, sources_of(shape)), 1e-2)


def test_what_is_not_a_number_stays_so(interpreted):
    """Triton's maximum would forget it."""
    shape = (5, 4)
    sources = sources_of(shape)
    sources = (sources[0].at[0, 2, 3].set(jnp.nan), *sources[1:])
    got = quickly(functools.partial(outputs, features, shape))(network(4, inputs=7), sources)
    assert np.isnan(got).all()
    rule = engine.outputs_of(features)
    values, _ = quickly(functools.partial(fused.step, rule, shape, interpret=True))(
        network(4, inputs=7), (), sources
    )
    assert np.isnan(np.stack(values)[:, 2, 3]).all() and np.isnan(values[0]).sum() == 1


OPTIMIZERS = {
    "AdafacMLP": {"hidden_size": 3},
    "PerParameterMLP": {"hidden_size": 3},
    "RNNMLP": {"hidden_size": 3, "lstm_hidden_size": 4, "from_mlp_size": 2, "from_lstm_size": 2},
    "HyperV2": {"lstm_hidden_size": 4, "param_inits": 3},
}


def tensors(seed, *lead):
    normal = np.random.default_rng(seed).normal
    shapes = {"kernel": (3, 1, 4, 2), "scalar": ()}
    return {k: jnp.asarray(normal(size=(*lead, *shape)), jnp.float32) for k, shape in shapes.items()}


def step(optimizer, grads):
    params = tensors(0)
    state = optimizer.init(params, num_steps=4)
    updates, state = optimizer.update(grads, state, params, value=jnp.float32(1))
    return sum(jnp.sum(jnp.tanh(1e3 * x)) for x in jax.tree.leaves(updates)), (updates, state)


@pytest.mark.parametrize("name", ["AdafacMLP", "HyperV2"])
def test_whole_updates_in_lanes_equal_those_without_kernels(name, request):
    """Two optimizers, each with its own gradients, and their meta-gradients."""
    optimizers = [learned.build(name, OPTIMIZERS[name], jax.random.key(seed)) for seed in range(2)]

    def lanes(*given):
        return jax.vmap(jax.value_and_grad(step, has_aux=True))(*given)

    given = tree.stack(optimizers), tensors(1, 2)
    want = quickly(lanes)(*given)
    request.getfixturevalue("interpreted")
    got = quickly(lambda *given: lanes(*given))(*given)

    def close(a, b):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=3e-5 * np.abs(b).max(initial=1e-30))

    jax.tree.map(close, got, want)


STEPS = {
    "AdafacMLP": {"hidden_size": 3},
    "PerParameterMLP": {"hidden_size": 10},
    "MLPNominal": {"nominal_stepsize": 1.0, "weight_decay": 1.0, "nominal_controller": True},
}


def moving(shape, seed):
    """Optimizers of which kernels do the whole step, in the middle of a run, and a gradient."""
    normal = np.random.default_rng(seed).normal

    def filled(x):
        # Averages of squares are positive, and large here against what the roots add to them.
        return jnp.asarray(1.0 + np.abs(normal(size=x.shape)), x.dtype)

    built = [learned.build(name, STEPS[name], jax.random.key(seed)) for name in STEPS]
    params, grad = (jnp.asarray(normal(size=shape), jnp.float32) for _ in range(2))
    # Decays that differ, so that a wrong one would be seen.
    built = jax.tree.map(lambda x: x + 0.03 * jnp.asarray(normal(size=x.shape), x.dtype), built)
    return built, [jax.tree.map(filled, optimizer.init(params)) for optimizer in built], params, grad


def move(built, states, params, grad):
    return [x.update(grad, state, params) for x, state in zip(built, states, strict=True)]


def assert_trees_close(got, want, relative):
    def close(a, b):
        np.testing.assert_allclose(a, b, rtol=0, atol=relative * np.abs(b).max(initial=1e-30))

    jax.tree.map(close, got, want)


@pytest.mark.parametrize("shape", [(), *SHAPES])
def test_updates_and_moments_equal_those_without_kernels(shape, request):
    given = moving(shape, 0)
    want = quickly(move)(*given)
    request.getfixturevalue("interpreted")
    assert_trees_close(quickly(lambda *given: move(*given))(*given), want, 1e-5)


def test_lanes_of_whole_steps_equal_single_ones(interpreted):
    """In all, and in optimizer and gradient alone: what is stored then differs after the step."""
    shape = (3, 1, 4)
    lanes = [moving(shape, seed) for seed in range(2)]
    built, states, params, grad = tree.stack(lanes)
    _, first_states, first_params, _ = lanes[0]

    @quickly
    def run(built, states, params, grad):
        return (
            jax.vmap(move)(built, states, params, grad),
            jax.vmap(move, (0, None, None, 0))(built, first_states, first_params, grad),
        )

    own, shared = run(built, states, params, grad)
    single = quickly(move)
    for i, (optimizers, moments, value, slope) in enumerate(lanes):
        assert_trees_close(tree.take(own, i), single(optimizers, moments, value, slope), 1e-6)
        assert_trees_close(tree.take(shared, i), single(optimizers, first_states, first_params, slope), 1e-6)


def test_meta_gradients_through_what_is_stored(request):
    """Of two steps, by the optimizers, what they stored, the parameters and the gradient."""
    given = moving((4, 3), 0)

    def two_steps(built, states, params, grad):
        total = jnp.float32(0)
        for optimizer, state in zip(built, states, strict=True):
            update, state = optimizer.update(grad, state, params)
            moved, state = optimizer.update(jnp.sin(grad), state, params + update)
            total = total + jnp.sum(jnp.sin(1e2 * (update + moved)))
            total = total + sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(state.moments))
        return total

    def gradients(built, states, params, grad):
        moments = [state.moments for state in states]

        def value(built, moments, params, grad):
            again = [type(s)(s.step, m) for s, m in zip(states, moments, strict=True)]
            return two_steps(built, again, params, grad)

        return jax.value_and_grad(value, (0, 1, 2, 3))(built, moments, params, grad)

    want = quickly(gradients)(*given)
    request.getfixturevalue("interpreted")
    assert_trees_close(quickly(lambda *given: gradients(*given))(*given), want, 1e-4)


def kernel_lines(function, *given):
    """The kernels' lines of a program for a GPU."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), given)
    program = jax.jit(function).trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()
    return [line for line in program.splitlines() if "gpu.triton" in line]


def calls(function, *given):
    """The shapes of what each kernel reads, in a program for a GPU."""
    found = [line.rsplit(" : (", 1)[1] for line in kernel_lines(function, *given)]
    return [re.findall(r"tensor<([\dx]+)xf32>", line.split("->")[0]) for line in found]


@pytest.mark.parametrize(
    ("name", "settings"),
    [*OPTIMIZERS.items(), ("MLPNominal", {}), ("AdafacMLP", {"hidden_size": 32})],
)
def test_updates_become_programs_for_a_gpu(name, settings, request):
    """Lowering needs no GPU, and fails where Triton lacks an operation or a size is no power of two."""
    optimizer = learned.build(name, settings, jax.random.key(0))
    request.getfixturevalue("gpu")
    assert len(calls(step, optimizer, tensors(1))) == 4, "two kernels for each of two tensors"
    lanes = tree.stack([optimizer] * 3), tensors(1, 3)
    assert len(calls(jax.vmap(step), *lanes)) == 4
    assert "triton" not in jax.jit(step).lower(optimizer, tensors(1)).as_text(), "on a GPU machine's CPU"


def test_machines_without_gpu_do_not_trace_kernels():
    program = functools.partial(outputs, features, (5, 4))
    assert "pallas" not in str(jax.make_jaxpr(program)(network(4, inputs=7), sources_of((5, 4))))


def test_kernels_take_rows_columns_and_shared_tensors_as_they_are(gpu):
    """Nothing is spread out in memory, and lanes that share a tensor read one."""
    lanes = jax.vmap(functools.partial(outputs, features, (5, 4)), (0, None))
    nets = tree.stack([network(4, inputs=7)] * 3)
    squares, net = calls(lanes, nets, sources_of((5, 4)))
    assert squares == ["2x20", "1x4", "1x5"]
    assert net == ["3x7x4", "3x4", "3x4x4", "3x4", "3x4x2", "3x2", *squares]


def test_moments_are_read_once_and_renewed_in_place(gpu):
    """Each kernel reads gradient, parameter, three momenta and a second moment of each parameter."""
    optimizer = learned.build("AdafacMLP", {}, jax.random.key(0))
    params = jnp.zeros((5, 4), jnp.float32)
    given = (lambda *given: optimizer.update(*given)), params, optimizer.init(params), params
    for reads in calls(*given):
        assert sorted(x for x in reads if x.endswith("x20")) == ["1x20", "1x20", "1x20", "3x20"]
    squares, step = kernel_lines(*given)
    assert step.count("#stablehlo.output_operand_alias") == 2 and "alias<" not in squares


def test_without_the_compiler_of_kernels_they_cover_nothing(monkeypatch):
    monkeypatch.setattr(fused, "triton", None)
    assert not fused.covers((3, 4))


def test_what_the_kernels_cover():
    assert fused.covers((1,)) and fused.covers((100_000, 10_000))
    assert not fused.covers((0, 3)) and not fused.covers((50_000, 50_000))


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU")
@pytest.mark.parametrize("width", [4, 32])
@pytest.mark.parametrize("shape", [(7,), (300, 1001), (3, 3, 64, 65), (64, 3, 5, 64), (1, 4, 1, 3)])
def test_on_a_gpu(width, shape):
    nets = [network(width, seed, inputs=7 + SHARED) for seed in range(2)]
    given = [sources_of(shape, seed) for seed in range(2)]
    shared = jnp.array([0.5, -1.0, 2.0])
    one = functools.partial(outputs, features, shape)
    program = jax.jit(jax.vmap(one, (0, 0, None)))
    lanes = program(tree.stack(nets), tree.stack(given), shared)
    for lane, net, sources in zip(lanes, nets, given):
        assert_close(jax.jit(one)(net, sources, shared), exact(net, sources, shape, shared))
        assert_close(lane, exact(net, sources, shape, shared))
