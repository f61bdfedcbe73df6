"""Tuners: hypergradients against finite differences, what they skip, rescue and refuse, random starts."""

import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
import pytest

from outeropt import Space, optimizers, sweep, tasks, train, training
from outeropt.errors import OuteroptError, UnknownName
from outeropt.selftuning import (
    Baydin,
    ForwardMode,
    OnePass,
    RandomStart,
    Stepped,
    Unrolled,
    random_start,
    study_methods,
    tuning_methods,
)
from outeropt.tasks.wrappers.tunable import NoisyInputs, Penalised, SmoothedLabels


# These programs run once: compile them fast rather than well.
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}


@pytest.fixture
def double():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        yield


def wide(optimizer):
    return jtu.tree_map(lambda leaf: jnp.asarray(leaf, jnp.float64), optimizer)


def one_pass(**settings):
    tuner = OnePass(optimizers.get("sgd"), **settings)
    return RandomStart(tuner, {"learning_rate": Space.log(1e-3, 1e-2)})


def rows(seed, count=12):
    normal = np.random.default_rng(seed).normal
    return jnp.asarray(normal(size=(count, 4))), jnp.asarray(normal(size=count))


def start():
    normal = np.random.default_rng(7).normal
    return {"w": jnp.asarray(normal(size=(4, 3))), "v": jnp.asarray(normal(size=3))}


def loss(params, data):
    return jnp.mean(jnp.square(jnp.tanh(data[0] @ params["w"]) @ params["v"] - data[1]))


BATCHES = jax.tree.map(lambda *leaves: np.stack(leaves), *[rows(seed) for seed in range(8)])


@functools.partial(eqx.filter_jit, compiler_options=QUICK)
def play(tuner, steps, point=None):
    """Steps on the batches, at a point instead of the tuner's own: the end, and the state."""

    def train_loss(params, number):
        return loss(params, jax.tree.map(lambda leaf: jnp.asarray(leaf)[number], BATCHES))

    def body(carry, i):
        params, state = carry
        value, grads = jax.value_and_grad(train_loss)(params, i)
        updates, state = tuner.update(
            grads,
            state,
            params,
            value=value,
            grad=grads,
            value_fn=functools.partial(train_loss, number=i),
            value_at=train_loss,
            valid_fn=lambda params: loss(params, rows(99)),
            step=i,
        )
        return (jax.tree.map(jnp.add, params, updates), state), None

    state = tuner.init(start())
    state = state if point is None else state._replace(point=point)
    return jax.lax.scan(body, (start(), state), jnp.arange(steps))[0]


def slopes(tuner, steps):
    """The hypergradient at the end of a block, as plain gradient descent on the point shows it."""
    _, state = play(tuner, steps)
    return jax.tree.map(jnp.subtract, tuner.init(start()).point, state.point)


BASES = {
    "heavy_ball": {"learning_rate": 0.05, "weight_decay": 0.02, "momentum": 0.7},
    "adamw": {"learning_rate": 0.02, "weight_decay": 0.1, "b1": 0.8},
    "cautious:adamw": {"learning_rate": 0.02, "inner.weight_decay": 0.1},
}


def far(names):
    """Ranges that nothing reaches."""
    ends = {"momentum": (1e-6, 1 - 1e-6), "b1": (1e-6, 1 - 1e-6)}
    return {name: ends.get(name, (1e-20, 1e20)) for name in names}


