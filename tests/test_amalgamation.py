"""Amalgamation: its losses, its scaled coordinates, the race of student and teachers, its outer steps."""

import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from outeropt import optimizers, training, tree
from outeropt.amalgamation import Losses, outer, race
from outeropt.amalgamation.outer import Recipe
from outeropt.amalgamation.perturbations import Unperturbed
from outeropt.amalgamation.scaling import ScaledTask, draw_scale
from outeropt.errors import ConfigError
from outeropt.learned import RNNProp
from outeropt.optimizer import Optimizer
from toys import regression


KEY = jax.random.key(3)
TASK = regression()
TEACHERS = (optimizers.get("static_adam", learning_rate=0.05), optimizers.get("root_rmsprop"))
SGD = optimizers.get("sgd", learning_rate=0.05)
LENGTH = 4
# These programs run once: compile them fast rather than well.
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
jit = functools.partial(eqx.filter_jit, compiler_options=QUICK)


def same(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def close(one, other, rtol=1e-5, atol=1e-6):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=rtol, atol=atol)


# Losses -----------------------------------------------------------------------------------------------------

OWN, FIRST = jnp.array([0.5, 2.0, 3.0, 0.25]), jnp.array([1.0, 1.0, 1.5, 0.5])
GAPS = jnp.array([[0.1, 0.4], [-1.0, -2.0], [0.3, 0.2], [0.0, 0.5]])
ALL = jnp.ones(4, bool)


@pytest.mark.parametrize(
    ("weighting", "weights"), [("mean", [0.25] * 4), ("sum", [1.0] * 4), ("final", [0.0, 0.0, 0.0, 1.0])]
)
def test_weights_of_steps(weighting, weights):
    losses = Losses(weighting=weighting)
    np.testing.assert_array_equal(losses.weights(4), np.float32(weights))
    meta = np.dot(weights, np.log(OWN) - np.log(FIRST))
    np.testing.assert_allclose(losses.meta(OWN, FIRST, ALL), meta, rtol=1e-5)
    np.testing.assert_allclose(losses.imitation(GAPS, ALL), np.dot(weights, GAPS.max(axis=1)), rtol=1e-5)


def test_shares_in_place_of_logarithms():
    losses = Losses(objective="ratio")
    np.testing.assert_allclose(losses.meta(OWN, FIRST, ALL), np.mean(OWN / FIRST), rtol=1e-6)
    wanted = np.mean(np.exp(GAPS.max(axis=1)))
    np.testing.assert_allclose(losses.imitation(GAPS, ALL), wanted, rtol=1e-6)


def test_reductions_over_teachers():
    np.testing.assert_allclose(Losses().imitation(GAPS, ALL), np.mean([0.4, -1.0, 0.3, 0.5]), rtol=1e-6)
    np.testing.assert_allclose(Losses(reduction="mean").imitation(GAPS, ALL), np.mean(GAPS), rtol=1e-6)
    assert Losses(objective="ratio").imitation(jnp.zeros((4, 0)), ALL) == 0


@pytest.mark.parametrize("objective", ["log", "ratio"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -5.0])
def test_steps_that_do_not_count_have_no_weight_and_finite_gradients(objective, bad):
    losses, counts = Losses(objective=objective), jnp.array([True, True, False, False])

    def total(own, first, gaps):
        return losses.meta(own, first, counts) + losses.imitation(gaps, counts)

    spoilt = (OWN.at[2:].set(bad), FIRST.at[3].set(bad), GAPS.at[2:].set(bad))
    got, slopes = jax.value_and_grad(total, argnums=(0, 1, 2))(*spoilt)
    wanted, clean = jax.value_and_grad(total, argnums=(0, 1, 2))(OWN, FIRST, GAPS)
    assert got == wanted and np.isfinite(got)
    for slope, other in zip(slopes, clean):
        np.testing.assert_array_equal(slope[:2], other[:2])
        np.testing.assert_array_equal(slope[2:], 0.0)
    # A student that stays where it was is no better and no worse than one that did not move.
    shares = [*np.asarray(OWN / FIRST)[:2].tolist(), 1.0, 1.0]
    own = np.mean(np.log(shares) if objective == "log" else shares)
    np.testing.assert_allclose(losses.meta(*spoilt[:2], counts), own, rtol=1e-5)
    far = np.asarray(GAPS).max(axis=1)[:2]
    np.testing.assert_allclose(
        losses.imitation(spoilt[2], counts), sum(far if objective == "log" else np.exp(far)) / 4, rtol=1e-5
    )


