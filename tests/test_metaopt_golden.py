"""MetaOpt, step by step in float64, against the numbers in tests/golden/meta_opt (see the README there)."""

import functools
import pathlib

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest

from outeropt import Optimizer, optimizers, tree
from outeropt.selftuning import MetaOpt


GOLDEN = pathlib.Path(__file__).parent / "golden" / "meta_opt"
# These programs run once: compile them fast rather than well.
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
ESTIMATORS = ("gaps", "fake", "cf1", "cf")
CLOSE = {"rtol": 1e-8, "atol": 1e-10}


@functools.cache
def golden(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


class Rates(Optimizer):
    """Gradient descent with a learning rate for each step."""

    rates: jax.Array

    def init(self, params, *, num_steps=None, key=None):
        return jnp.zeros((), jnp.int32)

    def update(self, grads, state, params, **context):
        return jax.tree.map(lambda g: -self.rates[state] * g, grads), state + 1


def exact(optimizer, **values):
    """The optimizer with leaves of float64, those given with all their digits."""

    def one(path, leaf):
        name = tree.leaf_name(path)
        return jnp.asarray(values.get(name, leaf), jnp.float64)

    assert values.keys() <= optimizer.hyperparameters.keys(), optimizer.hyperparameters.keys()
    return jtu.tree_map_with_path(one, optimizer)


def quadratic(file):
    """Parameters by tensor from a flat vector, and the loss of each step."""
    first = int(file["problem.leaf_sizes"][0])
    a, b = jnp.asarray(file["problem.A"]), jnp.asarray(file["problem.b"])

    def unflat(x):
        return {"a": x[..., :first], "b": x[..., first:]}

    def flat(params):
        return jnp.concatenate([params["a"], params["b"]], axis=-1)

    def loss(params, step):
        return 0.5 * jnp.sum((a[step] @ flat(params) - b[step]) ** 2)

    return unflat, flat, loss


def network(file):
    x, y = jnp.asarray(file["problem.X"]), jnp.asarray(file["problem.Y"])
    shapes = ((8, 6), (6,), (6, 3), (3,))
    ends = np.cumsum([np.prod(shape) for shape in shapes])

    def unflat(v):
        parts = jnp.split(v, ends[:-1], axis=-1)
        return {
            f"p{i}": part.reshape(*v.shape[:-1], *shape) for i, (part, shape) in enumerate(zip(parts, shapes))
        }

    def flat(params):
        return jnp.concatenate(
            [
                leaf.reshape(*leaf.shape[: leaf.ndim - len(shape)], -1)
                for leaf, shape in zip(params.values(), shapes)
            ],
            axis=-1,
        )

    def loss(params, step):
        hidden = jnp.tanh(x @ params["p0"] + params["p1"])
        logits = hidden @ params["p2"] + params["p3"]
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1))

    return unflat, flat, loss


PROBLEMS = {"quad": quadratic, "mlp": network}


def coefficients(kind, value, unflat):
    """The golden M in the form that a controller keeps; the inverse is `flattened`."""
    value = jnp.asarray(value)
    if kind == "block":
        return dict(zip(("a", "b") if value.shape[1] == 2 else ("p0", "p1", "p2", "p3"), value.T))
    return unflat(value) if kind == "diagonal" else value


def flattened(kind, value, flat):
    if kind == "block":
        return np.stack([np.asarray(leaf) for leaf in value.values()], axis=-1)
    return np.asarray(flat(value) if kind == "diagonal" else value)


@functools.partial(jax.jit, static_argnums=(1, 4), compiler_options=QUICK)
def run(optimizer, loss, params, first, steps, state=None):
    """A run from step `first` on: parameters, losses, costs, coefficients after each step, and the end."""
    state = optimizer.init(params) if state is None else state

    def body(carry, step):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params, step)
        updates, state = optimizer.update(
            grads,
            state,
            params,
            value=value,
            step=step,
            value_fn=lambda p: loss(p, step),
            value_at=loss,
        )
        params = jax.tree.map(jnp.add, params, updates)
        return (params, state), (params, value, state.cost, state.coefficients)

    end, rows = jax.lax.scan(body, (params, state), first + jnp.arange(steps))
    return rows, end


def optimizer_of(file, kind, disturbance, meta, estimator, start, unflat):
    horizon, memory = int(file["settings.HH"]), int(file[f"settings.{kind}.H"])
    built = MetaOpt(
        base=optimizers.get("sgd", learning_rate=0.1),
        meta=optimizers.get(meta),
        disturbance=disturbance,
        memory=memory,
        horizon=horizon,
        controller={"block": "per_tensor"}.get(kind, kind),
        estimator=estimator,
        learn_from=1 if start == "masked" else memory + horizon,
    )
    values = {
        "base.learning_rate": file[f"settings.{kind}.{disturbance}.eta"],
        "meta.learning_rate": file[f"settings.meta_lr_{meta}"],
        "weight_decay": file["settings.delta"],
    }
    if disturbance == "adam":
        (values["disturbance.b1"], values["disturbance.b2"]) = file["settings.disturbance_adam_betas"]
        values["disturbance.eps"] = file["settings.disturbance_adam_eps"]
        values["disturbance.eps_root"] = file["settings.disturbance_adam_eps_root"]
    if meta == "adam":
        (values["meta.b1"], values["meta.b2"]) = file["settings.meta_adam_betas"]
        values["meta.eps"] = file["settings.meta_adam_eps"]
    return started(exact(built, **values), coefficients(kind, file[f"M0.{kind}"], unflat))


