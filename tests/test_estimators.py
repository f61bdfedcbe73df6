"""Every estimator in the registry: the protocol, bias against exact gradients, failures, devices."""

import functools
import itertools
import pathlib
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

import estimator_systems as systems
from outeropt import checkpoint, tree
from outeropt.errors import ConfigError
from outeropt.metatraining.estimators import (
    ESTIMATORS,
    PES,
    Backprop,
    ESSingle,
    ForwardMode,
    FullBackprop,
    FullES,
    TruncatedES,
    antithetic,
)
from outeropt.metatraining.lengths import Constant, Endless, LogUniform, Scheduled
from outeropt.optimizers import schedules


KEY = jax.random.key(7)
# Setups differ, and three in ten trajectories fail.
FRAGILE = systems.Descent(spread=0.3, broken=0.3)
THETA = systems.DESCENT_THETA
ANTITHETIC = ("full_es", "truncated_es", "pes", "es_single")
TRUNCATED = ("backprop", "truncated_es", "pes", "es_single", "forward_mode")


def build(name, truncation=4, length=12, **settings):
    """An estimator of the registry with small settings."""
    if name == "full_backprop":
        own = {"length": length}
    elif name == "full_es":
        own = {"lengths": LogUniform(3, length)}
    else:
        own = {"lengths": Constant(length), "truncation": truncation}
    if name in ANTITHETIC:
        own["std"] = 0.1
    return ESTIMATORS[name](**{"particles": 4, **own, **settings})


# Compilation is most of these tests' time.
QUICK = {"xla_backend_optimization_level": 0}


@functools.partial(eqx.filter_jit, compiler_options=QUICK)
def estimated(estimator, system, theta, state, outer_step):
    """One estimate; equal shapes share a program in all tests."""
    return estimator.estimate(system, theta, state, KEY, outer_step)


def first(estimator, system, theta, outer_step=0):
    """The first estimate."""
    state = estimator.init(system, theta, KEY, outer_step)
    return estimated(estimator, system, theta, state, jnp.int32(outer_step))[0]


