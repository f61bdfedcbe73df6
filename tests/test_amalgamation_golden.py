"""Amalgamation's objective, gradients, attacks and episodes against the published code's numbers."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from outeropt import optimizers, training
from outeropt.amalgamation import outer, perturbations, race
from outeropt.amalgamation.losses import Losses
from outeropt.amalgamation.outer import Recipe
from outeropt.amalgamation.perturbations import Perturbed, Unperturbed
from outeropt.amalgamation.race import Runners
from outeropt.amalgamation.scaling import ScaledTask
from outeropt.learned import RNNProp
from outeropt.task import Task
from outeropt.tree import named_leaves


FOLDER = Path(__file__).parent / "golden" / "amalgamation"
LAYERS = ("dense0.kernel", "dense0.bias", "dense1.kernel", "dense1.bias")
STEPS = 5
KEY = jax.random.key(0)


def load(name):
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def below(arrays, prefix):
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}


class Recorded(Task):
    """The published optimizee, a network of one hidden layer, on recorded minibatches in their order."""

    name: str = "recorded"
    x: jax.Array = None  # pyright: ignore
    y: jax.Array = None  # pyright: ignore
    params: dict = None  # pyright: ignore

    def init(self, key):
        del key
        return self.params, None

    def batch(self, split, key):
        # The key stands for the number of the step (see `recorded`).
        del split
        return self.x[key], self.y[key]

    def loss(self, params, state, batch, key):
        del key
        x, y = batch
        hidden = jax.nn.sigmoid(x @ params["dense0.kernel"] + params["dense0.bias"][None])
        logits = hidden @ params["dense1.kernel"] + params["dense1.bias"][None]
        scores = jax.nn.log_softmax(logits)
        return -jnp.mean(jnp.take_along_axis(scores, y[:, None], axis=1)), (state, {})


@pytest.fixture(autouse=True)
def batches_by_number(monkeypatch):
    """Minibatches by the number of the step, where they are drawn by a key otherwise."""
    monkeypatch.setattr(training.inner, "_step_keys", lambda key, step: (step, KEY, step, KEY))


def recorded(arrays, scale=None):
    x = jnp.asarray(arrays["data/x"], jnp.float32).reshape(-1, 12, 16)
    params = {name: jnp.asarray(arrays[f"params/{name}"]) for name in LAYERS}
    return Recorded(x=x, y=jnp.asarray(arrays["data/y"].reshape(-1, 12), jnp.int32), params=params)


TEACHERS = (optimizers.get("static_adam"), optimizers.get("root_rmsprop"))


def runners(task, student, arrays):
    scale = {name: jnp.asarray(arrays[f"scale/{name}"]) for name in LAYERS}
    begun = race.start(task, student, TEACHERS, 0.0, 5, KEY)
    held = ScaledTask(task, scale).held(begun.teachers[0].params)
    own = training.TrainState(held, None, begun.student.opt, begun.student.diverged_at)
    return Runners(own, begun.teachers, scale, begun.step)


def student_of(arrays, prefix="weights/"):
    return RNNProp().from_published(below(arrays, prefix))


def by_path(student):
    """The leaves of something shaped like a student, by their published names."""
    names = RNNProp().published_names
    return {names[name]: np.asarray(leaf) for name, leaf in named_leaves(student).items()}


def recipe(reduction="max", mixture="sum", perturbation=None):
    chosen = Losses(reduction=reduction, mixture=mixture)
    # Keras puts epsilon beside the root of the average that is not debiased yet: at the first step, this.
    outer_optimizer = optimizers.get("clip_adaptive:adam", learning_rate=1e-3, eps=1e-7 / np.sqrt(1e-3))
    return Recipe(TEACHERS, chosen, perturbation or Unperturbed(), outer_optimizer, 0.0, False)


def close(got, wanted, share):
    """Agreement to a share of the largest value of each tensor."""
    for name, value in wanted.items():
        assert np.abs(got[name] - value).max() <= share * np.abs(value).max(), name


def gradient(task, student, at, reduction, weights=(1.0, 0.2)):
    """Gradient of the objective, and what happened in the unroll."""
    losses = Losses(reduction=reduction)

    def loss(student):
        after, course = race.unroll(task, student, TEACHERS, at, losses, KEY, STEPS)
        meta, imitated = outer.parts(losses, course)
        return weights[0] * meta + weights[1] * imitated, (after, course, meta, imitated)

    return jax.jit(jax.grad(loss, has_aux=True))(student)


@functools.cache
def unrolled(name, reduction):
    arrays = load(name)
    task, student = recorded(arrays), student_of(arrays)
    return arrays, *gradient(task, student, runners(task, student, arrays), reduction)


FILES = ("objective_noscale", "objective_scaled", "objective_scaled_released")


@pytest.mark.parametrize("name", FILES)
def test_losses_and_distances_are_the_published_ones(name):
    arrays, _, (_, course, meta, imitated) = unrolled(name, "max")
    np.testing.assert_allclose(course.losses, arrays["f64/student_loss"], rtol=2e-6)
    np.testing.assert_allclose(course.initial, arrays["f64/initial_loss"], rtol=2e-6)
    np.testing.assert_allclose(course.teacher_losses, arrays["f64/teacher_loss"], rtol=2e-6)
    np.testing.assert_allclose(course.distances, arrays["f64/distance"], rtol=1e-5)
    np.testing.assert_allclose(meta, arrays["f64/meta_loss"], rtol=1e-4)
    np.testing.assert_allclose(imitated, arrays["f64/imitation_loss_max"], rtol=1e-5)
    mean = unrolled(name, "mean")[2][3]
    np.testing.assert_allclose(mean, arrays["f64/imitation_loss_mean"], rtol=1e-5)


@pytest.mark.parametrize("reduction", ["max", "mean"])
@pytest.mark.parametrize("name", FILES)
def test_gradients_are_the_published_ones(name, reduction):
    arrays, grads, _ = unrolled(name, reduction)
    close(by_path(grads), below(arrays, f"f64/grad_{reduction}/"), 1e-4)


@pytest.mark.parametrize("name", FILES)
def test_everyone_ends_where_the_published_code_does(name):
    arrays, _, (after, *_) = unrolled(name, "max")
    states = {"student": after.student.params}
    scaled = ScaledTask(recorded(arrays), after.scale)
    states |= dict(zip(("adam", "rmsprop"), (scaled.held(state.params) for state in after.teachers)))
    for who, params in states.items():
        wanted = {layer: arrays[f"trajectory/{who}/{layer}"][-1] for layer in LAYERS}
        close({layer: np.asarray(value) for layer, value in params.items()}, wanted, 1e-5)


@pytest.mark.parametrize(
    ("mixture", "prefix"), [("meta", "grad_meta_only/"), ("imitation", "grad_imitation_only_max/")]
)
def test_each_loss_alone_has_the_published_gradient(mixture, prefix):
    arrays = load("objective_scaled")
    weights = Losses(mixture=mixture).mix(jnp.float32(0.2), KEY)
    task, student = recorded(arrays), student_of(arrays)
    grads, _ = gradient(task, student, runners(task, student, arrays), "max", weights)
    close(by_path(grads), below(arrays, prefix), 1e-4)


@pytest.mark.parametrize("reduction", ["max", "mean"])
def test_an_outer_step_is_the_published_one(reduction):
    arrays = load("objective_scaled")
    task, student = recorded(arrays), student_of(arrays)
    made = recipe(reduction)
    learner, _, report = outer.learn(
        task, made, outer.begin(made, student), runners(task, student, arrays), jnp.float32(0.2), KEY, STEPS
    )
    moved = by_path(learner.student)
    for name, wanted in below(arrays, f"weights_after_{reduction}/").items():
        np.testing.assert_allclose(moved[name], wanted, atol=2e-6, err_msg=name)
    assert int(report.skipped) == int(report.cut) == 0 and int(report.wins.sum()) == STEPS


def test_a_warm_up_is_the_published_one():
    """There it runs in scaled coordinates, here in the task's own: a scaled task makes them one."""
    arrays = load("objective_episode")
    task, student = recorded(arrays), student_of(arrays)
    at = runners(task, student, arrays)
    scaled, ones = ScaledTask(task, at.scale), jax.tree.map(jnp.ones_like, at.scale)
    held = Runners(at.student, (), ones, at.step)
    after = race.warm_up(scaled, student, (), held, 0.005, KEY, STEPS).student
    wanted = {layer: arrays[f"after_warmup/student/{layer}/param"] for layer in LAYERS}
    close({layer: np.asarray(value) for layer, value in after.params.items()}, wanted, 1e-5)
    averages = of_all(arrays, "after_warmup/student", "m"), of_all(arrays, "after_warmup/student", "v")
    close(dict(zip("mv", after.opt.averages)), dict(zip("mv", averages)), 1e-4)
    assert not any(np.any(part) for pair in after.opt.lstms for part in pair)