@pytest.mark.parametrize("kind", [Unrolled, ForwardMode])
@pytest.mark.parametrize("base", BASES)
def test_exact_hypergradients_against_finite_differences(base, kind, double):
    """Of eight steps on eight minibatches, by every tuned coordinate."""
    names = tuple(name.removeprefix("inner.") for name in BASES[base])
    settings = {"meta": wide(optimizers.get("sgd", learning_rate=1.0)), "every": 8, "ranges": far(names)}
    settings |= {"window": 8} if kind is Unrolled else {}
    tuner = kind(wide(optimizers.get(base, **BASES[base])), names, rescue=math.inf, **settings)
    found = slopes(tuner, 8)
    middle = tuner.init(start()).point

    def valid(shift):
        never = kind(tuner.base, names, rescue=math.inf, **(settings | {"every": 1000}))
        params, _ = play(never, 8, middle._replace(shared=middle.shared + shift))
        return loss(params, rows(99))

    for i in range(len(names)):
        h = 1e-5 * jnp.eye(len(names))[i]
        want = (valid(h) - valid(-h)) / 2e-5
        np.testing.assert_allclose(found.shared[i], want, rtol=1e-6, atol=1e-9, err_msg=names[i])


def test_unrolled_through_pieces_and_what_is_left_of_them(double):
    """Seven steps are two pieces of two and three single ones... or three and one: the same derivative."""
    names, meta = ("learning_rate", "momentum"), wide(optimizers.get("sgd", learning_rate=1.0))
    base = wide(optimizers.get("heavy_ball", learning_rate=0.05, momentum=0.7))
    common = {"meta": meta, "every": 7, "ranges": far(names), "rescue": math.inf}
    backward = slopes(Unrolled(base, names, window=7, **common), 7)
    forward = slopes(ForwardMode(base, names, **common), 7)
    np.testing.assert_allclose(backward.shared, forward.shared, rtol=1e-9)


def quadratic(params):
    return 0.5 * jnp.sum(jnp.array([0.5, 1.0, 3.0]) * jnp.square(params - 1.0))


def tuned_once(tuner):
    """The hypergradient of one step on a quadratic, by plain gradient descent on the coordinates."""
    params = jnp.array([0.3, -0.2, 2.0])
    state = tuner.init(params)
    grads = jax.grad(quadratic)(params)
    _, new = tuner.update(
        grads, state, params, value_fn=quadratic, valid_fn=lambda p: jnp.sum(jnp.square(p)), step=0
    )
    return state.point.shared - new.point.shared


def test_best_response_on_a_quadratic(double):
    """Geometric series of the map I - lr H, and their limit by conjugate gradients."""
    rate, curvature = 0.2, jnp.array([0.5, 1.0, 3.0])
    base = wide(optimizers.get("sgd", learning_rate=rate))
    common = {
        "meta": wide(optimizers.get("sgd", learning_rate=1.0)),
        "every": 1,
        "ranges": {"learning_rate": (1e-9, 1e9)},
        "rescue": math.inf,
    }
    params = jnp.array([0.3, -0.2, 2.0])
    slope = jax.grad(quadratic)(params)
    exact = optimizers.get("sgd", learning_rate=rate).hyperparameters["learning_rate"].astype(jnp.float64)
    moved = params - exact * slope
    for terms in (1, 4, 5):
        series = sum((1 - exact * curvature) ** j for j in range(terms))
        want = jnp.sum(2 * moved * series * -slope) * exact * math.log(10)
        np.testing.assert_allclose(tuned_once(OnePass(base, lookback=terms, **common))[0], want, rtol=1e-10)
        # Gradient descent has no state that could matter.
        through = OnePass(base, lookback=terms, through="state", **common)
        np.testing.assert_allclose(tuned_once(through)[0], want, rtol=1e-10)
    limit = jnp.sum(2 * moved / (exact * curvature) * -slope) * exact * math.log(10)
    solved = tuned_once(OnePass(base, lookback=20, solver="conjugate_gradient", **common))
    np.testing.assert_allclose(solved[0], limit, rtol=1e-5)


