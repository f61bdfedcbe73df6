"""SOAP, Shampoo and PSGD against plain numpy loops over their equations, and in special cases."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from outeropt import optimizers
from outeropt.errors import UnknownName
from outeropt.optimizers.preconditioned.soap import TIE


# These programs run once: compile them fast rather than well.
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
STEPS = 14
DRAWN = np.random.default_rng(0)
PARAMS = {"w": DRAWN.normal(size=(4, 3)), "k": DRAWN.normal(size=(2, 2, 3)), "b": DRAWN.normal(size=3)}
CURVATURE = {name: 0.2 + DRAWN.random(size=2 * (leaf.size,)) for name, leaf in PARAMS.items()}
CURVATURE = {name: matrix @ matrix.T / len(matrix) for name, matrix in CURVATURE.items()}


def gradients(params):
    """Of a quadratic whose curvature mixes the entries of each tensor."""
    return {name: (CURVATURE[name] @ leaf.reshape(-1)).reshape(leaf.shape) for name, leaf in params.items()}


def trajectory(optimizer, params=PARAMS, steps=STEPS):
    """Parameters after each step, in float64."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        exact = jax.tree.map(
            lambda leaf: jnp.asarray(np.asarray(leaf).astype(str).astype(np.float64)), optimizer
        )
        start = jax.tree.map(jnp.asarray, params)

        def body(carry, _):
            params, state = carry
            updates, state = exact.update(gradients(params), state, params)
            params = jax.tree.map(jnp.add, params, updates)
            return (params, state), params

        def run():
            state = exact.init(start, key=jax.random.key(3))
            return jax.lax.scan(body, (start, state), length=steps)[1]

        return jax.tree.map(np.asarray, jax.jit(run, compiler_options=QUICK)())


def assert_follows(optimizer, loop):
    """`loop` gives a tensor's update from its gradient, its value and the step, and keeps its own state."""
    found = trajectory(optimizer)
    params = dict(PARAMS)
    loops = {name: loop(name, leaf) for name, leaf in params.items()}
    for t in range(1, STEPS + 1):
        grads = gradients(params)
        params = {name: leaf + loops[name](grads[name], leaf, t) for name, leaf in params.items()}
        for name, leaf in params.items():
            np.testing.assert_allclose(found[name][t - 1], leaf, rtol=1e-8, atol=1e-10, err_msg=f"{name} {t}")


def as_matrix(leaf):
    return leaf.reshape(-1, leaf.shape[-1])


def soap_loop(name, leaf, lr=0.1, b1=0.9, b2=0.8, eps=1e-8, decay=0.02, every=3):
    """The published algorithm with whole matrices; the basis of a vector is the identity."""
    rows, columns = (leaf.size, 1) if name == "b" else as_matrix(leaf).shape
    mean, square = np.zeros((rows, columns)), np.zeros((rows, columns))
    moments = [np.zeros((rows, rows)), np.zeros((columns, columns))]
    bases = [np.eye(rows), np.eye(columns)]

    def update(grad, value, t):
        nonlocal mean, square
        g = grad.reshape(rows, columns)
        for side, outer in enumerate((g @ g.T, g.T @ g)):
            moments[side] = b2 * moments[side] + (1 - b2) * outer
            if t == 1 and name != "b":
                slope = TIE * np.trace(moments[side]) * np.linspace(1, 0, len(outer))
                values, vectors = np.linalg.eigh(moments[side] + np.diag(slope))
                bases[side] = vectors[:, np.argsort(-values)]
        mean = b1 * mean + (1 - b1) * g
        square = b2 * square + (1 - b2) * (bases[0].T @ g @ bases[1]) ** 2
        turned = bases[0].T @ mean @ bases[1] / (1 - b1**t)
        step = bases[0] @ (turned / (np.sqrt(square / (1 - b2**t)) + eps)) @ bases[1].T
        if t > 1 and t % every == 0 and name != "b":
            for side in range(2):
                shifted = moments[side] + TIE * np.trace(moments[side]) * np.eye(len(moments[side]))
                order = np.argsort(-np.diag(bases[side].T @ shifted @ bases[side]))
                square = np.take(square, order, axis=side)
                bases[side] = np.linalg.qr(shifted @ bases[side][:, order])[0]
        return -lr * (step.reshape(leaf.shape) + decay * value)

    return update