def assert_close(got, want, relative=1e-5, absolute=3e-6):
    """Within the rounding of losses of about 1, whose differences are divided by deviations of about 0.1."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, relative, absolute), got, want)


def arrays(state):
    """A state whose keys are numbers, to compare."""
    keys = jax.dtypes.prng_key
    return [
        np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, keys) else leaf)
        for leaf in jax.tree.leaves(state)
    ]


def check_estimate(estimate, theta, name):
    assert jax.tree.structure(estimate.grad) == jax.tree.structure(theta)
    assert jax.tree.map(jnp.shape, estimate.grad) == jax.tree.map(jnp.shape, theta)
    assert np.isfinite(flat(estimate.grad)).all() and np.isfinite(estimate.loss)
    assert set(estimate.diagnostics) == set(ESTIMATORS[name].reports)
    assert ("difference" in estimate.diagnostics) == (name in ANTITHETIC)
    assert all(value.shape == () for value in estimate.diagnostics.values())


@pytest.mark.parametrize("name", ESTIMATORS)
def test_protocol(name, tmp_path):
    system, theta, estimator = FRAGILE, THETA, build(name)
    before = estimated._cached._cache_size()
    state = estimator.init(system, theta, KEY, 0)
    assert all(leaf.shape[0] == 4 for leaf in jax.tree.leaves(state))
    states, estimates = [state], []
    for outer in range(4):
        if name in ANTITHETIC:
            estimator = eqx.tree_at(lambda e: e.std, estimator, jnp.float32(0.1 / (outer + 1)))
        estimate, state = estimated(estimator, system, theta, state, jnp.int32(outer))
        states.append(state)
        estimates.append(estimate)
        check_estimate(estimate, theta, name)
        assert jax.tree.map(lambda a: (a.shape, a.dtype), state) == jax.tree.map(
            lambda a: (a.shape, a.dtype), states[0]
        )
    # Neither the outer step nor the deviation compiles anything.
    assert estimated._cached._cache_size() == before + 1
    failed = [int(estimate.diagnostics["skipped"]) for estimate in estimates]
    restarts = [int(estimate.diagnostics["restarts"]) for estimate in estimates]
    if name in TRUNCATED:
        # What failed begins anew at once; at the fourth estimate the first trajectories are over.
        assert restarts[:3] == [4, *failed[:2]]
        assert restarts[3] > failed[2]
    else:
        assert restarts == [4, 4, 4, 4]
    assert 0 < sum(failed) < 16
    # A saved state goes on as if nothing had been.
    checkpoint.save(tmp_path / "state.safetensors", states[3])
    back = checkpoint.load(tmp_path / "state.safetensors", states[3])
    again, state = estimated(estimator, system, theta, back, jnp.int32(3))
    assert_close(again.grad, estimates[3].grad, 0, 0)
    np.testing.assert_equal(arrays(state), arrays(states[4]))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_rows_are_apart_and_devices_share_them(name):
    """Particles alone, together, and on two devices give the same; a broken one loses only itself."""
    shaping = {"shaping": "rank"} if name == "pes" else {}
    theta, estimator = THETA, build(name, **shaping)
    mesh = Mesh(np.asarray(jax.devices()[:2]), ("d",))
    rows, whole = PartitionSpec("d"), PartitionSpec()

    def on_devices(state, outer):
        return estimator.estimate(FRAGILE, theta, state, KEY, outer, axis="d")

    shared = jax.jit(
        jax.shard_map(
            on_devices, mesh=mesh, in_specs=(rows, whole), out_specs=(whole, rows), check_vma=False
        ),
        compiler_options=QUICK,
    )
    state = estimator.init(FRAGILE, theta, KEY, 0)
    # The second estimate begins with some trajectories over and some not.
    for outer in range(2):
        step = jnp.int32(outer)
        together, after = estimated(estimator, FRAGILE, theta, state, step)
        split, split_after = shared(state, step)
        assert_close(split, together)
        for got, want in zip(arrays(split_after), arrays(after)):
            np.testing.assert_allclose(got, want, 1e-5, 1e-6)
        if not shaping:
            # Four times the same row is that row alone.
            alone = [
                estimated(estimator, system, theta, tree.take(state, jnp.full(4, i)), step)[0]
                for system in (FRAGILE, systems.Descent(FRAGILE.spread))
                for i in range(4)
            ]
            some, healthy = tree.stack(alone[:4]), tree.stack(alone[4:])
            lost = np.asarray(some.diagnostics["skipped"]) > 0
            assert int(together.diagnostics["skipped"]) == lost.sum()
            for g, h, mean in zip(*map(jax.tree.leaves, (some.grad, healthy.grad, together.grad))):
                np.testing.assert_array_equal(g[lost], 0)
                if outer == 0:
                    assert 0 < lost.sum() < 4
                    np.testing.assert_array_equal(g[~lost], h[~lost])
                assert_close(mean, np.mean(g, axis=0))
            assert_close(together.loss, np.mean(some.loss[~lost]))
        state = after


def repeat(estimator, system, theta, estimates, repeats, stds=None):
    """Mean and standard error of the mean of some successive estimates, over independent repeats."""

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 1})
    def run(keys):
        def one(key):
            def body(state, outer):
                now = estimator
                if stds is not None:
                    now = eqx.tree_at(lambda e: e.std, estimator, jnp.asarray(stds, jnp.float32)[outer])
                estimate, state = now.estimate(system, theta, state, key, outer)
                return state, estimate.grad

            _, grads = jax.lax.scan(body, estimator.init(system, theta, key, 0), jnp.arange(estimates))
            return jnp.concatenate([jnp.ravel(jnp.mean(g, axis=0)) for g in jax.tree.leaves(grads)])

        return jax.vmap(one)(keys)

    grads = np.asarray(run(jax.random.split(KEY, repeats)), np.float64)
    return grads.mean(0), grads.std(0) / np.sqrt(repeats)


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


@functools.cache
def smoothed(std, independent):
    """The gradient of `E L` on Descent by Gauss-Hermite quadrature, one perturbation or one per truncation.

    `independent` truncations of 4 steps have perturbations of their own; 1 is the same for all.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)
    grid = np.array(list(itertools.product(nodes, repeat=2 * independent)), np.float32)
    weight = np.prod(list(itertools.product(weights / weights.sum(), repeat=2 * independent)), axis=1)
    system, theta = systems.Descent(), systems.DESCENT_THETA
    leaves, structure = jax.tree.flatten(theta)

    def loss(shift, e):
        setup = system.draw(KEY)
        moved = [jnp.stack(leaves) + shift + e[k] for k in range(independent)]

        def body(state, t):
            now = jnp.stack(moved)[t // (12 // independent)]
            state, outcome = system.step(jax.tree.unflatten(structure, list(now)), setup, state, t, KEY)
            return state, outcome.loss

        return jnp.mean(jax.lax.scan(body, system.init(theta, setup, 12, KEY), jnp.arange(12))[1])

    points = jnp.asarray(std * grid.reshape(-1, independent, 2))
    grads = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0)))(jnp.zeros(2), points)
    return weight @ np.asarray(grads, np.float64)