def test_mixtures():
    p, pair = jnp.float32(0.2), functools.partial(map, float)
    assert tuple(pair(Losses().mix(p, KEY))) == (1.0, pytest.approx(0.2))
    assert tuple(pair(Losses(mixture="imitation").mix(p, KEY))) == (0.0, 1.0)
    assert tuple(pair(Losses(mixture="meta").mix(p, KEY))) == (1.0, 0.0)


def test_a_switch_imitates_with_the_probability():
    losses, keys = Losses(mixture="switch"), jax.random.split(KEY, 4000)
    for p in (0.0, 0.3, 1.0):
        meta, imitated = jax.vmap(losses.mix, in_axes=(None, 0))(jnp.float32(p), keys)
        assert set(np.unique(imitated)) <= {0.0, 1.0}
        np.testing.assert_array_equal(meta, 1.0 - imitated)
        assert abs(float(imitated.mean()) - p) <= 3 * math.sqrt(p * (1 - p) / 4000)


def test_distances_are_over_all_coordinates():
    one = {"a": jnp.array([[1.0, 2.0], [0.0, -1.0]]), "b": jnp.array([3.0])}
    other = {"a": jnp.array([[0.0, 2.5], [0.0, 1.0]]), "b": jnp.array([2.0])}
    wanted = np.log(0.5 * (1 + 0.25 + 4 + 1)) - np.log(5)
    np.testing.assert_allclose(Losses().distance(one, other), wanted, rtol=1e-6)
    at_once, slope = jax.value_and_grad(Losses().distance)(one, one)
    np.testing.assert_allclose(at_once, np.log(1e-10) - np.log(5), rtol=1e-6)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(slope)), "no derivative where they are the same"


@pytest.mark.parametrize("huber", [0.0, 0.5, 2.0])
def test_huber_and_its_derivative(huber):
    losses = Losses(huber=huber)
    for x in (-3.0, -0.5, -0.2, 0.1, 0.5, 0.51, 4.0):
        square = 0.5 * x**2
        value = square if not huber or abs(x) <= huber else huber * (abs(x) - 0.5 * huber)
        slope = x if not huber or abs(x) <= huber else huber * np.sign(x)
        got, derivative = jax.value_and_grad(losses.distance)(jnp.float32(x), jnp.float32(0.0))
        np.testing.assert_allclose(got, np.log(value + 1e-10), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(derivative, slope / (value + 1e-10), rtol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"reduction": "min"}, "reduction = 'min' is unknown; it is max or mean."),
        ({"weighting": "last"}, "weighting = 'last' is unknown; it is mean or sum or final."),
        ({"objective": "exp"}, "objective = 'exp' is unknown; it is log or ratio."),
        ({"mixture": "both"}, "mixture = 'both' is unknown; it is sum or switch or imitation or meta."),
        ({"huber": -0.1}, "huber = -0.1 must be at least 0"),
        ({"huber": math.nan}, "huber = nan must be at least 0"),
        ({"huber": math.inf}, "huber = inf must be at least 0"),
        ({"epsilon": 0.0}, "epsilon = 0.0 above 0"),
    ],
)
def test_choices_that_there_are_not(wrong, message):
    with pytest.raises(ConfigError) as error:
        Losses(**wrong)
    assert message in str(error.value)


# Scaling ----------------------------------------------------------------------------------------------------


def test_scales_are_drawn_within_their_bounds():
    params = {"w": jnp.zeros((50, 40)), "b": jnp.zeros(500)}
    scale = draw_scale(params, 3.0, KEY)
    for name, leaf in scale.items():
        logs = np.log(leaf)
        assert leaf.shape == params[name].shape and leaf.dtype == params[name].dtype
        assert np.abs(logs).max() <= 3.0 + 1e-5 and len(np.unique(logs)) > 0.9 * leaf.size
        assert np.abs(logs).max() > 2.9 and abs(logs.mean()) < 0.25
        np.testing.assert_allclose(logs.std(), 6 / math.sqrt(12), rtol=0.1)
    assert (scale["w"].reshape(-1)[:500] != scale["b"]).any()
    same(draw_scale(params, 0.0, KEY), jax.tree.map(jnp.ones_like, params))
    assert (draw_scale(params, 3.0, jax.random.key(4))["b"] != scale["b"]).any()


