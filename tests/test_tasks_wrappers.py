"""Tasks made from tasks, and families of them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import task_fixtures
from outeropt import tasks
from outeropt.errors import OuteroptError
from outeropt.task import TaskFamily
from outeropt.tasks import quadratic, regression
from outeropt.tasks.wrappers import augment, families, gradients
from task_fixtures import KEY, gradient, small_task, started


blank = task_fixtures.blank


def test_with_gradient_replaces_first_derivatives_and_keeps_second_ones_right():
    def value(p):
        replaced = gradients.with_gradient(jnp.sum(p), {"p": p}, {"p": p**3})
        return 2.0 * replaced

    @jax.jit
    def derivatives(p, direction):
        gradient_in_lanes = jax.vmap(jax.grad(value))(p[None])[0]
        return value(p), gradient_in_lanes, jax.jvp(value, (p,), (direction,))[1], jax.hessian(value)(p)

    p, direction = np.asarray([1.0, 2.0], "f"), np.asarray([0.5, -1.0], "f")
    at, first, along, second = derivatives(p, direction)
    assert at == 6.0
    np.testing.assert_allclose(first, 2 * p**3)
    np.testing.assert_allclose(along, 2 * np.sum(p**3 * direction))
    np.testing.assert_allclose(second, np.diag(6 * p**2))


def test_modified_gradients():
    inner = small_task()
    params, state, batch = started(inner)

    def seen(modifier, key):
        task = gradients.ModifiedGradient(inner, modifier)
        loss, grads = jax.value_and_grad(lambda p: task.loss(p, state, batch, key)[0])(params)
        return loss, ravel_pytree(grads)[0]

    @jax.jit
    def run(key, other):
        loss, true = jax.value_and_grad(lambda p: inner.loss(p, state, batch, None)[0])(params)
        modified = [
            seen(gradients.Normalised(), key),
            seen(gradients.RandomDirections(20000), key),
            seen(gradients.Noise(0.1), key),
            seen(gradients.Noise(0.1), other),
        ]
        return loss, ravel_pytree(true)[0], modified

    loss, true, modified = run(KEY, jax.random.key(5))
    assert all(value == pytest.approx(float(loss)) for value, _ in modified)
    (_, direction), (_, many), (_, noisy), (_, otherwise) = modified
    norm = float(np.linalg.norm(true))
    np.testing.assert_allclose(direction, true / norm, rtol=1e-5)
    np.testing.assert_allclose(many, true, atol=0.1 * norm)
    assert 0 < np.abs(noisy - true).max() < 0.5 and np.abs(noisy - otherwise).max() > 0


def test_evaluation_ignores_gradient_wrappers():
    inner = small_task()
    params, _, batch = started(inner)
    expected = inner.loss(params, None, batch, None)[0]
    wrapped = (
        gradients.ModifiedGradient(inner, gradients.Noise(1.0)),
        gradients.DelayedGradient(inner, 2),
        gradients.ESGradient(inner),
    )
    for task in wrapped:
        tasks.check(task)
        _, state = task.init(KEY)
        value, (after, _) = task.loss(params, state, batch, None)
        assert value == expected and eqx.tree_equal(after, state)


def test_delayed_gradient_arrives_late():
    inner = small_task()
    task = gradients.DelayedGradient(inner, 2)
    _, state = task.init(KEY)
    points = [jax.tree.map(lambda leaf, i=i: leaf + i, inner.init(KEY)[0]) for i in range(4)]
    batch = inner.batch("train", KEY)
    seen = []
    for point in points:
        grads, (state, _) = jax.grad(lambda p, s=state: task.loss(p, s, batch, KEY), has_aux=True)(point)
        seen.append(grads)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(seen[:2]))
    for late, point in zip(seen[2:], points):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
            late,
            gradient(inner, point, None, batch, KEY),
        )


def test_es_gradient_is_close_with_many_pairs():
    inner = small_task()
    params, state, batch = started(inner)
    task = gradients.ESGradient(inner, pairs=20000, std=0.01)
    assert task.name == "ESWrapped_20000pair_small"
    estimate, true = (jax.jit(gradient)(t, params, state, batch, KEY) for t in (task, inner))
    scale = float(jnp.linalg.norm(ravel_pytree(true)[0]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=0.1 * scale), estimate, true)


def test_reparametrised_scales_gradients_and_keeps_the_function():
    inner = small_task()
    params, state, batch = started(inner)
    scale = {"w": jnp.asarray([0.1, 1.0, 10.0]), "b": jnp.float32(4.0)}
    task = augment.Reparametrised(inner, scale)
    tasks.check(task)
    moved, _ = task.init(KEY)
    np.testing.assert_allclose(
        task.loss(moved, state, batch, None)[0], inner.loss(params, state, batch, None)[0], rtol=1e-5
    )
    grads, true = gradient(task, moved, state, batch, None), gradient(inner, params, state, batch, None)
    jax.tree.map(lambda g, t, s: np.testing.assert_allclose(g, t * s, rtol=1e-4), grads, true, scale)
    tasks.check(augment.Reparametrised(inner, jnp.float32(3.0)))


def test_reduced_batch_keeps_the_first_rows():
    inner = small_task()
    task = augment.ReducedBatch(inner, 0.25)
    tasks.check(task)
    whole, part = inner.batch("train", KEY), task.batch("train", KEY)
    np.testing.assert_array_equal(part["x"], whole["x"][:2])
    with pytest.raises(OuteroptError, match="fraction"):
        augment.ReducedBatch(inner, 0.0)
    with pytest.raises(OuteroptError, match="delay"):
        gradients.DelayedGradient(inner, 0)


def test_bfloat16_is_close_and_stays_outside():
    task = augment.CastDtype(tasks.get("ImageMLP_Digits_Relu32"))
    tasks.check(task)

    @eqx.filter_jit
    def run(task):
        params, state, batch = started(task)
        loss, grads = jax.value_and_grad(task.loss, has_aux=True)(params, state, batch, None)
        return loss[0], grads, task.task.loss(params, state, batch, None)[0]

    loss, grads, exact = run(task)
    assert float(loss) == pytest.approx(float(exact), rel=0.02) and float(loss) != float(exact)
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype("float32")}


def test_bfloat16_keeps_running_statistics_float32():
    tasks.check(augment.CastDtype(tasks.get("ImageMLP_Digits_64x64_BatchNorm_Relu")))


def test_permuted_labels():
    inner = tasks.get("Logistic_Digits")
    task = augment.PermutedLabels(inner, jnp.roll(jnp.arange(10, dtype=jnp.int32), 1))
    tasks.check(task)
    np.testing.assert_array_equal(
        task.batch("test", KEY)["label"], (inner.batch("test", KEY)["label"] + 9) % 10
    )


def test_wrappers_nest():
    task = augment.Reparametrised(
        gradients.ESGradient(gradients.DelayedGradient(small_task(), 1)), jnp.float32(2.0)
    )
    tasks.check(gradients.ModifiedGradient(task, gradients.Normalised()))
    assert task.name == "ESWrapped_1pair_small+delay1+reparametrised"


def some_families():
    return [
        tasks.single(small_task()),
        families.QuadraticFamily("quadratics", 5),
        tasks.FAMILIES["ImageMLPFamily_Digits_32"](),
        *(families.ReparametrisedFamily(small_task(), level) for level in ("global", "tensor", "parameter")),
        families.PermutedLabelsFamily(tasks.get("Logistic_Digits")),
    ]


@pytest.mark.parametrize("family", some_families(), ids=lambda family: family.name)
def test_family_contract(family):
    assert isinstance(family, TaskFamily) and family.name
    config = family.sample(KEY)
    task = family.task(config)
    tasks.check(task)
    other = family.task(family.sample(jax.random.key(1)))
    assert jax.tree.structure(task) == jax.tree.structure(other)
    assert not jax.tree.leaves(config) or not eqx.tree_equal(config, family.sample(jax.random.key(1)))

    @eqx.filter_jit
    def losses(family, keys):
        def one(key):
            task = family.task(family.sample(key))
            params, state, batch = started(task, KEY)
            return task.loss(params, state, batch, key)[0]

        return jax.vmap(one)(keys)

    values = losses(family, jax.random.split(KEY, 3))
    assert values.shape == (3,) and np.isfinite(values).all()


def test_registered_families_build(blank):
    for name, build in tasks.FAMILIES.items():
        family = build()
        assert family.name == name
        eqx.filter_eval_shape(lambda key, family=family: family.task(family.sample(key)).init(key), KEY)


def test_the_chosen_activation_is_used():
    family = tasks.FAMILIES["ImageMLPFamily_Digits_32"]()
    plain = {name: tasks.get(f"ImageMLP_Digits_{name}32") for name in ("Relu", "Tanh")}
    order = list(families.ACTIVATIONS)
    for name, task in plain.items():
        chosen = family.task({"activation": jnp.int32(order.index(name.lower())), "scale": jnp.float32(1)})
        params, state, batch = started(task)
        np.testing.assert_allclose(
            chosen.loss(params, state, batch, None)[0], task.loss(params, state, batch, None)[0], rtol=1e-5
        )


def test_a_family_refuses_an_unknown_level():
    with pytest.raises(OuteroptError, match="global, tensor or parameter"):
        families.ReparametrisedFamily(small_task(), "layer")


def test_the_quadratic_family_has_its_minimum_at_the_center():
    family = families.QuadraticFamily("quadratics", 5)
    config = family.sample(KEY)
    assert float(family.task(config).loss(config["center"], None, None, None)[0]) == 0
    assert quadratic.Quadratic("q", config["curvature"]).minimum == 0


def test_linear_models_have_no_hidden_layer(blank):
    assert isinstance(blank("Linear_UCI_Boston"), regression.TableRegression)
    assert {name: leaf.shape for name, leaf in blank("Linear_UCI_Boston").init(KEY)[0].items()} == {
        "w0": (13, 1),
        "b0": (1,),
    }