def of_all(arrays, who, part):
    """One part of the recorded states of all tensors, in the order of our coordinates."""
    return np.concatenate([arrays[f"{who}/{layer}/{part}"].reshape(-1) for layer in sorted(LAYERS)])


def test_two_outer_steps_on_one_trajectory_are_the_published_ones():
    arrays = load("objective_episode")
    task, student = recorded(arrays), student_of(arrays)
    at = after_warm_up(task, student, arrays)
    made = recipe()
    learner = outer.begin(made, student)
    for number in (1, 2):
        grads, (_, course, meta, imitated) = gradient(task, learner.student, at, "max")
        wanted = below(arrays, f"f64/unroll{number}/")
        np.testing.assert_allclose(course.distances, wanted["distance"], rtol=2e-5)
        np.testing.assert_allclose(meta, wanted["meta_loss"], rtol=1e-4)
        np.testing.assert_allclose(imitated, wanted["imitation_loss"], rtol=2e-5)
        # The original's own float32 gradients are that far from its float64 ones with released weights.
        close(by_path(grads), below(wanted, "grad/"), 5e-4)
        learner, at, _ = outer.learn(task, made, learner, at, jnp.float32(0.2), KEY, STEPS)
        moved = by_path(learner.student)
        for name, value in below(arrays, f"unroll{number}/weights_after/").items():
            # Adam's first steps depend on little more than the signs of gradients, the smallest included.
            assert np.abs(moved[name] - value).max() < 2e-4, name
            assert np.abs(moved[name] - value).mean() < 5e-5, name


