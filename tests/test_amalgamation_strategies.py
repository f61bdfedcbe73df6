"""Schedules, and what the training strategies do next, from validations that are made up."""

import dataclasses
import math
import random

import pytest

from outeropt.amalgamation import STRATEGIES, Curriculum, Repeat, Simple
from outeropt.amalgamation.schedules import at, check, whole
from outeropt.amalgamation.strategies import Place, Plan, Record
from outeropt.errors import ConfigError


NAN = math.nan
GEOMETRIC = {"start": 3, "factor": 0.5}


def place(*numbers):
    return Place(*numbers)


def play(strategy, validations, meta_losses=None):
    """All periods of a training whose validations are given by place; where none is given, -1."""
    records, periods = [], []
    while (period := strategy.next(records)) is not None:
        key = dataclasses.astuple(period.place)
        value = validations.get(key, -1.0)
        meta = (meta_losses or {}).get(key, -1.0)
        periods.append(period)
        records.append(Record(period.place, value, meta))
        assert len(records) < 200
    return periods, records


def places(periods):
    return [dataclasses.astuple(period.place) for period in periods]


def starts(periods):
    return {
        dataclasses.astuple(period.place): period.start and dataclasses.astuple(period.start)
        for period in periods
    }


# Schedules --------------------------------------------------------------------------------------------------


def test_schedules():
    assert [at(0.5, index) for index in (0, 9)] == [0.5, 0.5]
    assert [at((1, 2, 5), index) for index in range(5)] == [1, 2, 5, 5, 5]
    assert [at(GEOMETRIC, index) for index in range(3)] == [3, 1.5, 0.75]
    assert [whole({"start": 1, "factor": 1.6}, index, 1) for index in range(4)] == [1, 2, 3, 4]


@pytest.mark.parametrize("value", [3, 0.5, (1, 2), [1, 2.5], {"start": 2, "factor": 0.5}])
def test_schedules_that_are_allowed(value):
    kept = check("depth", value, 0.5)
    assert kept == (tuple(value) if isinstance(value, list) else value)
    assert isinstance(kept, int | float | tuple | dict)


WRONG = ["x", [], [1, "2"], True, [1, True], None, -1, [2, -1], NAN, [NAN], math.inf, [1, math.inf]]
WRONG += [{"start": 1}, {"start": 1, "factor": 2, "more": 3}, {"start": -1, "factor": 2}]
WRONG += [{"start": 1, "factor": 0}, {"start": 1, "factor": "2"}, {"start": math.inf, "factor": 2}]
WRONG += [{"start": 1, "factor": math.inf}]


@pytest.mark.parametrize("value", WRONG, ids=repr)
@pytest.mark.parametrize("is_whole", [False, True])
def test_what_is_no_schedule_is_told(value, is_whole):
    with pytest.raises(ConfigError) as error:
        check("imitation", value, 0, is_whole=is_whole)
    told = str(error.value)
    assert told.startswith(f"imitation = {value!r} is not possible; give ")
    assert ("whole numbers" if is_whole else "give numbers") in told and "of at least 0" in told


@pytest.mark.parametrize(
    ("name", "value", "lowest"),
    [("depth", 1.5, 1), ("depth", [1, 0], 1), ("epochs", 0, 1), ("warmup", [0.5], 0), ("warmup", -1, 0)],
)
def test_strategies_check_their_numbers(name, value, lowest):
    with pytest.raises(ConfigError, match=f"^{name} = .* whole numbers of at least {lowest}: one, a list"):
        Curriculum(**{name: value})
    with pytest.raises(ConfigError, match=r"^threshold = -0\.1 .* give numbers of at least 0"):
        Repeat(threshold=-0.1)


def test_a_geometric_sequence_never_falls_below_what_is_possible():
    strategy = Simple(depth={"start": 4, "factor": 0.5}, warmup={"start": 1, "factor": 0.5})
    assert [strategy.plan(index).depth for index in range(6)] == [4, 2, 1, 1, 1, 1]
    assert [strategy.plan(index).warmup for index in range(3)] == [1, 0, 0]