def exact(system, theta, length):
    estimator = build("full_backprop", length=length)
    return flat(first(estimator, system, theta).grad)


STD = 0.3


@pytest.mark.parametrize("name", ["full_es", "pes", "es_single", "forward_mode"])
def test_unbiased_for_the_smoothed_gradient(name):
    """On descent, where a deviation of 0.3 smooths visibly; forward mode smooths nothing."""
    std = {"std": STD} if name in ANTITHETIC else {"tangents": 2}
    lengths = {"lengths": Constant(12)} if name == "full_es" else {}
    estimator = build(name, particles=1, **std, **lengths)
    system, theta = systems.Descent(), systems.DESCENT_THETA
    mean, error = repeat(estimator, system, theta, 1 if name == "full_es" else 3, 8192)
    want = exact(system, theta, 12) if name == "forward_mode" else smoothed(STD, 3 if name == "pes" else 1)
    assert (np.abs(mean - want) < 4 * error).all(), (mean, want, error)
    # The test can tell: a tenth of the gradient is four standard errors.
    assert (error < 0.025 * np.abs(want).max()).all(), (error, want)


def test_smoothing_is_seen():
    plain = exact(systems.Descent(), systems.DESCENT_THETA, 12)
    assert np.abs(smoothed(STD, 1) / plain - 1).max() > 0.05
    assert_close(smoothed(1e-3, 1), plain, 1e-3)


@pytest.mark.parametrize(
    ("name", "annealed"), [*((name, False) for name in TRUNCATED), ("pes", True), ("es_single", True)]
)
def test_bias_on_influence_balancing(name, annealed):
    """What sees one truncation only has the wrong sign here; the others are unbiased, whatever std does."""
    theta, system = jnp.float32(0.5), systems.Influence()
    std = {"std": 0.3} if name in ANTITHETIC else {}
    estimator = build(name, truncation=4, length=20, particles=1, **std)
    stds = [0.3, 0.1, 0.5, 0.2, 0.4] if annealed else None
    mean, error = repeat(estimator, system, theta, 5, 8192, stds)
    want = exact(system, theta, 20)
    assert want > 5
    if name in ("backprop", "truncated_es"):
        assert mean + 10 * error < 0
    else:
        assert np.abs(mean - want) < 4 * error, (mean, want, error)
        assert error < 0.1 * want


def test_whole_backprop_against_finite_differences():
    system, theta = systems.Descent(), systems.DESCENT_THETA
    estimator = build("full_backprop")

    def loss(which, by):
        moved = {name: value + (by if name == which else 0.0) for name, value in theta.items()}
        return float(first(estimator, system, moved).loss)

    for (name, _), grad in zip(theta.items(), exact(system, theta, 12)[::-1]):
        assert abs((loss(name, 0.02) - loss(name, -0.02)) / 0.04 - grad) < 2e-3 * abs(grad)