def test_soap_by_its_equations():
    soap = optimizers.get("soap", learning_rate=0.1, b1=0.9, b2=0.8, weight_decay=0.02, precondition_every=3)
    assert_follows(soap, soap_loop)


def test_soap_without_bases_is_adamw():
    numbers = {"learning_rate": 0.1, "b1": 0.9, "b2": 0.8, "weight_decay": 0.02}
    ours = trajectory(optimizers.get("soap", max_size=0, **numbers))
    theirs = trajectory(optimizers.get("adamw", **numbers))
    for name, leaf in theirs.items():
        np.testing.assert_allclose(ours[name], leaf, rtol=1e-9)


def test_a_long_side_has_no_matrix():
    for name, field in (("soap", "bases"), ("shampoo", "roots")):
        state = optimizers.get(name, max_size=3).init(jax.tree.map(jnp.float32, PARAMS))
        sides = getattr(state, field)
        assert sides["w"][0] is None and sides["w"][1].shape == (3, 3) and sides["b"] == (None, None)
    (left, right), (vector, _) = (
        optimizers.get("psgd_kron", max_size=3).init(jax.tree.map(jnp.float32, PARAMS)).factors[name]
        for name in ("w", "b")
    )
    assert (left.shape, right.shape, vector.shape) == ((4,), (3, 3), (3,))


def inverse_root(moment, power, eps):
    values, vectors = np.linalg.eigh(moment)
    return vectors @ np.diag((np.maximum(values, 0) + eps * values.max()) ** power) @ vectors.T


@pytest.mark.parametrize("graft", ["adam", "sgd", "none"])
def test_shampoo_by_its_equations(graft):
    lr, b1, b2, eps, decay, every = 0.1, 0.9, 0.8, 1e-3, 0.02, 4

    def loop(name, leaf):
        mean, square = np.zeros(leaf.shape), np.zeros(leaf.shape)
        rows, columns = as_matrix(leaf).shape
        left, right, roots = np.zeros((rows, rows)), np.zeros((columns, columns)), None

        def update(grad, value, t):
            nonlocal mean, square, left, right, roots
            mean = b1 * mean + (1 - b1) * grad
            square = b2 * square + (1 - b2) * grad**2
            corrected = mean / (1 - b1**t)
            step = adam = corrected / (np.sqrt(square / (1 - b2**t)) + 1e-8)
            if name != "b":
                g = as_matrix(grad)
                left, right = b2 * left + (1 - b2) * g @ g.T, b2 * right + (1 - b2) * g.T @ g
                if t == 1 or t % every == 0:
                    roots = [inverse_root(side / (1 - b2**t), -0.25, eps) for side in (left, right)]
                step = (roots[0] @ as_matrix(corrected) @ roots[1]).reshape(leaf.shape)
                length = {"adam": adam, "sgd": corrected, "none": step}[graft]
                step = step * np.linalg.norm(length) / np.linalg.norm(step)
            return -lr * (step + decay * value)

        return update

    numbers = {"learning_rate": lr, "b1": b1, "b2": b2, "eps": eps, "weight_decay": decay}
    assert_follows(optimizers.get("shampoo", graft=graft, precondition_every=every, **numbers), loop)


def test_one_step_of_shampoo_is_nearly_orthogonal():
    # (G G^T)^(-1/4) G (G^T G)^(-1/4) = U V^T for G = U S V^T.
    shampoo = optimizers.get("shampoo", learning_rate=1.0, graft="none", eps=1e-9)
    step = trajectory(shampoo, steps=1)["w"][0] - PARAMS["w"]
    left, _, right = np.linalg.svd(gradients(PARAMS)["w"], full_matrices=False)
    np.testing.assert_allclose(step, -left @ right, atol=1e-3)


