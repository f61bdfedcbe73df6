"""Celo2 against the authors' code, against its equations, and each of its parts by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from learned_golden import assert_same_updates, below, load, replay
from outeropt.errors import ConfigError
from outeropt.learned.mlps.celo2 import GROUPS, Celo2, VectorMoments
from outeropt.learned.mlps.orthogonalize import orthogonalize


SHAPES = {"embedding": (6, 4), "w": (4, 6), "b": (5,), "k": (3, 2, 4), "s": ()}
SETTINGS = {"learning_rate": 0.5, "weight_decay": 0.1, "vector_rate": 3.0, "exp_mult": 0.2}
HARNESSES = ["none", "orthogonal"]


def _optimizer(harness):
    """With biases that are not zero."""
    optimizer = Celo2(key=jax.random.key(1), harness=harness, **SETTINGS)
    return optimizer.replace(
        {f"net.layers.{i}.bias": 0.3 * np.cos(np.arange(n) + i) for i, n in enumerate((8, 8, 3))}
    )


def _tree(seed, scale=1.0, shapes=None):
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(scale * rng.normal(size=shape), jnp.float32)
        for name, shape in (shapes or SHAPES).items()
    }


@jax.jit
def _run(optimizer, grads, params):
    """The updates of each step."""

    def step(carry, grad):
        params, state = carry
        updates, state = optimizer.update(grad, state, params, value=jnp.float32(0))
        return (jax.tree.map(jnp.add, params, updates), state), updates

    return jax.lax.scan(step, (params, optimizer.init(params)), grads)[1]


def _stacked(seed, steps, scale=1.0):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(_tree(seed + i, scale) for i in range(steps)))


@pytest.mark.parametrize("name", ["base_harsh", "orthogonal"])
def test_golden_trajectory(name):
    arrays, config = load(f"../celo2/{name}")
    known = ("harness", "learning_rate", "weight_decay", "vector_rate", "exp_mult")
    optimizer = Celo2(**{setting: config[setting] for setting in known})
    _, _, updates = replay(optimizer.from_published(below(arrays, "theta")), arrays)
    assert_same_updates(updates, arrays)


# The equations once more, in float64 and features last, for tensors of rank 1 and more.


def _factored(grads, shape):
    """Rows and columns after the last gradient, tiled to `[*shape, decays]`; factors; by decay."""
    d1, d0 = (int(axis) for axis in np.argsort(shape)[-2:])
    rows, cols, factors = [], [], []
    for d in (0.9, 0.99, 0.999):
        r = c = 0.0
        for g in grads:
            r = d * r + (1 - d) * (g**2 + 1e-30).mean(axis=d0, keepdims=True)
            c = d * c + (1 - d) * (g**2 + 1e-30).mean(axis=d1, keepdims=True)
        row_factor = np.maximum(r / (r.mean(axis=d1, keepdims=True) + 1e-9), 1e-9) ** -0.5
        rows.append(np.broadcast_to(r, shape))
        cols.append(np.broadcast_to(c, shape))
        factors.append(row_factor * np.maximum(c, 1e-9) ** -0.5)
    return (np.stack(x, axis=-1) for x in (rows, cols, factors))


def _features(grads, p):
    g = grads[-1]
    m = np.stack([_average(grads, d) for d in (0.9, 0.99, 0.999)], axis=-1)
    v = _average([g**2 for g in grads], 0.95)[..., None]
    q = (v + 1e-8) ** -0.5
    groups = [g[..., None], np.clip(g, -0.1, 0.1)[..., None], p[..., None], m, v, m * q, q]
    if p.ndim < 2:
        full = np.stack([_average([g**2 + 1e-30 for g in grads], d) for d in (0.9, 0.99, 0.999)], axis=-1)
        return [*groups, g[..., None] * (full + 1e-9) ** -0.5, g[..., None] * q]
    r, c, f = _factored(grads, p.shape)
    groups += [g[..., None] * f, g[..., None] * q, r, c, (r + 1e-8) ** -0.5, (c + 1e-8) ** -0.5, m * f]
    return groups


def _average(values, d):
    total = 0.0
    for value in values:
        total = d * total + (1 - d) * value
    return total


def _unit(x, rank):
    """Divided by the root mean square over the last two of the tensor's axes."""
    axes = tuple(range(rank))[-2:]
    return x / np.sqrt(1e-9 + np.mean(x**2, axis=axes, keepdims=True))


def _newton_schulz(x):
    x = x / np.linalg.norm(x, axis=(-2, -1), keepdims=True)
    for _ in range(5):
        u, s, v = np.linalg.svd(x, full_matrices=False)
        x = (u * (3.4445 * s - 4.775 * s**3 + 2.0315 * s**5)[..., None, :]) @ v
    return x


