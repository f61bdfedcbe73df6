"""Every estimator in the registry: the protocol, failures, devices, pairs, lengths, settings."""

import pathlib
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

import estimator_systems as systems
from estimator_runs import (
    ANTITHETIC,
    KEY,
    QUICK,
    TRUNCATED,
    assert_close,
    build,
    check_estimate,
    estimated,
    first,
)
from outeropt import checkpoint, tree
from outeropt.errors import ConfigError
from outeropt.metatraining.estimators import ESTIMATORS, antithetic
from outeropt.metatraining.lengths import Constant, Endless, LogUniform, Scheduled
from outeropt.optimizers import schedules


FRAGILE = systems.Descent(spread=0.3, broken=0.3)
THETA = systems.DESCENT_THETA


def arrays(state):
    """A state whose keys are numbers, to compare."""
    keys = jax.dtypes.prng_key
    return [
        np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, keys) else leaf)
        for leaf in jax.tree.leaves(state)
    ]


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

    state = estimator.init(FRAGILE, theta, KEY, 0)
    specs = jax.tree.map(lambda everywhere: whole if everywhere else rows, estimator.everywhere(state))
    shared = jax.jit(
        jax.shard_map(
            on_devices, mesh=mesh, in_specs=(specs, whole), out_specs=(whole, specs), check_vma=False
        ),
        compiler_options=QUICK,
    )
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
        name: ESTIMATORS["pes"](lengths=Constant(4), clip=clip, shaping=name).shaped(differences)
        for name, clip in (("none", 0.3), ("sign", None), ("rank", None))
    }
    assert_close(made["none"], np.array([0.1, -0.3, 0.0, 0.3]))
    assert_close(made["sign"], np.array([1.0, -1.0, 0.0, 1.0]))
    assert_close(made["rank"], np.array([0.375, -0.625, 0.0, 0.875]))
    assert_close(antithetic.magnitude_ranks(jnp.array([2.0, 2.0, 1.0])), np.array([4, 4, 1]) / 6)


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
