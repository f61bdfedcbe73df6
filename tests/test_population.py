"""Populations: they find better numbers, copy what is best, resume exactly, and share one program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from outeropt import learned, optimizers, tasks
from outeropt.cli.main import main
from outeropt.errors import ConfigError, OutOfSpace, UnknownName
from outeropt.metatraining import PES, FullBackprop, MetaTraining, Validation, lengths, program, tuned
from outeropt.metatraining.population import PopulationTraining, succession
from outeropt.space import Space


KEY = jax.random.key(5)
FAMILY = tasks.FAMILIES["QuadraticFamily_10"]()
START = learned.LearnableSGD()
# So slow that a run of this length gets nowhere.
SLOW = optimizers.get("adam", learning_rate=1e-5)
TWICE = optimizers.Graft(optimizers.get("sgd"), SLOW)
RATES = {"outer.learning_rate": Space.log(1e-5, 0.5)}
OPTIONS = {
    "estimator": PES(particles=4, truncation=5, lengths=lengths.Constant(20), std=0.03),
    "outer": SLOW,
    "validation": Validation((tasks.get("Quadratic_10"),), steps=10, every=5),
    "steps": 15,
    "key": KEY,
}


def population(**given):
    return PopulationTraining(START, FAMILY, **({"tuned": RATES, "members": 3} | OPTIONS | given))


def same(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def results(run):
    return run.optimizer, [member.last for member in run.members], run.curves, run.scores, run.history


def programs():
    """How many versions of the program of outer steps are compiled."""
    return program._program(jax.devices()[0].platform)._cached._cache_size()


@pytest.fixture(scope="module")
def whole():
    before, told = programs(), []
    run = population()
    run.run(lambda count, values: told.append((count, values)))
    assert programs() == before + 1, "recompiled because a number changed, or for each member"
    assert sum(count for count, _ in told) == run.done == 45
    assert "meta/loss" in told[-1][1]
    return run


def test_a_better_number_is_found(whole):
    """The best member beats the run with the number that was given, which all could have had."""
    fixed = MetaTraining(START, FAMILY, **OPTIONS)
    fixed.run()
    rates = whole.history["outer.learning_rate"]
    assert rates[0, 0] == np.float32(1e-5)
    assert rates[whole.best, -1] > 1e-3
    assert whole.scores["mean"].min() < 0.5 * fixed.scores["mean"].min()
    # Somebody took over from a better member, and what began with the worst number has another one.
    assert (whole.history["parent"] != np.arange(3)[:, None]).any()
    assert rates[0, -1] > 1e-4


def test_what_is_recorded(whole):
    history, scores = whole.history, whole.scores
    assert history["step"].tolist() == scores["step"].tolist() == [0, 5, 10, 15]
    assert history.keys() == {"step", "score", "parent", "outer.learning_rate"}
    assert {history[name].shape for name in history if name != "step"} == {(3, 4)}
    same((history["score"], scores["Quadratic_10"]), (scores["mean"], scores["mean"]))
    # All begin with the same optimizer, and no two have the same randomness.
    assert np.ptp(history["score"][:, 0]) == 0 and np.unique(history["score"][:, 1]).size == 3
    curve = whole.curves["meta/loss"]
    assert curve.shape == (3, 15) and np.isfinite(curve).all()
    assert np.unique(curve[:, 0]).size == 3
    best = np.unravel_index(np.argmin(scores["mean"]), (3, 4))
    assert whole.best == best[0]
    same(whole.optimizer, whole.members[best[0]].optimizer)


def test_numbers_are_inherited_and_moved(whole):
    rates, parents = whole.history["outer.learning_rate"], whole.history["parent"]
    for place in range(1, 4):
        for member, parent in enumerate(parents[:, place]):
            before, after = rates[parent, place - 1], rates[member, place]
            moves = [before] if parent == member else [before / 1.25, min(before * 1.25, 0.5)]
            assert np.isclose(after, moves, rtol=1e-6).any(), (place, member)
    assert (parents[:, [0, 3]] == np.arange(3)[:, None]).all(), "nothing is judged after the last step"


def test_a_run_in_pieces_equals_a_run_in_one(whole, tmp_path):
    class Interrupted(Exception):
        pass

    pieces, finished = 0, False
    while not finished:
        run, left = population(), 9
        before = run.resume(tmp_path)
        assert (before > 0) == (pieces > 0)

        def told(count, values):
            nonlocal left
            left -= 1
            if not left:
                raise Interrupted

        try:
            run.run(told)
            finished = True
        except Interrupted:
            pieces += 1
            assert run.done > before
            run._save(tmp_path)
    assert pieces >= 2
    same(results(run), results(whole))
    assert sorted(path.name for path in (tmp_path / "log").iterdir()) == ["0", "1", "2"]
    with pytest.raises(ConfigError, match="run of another recipe"):
        population(factor=1.5).resume(tmp_path)


def test_a_state_is_copied_with_all_that_belongs_to_it():
    run = population(members=2, exploit=0.5)
    for place, step in enumerate((0, 5)):
        for member in run.members:
            member.advance_to(step)
        run._select(place)
    heir = int(np.argmax(run.scores["mean"][:, 1]))
    mine, other = run.members[heir], run.members[1 - heir]
    assert run.history["parent"][:, 1].tolist() == [1 - heir] * 2
    same(mine._state, other._state)
    for a, b in zip(jax.tree.leaves(mine._state), jax.tree.leaves(other._state)):
        assert a.sharding == b.sharding
    rates = [float(member._recipe.outer.hyperparameters["learning_rate"]) for member in run.members]
    same(np.float32(rates), run.history["outer.learning_rate"][:, 1])
    # The program takes the memory of the one; the other goes on, with randomness of its own.
    mine.advance_to(6)
    other.advance_to(6)
    assert float(mine.last.log_learning_rate) != float(other.last.log_learning_rate)


def test_succession():
    scores = np.asarray([0.3, 0.1, 2.0, 0.2, 2.0, 0.5])
    assert succession(scores, 1, KEY).tolist() == [0, 1, 2, 3, 1, 5]
    drawn = np.stack([succession(scores, 2, jax.random.key(i)) for i in range(8)])
    assert (drawn[:, [0, 1, 3, 5]] == [0, 1, 3, 5]).all()
    assert set(drawn[:, 2]) == set(drawn[:, 4]) == {1, 3}
    assert succession(scores, 5, KEY).tolist() == [1] * 6, "the winner takes all"


def test_numbers_move_inside_their_spaces():
    ratios = jnp.asarray([1.25, 0.8], jnp.float32)
    move = lambda space, *values: tuned.moved(space, jnp.asarray(values, jnp.float32), ratios).tolist()  # noqa: E731
    assert move(Space.log(0.01, 1), 0.1, 0.1) == pytest.approx([0.125, 0.08])
    assert move(Space.log(0.01, 1), 0.9, 0.011) == pytest.approx([1, 0.01])
    assert move(Space.linear(1, 4), 2, 2) == pytest.approx([2.5, 1.6])
    assert move(Space.logit(0.5, 0.999), 0.9, 0.9) == pytest.approx([9 * 1.25 / 12.25, 7.2 / 8.2])


def test_what_is_tuned_unless_said_otherwise():
    wrapped = optimizers.get("clip_norm:cosine:adam", learning_rate=0.01)
    spaces = tuned.usual(OPTIONS["estimator"], wrapped)
    assert spaces.keys() == {"estimator.std", "outer.inner.inner.learning_rate"}
    ends = [(space.low, space.high) for space in spaces.values()]
    np.testing.assert_allclose(ends, [(3e-3, 0.3), (1e-3, 0.1)], rtol=1e-6)
    assert tuned.usual(FullBackprop(length=3), SLOW).keys() == {"outer.learning_rate"}
    found = tuned.resolved({"outer.b1": Space.logit(0.5, 0.99)}, tuned.numbers(OPTIONS["estimator"], wrapped))
    assert list(found) == ["outer.inner.inner.b1"]


@pytest.mark.parametrize(
    "given, error, message",
    [
        ({"members": 1}, ConfigError, "give at least 2 members"),
        ({"exploit": 1.0}, ConfigError, "A share of 1.0"),
        ({"factor": 1.0}, ConfigError, "by a factor of 1.0"),
        ({"validation": None}, ConfigError, "ranked by validation"),
        ({"tuned": {}}, ConfigError, "Nothing is tuned; numbers that can be are estimator.std, outer.b1"),
        ({"tuned": {"estimator.sdt": Space.log(1, 2)}}, UnknownName, "Did you mean estimator.std"),
        ({"tuned": {"outer.b1": Space.linear(0, 1)}}, ConfigError, "outer.b1 is moved by factors"),
        ({"tuned": {"outer.b1": Space.choice(0.9, 0.99)}}, ConfigError, "outer.b1 is moved by factors"),
        ({"tuned": {"outer.b1": Space.logit(0.95, 0.99)}}, OutOfSpace, "outer.b1 = 0.9"),
        ({"outer": TWICE}, UnknownName, "'outer.learning_rate' is ambiguous; say which: outer"),
    ],
)
def test_wrong_options_are_told(given, error, message):
    with pytest.raises(error, match=message):
        population(**given)


# The same program as above.
COMMAND = [
    *("metatrain", "--tasks", "QuadraticFamily_10", "--architecture", "LearnableSGD", "--outer", "adam"),
    *("--estimator.particles", "4", "--estimator.truncation", "5", "--estimator.length", "20"),
    *("--validation-tasks", "Quadratic_10", "--validation-steps", "10", "--validation-every", "5"),
    *("--steps", "6", "--out", "runs"),
]


def test_the_command_learns_with_a_population(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*COMMAND, "--population", "2"]) == 0, capsys.readouterr().err
    assert type(learned.load("runs")) is learned.LearnableSGD
    assert learned.about("runs")["population"] == 2
    assert {path.name for path in (tmp_path / "runs" / "log").iterdir()} == {"0", "1"}


@pytest.mark.parametrize(
    "words, message",
    [
        (["--population", "0"], "--population 0 is not possible"),
        (["--population", "2", "--validation-every", "0"], "--population ranks its members by validation"),
        (["--population", "x"], "--population"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_written(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*COMMAND, *words]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1
    assert not (tmp_path / "runs").exists()