def test_the_state_in_the_map_counts_what_momentum_does_later(double):
    """Against the power series of the joint map of parameters and buffer, as matrices."""
    rate, beta, terms = 0.1, 0.8, 4
    base = wide(optimizers.get("momentum", learning_rate=rate, momentum=beta))
    rate, beta = (base.hyperparameters[name] for name in ("learning_rate", "momentum"))
    tuner = OnePass(
        base,
        ("learning_rate",),
        lookback=terms,
        every=1,
        through="state",
        meta=wide(optimizers.get("sgd", learning_rate=1.0)),
        ranges={"learning_rate": (1e-9, 1e9)},
        rescue=math.inf,
    )
    params = jnp.array([0.3, -0.2, 2.0])
    h, eye = jnp.diag(jnp.array([0.5, 1.0, 3.0])), jnp.eye(3)
    joint = jnp.block([[eye - rate * h, -rate * beta * eye], [h, beta * eye]])
    buffer = jax.grad(quadratic)(params)
    moved = params - rate * buffer
    row = jnp.concatenate([2 * moved, jnp.zeros(3)])
    total = sum(row @ jnp.linalg.matrix_power(joint, j) for j in range(terms))
    want = total[:3] @ -buffer * rate * math.log(10)
    np.testing.assert_allclose(tuned_once(tuner)[0], want, rtol=1e-10)


def test_all_lanes_tune_at_once():
    """A branch that only some lanes took would be computed at every step."""
    task, tuner = tasks.get("Quadratic_10"), OnePass(optimizers.get("adam"))

    def one(key, step):
        params, _ = task.init(key)
        state = tuner.init(params)
        batch = task.batch("train", key)

        def value(params):
            return task.loss(params, None, batch, key)[0]

        return tuner.update(params, state, params, value_fn=value, valid_fn=value, step=step)[0]

    lanes = jax.make_jaxpr(jax.vmap(one, (0, None)))(jax.random.split(jax.random.key(0), 3), jnp.int32(0))
    assert " cond[" in str(lanes)


def test_tuning_in_rhythm_equals_asking_at_every_step():
    task, tuner, key = tasks.get("Quadratic_10"), one_pass(every=3), jax.random.key(0)
    assert tuner.rhythm == 3

    def after(first, length):
        state = training.start(task, tuner, key, 20)
        state, mean = training.window(task, tuner, state, first, length, key)
        return state.params, state.opt.inner.point.shared, mean

    # From any step on, for any number of steps; a length that is known beforehand leaves the asking to it.
    for first, length in ((0, 9), (1, 1), (1, 2), (2, 1), (2, 7), (0, 2)):
        asked, in_rhythm = jax.jit(after, static_argnums=1)(first, length), jax.jit(after)(first, length)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), asked, in_rhythm)


def test_what_is_known_of_one_rhythm_is_not_taken_for_another():
    tuner = OnePass(OnePass(optimizers.get("heavy_ball"), every=2), "momentum", every=3)
    params, moves = jnp.ones(2), []
    state = tuner.init(params)
    for step in range(6):
        last, offered = state, {"value_fn": jnp.sum, "valid_fn": jnp.sum}
        due = 3, (step + 1) % 3 == 0
        _, state = tuner.update(jnp.ones(2), state, params, **offered, step=step, due=due)
        pairs = (last.point, state.point), (last.base.point, state.base.point)
        moves.append([bool(old.shared != new.shared) for old, new in pairs])
    assert [outer for outer, _ in moves] == [False, False, True, False, False, True]
    assert [inner for _, inner in moves] == [False, True, False, True, False, True]


def test_tuning_beats_a_start_that_is_far_off_and_survives_any():
    task = tasks.get("ImageMLP_Digits_Relu32")
    rates = (1e-5, 1e-3, 1.0)
    plain = [optimizers.get("adamw", learning_rate=rate) for rate in rates]
    cadence = {"seeds": 2, "steps": 600, "eval_every": 100}
    alone = sweep(task, plain, **cadence).final("test/loss").mean(axis=1)
    found = sweep(task, [OnePass(base) for base in plain], **cadence)
    ends = found.final("test/loss").mean(axis=1)
    assert (ends < 0.6).all() and ends[0] < 0.3 * alone[0] and ends[2] < 0.3 * alone[2]
    assert (found.curves["optimizer/rescued"][2, :, -1] > 0).all()
    assert (found.curves["optimizer/rescued"][:2, :, -1] == 0).all()
    assert (found.diverged_at == -1).all()


