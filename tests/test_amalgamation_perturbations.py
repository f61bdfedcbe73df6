"""Perturbations of a student as it learns: noise of the right size, attacks that hurt."""

import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from outeropt import optimizers, training
from outeropt.amalgamation import PERTURBATIONS, Losses, outer, race
from outeropt.amalgamation.outer import Recipe
from outeropt.amalgamation.perturbations import (
    FGSM,
    PGD,
    ClippedPGD,
    Gaussian,
    InputNoise,
    PersistentGaussian,
    Perturbed,
    ProjectedPGD,
    RelativeGaussian,
    Unperturbed,
)
from outeropt.errors import ConfigError
from outeropt.optimizer import Optimizer
from toys import regression


KEY = jax.random.key(5)
TASK = regression()
TEACHERS = (optimizers.get("static_adam", learning_rate=0.05),)
LENGTH = 4
# These programs run once: compile them fast rather than well.
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
jit = functools.partial(eqx.filter_jit, compiler_options=QUICK)


class Probe(Optimizer):
    """Gradient descent that keeps in its state the weights that it had and the gradients that it saw."""

    weights: jax.Array

    def init(self, params, *, num_steps=None, key=None):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return {"weights": self.weights, "seen": zeros, "given": zeros, "draw": jnp.float32(0.0)}

    def update(self, grads, state, params, **context):
        draw = jax.random.uniform(context["key"])
        state = {"weights": self.weights, "seen": grads, "given": context["grad"], "draw": draw}
        return jax.tree.map(lambda g: -0.01 * g, grads), state


PROBE = Probe(jnp.full(3000, 2.0).at[::2].set(0.5))


def played(perturbation, key=KEY):
    """States of the probe in each step of an unroll under a perturbation, and the losses."""
    student = Perturbed(PROBE, perturbation.start(PROBE, key), perturbation)
    state, states, losses = training.start(TASK, student, KEY), [], []
    step = jit(training.inner_step)
    for i in range(LENGTH):
        state, loss = step(TASK, student, state, jnp.int32(i), key)
        states.append(state)
        losses.append(float(loss))
    return states, losses


@pytest.mark.parametrize(
    ("noise", "std"),
    [
        (Gaussian(0.03), 0.03),
        (RelativeGaussian(0.01), 0.01 * math.sqrt((4.0 + 0.25) / 2)),
        (PersistentGaussian(0.02), 0.02),
    ],
    ids=["gaussian", "gaussian_rel", "gaussian_persistent"],
)
def test_noise_on_weights(noise, std):
    states, losses = played(noise)
    drawn = np.stack([state.opt["weights"] - PROBE.weights for state in states])
    np.testing.assert_allclose(drawn.std(axis=1), std, rtol=0.05)
    assert np.abs(drawn.mean(axis=1)).max() < 4 * std / math.sqrt(3000)
    assert abs(np.corrcoef(drawn[0, ::2], drawn[0, 1::2])[0, 1]) < 0.1, "each weight has its own"
    if isinstance(noise, PersistentGaussian):
        assert (drawn == drawn[0]).all()
    else:
        assert np.abs(np.corrcoef(drawn) - np.eye(LENGTH)).max() < 0.1, "each step has its own"
    again, _ = played(noise)
    other, _ = played(noise, jax.random.key(6))
    np.testing.assert_array_equal(again[2].opt["weights"], states[2].opt["weights"])
    assert (other[2].opt["weights"] != states[2].opt["weights"]).any()
    # Gradients, losses and the optimizer's own randomness are as without.
    plain, wanted = played(Unperturbed())
    np.testing.assert_allclose(losses, wanted, rtol=1e-6)
    for state, quiet in zip(states, plain):
        np.testing.assert_allclose(state.opt["seen"]["w"], quiet.opt["seen"]["w"], rtol=1e-5)
        assert state.opt["draw"] == quiet.opt["draw"]
    np.testing.assert_array_equal(plain[0].opt["weights"], PROBE.weights)


def test_noise_differs_from_tensor_to_tensor():
    student = (jnp.zeros(5), jnp.zeros(5))
    for noise in (Gaussian(), RelativeGaussian()):
        one, other = noise.at_step(student, KEY)  # pyright: ignore
        assert (one != other).all()