def after_warm_up(task, student, arrays):
    """Everyone as the published code had them after its warm-up."""
    at = runners(task, student, arrays)
    scaled = ScaledTask(task, at.scale)

    def params(who):
        return {layer: jnp.asarray(arrays[f"after_warmup/{who}/{layer}/param"]) for layer in LAYERS}

    def moment(who, part):
        return {layer: jnp.asarray(arrays[f"after_warmup/{who}/{layer}/{part}"]) for layer in LAYERS}

    averages = [jnp.asarray(of_all(arrays, "after_warmup/student", part)) for part in "mv"]
    opt = at.student.opt._replace(averages=type(at.student.opt.averages)(*averages))
    own = training.TrainState(params("student"), None, opt, at.student.diverged_at)
    states = [
        jax.tree.unflatten(jax.tree.structure(t.opt), leaves)
        for t, leaves in zip(
            at.teachers,
            (
                [*jax.tree.leaves(moment("adam", "m")), *jax.tree.leaves(moment("adam", "v"))],
                jax.tree.leaves(moment("rmsprop", "v")),
            ),
        )
    ]
    others = tuple(
        training.TrainState(scaled.unscaled(params(who)), None, opt, t.diverged_at)
        for who, opt, t in zip(("adam", "rmsprop"), states, at.teachers)
    )
    return Runners(own, others, at.scale, jnp.int32(STEPS))


ATTACKS = {
    "fgsm": perturbations.FGSM(1e-3),
    "cgd1": perturbations.ClippedPGD(1e-3),
    "cgd3": perturbations.ClippedPGD(1e-3, steps=3),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_on_the_objective_are_the_published_ones(name):
    arrays, attack = load("perturbation_objective"), ATTACKS[name]
    task, student = recorded(arrays), student_of(arrays)
    at = runners(task, student, arrays)
    losses = Losses()

    def loss(student, offset):
        played = Perturbed(student, offset, attack)
        _, course = race.unroll(task, played, TEACHERS, at, losses, KEY, STEPS)
        meta, imitated = outer.parts(losses, course)
        return meta + 0.2 * imitated, (meta, imitated)

    slope = jax.jit(jax.grad(loss, argnums=1, has_aux=True))
    offset = attack.start(student, KEY)
    for number in range(1, attack.attacks + 1):
        gradient, _ = slope(student, offset)
        close(by_path(gradient), below(arrays, f"{name}/attack_grad{number}/"), 2e-4)
        offset = attack.climb(student, offset, gradient)
    wanted = below(arrays, f"f64/{name}/delta_after{attack.attacks}/")
    for path, got in by_path(offset).items():
        np.testing.assert_allclose(got, wanted[path], atol=2e-7, err_msg=path)
    gradient, (meta, imitated) = slope(student, offset)
    np.testing.assert_allclose(meta, arrays[f"f64/{name}/meta_loss"], rtol=2e-4)
    np.testing.assert_allclose(imitated, arrays[f"f64/{name}/imitation_loss"], rtol=2e-5)
    close(by_path(gradient), below(arrays, f"f64/{name}/grad/"), 2e-4)


GIVEN = {
    "fgsm": (perturbations.FGSM(1e-3), {1: "fgsm/"}),
    "cgd": (perturbations.ClippedPGD(1e-3), {1: "cgd_after1/", 2: "cgd_after2/", 3: "cgd_after3/"}),
    "inf": (perturbations.ProjectedPGD(2e-6), {1: "pgd_inf_after1/", 3: "pgd_inf_after3/"}),
    "l2": (perturbations.ProjectedPGD(5e-4, norm="l2"), {1: "pgd_l2_after1/", 3: "pgd_l2_after3/"}),
}


@pytest.mark.parametrize("name", GIVEN)
def test_perturbations_from_given_gradients_are_the_published_ones(name):
    arrays = load("perturbation_given")
    attack, recordings = GIVEN[name]
    student = student_of(arrays)
    offset = attack.start(student, KEY)
    for number in range(1, max(recordings) + 1):
        # Something shaped as the student, with the gradients for weights.
        offset = attack.climb(student, offset, student_of(arrays, f"grads{number}/"))
        if number in recordings:
            close(by_path(offset), below(arrays, recordings[number]), 1e-6)


@pytest.mark.parametrize(("which", "weights"), [("random", "weights/"), ("released", "weights_released/")])
def test_relative_noise_has_the_published_standard_deviations(which, weights):
    arrays = load("perturbation_given")
    noise = perturbations.RelativeGaussian(5e-4)
    for path, leaf in by_path(student_of(arrays, weights)).items():
        wanted = arrays[f"gaussian_rel_std_{which}/{path}"]
        np.testing.assert_allclose(noise.std(jnp.asarray(leaf)), wanted, rtol=1e-6)