def test_a_scaled_task_is_the_same_task_in_other_coordinates():
    params, _ = TASK.init(KEY)
    scale = draw_scale(params, 2.0, KEY)
    scaled = ScaledTask(TASK, scale)
    held, state = scaled.init(KEY)
    close(scaled.unscaled(held), params)
    close(held, jax.tree.map(jnp.divide, params, scale))
    assert scaled.name == TASK.name and state is None
    batch = scaled.batch("train", KEY)
    same(batch, TASK.batch("train", KEY))
    loss, grads = jax.value_and_grad(lambda p: scaled.loss(p, None, batch, None)[0])(held)
    wanted, own = jax.value_and_grad(lambda p: TASK.loss(p, None, batch, None)[0])(params)
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    close(grads, jax.tree.map(jnp.multiply, own, scale), rtol=1e-4)


# The race ---------------------------------------------------------------------------------------------------


@jit
def begun(student, teachers, spread=0.0, steps=8):
    return race.start(TASK, student, teachers, spread, steps, KEY)


@jit
def raced(student, teachers, runners, key=KEY, losses=Losses()):  # noqa: B008 (it is static)
    return race.unroll(TASK, student, teachers, runners, losses, key, LENGTH)


@jit
def warmed(student, teachers, runners, rate):
    return race.warm_up(TASK, student, teachers, runners, rate, KEY, LENGTH)


@jit
def alone(task, optimizer, state, first, key=KEY):
    return training.unroll(task, optimizer, state, key, first=first, length=LENGTH)


def test_all_start_at_the_same_place():
    runners = begun(SGD, TEACHERS, 2.0)
    params = runners.teachers[0].params
    same(runners.teachers[1].params, params)
    close(ScaledTask(TASK, runners.scale).unscaled(runners.student.params), params)
    assert runners.step == 0 and {int(state.diverged_at) for state in runners.teachers} == {-1}
    other = race.start(TASK, SGD, TEACHERS, 2.0, 8, jax.random.key(9))
    assert (other.scale["w"] != runners.scale["w"]).any()
    assert (other.teachers[0].params["w"] != params["w"]).any()


def test_everyone_trains_as_alone():
    """Two unrolls, the second from where the first ended."""
    student = optimizers.get("ema_momentum", learning_rate=0.1)
    for spread in (0.0, 1.5):
        runners = begun(student, TEACHERS, spread)
        task = ScaledTask(TASK, runners.scale) if spread else TASK
        for first in (0, LENGTH):
            after, course = raced(student, TEACHERS, runners)
            for k, teacher in enumerate(TEACHERS):
                state, losses = alone(TASK, teacher, runners.teachers[k], first)
                close(after.teachers[k], state)
                close(course.teacher_losses[:, k], losses)
            state, losses = alone(task, student, runners.student, first)
            close(after.student, state)
            close(course.losses, losses)
            assert course.counts.all() and after.step == first + LENGTH
            runners = after


def test_distances_are_in_scaled_coordinates_after_each_step():
    runners = begun(SGD, TEACHERS, 1.5)
    _, course = raced(SGD, TEACHERS, runners)
    scaled, states = ScaledTask(TASK, runners.scale), [runners.student, *runners.teachers]
    step = jit(training.inner_step)
    for i in range(LENGTH):
        own, _ = step(scaled, SGD, states[0], jnp.int32(i), KEY)
        others = [step(TASK, t, s, jnp.int32(i), KEY)[0] for t, s in zip(TEACHERS, states[1:])]
        gaps = [Losses().distance(own.params, scaled.held(other.params)) for other in others]
        np.testing.assert_allclose(course.distances[i], gaps, rtol=1e-4)
        states = [own, *others]


def test_all_see_the_same_minibatches():
    still = SGD.replace(learning_rate=0.0)
    runners = begun(still, (still, TEACHERS[0]))
    _, course = raced(still, (still, TEACHERS[0]), runners)
    # Whoever does not move sees the losses of the initial parameters.
    close(course.losses, course.initial)
    close(course.teacher_losses[:, 0], course.initial)
    close(course.teacher_losses[0, 1], course.initial[0])
    assert len(np.unique(course.initial)) == LENGTH, "minibatches differ from step to step"
    _, other = raced(still, (still, TEACHERS[0]), runners, jax.random.key(8))
    assert (other.initial != course.initial).all()