def test_noise_on_inputs_changes_what_the_student_sees_and_nothing_else():
    runners = race.start(TASK, PROBE, TEACHERS, 0.0, LENGTH, KEY)
    student = Perturbed(PROBE, jax.tree.map(jnp.zeros_like, PROBE), InputNoise(0.5))
    after, course = jit(race.unroll)(TASK, student, TEACHERS, runners, Losses(), KEY, 1)
    quiet, wanted = jit(race.unroll)(TASK, PROBE, TEACHERS, runners, Losses(), KEY, 1)
    np.testing.assert_allclose(course.losses, wanted.losses, rtol=1e-6)
    np.testing.assert_allclose(course.initial, wanted.initial, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(after.teachers), jax.tree.leaves(quiet.teachers)):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    np.testing.assert_array_equal(after.student.opt["weights"], PROBE.weights)
    assert after.student.opt["draw"] == quiet.student.opt["draw"]
    np.testing.assert_allclose(after.student.opt["given"]["w"], quiet.student.opt["seen"]["w"], rtol=1e-5)
    assert (np.abs(after.student.opt["seen"]["w"] - quiet.student.opt["seen"]["w"]) > 1e-3).all()
    # A long draw for its size.
    grads = {"w": jnp.ones(4000), "b": jnp.zeros(4000)}
    noisy = InputNoise(0.5).on_gradients(grads, KEY)
    for name, leaf in noisy.items():
        np.testing.assert_allclose(np.std(leaf - grads[name]), 0.5, rtol=0.05)
    assert (noisy["w"] - 1.0 != noisy["b"]).all()


# Attacks ----------------------------------------------------------------------------------------------------


def norm(leaf):
    return float(np.linalg.norm(np.asarray(leaf)))


WEIGHTS = {"a": jnp.array([[3.0, -4.0]]), "b": jnp.array([2.0, 0.0, 0.0]), "c": jnp.array(-0.5)}
SLOPES = {"a": jnp.array([[1e-6, 2e-6]]), "b": jnp.array([100.0, -300.0, 0.0]), "c": jnp.array(-7.0)}


def climbed(attack, slopes=SLOPES, times=None):
    offset = attack.start(WEIGHTS, KEY)
    for _ in range(attack.attacks if times is None else times):
        offset = attack.climb(WEIGHTS, offset, slopes)
    return offset


@pytest.mark.parametrize("steps", [1, 3])
def test_pgd_is_equation_6_of_the_paper(steps):
    """Each step is as long as the share of the tensor's norm, whatever the size of the gradient."""
    offset = climbed(PGD(0.01, steps=steps))
    for name, leaf in offset.items():
        assert norm(leaf) == pytest.approx(steps * 0.01 * norm(WEIGHTS[name]), rel=1e-5)
        share = np.asarray(leaf) / norm(leaf)
        np.testing.assert_allclose(share, SLOPES[name] / norm(SLOPES[name]), rtol=1e-5, atol=1e-7)


def test_fgsm_is_a_step_of_one_size():
    for name, leaf in climbed(FGSM(0.02)).items():
        np.testing.assert_allclose(leaf, 0.02 * np.sign(SLOPES[name]), rtol=1e-6)


def test_a_clipped_attack_is_no_longer_than_its_share():
    offset = climbed(ClippedPGD(0.01))
    np.testing.assert_allclose(offset["a"], SLOPES["a"], rtol=1e-6)
    assert norm(offset["b"]) == pytest.approx(0.02, rel=1e-5)
    assert norm(offset["c"]) == pytest.approx(0.005, rel=1e-5)


@pytest.mark.parametrize("kind", ["inf", "l2"])
def test_a_projected_attack_stays_in_its_ball(kind):
    attack = ProjectedPGD(0.3, learning_rate=0.1, norm=kind, steps=4)
    for name, leaf in climbed(attack).items():
        size = float(np.abs(leaf).max()) if kind == "inf" else norm(leaf)
        if name == "a":
            np.testing.assert_allclose(leaf, 4 * 0.1 * SLOPES[name], rtol=1e-5)
        else:
            assert size == pytest.approx(0.3, rel=1e-5)


ATTACKS = [
    FGSM(),
    PGD(),
    PGD(steps=2),
    ClippedPGD(),
    ClippedPGD(steps=3),
    ProjectedPGD(),
    ProjectedPGD(norm="l2"),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: f"{type(attack).__name__}-{attack.attacks}")