def test_one_truncation_per_trajectory_is_the_whole_trajectory():
    """Same keys, so the same numbers: on a policy, whose beginning depends on theta too."""
    system, theta = systems.Policy(), systems.POLICY_THETA

    def made(estimator):
        estimate = first(estimator, system, theta, 3)
        check_estimate(estimate, theta, {kind: name for name, kind in ESTIMATORS.items()}[type(estimator)])
        return estimate

    truncated = {"lengths": Constant(6), "truncation": 6, "particles": 4}
    whole = made(FullBackprop(length=6, particles=4))
    assert (np.abs(flat(whole.grad)) > 0).all()
    for estimator in (
        Backprop(**truncated),
        Backprop(**truncated, rematerialise=True),
        ForwardMode(**truncated, tangents="all"),
    ):
        assert_close(made(estimator), whole)
    strategy = made(FullES(lengths=Constant(6), std=0.1, particles=4))
    for kind in (TruncatedES, PES, ESSingle):
        assert_close(made(kind(**truncated, std=0.1)), strategy)


def test_all_tangents_give_the_exact_gradient_from_truncations():
    system, theta = systems.Descent(), systems.DESCENT_THETA
    estimator = build("forward_mode", particles=1, tangents="all")
    mean, error = repeat(estimator, system, theta, 3, 2)
    assert_close(mean, exact(system, theta, 12))
    assert_close(error, np.zeros(2))


def test_a_pair_shares_setup_data_and_keys():
    system = systems.Batches(jax.random.normal(KEY, (50, 5)), batch=7)
    for name in ANTITHETIC:
        estimator = build(name)
        theta = jnp.float32(1.0)
        state = estimator.init(system, theta, KEY, 0)
        if name in ("full_es", "pes"):
            estimate = first(estimator, system, theta)
            assert_close(estimate.grad, 0.0)
            assert_close(estimate.diagnostics["difference"], 0.0, absolute=1e-6)
            assert estimate.diagnostics["loss_std"] > 0
        traced = str(jax.make_jaxpr(lambda s: estimator.estimate(system, theta, s, KEY, 0))(state))  # noqa: B023
        assert "f32[4,7,5]" in traced
        assert "f32[4,2,7,5]" not in traced


def losses_of(system, theta, steps):
    """The losses of a trajectory, by hand."""

    @jax.jit
    def run():
        setup = system.draw(KEY)

        def body(state, t):
            state, outcome = system.step(theta, setup, state, t, KEY)
            return state, outcome.loss

        return jax.lax.scan(body, system.init(theta, setup, jnp.int32(steps), KEY), jnp.arange(steps))[1]

    return np.asarray(run())


def test_steps_after_the_end_do_not_count():
    system, theta = systems.Descent(), systems.DESCENT_THETA
    losses = losses_of(system, theta, 6)
    estimator = build("backprop", truncation=4, length=6)
    state = estimator.init(system, theta, KEY, 0)
    for outer, want in enumerate([losses[:4], losses[4:], losses[:4]]):
        estimate, state = estimated(estimator, system, theta, state, jnp.int32(outer))
        assert_close(estimate.loss, np.mean(want))


@pytest.mark.parametrize(("reduction", "of"), [("mean", np.mean), ("last", lambda x: x[-1]), ("min", np.min)])
def test_reductions(reduction, of):
    """Only losses that count: those from step 3 on."""
    system, theta = systems.Descent(horizon=3), systems.DESCENT_THETA
    estimator = build("full_backprop", reduction=reduction)
    assert_close(first(estimator, system, theta).loss, of(losses_of(system, theta, 12)[3:]))


def test_offsets_and_endless_trajectories():
    system, theta = systems.Descent(), systems.DESCENT_THETA
    offset = build("backprop", random_offset=20)
    begun = np.concatenate([offset.init(system, theta, KEY, i).elapsed for i in range(20)])
    assert begun.min() == 0 and begun.max() == 19
    state = offset.init(system, theta, KEY, 3)
    _, after = estimated(build("backprop"), system, theta, state, jnp.int32(0))
    assert len(np.unique(state.elapsed)) == 4
    np.testing.assert_array_equal(after.elapsed, state.elapsed % 12 + 4)
    endless = build("backprop", lengths=Endless())
    state = endless.init(system, theta, KEY, 0)
    restarts = []
    for outer in range(5):
        estimate, state = estimated(endless, system, theta, state, jnp.int32(outer))
        restarts.append(int(estimate.diagnostics["restarts"]))
    assert restarts == [4, 0, 0, 0, 0]