def simple(tuner, steps, valid):
    """A run on a parabola; `valid(params, step)`."""

    def value(params):
        return jnp.sum(jnp.square(params["x"]))

    def body(carry, i):
        params, state = carry
        current, grads = jax.value_and_grad(value)(params)
        updates, state = tuner.update(
            grads,
            state,
            params,
            value=current,
            value_fn=value,
            valid_fn=functools.partial(valid, step=i),
            step=i,
        )
        return (jax.tree.map(jnp.add, params, updates), state), None

    params = {"x": jnp.array([2.0, -1.0])}
    run = jax.jit(lambda carry: jax.lax.scan(body, carry, jnp.arange(steps))[0], compiler_options=QUICK)
    return run((params, tuner.init(params)))


def test_what_is_not_finite_teaches_nothing_and_is_counted():
    tuner = OnePass(optimizers.get("sgd", learning_rate=0.01), every=2)

    def valid(params, step):
        return jnp.sum(jnp.square(params["x"])) * jnp.where(step < 4, jnp.nan, 1.0)

    _, state = simple(tuner, 4, valid)
    assert int(state.skipped) == 2
    np.testing.assert_array_equal(state.point.shared, tuner.init({"x": jnp.zeros(2)}).point.shared)
    _, state = simple(tuner, 8, valid)
    assert int(state.skipped) == 2 and state.point.shared[0] > math.log10(0.01)
    assert set(tuner.diagnostics(state)) == {"learning_rate", "skipped", "rescued"}


def test_a_lost_run_goes_back_at_a_tenth_of_the_learning_rate():
    tuner = OnePass(optimizers.get("sgd", learning_rate=300.0), every=1000)
    params, state = simple(tuner, 2, lambda params, step: 0.0 * jnp.sum(params["x"]))
    np.testing.assert_allclose(params["x"], [2.0, -1.0], rtol=1e-4)
    np.testing.assert_allclose(tuner.diagnostics(state)["learning_rate"], 30.0, rtol=1e-5)
    params, state = simple(tuner, 60, lambda params, step: 0.0 * jnp.sum(params["x"]))
    assert int(state.anchor.rescued) == 3 and np.abs(params["x"]).max() < 0.1
    # The same where the coordinate is the learning rate itself.
    plain = OnePass(tuner.base, every=1000, coordinates="plain")
    _, state = simple(plain, 2, lambda params, step: 0.0 * jnp.sum(params["x"]))
    np.testing.assert_allclose(plain.diagnostics(state)["learning_rate"], 30.0, rtol=1e-5)
    # Without a learning rate to lower, or where none is wanted, runs go where they go.
    for other in (OnePass(optimizers.get("adamw"), "weight_decay"), OnePass(tuner.base, rescue=math.inf)):
        assert other.init({"x": jnp.zeros(2)}).anchor is None


def test_a_learning_rate_for_every_parameter():
    """Entries that the validation loss does not know keep their own."""
    tuner = OnePass(optimizers.get("sgd", learning_rate=0.01), every=1, per_parameter=True)

    def valid(params, step):
        return jnp.square(params["x"][0])

    _, state = simple(tuner, 5, valid)
    first, second = state.point.own["x"]
    assert first > -1.8 and second == pytest.approx(math.log10(0.01))
    with pytest.raises(OuteroptError, match="end with their run"):
        tuner.freeze()
    after = tuner.after(state).base.hyperparameters["learning_rate"]
    np.testing.assert_allclose(jnp.log10(after), (first + second) / 2, rtol=1e-5)