@pytest.mark.parametrize("spread", [0.0, 2.0])
def test_a_warm_up_moves_all_alike(spread):
    student = RNNProp(hidden_sizes=(3,), key=KEY)
    runners = begun(student, TEACHERS, jnp.float32(spread))
    after = warmed(student, TEACHERS, runners, jnp.float32(0.05))
    # Plain SGD in the task's own coordinates.
    first = runners.teachers[0].params
    wanted, _ = alone(TASK, SGD, training.TrainState(first, None, SGD.init(first), jnp.int32(-1)), 0)
    for state in after.teachers:
        close(state.params, wanted.params, rtol=1e-4)
    close(ScaledTask(TASK, runners.scale).unscaled(after.student.params), wanted.params, rtol=1e-4)
    assert after.step == LENGTH
    assert all(np.all(leaf) for leaf in jax.tree.leaves(after.student.opt.averages))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(after.student.opt.lstms))
    assert all(np.all(leaf) for leaf in jax.tree.leaves(after.teachers[1].opt))


def test_a_warm_up_shows_the_student_gradients_in_its_coordinates():
    student = RNNProp(hidden_sizes=(3,), key=KEY)
    runners = begun(student, TEACHERS, jnp.float32(2.0))
    after = warmed(student, TEACHERS, runners, jnp.float32(0.0))
    scaled = ScaledTask(TASK, runners.scale)
    watched, held = runners.student.opt, runners.student.params
    slope = jax.grad(functools.partial(training.training_loss, scaled))
    for i in range(LENGTH):
        watched = student.observe(slope(held, None, i, KEY), watched, held)
    close(after.student.opt, watched, rtol=1e-4, atol=1e-9)
    close(after.student.params, held)


class Breaks(Optimizer):
    """Gradient descent whose updates are no numbers in one step."""

    learning_rate: jax.Array
    at: jax.Array

    def init(self, params, *, num_steps=None, key=None):
        return jnp.float32(0.0)

    def update(self, grads, state, params, **context):
        spoilt = jnp.where(state == self.at, jnp.nan, self.learning_rate)
        return jax.tree.map(lambda g: -spoilt * g, grads), state + 1.0


@pytest.mark.parametrize("at", [0, 2])
def test_a_student_that_is_no_number_stays_where_it_was(at):
    """The published code sets its parameters to 0."""
    student = Breaks(jnp.float32(0.05), jnp.float32(at))
    runners = begun(student, TEACHERS)
    after, course = raced(student, TEACHERS, runners)
    state = runners.student
    step = jit(training.inner_step)
    for i in range(at):
        state, _ = step(TASK, student, state, jnp.int32(i), KEY)
    close(after.student.params, state.params)
    assert after.student.opt == at and all(np.all(leaf) for leaf in jax.tree.leaves(state.params["w"]))
    assert course.counts.tolist() == [i <= at for i in range(LENGTH)]
    # Teachers go on.
    healthy, others = raced(Breaks(jnp.float32(0.05), jnp.float32(100.0)), TEACHERS, runners)
    same(after.teachers, healthy.teachers)
    same(course.teacher_losses, others.teacher_losses)
    same(course.distances[:at], others.distances[:at])
    assert others.counts.all() and np.isfinite(course.distances).all()


def recipe(teachers=TEACHERS, losses=None, **options):
    given = {"perturbation": Unperturbed(), "outer": optimizers.get("sgd", learning_rate=1.0)} | options
    rest = given.get("rematerialise", False)
    chosen = Losses() if losses is None else losses
    return Recipe(teachers, chosen, given["perturbation"], given["outer"], 0.0, rest)


@jit
def learned(made, learner, runners, weight=0.2, key=KEY):
    return outer.learn(TASK, made, learner, runners, jnp.float32(weight), key, LENGTH)


@pytest.mark.parametrize("rate", [1e6, 1e12, 1e25])
def test_a_student_that_diverges_teaches_nothing_that_is_no_number(rate):
    student = Breaks(jnp.float32(rate), jnp.float32(100.0))
    made = recipe()
    learner, after, report = learned(made, outer.begin(made, student), begun(student, TEACHERS))
    assert int(report.cut) > 0 and int(report.cut) < LENGTH
    assert int(report.wins.sum()) == LENGTH - int(report.cut)
    if report.skipped:
        same(learner.student, student)
    assert np.isfinite(np.asarray(jax.tree.leaves(learner.student))).all()
    assert np.isfinite(after.student.params["w"]).all() and np.all(after.student.params["w"])
    assert np.isfinite(report.meta_loss) and not np.isnan(report.imitation_loss)