def started(optimizer, value):
    return eqx.tree_at(lambda o: o.coefficients, optimizer, value, is_leaf=lambda leaf: leaf is None)


def marked(case):
    """The network's cases of the usual kind run always, those that differ as on the quadratic when asked."""
    usual = case[0] == "quad" or case[3::2] == ("adam", "masked")
    return pytest.param(case, id=".".join(case), marks=() if usual else pytest.mark.slow)


CASES = [
    (problem, kind, disturbance, meta, estimator, start)
    for problem in PROBLEMS
    for kind in ("scalar", "block", "diagonal")
    for disturbance in ("raw", "adam")
    for meta in ("sgd", "adam")
    for estimator in ESTIMATORS
    for start in ("masked", "wait")
]


@pytest.mark.parametrize("case", [marked(case) for case in CASES])
def test_equals_the_aligned_algorithm(case):
    problem, kind, disturbance, meta, estimator, start = case
    file = golden(f"aligned_{problem}")
    unflat, flat, loss = PROBLEMS[problem](file)
    optimizer = optimizer_of(file, kind, disturbance, meta, estimator, start, unflat)
    (params, losses, costs, found), _ = run(optimizer, loss, unflat(jnp.asarray(file["problem.x0"])), 0, 40)
    key = ".".join(case[1:])
    np.testing.assert_allclose(losses, file[f"{key}.loss"], **CLOSE)
    saved = file["saved_steps"] if problem == "mlp" else slice(None)
    np.testing.assert_allclose(flat(params)[saved], file[f"{key}.params"], **CLOSE)
    kept = saved if kind == "diagonal" else slice(None)
    np.testing.assert_allclose(flattened(kind, found, flat)[kept], file[f"{key}.M"], **CLOSE)
    learned = np.arange(40) >= optimizer.learn_from
    np.testing.assert_allclose(np.asarray(costs)[learned], file[f"{key}.cost"][learned], rtol=1e-6)


def extra(kind, estimator, **settings):
    """The optimizer of the further runs: Adam as meta-optimizer, learning from the second step on."""
    file = golden("aligned_extra")
    built = MetaOpt(
        base=optimizers.get("sgd", learning_rate=0.1),
        meta=optimizers.get("adam"),
        memory=int(file.get(f"{kind}.H", file["scalar.H"])),
        horizon=int(file["settings.HH"]),
        controller=kind,
        estimator=estimator,
        **settings,
    )
    values = {
        "meta.learning_rate": file["settings.meta_lr_adam"],
        "meta.b1": 0.9,
        "meta.b2": 0.999,
        "meta.eps": 1e-8,
        "weight_decay": file["settings.delta"],
        "base.learning_rate": file["settings.eta_raw"],
    }
    if settings.get("disturbance") == "adam":
        values["base.learning_rate"] = file["settings.eta_adam"]
        (values["disturbance.b1"], values["disturbance.b2"]) = file["settings.disturbance_adam_betas"]
        values["disturbance.eps"] = file["settings.disturbance_adam_eps"]
        values["disturbance.eps_root"] = file["settings.disturbance_adam_eps_root"]
    return started(exact(built, **values), jnp.asarray(file[f"{kind}.M0"]))


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("part", ["full", "cosine", "clip"])
def test_equals_the_aligned_algorithm_in_further_forms(part, estimator):
    file = golden("aligned_extra")
    unflat, flat, loss = quadratic(file)
    optimizer = extra(
        "full" if part == "full" else "scalar", estimator, **{"clip": {"disturbance": "clip"}}.get(part, {})
    )
    if part == "clip":
        optimizer = eqx.tree_at(lambda o: o.disturbance.limit, optimizer, jnp.asarray(file["clip.value"]))
    if part == "cosine":
        optimizer = eqx.tree_at(lambda o: o.base, optimizer, Rates(jnp.asarray(file["cosine.eta"])))
    (params, losses, _, found), _ = run(optimizer, loss, unflat(jnp.asarray(file["problem.x0"])), 0, 40)
    saved = file["saved_steps"] if part == "full" else slice(None)
    np.testing.assert_allclose(losses, file[f"{part}.{estimator}.loss"], **CLOSE)
    np.testing.assert_allclose(flat(params), file[f"{part}.{estimator}.params"], **CLOSE)
    np.testing.assert_allclose(found[saved], file[f"{part}.{estimator}.M"], **CLOSE)