def test_an_unknown_graft_is_told():
    with pytest.raises(UnknownName, match=r"'sdg'. Did you mean sgd"):
        optimizers.get("shampoo", graft="sdg").init({"w": jnp.ones((2, 2))})


def test_psgd_by_its_equations():
    lr, b1, decay, rate, limit, every = 0.05, 0.9, 0.02, 0.3, 0.9, 2
    names = sorted(PARAMS)

    def loop(name, leaf):
        rows, columns = (leaf.size, 1) if name == "b" else as_matrix(leaf).shape
        factors, mean = [np.eye(rows), np.eye(columns)], np.zeros((rows, columns))

        def update(grad, value, t):
            nonlocal mean
            mean = b1 * mean + (1 - b1) * grad.reshape(rows, columns)
            m = mean / (1 - b1**t)
            if t == 1:
                factors[:] = [q * np.mean(m**4) ** (-1 / 16) for q in factors]
            if t % every == 0:
                with jax.enable_x64(True):
                    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), t), names.index(name))
                    probe = np.asarray(jax.random.normal(key, m.shape, jnp.float64))
                # Rows of a matrix in one vector are turned by the Kronecker product of both factors.
                whole = np.kron(*factors)
                signal = (whole @ m.ravel()).reshape(m.shape)
                noise = np.linalg.solve(whole.T, probe.ravel()).reshape(m.shape)
                for side, (a, b) in enumerate(((signal, noise), (signal.T, noise.T))):
                    first, second = a @ a.T, b @ b.T
                    if name == "b":
                        first, second = np.diag(np.diag(first)), np.diag(np.diag(second))
                    total = first + second
                    row = total[np.argmax(np.linalg.norm(total, axis=1))]
                    bound = np.linalg.norm(total @ row) / np.linalg.norm(row)
                    factors[side] = factors[side] - rate * np.triu(first - second) @ factors[side] / bound
            whole = np.kron(*factors)
            step = whole.T @ whole @ m.ravel()
            step *= min(1.0, limit / np.sqrt(np.mean(step**2)))
            return -lr * (step.reshape(leaf.shape) + decay * value)

        return update

    numbers = {
        "learning_rate": lr,
        "b1": b1,
        "weight_decay": decay,
        "precondition_rate": rate,
        "max_rms": limit,
    }
    assert_follows(optimizers.get("psgd_kron", precondition_every=every, **numbers), loop)


def test_psgd_makes_gradients_white():
    psgd = optimizers.get("psgd_kron", learning_rate=1.0, b1=0.0, max_rms=1e9, precondition_rate=0.03)
    left, right = jnp.array([[1.0, 0.0], [2.0, 0.3]]), jnp.array([[3.0, 1.0], [0.0, 0.2]])
    params = jnp.zeros((2, 2))

    def body(state, key):
        grads = left @ jax.random.normal(key, (2, 2)) @ right
        updates, state = psgd.update(grads, state, params)
        return state, (grads.ravel(), updates.ravel())

    keys = jax.random.split(jax.random.key(0), 3000)
    _, (grads, updates) = jax.jit(lambda: jax.lax.scan(body, psgd.init(params), keys))()
    before, after = (np.linalg.cond(np.cov(part[1000:].T)) for part in (grads, updates))
    assert before > 1e4 and after < 2.0
    np.testing.assert_allclose(np.diag(np.cov(updates[1000:].T)), 1.0, atol=0.3)


def test_optax_takes_them():
    for name in ("soap", "shampoo", "psgd_kron"):
        transformation = optax.chain(optax.clip(1.0), optimizers.get(name).as_optax())
        params = jax.tree.map(jnp.float32, PARAMS)
        state = transformation.init(params)
        for _ in range(2):
            updates, state = jax.jit(transformation.update)(gradients(params), state, params)
            params = optax.apply_updates(params, updates)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