def test_a_step_whose_gradient_is_no_number_is_skipped_and_counted():
    student = Breaks(jnp.float32(0.05), jnp.float32(2.0))
    made = recipe()
    learner = outer.begin(made, student)
    after, runners, report = learned(made, learner, begun(student, TEACHERS))
    assert int(report.skipped) == 1 and int(report.cut) == 1
    same((after.student, after.outer), (learner.student, learner.outer))
    assert after.steps == 1 and runners.step == LENGTH


# Gradients --------------------------------------------------------------------------------------------------

STUDENT = RNNProp(hidden_sizes=(3,), key=KEY)
VARIANTS = {
    f"{reduction}-{objective}-{weighting}": Losses(reduction, weighting, objective)
    for reduction in ("max", "mean")
    for objective in ("log", "ratio")
    for weighting in ("mean", "sum", "final")
}


@pytest.mark.parametrize("huber", [0.0, 0.02])
def test_gradients_are_those_of_finite_differences(huber):
    """Of meta-loss and imitation loss in all their forms, along a random direction."""
    runners = warmed(STUDENT, TEACHERS, begun(STUDENT, TEACHERS, jnp.float32(1.0)), jnp.float32(0.02))

    def values(student):
        _, course = race.unroll(TASK, student, TEACHERS, runners, Losses(huber=huber), KEY, LENGTH)
        parts = [part for losses in VARIANTS.values() for part in outer.parts(losses, course)]
        return jnp.stack(parts)

    leaves, structure = jax.tree.flatten(STUDENT)
    keys = jax.random.split(jax.random.key(11), len(leaves))
    draws = [jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves)]
    direction = structure.unflatten(draws)
    gradients = jit(jax.jacrev(values))(STUDENT)
    # The last axes of each gradient are the leaf's.
    slopes = sum(
        np.asarray(g).reshape(len(g), -1) @ np.asarray(d).reshape(-1)
        for g, d in zip(jax.tree.leaves(gradients), draws)
    )
    size, forward = 5e-3, jit(values)
    ends = [forward(jax.tree.map(lambda w, d, s=s: w + s * d, STUDENT, direction)) for s in (size, -size)]
    wanted = (np.asarray(ends[0], np.float64) - np.asarray(ends[1], np.float64)) / (2 * size)
    assert (np.abs(wanted) > 1e-2).mean() > 0.7, "what is tested is not nothing"
    np.testing.assert_allclose(slopes, wanted, rtol=2e-2, atol=5e-4)


def test_what_is_recomputed_is_the_same():
    runners = begun(STUDENT, TEACHERS, jnp.float32(1.0))
    steps = []
    for rest in (False, True):
        made = recipe(rematerialise=rest)
        learner, after, report = learned(made, outer.begin(made, STUDENT), runners)
        steps.append((jax.tree.map(jnp.subtract, learner.student, STUDENT), after, report))
    close(steps[0], steps[1], rtol=1e-4, atol=1e-6)
    assert max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(steps[0][0])) > 1e-2


def test_a_network_with_huge_steps_is_frozen():
    student = RNNProp(hidden_sizes=(3,), output_scale=1e20, key=KEY)
    made = recipe(())
    runners = begun(student, (), jnp.float32(1.0))
    for _ in range(2):
        learner, after, report = learned(made, outer.begin(made, student), runners)
        assert int(report.cut) > 0 and np.isfinite(report.meta_loss) and report.imitation_loss == 0
        assert np.isfinite(
            np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(learner.student)])
        ).all()
        if report.skipped:
            same(learner.student, student)
        assert np.isfinite(after.student.params["w"]).all() and np.all(after.student.params["w"])
        runners = after


def test_a_teacher_that_diverges_stays_where_it_was():
    wild, calm = optimizers.get("sgd", learning_rate=1000.0), optimizers.get("sgd", learning_rate=0.1)
    student = optimizers.get("sgd", learning_rate=0.05)
    at = race.start(TASK, student, (wild, calm), 0.0, 30, KEY)
    after, course = race.unroll(TASK, student, (wild, calm), at, Losses(), KEY, 30)
    assert tree.all_finite([state.params for state in after.teachers])
    assert np.isfinite(course.distances).all() and np.asarray(course.counts).all()
