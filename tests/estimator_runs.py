"""Estimators with small settings, and one jitted estimate, that the tests of estimators share."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from outeropt.metatraining.estimators import ESTIMATORS
from outeropt.metatraining.lengths import Constant, LogUniform


KEY = jax.random.key(7)
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


def check_estimate(estimate, theta, name):
    assert jax.tree.structure(estimate.grad) == jax.tree.structure(theta)
    assert jax.tree.map(jnp.shape, estimate.grad) == jax.tree.map(jnp.shape, theta)
    assert np.isfinite(flat(estimate.grad)).all() and np.isfinite(estimate.loss)
    assert set(estimate.diagnostics) == set(ESTIMATORS[name].reports)
    assert ("difference" in estimate.diagnostics) == (name in ANTITHETIC)
    assert all(value.shape == () for value in estimate.diagnostics.values())


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def exact(system, theta, length):
    estimator = build("full_backprop", length=length)
    return flat(first(estimator, system, theta).grad)