def test_episodes_start_where_the_last_one_ended():
    task, tuner = tasks.get("ImageMLP_Digits_Relu32"), OnePass(optimizers.get("adam", learning_rate=1e-5))
    run = train(task, tuner, steps=100, episodes=2, key=jax.random.key(0), eval_every=50)
    rates = run.curves["optimizer/learning_rate"]
    assert 1e-5 < rates[2] < rates[4]
    after = tuner.after(run.state.opt)
    np.testing.assert_allclose(after.base.hyperparameters["learning_rate"], rates[4], rtol=1e-5)
    assert jax.tree.structure(after) == jax.tree.structure(tuner)
    assert after.freeze().hyperparameters.keys() == optimizers.get("adam").hyperparameters.keys()


def test_in_a_loop_of_optax():
    """With the two losses, as any transformation; without them, the error says what is missing."""
    transformation = OnePass(base=optimizers.adamw(1e-3), tune=("learning_rate", "weight_decay")).as_optax()
    params = {"x": jnp.array([2.0, -1.0])}
    state = transformation.init(params)

    def value(params):
        return jnp.sum(jnp.square(params["x"]))

    for _ in range(20):
        updates, state = transformation.update(
            jax.grad(value)(params), state, params, value_fn=value, valid_fn=value
        )
        params = optax.apply_updates(params, updates)
    assert state.point.shared[0] > math.log10(1e-3)
    with pytest.raises(OuteroptError, match="needs `value_fn`"):
        transformation.update(params, state, params)


@pytest.mark.parametrize("name", tuning_methods())
def test_every_method_trains_from_random_starts(name):
    tune = ("learning_rate", "weight_decay", "momentum")
    optimizer = random_start(tuning_methods()[name], optimizers.get("heavy_ball"), tune)
    archive = sweep(tasks.get("Quadratic_10"), optimizer, seeds=3, steps=40, eval_every=20)
    rates = archive.curves["optimizer/learning_rate"][0]
    assert len({*rates[:, 0].tolist()}) == 3
    assert np.isfinite(archive.final("train/loss")).all()
    if name != "lorraine":
        assert (rates[:, 0] != rates[:, -1]).any()


def test_random_starts_are_those_of_the_seed():
    """Every method of the study starts from the same hyperparameters, and every seed from others."""
    found = {}
    for name, optimizer in study_methods().items():
        states = [optimizer.init(jnp.zeros(2), key=jax.random.key(seed)) for seed in (3, 4)]
        drawn = [{leaf.split(".")[-1]: float(x) for leaf, x in s.drawn.items()} for s in states]
        assert drawn[0] != drawn[1]
        told = optimizer.diagnostics(states[0])
        for leaf, value in drawn[0].items():
            if leaf != "factor":
                np.testing.assert_allclose(told[leaf], value, rtol=1e-4, err_msg=name)
        found[name] = {leaf: drawn[0][leaf] for leaf in ("learning_rate", "weight_decay", "momentum")}
    assert all(drawn == found["Random"] for drawn in found.values())


def test_stepped_learning_rates():
    optimizer = Stepped(optimizers.get("sgd", learning_rate=0.5), 1.5, every=2)
    state, rates = optimizer.init(jnp.zeros(2)), []
    for _ in range(5):
        updates, state = optimizer.update(jnp.ones(2), state, jnp.zeros(2))
        rates.append(-float(updates[0]))
    np.testing.assert_allclose(rates, [0.5, 0.5, 0.75, 0.75, 1.0], rtol=1e-6)


SETTINGS = {"weight": (0.3, Space.log(1e-6, 10.0))}


