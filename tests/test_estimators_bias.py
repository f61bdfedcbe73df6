"""Bias of every estimator against exact gradients, by backpropagation, quadrature and finite differences."""

import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import estimator_systems as systems
from estimator_runs import (
    ANTITHETIC,
    KEY,
    TRUNCATED,
    assert_close,
    build,
    check_estimate,
    exact,
    first,
    flat,
)
from outeropt.metatraining.estimators import (
    ESTIMATORS,
    PES,
    Backprop,
    ESSingle,
    ForwardMode,
    FullBackprop,
    FullES,
    TruncatedES,
)
from outeropt.metatraining.lengths import Constant


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