def test_attacks_without_a_gradient_stay_at_the_weights(attack):
    flat = jax.tree.map(jnp.zeros_like, WEIGHTS)
    for leaf in jax.tree.leaves(climbed(attack, flat, times=2)):
        np.testing.assert_array_equal(leaf, 0.0)
    # Weights that are zero have no size to be a share of.
    attacked = attack.climb(flat, flat, SLOPES)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(attacked))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FGSM(0.0), "step_size of a perturbation is 0.0; give a positive number."),
        (lambda: PGD(-1), "magnitude of a perturbation is -1; give a positive number."),
        (lambda: ClippedPGD(math.nan), "magnitude of a perturbation is nan; give a positive number."),
        (lambda: Gaussian(math.inf), "noise_stddev of a perturbation is inf"),
        (lambda: ProjectedPGD(learning_rate=0), "learning_rate of a perturbation is 0"),
        (lambda: PGD(steps=0), "steps = 0 of a perturbation is not possible; give at least 1."),
        (lambda: ProjectedPGD(norm="l1"), "norm = 'l1' of a perturbation is unknown; it is inf or l2."),
    ],
)
def test_what_no_perturbation_is(make, message):
    with pytest.raises(ConfigError) as error:
        make()
    assert message in str(error.value)


# In an outer step -------------------------------------------------------------------------------------------

MOMENTUM = optimizers.get("ema_momentum", learning_rate=0.1)


@jit
def learned(perturbation, rate, key=KEY):
    """One outer step on a student by gradient descent."""
    descent = optimizers.get("sgd", learning_rate=1.0).replace(learning_rate=rate)
    made = Recipe(TEACHERS, Losses(), perturbation, descent, 0.0, False)
    runners = race.start(TASK, MOMENTUM, TEACHERS, 0.0, LENGTH, KEY)
    learner, _, report = outer.learn(
        TASK, made, outer.begin(made, MOMENTUM), runners, jnp.float32(0.1), key, LENGTH
    )
    return learner, report


def loss_of(report):
    return float(report.meta_loss + 0.1 * report.imitation_loss)


STRONG = [FGSM(0.01), PGD(0.05, steps=2), ClippedPGD(0.05), ProjectedPGD(0.02, learning_rate=1.0)]


@pytest.mark.parametrize("attack", STRONG, ids=lambda attack: f"{type(attack).__name__}-{attack.attacks}")
def test_attacks_make_the_loss_larger(attack):
    _, quiet = learned(Unperturbed(), jnp.float32(0.0))
    learner, report = learned(attack, jnp.float32(0.0))
    assert loss_of(report) > loss_of(quiet) + 1e-3
    # The step is made from the weights, not from where the attack was.
    for a, b in zip(jax.tree.leaves(learner.student), jax.tree.leaves(MOMENTUM)):
        np.testing.assert_array_equal(a, b)


def test_the_gradient_is_taken_where_the_perturbation_is():
    rate = jnp.float32(1e-2)
    moved = [
        learned(p, rate)[0].student for p in (Unperturbed(), PGD(0.03, steps=2), PersistentGaussian(0.05))
    ]
    steps = [float(student.learning_rate - MOMENTUM.learning_rate) for student in moved]
    assert len({round(step, 7) for step in steps}) == 3 and all(steps)


def test_noise_that_is_drawn_for_an_unroll_differs_from_unroll_to_unroll():
    losses = [loss_of(learned(PersistentGaussian(0.05), jnp.float32(0.0), key)[1]) for key in
              jax.random.split(KEY, 2)]  # fmt: skip
    quiet = [loss_of(learned(Unperturbed(), jnp.float32(0.0), key)[1]) for key in jax.random.split(KEY, 2)]
    gaps = np.subtract(losses, quiet)
    assert np.abs(gaps).min() > 1e-4 and abs(gaps[0] - gaps[1]) > 1e-4


def test_perturbations_have_the_names_of_the_command_line():
    assert {name for name in PERTURBATIONS if PERTURBATIONS[name]().attacks} == {
        "fgsm", "pgd", "cgd", "projected_pgd"
    }  # fmt: skip
    assert PERTURBATIONS["none"] is Unperturbed