def _learned(optimizer, grads, p):
    grads = [np.clip(g, -1000, 1000) for g in grads]
    x = np.concatenate([_unit(group, p.ndim) for group in _features(grads, p)], axis=-1)
    layers = [(np.float64(layer.weight), np.float64(layer.bias)) for layer in optimizer.net.layers]
    x = x @ layers[0][0][: x.shape[-1]] + layers[0][1]
    for weight, bias in layers[1:]:
        x = np.maximum(x, 0) @ weight + bias
    move = x[..., 0] * np.exp(optimizer.exp_mult * x[..., 1])
    if optimizer.harness == "orthogonal":
        move = _newton_schulz(move)
    return _unit(move, p.ndim)


def _adam(grads):
    t = len(grads)
    mean = _average(grads, 0.9) / (1 - 0.9**t)
    square = _average([g**2 for g in grads], 0.95) / (1 - 0.95**t)
    return mean / (np.sqrt(square) + 1e-8)


def _expected(optimizer, name, grads, p):
    shape = p.shape
    grads, p = [np.atleast_1d(np.float64(g)) for g in grads], np.atleast_1d(np.float64(p))
    if optimizer.harness == "orthogonal" and (p.ndim < 2 or "embed" in name):
        rate, move = optimizer.vector_rate * optimizer.learning_rate, _adam(grads)
    else:
        rate, move = optimizer.learning_rate, _learned(optimizer, grads, p)
    return (-rate * (move + optimizer.weight_decay * p)).reshape(shape)


@pytest.mark.parametrize("harness", HARNESSES)
def test_updates_are_the_equations(harness):
    optimizer = _optimizer(harness)
    # Gradients beyond the clip, too.
    grads, params = _stacked(0, 4, 0.3), _tree(9)
    grads["b"] = grads["b"].at[1].mul(1e4)
    updates = _run(optimizer, grads, params)
    for name in SHAPES:
        p = np.float64(params[name])
        for t in range(4):
            want = _expected(optimizer, name, list(grads[name][: t + 1]), p)
            np.testing.assert_allclose(updates[name][t], want, atol=2e-5, rtol=2e-5, err_msg=f"{name} {t}")
            p = p + np.float64(updates[name][t])


@pytest.mark.parametrize("scale", [1e-3, 1.0, 500.0])
def test_root_mean_square_of_an_update_is_the_learning_rate(scale):
    optimizer = _optimizer("none")
    params = _tree(4)
    updates = _run(optimizer, _stacked(3, 4, scale), params)
    for name, shape in SHAPES.items():
        update = np.asarray(updates[name][0]) + 0.5 * 0.1 * np.asarray(params[name])
        matrices = update.reshape(-1, *shape[-2:]) if len(shape) > 2 else [update]
        for matrix in matrices:
            assert np.sqrt(np.mean(np.square(matrix))) == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize("harness", HARNESSES)
def test_the_unit_of_the_gradient_has_no_influence(harness):
    # Beyond the clip at 0.1, and far from the epsilons.
    grads = jax.tree.map(lambda g: 5.0 * jnp.sign(g) * (1.0 + jnp.abs(g)), _stacked(0, 4))
    params = _tree(1)
    optimizer = _optimizer(harness)
    first = _run(optimizer, grads, params)
    second = _run(optimizer, jax.tree.map(lambda g: 16.0 * g, grads), params)
    for name in SHAPES:
        np.testing.assert_allclose(first[name], second[name], rtol=1e-3, atol=1e-4)


def test_orthogonal_updates_have_similar_singular_values():
    params, grads = _tree(0), _stacked(1, 4)
    ratios = {}
    for harness in HARNESSES:
        updates = _run(_optimizer(harness), grads, jax.tree.map(jnp.zeros_like, params))
        for name in ("w", "k"):
            s = np.linalg.svd(np.asarray(updates[name][0]), compute_uv=False)
            ratios[name, harness] = np.max(s[..., 0] / s[..., -1])
    for name in ("w", "k"):
        assert ratios[name, "orthogonal"] < 1.9 < ratios[name, "none"]


@pytest.mark.parametrize("shape", [(4, 4), (12, 5), (5, 12), (1, 3), (2, 3, 6, 4)])
def test_orthogonalize(shape):
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    got = np.asarray(jax.jit(orthogonalize)(x))
    s = np.linalg.svd(got, compute_uv=False)
    assert s.min() > 0.6 and s.max() < 1.3
    # The same singular vectors as x.
    u, _, v = np.linalg.svd(np.asarray(x), full_matrices=False)
    core = np.swapaxes(u, -2, -1) @ got @ np.swapaxes(v, -2, -1)
    diagonal = np.eye(core.shape[-1]) * core
    np.testing.assert_allclose(core, diagonal, atol=1e-4)
    assert np.all(np.diagonal(core, axis1=-2, axis2=-1) > 0.6)