def test_strategies_can_be_compared_and_hashed():
    assert Curriculum(depth=[1, 2]) == Curriculum(depth=(1, 2)) != Curriculum(depth=2)
    assert hash(Curriculum(depth=[1, 2])) == hash(Curriculum(depth=(1, 2)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        Simple().depth = 3  # pyright: ignore
    assert {name: kind.name for name, kind in STRATEGIES.items()} == {name: name for name in STRATEGIES}


def test_a_plan_counts_its_unrolls():
    assert Plan(unroll=7, depth=3, epochs=4, warmup=2, warmup_rate=0.1, imitation=0.0).unrolls == 4 * (3 + 2)


# Simple -----------------------------------------------------------------------------------------------------


def test_simple_goes_on_whatever_comes():
    strategy = Simple(num_periods=4, depth=(1, 3), imitation=(0.5, 0.25), warmup=(0, 2), warmup_rate=0.3)
    values = {(0, 0, 0): -3.0, (0, 1, 0): 100.0, (0, 2, 0): NAN, (0, 3, 0): -2.0}
    periods, records = play(strategy, values)
    assert places(periods) == [(0, n, 0) for n in range(4)]
    assert [period.start for period in periods] == [None, *(period.place for period in periods[:-1])]
    assert [strategy.label(p.place) for p in periods] == ["period_0", "period_1", "period_2", "period_3"]
    assert [p.training.depth for p in periods] == [1, 3, 3, 3]
    assert [p.training.imitation for p in periods] == [0.5, 0.25, 0.25, 0.25]
    assert periods[1].training == Plan(20, 3, 10, 2, 0.3, 0.25) == strategy.plan_of(periods[1].place)
    assert periods[1].validation == Plan(20, 25, 2, 0, 0.05, 0.0)
    assert strategy.best(records) == place(0, 0, 0)
    assert strategy.best(records[1:]) == place(0, 3, 0), "what is no number is never the best"


# Repeat -----------------------------------------------------------------------------------------------------


def repeating(**options):
    return Repeat(**{"num_periods": 3, "threshold": 0.5, "max_repeat": 3} | options)


def test_repeat_goes_back_when_a_period_made_it_much_worse():
    values = {(0, 0, 0): 1.0, (0, 1, 0): 1.6, (0, 1, 1): 1.5, (0, 2, 0): 1.0}
    periods, records = play(repeating(), values)
    assert places(periods) == [(0, 0, 0), (0, 1, 0), (0, 1, 1), (0, 2, 0)]
    assert starts(periods) == {
        (0, 0, 0): None, (0, 1, 0): (0, 0, 0), (0, 1, 1): (0, 0, 0), (0, 2, 0): (0, 1, 1)
    }  # fmt: skip
    strategy = repeating()
    assert [strategy.label(period.place) for period in periods][1:3] == ["period_1.0", "period_1.1"]
    assert strategy.best(records) == place(0, 0, 0)


def test_how_much_is_allowed_is_a_share_of_the_size():
    # Of -1, a half more is -0.5.
    assert places(play(repeating(), {(0, 1, 0): -0.5, (0, 2, 0): -0.25})[0])[-1] == (0, 2, 0)
    assert (0, 1, 1) in places(play(repeating(), {(0, 1, 0): -0.499})[0])


def test_repeat_gives_up_after_so_many_attempts_with_the_best_of_them():
    values = {(0, 1, n): value for n, value in enumerate([5.0, 3.0, 4.0])}
    periods, _ = play(repeating(), values)
    assert places(periods)[:5] == [(0, 0, 0), (0, 1, 0), (0, 1, 1), (0, 1, 2), (0, 2, 0)]
    assert starts(periods)[0, 1, 2] == (0, 0, 0) and starts(periods)[0, 2, 0] == (0, 1, 1)
    # The next comparison is with the best attempt, which was bad.
    assert (0, 2, 1) not in places(play(repeating(), values | {(0, 2, 0): 4.5})[0])
    assert (0, 2, 1) in places(play(repeating(), values | {(0, 2, 0): 4.6})[0])


@pytest.mark.parametrize("kind", [Repeat, Curriculum])
def test_without_a_limit_it_tries_as_long_as_it_takes(kind):
    values = {(0, 1, n): NAN if n % 2 else 9.0 for n in range(37)}
    periods, _ = play(kind(max_repeat=0, num_periods=3), values)
    assert [p for p in places(periods) if p[:2] == (0, 1)] == [(0, 1, n) for n in range(38)]
    assert next(p for p in periods if p.place == place(0, 2, 0)).start == place(0, 1, 37)


@pytest.mark.parametrize("kind", [Repeat, Curriculum])
def test_the_first_period_is_never_repeated(kind):
    for value in (NAN, math.inf, 1e9):
        periods, _ = play(kind(num_periods=2), {(0, 0, 0): value})
        assert places(periods)[:2] == [(0, 0, 0), (0, 1, 0)]


@pytest.mark.parametrize("kind", [Repeat, Curriculum])
def test_what_is_no_number_is_bad_and_better_than_nothing(kind):
    options = {"num_periods": 3, "max_repeat": 2}
    periods, _ = play(kind(**options), {(0, 1, 0): NAN, (0, 1, 1): NAN})
    assert places(periods)[:4] == [(0, 0, 0), (0, 1, 0), (0, 1, 1), (0, 2, 0)]
    # After one that was no number, any number will do and another NaN will not.
    assert (0, 2, 1) not in places(play(kind(**options), {(0, 1, 0): NAN, (0, 1, 1): NAN, (0, 2, 0): 9.0})[0])
    assert (0, 2, 1) in places(play(kind(**options), {(0, 1, 0): NAN, (0, 1, 1): NAN, (0, 2, 0): NAN})[0])
    assert (0, 1, 1) in places(play(kind(**options), {(0, 1, 0): math.inf})[0])


def test_validations_of_repeat_have_their_own_length():
    (first, second, *_), _ = play(repeating(imitation=0.7), {})
    assert second.training == Plan(100, 2, 10, 0, 0.05, 0.7)
    assert first.validation == second.validation == Plan(100, 5, 2, 0, 0.05, 0.0)


# Curriculum -------------------------------------------------------------------------------------------------


def staged(**options):
    given = {"num_stages": 2, "num_periods": 2, "num_chances": 2, "max_repeat": 3, "threshold": 0.5}
    return Curriculum(**given | options)


def test_stages_have_at_least_one_period_more_than_asked_for():
    periods, records = play(staged(), {})
    assert places(periods) == [(stage, period, 0) for stage in range(2) for period in range(3)]
    assert starts(periods)[1, 0, 0] == (0, 0, 0), "of equally good ones the first"
    assert starts(periods)[0, 2, 0] == (0, 1, 0) and starts(periods)[1, 2, 0] == (1, 1, 0)
    assert staged().next(records) is None
    labels = [staged().label(period.place) for period in periods]
    assert labels[0] == "stage_0.0.0" and labels[-1] == "stage_1.2.0"


@pytest.mark.parametrize(("chances", "count"), [(1, 7), (2, 8), (5, 11)])
def test_a_stage_goes_on_while_it_may_improve(chances, count):
    # The best student comes in period 5.
    values = {(0, period, 0): -1.0 - period for period in range(6)}
    values |= {(0, period, 0): -5.5 for period in range(6, 20)}
    periods, _ = play(staged(num_stages=1, num_chances=chances), values)
    assert len(periods) == count


def test_the_least_number_of_periods_does_not_depend_on_chances():
    periods, _ = play(staged(num_stages=1, num_periods=6, num_chances=1), {})
    assert len(periods) == 7


def test_the_next_stage_begins_with_the_best_student_and_the_best_is_of_the_last_stage():
    values = {(0, 0, 0): -2.0, (0, 1, 0): -3.0, (0, 2, 0): -2.9, (0, 3, 0): -2.8}
    values |= {(1, 0, 0): -1.2, (1, 1, 0): -1.3, (1, 2, 0): -1.1, (1, 3, 0): -1.0}
    periods, records = play(staged(), values, {(1, 0, 0): -2.0})
    assert places(periods) == [(stage, period, 0) for stage in range(2) for period in range(4)]
    assert starts(periods)[1, 0, 0] == (0, 1, 0)
    strategy = staged()
    assert strategy.best(records) == place(1, 1, 0)
    assert [strategy.best(records[:count]) for count in (1, 2, 4, 5)] == [
        place(0, 0, 0), place(0, 1, 0), place(0, 1, 0), place(1, 0, 0)
    ]  # fmt: skip


def test_a_period_is_repeated_against_the_best_attempt_of_the_one_before():
    values = {(0, 1, 0): -0.2, (0, 1, 1): -0.3, (0, 1, 2): -0.25, (0, 2, 0): -0.15, (0, 3, 0): -0.07}
    periods, _ = play(staged(num_stages=1), values)
    assert places(periods)[:5] == [(0, 0, 0), (0, 1, 0), (0, 1, 1), (0, 1, 2), (0, 2, 0)]
    begun = starts(periods)
    assert begun[0, 1, 1] == begun[0, 1, 2] == (0, 0, 0) and begun[0, 2, 0] == (0, 1, 1)
    assert len(periods) == 5, "period 0 was the best"
    # -0.15 is just good enough after -0.3, and -0.07 is not after -0.15.
    values |= {(0, 0, 0): -0.31, (0, 1, 0): -0.1}
    periods, _ = play(staged(num_stages=1, num_chances=3), values)
    assert places(periods)[:6] == [(0, 0, 0), (0, 1, 0), (0, 1, 1), (0, 2, 0), (0, 3, 0), (0, 3, 1)]


def test_the_first_period_of_a_stage_is_compared_by_its_meta_loss():
    """The validation of a stage is the next stage's test: its training had the same unrolls."""
    values = {(0, 0, 0): -2.0, (0, 1, 0): -4.0, (0, 2, 0): -3.0, (1, 0, 0): 50.0, (1, 0, 1): 60.0}
    values |= {(0, 3, 0): -3.0}
    losses = {(1, 0, 0): -1.9, (1, 0, 1): -2.0, (1, 1, 0): 1e9}
    periods, _ = play(staged(), values, losses)
    assert [p for p in places(periods) if p[:2] == (1, 0)] == [(1, 0, 0), (1, 0, 1)]
    begun = starts(periods)
    assert begun[1, 0, 0] == begun[1, 0, 1] == (0, 1, 0)
    # Which attempt goes on is decided by validation.
    assert begun[1, 1, 0] == (1, 0, 0)
    periods, _ = play(staged(), values, {(1, 0, n): NAN for n in range(9)})
    assert [p for p in places(periods) if p[:2] == (1, 0)] == [(1, 0, 0), (1, 0, 1), (1, 0, 2)]


def test_validation_is_on_the_next_stage_without_imitation():
    strategy = Curriculum(
        num_periods=1,
        num_chances=1,
        num_stages=3,
        unroll=(10, 20),
        epochs=(4, 3, 2, 1),
        warmup=(0, 1),
        warmup_rate=(0.1, 0.2, 0.3),
    )
    first = {period.place.stage: period for period in reversed(play(strategy, {})[0])}
    assert first[0].training == Plan(10, 1, 4, 0, 0.1, 0.2)
    assert first[0].validation == Plan(20, 2, 3, 1, 0.2, 0.0)
    assert first[1].training == dataclasses.replace(first[0].validation, imitation=0.1)
    assert first[2].training == Plan(20, 5, 2, 1, 0.3, 0.05)
    assert first[2].validation == Plan(20, 10, 1, 1, 0.3, 0.0), "schedules have an entry after the last stage"
    assert strategy.plan_of(place(1, 7, 3)) == first[1].training


def test_the_published_curriculum_is_the_default():
    first = {period.place.stage: period for period in reversed(play(Curriculum(), {})[0])}
    assert [first[stage].training.depth for stage in range(4)] == [1, 2, 5, 10]
    assert [first[stage].training.imitation for stage in range(4)] == [0.2, 0.1, 0.05, 0.02]
    assert first[3].validation == Plan(100, 20, 10, 1, 0.05, 0.0)
    assert len(play(Curriculum(), {})[0]) == 4 * 6


# All --------------------------------------------------------------------------------------------------------

ALL = {
    "simple": Simple(num_periods=6),
    "repeat": Repeat(num_periods=6, max_repeat=3, threshold=0.2),
    "curriculum": Curriculum(num_stages=3, num_periods=2, num_chances=2, max_repeat=3, threshold=0.2),
}


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("name", ALL)
def test_what_is_next_follows_from_the_records_alone(name, seed):
    """A training that is taken up after any period goes the same way."""
    strategy, draw = ALL[name], random.Random(seed)

    def value():
        return NAN if draw.random() < 0.1 else draw.uniform(-2, 1)

    records, periods = [], []
    while (period := strategy.next(records)) is not None:
        periods.append(period)
        records.append(Record(period.place, value(), value()))
    for count, period in enumerate(periods):
        again = dataclasses.replace(strategy)
        copies = tuple(Record(Place(r.place.stage, r.place.period, r.place.repeat), r.validation, r.meta_loss)
                       for r in records[:count])  # fmt: skip
        assert again.next(copies) == period
        done = [record.place for record in records[:count]]
        assert period.place not in done and (period.start in done if count else period.start is None)
        assert done == sorted(done) and strategy.best(records[: count + 1]) in [*done, period.place]
    assert len({strategy.label(period.place) for period in periods}) == len(periods)
    last = periods[-1].place
    assert strategy.next(records) is None and last.stage == (2 if name == "curriculum" else 0)
    if name != "curriculum":
        assert last.period == 5
    most = max(period.place.repeat for period in periods)
    assert most <= (0 if name == "simple" else 2)


def test_a_stage_ends_even_if_it_always_improves():
    strategy = Curriculum(num_stages=1, num_periods=2, num_chances=3, max_periods=7)
    periods, _ = play(strategy, {(0, n, 0): -float(n) for n in range(20)})
    assert places(periods) == [(0, n, 0) for n in range(7)]
    # The least number of periods is done in any case.
    short = dataclasses.replace(strategy, max_periods=1)
    assert len(play(short, {(0, n, 0): -float(n) for n in range(20)})[0]) == 3