def test_shaping():
    differences = jnp.array([0.1, -0.4, 0.0, 3.0])
    made = {
        name: ESTIMATORS["pes"](lengths=Constant(4), clip=clip, shaping=name).shaped(differences, None)
        for name, clip in (("none", 0.3), ("sign", None), ("rank", None))
    }
    assert_close(made["none"], np.array([0.1, -0.3, 0.0, 0.3]))
    assert_close(made["sign"], np.array([1.0, -1.0, 0.0, 1.0]))
    assert_close(made["rank"], np.array([0.375, -0.625, 0.0, 0.875]))
    assert_close(antithetic.magnitude_ranks(jnp.array([2.0, 2.0, 1.0]), None), np.array([4, 4, 1]) / 6)


def test_narrow_meta_parameters_keep_their_type():
    class Narrow(systems.Influence):
        def step(self, theta, setup, state, step, key):
            return super().step(theta.astype(jnp.float32), setup, state, step, key)

    theta = jnp.bfloat16(0.5)
    for name in ESTIMATORS:
        estimator = build(name)
        state = estimator.init(Narrow(), theta, KEY, 0)
        estimate, after = jax.eval_shape(lambda s: estimator.estimate(Narrow(), theta, s, KEY, 0), state)  # noqa: B023
        assert estimate.grad.dtype == jnp.bfloat16
        assert jax.tree.map(lambda a: a.dtype, after) == jax.tree.map(lambda a: a.dtype, state)


def test_lengths():
    keys = jax.random.split(KEY, 4000)
    drawn = np.asarray(jax.vmap(lambda k: LogUniform(2, 16).draw(k, 0))(keys))
    assert drawn.min() == 2 and drawn.max() == 16
    # P(n <= 5) = log(6 / 2) / log(17 / 2)
    assert abs((drawn <= 5).mean() - np.log(3) / np.log(8.5)) < 0.03
    multiples = np.asarray(jax.vmap(lambda k: LogUniform(2, 16, multiple=5).draw(k, 0))(keys))
    assert set(multiples) == {5, 10, 15}
    growing = LogUniform(schedules.PiecewiseLinear([0, 100], [10, 1000]), 1000)
    assert int(growing.draw(KEY, 100)) == 1000 and growing.draw(KEY, 0).dtype == jnp.int32
    assert int(Scheduled(schedules.Step([10], [50, 99]), multiple=10).draw(KEY, 10)) == 90
    assert int(Scheduled(schedules.Step([10], [0, 99])).draw(KEY, 0)) == 1
    assert int(Constant(30).draw(KEY, 5)) == 30
    assert int(LogUniform(200_000, 200_000).draw(KEY, 0)) == 200_000


@pytest.mark.parametrize(
    "make",
    [
        lambda: build("pes", particles=0),
        lambda: build("pes", truncation=0),
        lambda: build("pes", random_offset=-1),
        lambda: build("pes", lengths=12),
        lambda: build("pes", std=0.0),
        lambda: build("pes", clip=-1.0),
        lambda: build("pes", shaping="centred"),
        lambda: build("full_es", reduction="max"),
        lambda: build("full_es", lengths=Endless()),
        lambda: build("full_backprop", length=0),
        lambda: build("forward_mode", tangents=0),
        lambda: Constant(0),
        lambda: LogUniform(10, 5),
        lambda: LogUniform(1, 5, multiple=0),
        lambda: Scheduled(schedules.Cosine(100.0)),
        lambda: build("pes").init(systems.Influence(), {"n": jnp.int32(1)}, KEY, 0),
        lambda: build("full_es").init(systems.Influence(), {"n": 1.0}, KEY, 0),
        lambda: build("full_es").init(systems.Influence(), {}, KEY, 0),
    ],
)
def test_what_cannot_be_is_said(make):
    with pytest.raises(ConfigError, match=r"\.$"):
        make()


def test_the_example_of_the_page_learns():
    page = pathlib.Path(__file__).parents[1] / "docs" / "estimators.md"
    (example,) = re.findall(r"^```python\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    names = {}
    exec(compile(example, str(page), "exec"), names)
    assert names["theta"] > -3.5
    assert names["estimate"].diagnostics["skipped"] == 0