def test_settings_of_the_loss_against_finite_differences(double):
    """One step of SGD on a penalised loss: how the validation loss after it depends on the penalty."""
    base = wide(optimizers.get("sgd", learning_rate=0.1))
    meta = wide(optimizers.get("sgd", learning_rate=1.0))
    tuner = OnePass(base, (), meta=meta, every=1, lookback=1, settings=SETTINGS, rescue=math.inf)
    params, state = start(), tuner.init(start())

    def loss_at(params, settings):
        squares = sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(params))
        return loss(params, rows(1)) + 0.5 * settings["weight"] * squares

    def value_fn(params, settings=None):
        return loss_at(params, tuner.task_settings(state) if settings is None else settings)

    def valid(params):
        return loss(params, rows(99))

    grads = jax.grad(value_fn)(params)
    _, new = tuner.update(grads, state, params, value_fn=value_fn, valid_fn=valid, loss_at=loss_at, step=0)

    def after(coordinate):
        moved = jax.grad(value_fn)(params, {"weight": 10.0**coordinate})
        rate = base.hyperparameters["learning_rate"]
        return valid(jax.tree.map(lambda p, g: p - rate * g, params, moved))

    at = jnp.float64(state.point.settings[0])
    want = (after(at + 1e-5) - after(at - 1e-5)) / 2e-5
    np.testing.assert_allclose((state.point.settings - new.point.settings)[0], want, rtol=1e-5)
    with pytest.raises(OuteroptError, match="needs `loss_at`"):
        tuner.update(grads, state, params, value_fn=value_fn, valid_fn=valid)


@pytest.mark.parametrize(
    ("wrap", "name"),
    [
        (lambda task: SmoothedLabels(task, 10), "smoothing"),
        (NoisyInputs, "strength"),
        (Penalised, "weight"),
    ],
)
def test_settings_of_tasks_are_tuned_in_a_sweep(wrap, name):
    """From where they do harm; evaluation knows nothing of them."""
    plain = tasks.get("ImageMLP_Digits_Relu32")
    task = wrap(plain)
    tuner = OnePass(optimizers.get("adam", learning_rate=3e-3), settings={name: (0.6, Space.log(1e-4, 1.0))})
    archive = sweep(task, tuner, seeds=2, steps=200, eval_every=100)
    ends = archive.curves[f"optimizer/{name}"][0]
    np.testing.assert_allclose(ends[:, 0], 0.6, rtol=1e-5)
    assert (ends[:, -1] < 0.5).all()
    params, state = plain.init(jax.random.key(0))
    batch = plain.batch("valid", jax.random.key(1))
    assert task.loss(params, state, batch, None)[0] == plain.loss(params, state, batch, None)[0]
    trained = task.loss(params, state, batch, jax.random.key(2))[0]
    assert trained != plain.loss(params, state, batch, jax.random.key(2))[0]


ADAM = optimizers.get("adam")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OnePass(ADAM, "momentum"), "momentum"),
        (lambda: OnePass(ADAM, ()), "No leaf is named"),
        (lambda: OnePass(ADAM, lookback=0), "look back at least 1 step"),
        (lambda: OnePass(ADAM, every=0), "at least every 1 step"),
        (lambda: OnePass(ADAM, through="time"), "parameters"),
        (lambda: OnePass(ADAM, solver="guess"), "Solvers are series or conjugate_gradient"),
        (lambda: OnePass(ADAM, "b1", per_parameter=True), "not among"),
        (lambda: OnePass(ADAM, rescue=0.5), "more than 1"),
        (lambda: Unrolled(ADAM, window=20), "1 to every = 10"),
        (lambda: ForwardMode(ADAM, decay=2.0), "give 0 to 1"),
        (lambda: Stepped(ADAM, every=0), "at least every 1 step"),
        (lambda: Baydin(optimizers.get("polyak_sgd", learning_rate=1.0), {"rate": (0, 1)}), "rate"),
        (lambda: RandomStart(ADAM, {}), "draws nothing"),
        (lambda: RandomStart(ADAM, {"momentum": Space.linear(0, 1)}), "momentum"),
        (lambda: RandomStart(ADAM, {"b1": Space.linear(0, 1)}).init(jnp.zeros(2)), "needs a key"),
    ],
)
def test_errors(make, message):
    with pytest.raises((OuteroptError, UnknownName), match=message):
        make()