@pytest.mark.parametrize("estimator", ["gaps", "cf"])
@pytest.mark.parametrize("disturbance", ["raw", "adam"])
def test_episodes_keep_the_controller_and_nothing_else(disturbance, estimator):
    file = golden("aligned_extra")
    unflat, flat, loss = quadratic(file)
    optimizer = extra("scalar", estimator, disturbance=disturbance)
    key = f"episodes.{disturbance}.{estimator}"
    start, state = unflat(jnp.asarray(file["problem.x0"])), None
    for episode in (1, 2):
        (params, losses, _, found), (_, state) = run(optimizer, loss, start, 20 * (episode - 1), 20, state)
        for name, values in (("loss", losses), ("params", flat(params)), ("M", found)):
            np.testing.assert_allclose(values, file[f"{key}.episode{episode}.{name}"], **CLOSE, err_msg=name)
        if episode == 1:
            adam = state.meta[0]
            np.testing.assert_allclose(adam.mu, file[f"{key}.meta_adam_m_at_reset"], **CLOSE)
            np.testing.assert_allclose(adam.nu, file[f"{key}.meta_adam_v_at_reset"], **CLOSE)
            assert adam.count == file[f"{key}.meta_adam_count_at_reset"]
            start = unflat(jnp.asarray(file["episodes.episode2.x0"]))
            state = optimizer.restart(state, start)


@pytest.mark.parametrize("part", ["truncated", "full"])
def test_a_fixed_controller_is_heavy_ball(part):
    file = golden("identities")
    unflat, flat, loss = quadratic(file)
    coefficients = jnp.asarray(file["heavy_ball.M"])
    if part == "full":
        beta = coefficients[1] / coefficients[0]
        coefficients = coefficients[0] * beta ** jnp.arange(40)
    optimizer = MetaOpt(base=optimizers.get("sgd", learning_rate=0.0), memory=len(coefficients), frozen=True)
    optimizer = started(exact(optimizer), coefficients)
    (params, *_), _ = run(optimizer, loss, unflat(jnp.asarray(file["problem.x0"])), 0, 40)
    np.testing.assert_allclose(flat(params), file[f"heavy_ball.{part}.params"], **CLOSE)


@pytest.mark.parametrize("part", ["delta0", "delta"])
def test_one_coefficient_along_the_trajectory_is_hypergradient_descent(part):
    file = golden("identities")
    unflat, flat, loss = quadratic(file)
    rate, meta_rate = file["hypergradient.initial_lr"], file["hypergradient.meta_lr"]
    optimizer = MetaOpt(optimizers.get("sgd", learning_rate=0.1), optimizers.get("sgd"), memory=1)
    values = {"base.learning_rate": rate, "meta.learning_rate": meta_rate}
    values["weight_decay"] = 0.0 if part == "delta0" else file["hypergradient.delta_value"]
    (params, _, _, found), _ = run(
        exact(optimizer, **values), loss, unflat(jnp.asarray(file["problem.x0"])), 0, 40
    )
    np.testing.assert_allclose(flat(params), file[f"hypergradient.{part}.params"], **CLOSE)
    np.testing.assert_allclose(rate - found[:, 0], file[f"hypergradient.{part}.lr"], **CLOSE)


FROZEN = [
    (problem, kind, disturbance)
    for problem, kinds in (("quad", ("scalar", "diagonal", "full")), ("mlp", ("scalar", "diagonal")))
    for kind in kinds
    for disturbance in ("raw", "clip", "adam")
]


@pytest.mark.parametrize("case", FROZEN, ids="-".join)
def test_frozen_equals_the_original(case):
    problem, kind, disturbance = case
    file = golden(f"original_frozen_{problem}")
    unflat, flat, loss = PROBLEMS[problem](file)
    value = file[f"{kind}.M"]
    optimizer = MetaOpt(
        optimizers.get("sgd", learning_rate=0.1),
        disturbance=disturbance,
        controller=kind,
        memory=len(value),
        frozen=True,
    )
    values = {"weight_decay": file["settings.delta"]}
    values["base.learning_rate"] = file["settings.eta_adam" if disturbance == "adam" else "settings.eta_raw"]
    if disturbance == "clip":
        values["disturbance.limit"] = file["settings.clip"]
    if disturbance == "adam":
        (values["disturbance.b1"], values["disturbance.b2"]) = file["settings.adam_betas"]
        values["disturbance.eps"] = file["settings.adam_eps"]
        values["disturbance.eps_root"] = file["settings.adam_eps_root"]
    optimizer = started(exact(optimizer, **values), coefficients(kind, value, unflat))
    (params, losses, *_), _ = run(optimizer, loss, unflat(jnp.asarray(file["problem.x0"])), 0, 30)
    np.testing.assert_allclose(losses, file[f"{kind}.{disturbance}.loss"], **CLOSE)
    np.testing.assert_allclose(flat(params), file[f"{kind}.{disturbance}.params"], **CLOSE)