def test_orthogonalize_zero():
    value, slope = jax.value_and_grad(lambda x: jnp.sum(orthogonalize(x)))(jnp.zeros((3, 4)))
    assert value == 0.0
    assert np.all(np.isfinite(slope))


def test_which_tensors_are_vectors():
    params = _tree(0)

    def vectors(**settings):
        moments = Celo2(**settings).init(params).moments
        return {name for name, m in zip(sorted(SHAPES), moments) if isinstance(m, VectorMoments)}

    assert vectors() == {"embedding", "b", "s"}
    assert vectors(vector_pattern="") == {"b", "s"}
    assert vectors(vector_pattern="^W$|k") == {"w", "k", "b", "s"}
    assert vectors(harness="none") == set()


@pytest.mark.parametrize("harness", HARNESSES)
def test_meta_gradients_are_finite_and_right(harness):
    """Through two steps of which the first has zero gradients and zero parameters."""
    params = {"w": jnp.zeros((3, 2)), "b": jnp.zeros(2)}
    shapes = {"w": (3, 2), "b": (2,)}
    grads = jax.tree.map(lambda *g: jnp.stack(g), params, _tree(1, shapes=shapes))
    optimizer = Celo2(key=jax.random.key(3), harness=harness, learning_rate=1.0, exp_mult=0.1)
    flat, unflatten = ravel_pytree(optimizer)
    way = jnp.cos(1.7 * jnp.arange(flat.size, dtype=jnp.float32))

    def meta_loss(theta):
        updates = _run(unflatten(theta), grads, params)
        return sum(jnp.sum(jnp.sin(u[-1])) for u in jax.tree.leaves(updates))

    slopes = jax.jit(jax.grad(meta_loss))(flat)
    assert np.all(np.isfinite(slopes))
    ahead, behind = jax.jit(jax.vmap(meta_loss))(jnp.stack([flat + 1e-3 * way, flat - 1e-3 * way]))
    assert float(slopes @ way) == pytest.approx(float(ahead - behind) / 2e-3, rel=0.05, abs=0.02)


def test_particles_and_constant_state():
    params, grads = _tree(0), _tree(1)
    particles = [Celo2(key=jax.random.key(seed)) for seed in range(2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *particles)

    def one(optimizer):
        state = optimizer.init(params)
        updates, after = optimizer.update(grads, state, params)
        assert jax.tree.structure(after) == jax.tree.structure(state)
        for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(state)):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
        return updates

    together = jax.jit(jax.vmap(one))(stacked)
    for i, particle in enumerate(particles):
        for name, want in jax.jit(one)(particle).items():
            np.testing.assert_allclose(together[name][i], want, rtol=1e-4, atol=1e-6)


def test_narrow_parameters_keep_their_type():
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), _tree(0))
    optimizer = Celo2()
    updates, state = jax.eval_shape(lambda: optimizer.update(params, optimizer.init(params), params))
    assert all(u.dtype == jnp.bfloat16 for u in jax.tree.leaves(updates))
    assert all(leaf.dtype in (jnp.float32, jnp.int32) for leaf in jax.tree.leaves(state))


def _published(optimizer):
    """The leaves as the authors' checkpoints hold them."""
    arrays = {
        path: np.asarray(optimizer.hyperparameters[name]) for name, path in optimizer.published_names.items()
    }
    whole = arrays.pop("ff_mod_stack/~/w0")
    ends = np.cumsum(GROUPS)
    for i, end in enumerate(ends):
        arrays[f"ff_mod_stack/~/w0__{i}"] = whole[end - GROUPS[i] : end]
    return arrays


def test_published_weights():
    trained = Celo2(key=jax.random.key(5))
    arrays = _published(trained)
    assert sum(array.size for array in arrays.values()) == 30 * 8 + 8 + 8 * 8 + 8 + 8 * 3 + 3
    again = Celo2(harness="none").from_published(arrays)
    for got, want in zip(jax.tree.leaves(again), jax.tree.leaves(trained)):
        np.testing.assert_array_equal(got, want)
    assert again.harness == "none"
    del arrays["ff_mod_stack/~/w0__4"]
    with pytest.raises(ConfigError, match="ff_mod_stack/~/w0"):
        Celo2().from_published(arrays)
    with pytest.raises(ConfigError, match=r"hidden_size.*needs \(30, 4\)"):
        Celo2(hidden_size=4).from_published(_published(trained))


def test_settings_build_it_again():
    first = Celo2(harness="none", learning_rate=0.1, hidden_size=4, hidden_layers=1)
    again = Celo2(**first.settings)
    assert jax.tree.structure(again) == jax.tree.structure(first)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"harness": "muon"}, "harness must be one of none, orthogonal, not 'muon'"),
        ({"vector_pattern": "("}, r"vector_pattern '\(' is no regular expression"),
    ],
)
def test_wrong_settings(settings, says):
    with pytest.raises(ConfigError, match=says):
        Celo2(**settings)
