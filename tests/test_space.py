"""Spaces: coordinates, grids, samples, limits, AlgoPerf's JSON and the command line's grids."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from outeropt import Space
from outeropt.errors import ConfigError, OutOfSpace
from outeropt.space import parse_grid, read_search_space, write_search_space


SPACES = [
    Space.linear(-2.0, 3.0),
    Space.log(1e-7, 10.0),
    Space.log(1e-5, 1e-5),
    Space.logit(0.5, 0.9999),
    Space.logit(1e-4, 0.3),
]
CHOICE = Space.choice(8, 1, 32)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_coordinates_round_trip(space):
    x = jnp.asarray(space.grid(9), jnp.float32)
    z = space.to_unconstrained(x)
    assert z.dtype == jnp.float32 and bool(jnp.isfinite(z).all())
    np.testing.assert_allclose(space.from_unconstrained(z), x, rtol=2e-6)
    exact = {
        "linear": lambda v: v,
        "log": math.log,
        "logit": lambda v: math.log(v / (1 - v)),
    }[space.scale]
    np.testing.assert_allclose(z, [exact(float(v)) for v in x], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_coordinates_have_gradients(space):
    x = jnp.float32(space.grid(3)[len(space.grid(3)) // 2])
    slope = {"linear": 1, "log": 1 / x, "logit": 1 / (x * (1 - x))}[space.scale]
    np.testing.assert_allclose(jax.grad(space.to_unconstrained)(x), slope, rtol=1e-5)
    z = space.to_unconstrained(x)
    np.testing.assert_allclose(jax.grad(space.from_unconstrained)(z), 1 / slope, rtol=1e-4)


def test_any_real_number_is_a_coordinate():
    far = jnp.array([-50.0, 0.0, 50.0])
    assert (Space.log(1e-3, 1).from_unconstrained(far) > 0).all()
    inside = Space.logit(0.1, 0.9).from_unconstrained(far)
    assert bool(((inside >= 0) & (inside <= 1)).all()) and float(inside[1]) == 0.5


def test_a_choice_has_no_coordinates():
    for convert in (CHOICE.to_unconstrained, CHOICE.from_unconstrained):
        with pytest.raises(ConfigError, match="no unconstrained coordinates"):
            convert(jnp.float32(8))


def test_grids_are_even_on_their_scale():
    np.testing.assert_allclose(Space.log(1e-3, 10.0).grid(5), [1e-3, 1e-2, 1e-1, 1, 10], rtol=1e-12)
    np.testing.assert_allclose(Space.linear(-1.0, 1.0).grid(5), [-1, -0.5, 0, 0.5, 1], atol=1e-12)
    near_one = Space.logit(0.5, 0.999).grid(4)
    steps = np.diff([math.log(v / (1 - v)) for v in near_one])
    np.testing.assert_allclose(steps, steps[0], rtol=1e-9)
    assert 1 - near_one[2] < 0.02  # most points lie near 1
    assert CHOICE.grid(2) == CHOICE.grid(50) == (8, 1, 32)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_grids_end_exactly_at_the_ends(space):
    for count in (2, 3, 9):
        values = space.grid(count)
        assert values[0] == space.low and values[-1] == space.high
        assert list(values) == sorted(values) and all(space.contains(value) for value in values)
    assert space.grid(1) == (space.low,)
    assert len(Space.log(1e-3, 1).grid(7)) == 7


@pytest.mark.parametrize("count", [0, -3])
def test_an_empty_grid_is_refused(count):
    for space in (*SPACES, CHOICE):
        with pytest.raises(ConfigError, match=f"grid of {count} values"):
            space.grid(count)


@pytest.mark.parametrize("space", [SPACES[0], SPACES[1], SPACES[3], SPACES[4]], ids=str)
def test_samples_are_uniform_on_the_scale(space):
    draws = space.sample(jax.random.key(3), 4000)
    assert draws.shape == (4000,) and draws.dtype == jnp.float32
    low, high = (space.to_unconstrained(jnp.float32(end)) for end in (space.low, space.high))
    assert float(draws.min()) >= np.float32(space.low) and float(draws.max()) <= np.float32(space.high)
    share = np.sort((np.asarray(space.to_unconstrained(draws)) - float(low)) / float(high - low))
    even = (np.arange(4000) + 0.5) / 4000
    # Kolmogorov-Smirnov: beyond 1.95 / sqrt(n) once in a thousand seeds.
    assert np.abs(share - even).max() < 1.95 / math.sqrt(4000)
    np.testing.assert_array_equal(draws, space.sample(jax.random.key(3), 4000))
    assert not np.array_equal(draws, space.sample(jax.random.key(4), 4000))


def test_samples_of_a_choice_take_every_choice_equally_often():
    draws = np.asarray(CHOICE.sample(jax.random.key(0), 3000))
    values, counts = np.unique(draws, return_counts=True)
    np.testing.assert_array_equal(values, [1, 8, 32])
    assert (np.abs(counts - 1000) < 120).all()


def test_a_space_of_one_value_is_sampled():
    draws = Space.log(1e-5, 1e-5).sample(jax.random.key(0), 3)
    np.testing.assert_array_equal(draws, np.full(3, 1e-5, np.float32))


def test_logit_near_one_keeps_its_distance():
    space = Space.logit(0.9, 0.999999)
    draws = space.sample(jax.random.key(1), 500)
    assert float(draws.max()) < 1.0 and float(draws.max()) > 0.9999
    assert len(np.unique(np.asarray(draws))) > 400
    z = space.to_unconstrained(draws)
    assert bool(jnp.isfinite(z).all())
    np.testing.assert_allclose(1 - space.from_unconstrained(z), 1 - draws, rtol=0.2, atol=1e-7)


def test_clip_goes_to_the_nearest_end_or_choice():
    x = jnp.array([[1e-9, 1e-3], [0.5, 99.0]])
    np.testing.assert_allclose(Space.log(1e-4, 10.0).clip(x), [[1e-4, 1e-3], [0.5, 10.0]], rtol=1e-6)
    np.testing.assert_array_equal(
        CHOICE.clip(jnp.array([[-5.0, 4.0], [19.9, 1e9]])), np.array([[1, 1], [8, 32]])
    )
    assert CHOICE.clip(jnp.float32(30)).shape == ()


@pytest.mark.parametrize(
    ("space", "inside", "outside"),
    [
        (Space.log(1e-4, 1.0), (1e-4, np.float32(1e-4), 0.3, 1.0), (9e-5, 1.01, 0.0, -1.0)),
        (Space.log(1e-4, 1.0, allowed=(0.0, 5.0)), (0.0, 1e-9, 5.0), (-1e-9, 5.1)),
        (Space.logit(0.5, 0.999, allowed=(0.0, 1.0)), (0.0, 0.2, 1.0), (1.001, -0.1)),
        (CHOICE, (8, 1.0, np.float32(32)), (2, 0, 33)),
    ],
    ids=str,
)
def test_check_lets_in_what_is_allowed(space, inside, outside):
    for value in inside:
        assert space.contains(value)
        space.check("x", value)
    for value in (*outside, math.nan, math.inf, -math.inf):
        assert not space.contains(value)
        with pytest.raises(OutOfSpace, match=r"x = .* is outside its space"):
            space.check("x", value)


def test_check_says_what_was_given_and_what_is_allowed():
    told = {}
    for name, space, value in [
        ("learning_rate", Space.log(1e-7, 10.0, allowed=(0.0, 1000.0)), [1e-3, 2000.0]),
        ("b1", Space.logit(0.5, 0.999), 1.0),
        ("every", CHOICE, jnp.float32(7)),
    ]:
        with pytest.raises(OutOfSpace) as error:
            space.check(name, value)
        told[name] = str(error.value)
    assert told == {
        "learning_rate": "learning_rate = 2000 is outside its space; "
        "allowed: 0 to 1000 (log, searched 1e-07 to 10).",
        "b1": "b1 = 1 is outside its space; allowed: 0.5 to 0.999 (logit).",
        "every": "every = 7 is outside its space; allowed: one of 8, 1, 32.",
    }


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Space.linear(2, 1), "from 2 to 1 is empty"),
        (lambda: Space.linear(math.nan, 1), "empty"),
        (lambda: Space.log(0, 1), "log space must start above 0, not at 0"),
        (lambda: Space.logit(-0.1, 0.5), "logit space must start above 0"),
        (lambda: Space.logit(0.5, 1.0), "logit space must end below 1, not at 1"),
        (lambda: Space(0, 1, "cubic"), "'cubic' is unknown; use linear, log, logit or choice"),
        (lambda: Space.choice(), "at least one choice"),
        (lambda: Space.linear(0, 1, allowed=(0.2, 3)), "Limits from 0.2 to 3 cut the space from 0 to 1"),
    ],
)
def test_impossible_spaces_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


# The search space of AlgoPerf's NAdamW baseline, as its file has it.
ALGOPERF = """{
  "learning_rate": {"min": 1e-4, "max": 1e-2, "scaling": "log"},
  "one_minus_beta1": {"min": 4e-3, "max": 0.1, "scaling": "log"},
  "beta2": {"feasible_points": [0.999]},
  "warmup_factor": {"feasible_points": [0.05]},
  "weight_decay": {"min": 5e-3, "max": 1.0, "scaling": "log"},
  "label_smoothing": {"feasible_points": [0.1, 0.2]},
  "dropout_rate": {"feasible_points": [0.0, 0.1]}
}"""


def test_algoperfs_document_reads_and_writes():
    spaces = read_search_space(ALGOPERF)
    assert list(spaces) == list(json.loads(ALGOPERF))
    assert spaces["learning_rate"] == Space.log(1e-4, 1e-2)
    assert spaces["beta2"] == Space.choice(0.999)
    assert spaces["dropout_rate"] == Space.choice(0.0, 0.1)
    assert json.loads(write_search_space(spaces)) == json.loads(ALGOPERF)
    assert read_search_space(write_search_space(spaces)) == spaces
    linear = {"momentum": Space.linear(0.0, 0.9)}
    assert read_search_space(write_search_space(linear)) == linear


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ('[{"learning_rate": 1e-3}]', "is a list; it must map names"),
        ('{"lr": {"min": 1, "max": 2}}', 'entry {"min": 1, "max": 2} is not understood'),
        ('{"lr": 3}', "entry 3 is not understood"),
        ('{"lr": {"feasible_points": ["a"]}}', "is not understood"),
        ('{"lr": {"min": "low", "max": 2, "scaling": "log"}}', "is not understood"),
        ('{"lr": {"feasible_points": []}}', "at least one choice"),
        ('{"lr": {"min": 1, "max": 2, "scaling": "cubic"}}', "'cubic' is unknown"),
        ('{"lr": {"min": 2, "max": 1, "scaling": "log"}}', "empty"),
    ],
)
def test_documents_that_are_no_search_space_are_refused(text, message):
    with pytest.raises(ConfigError, match=message.replace("[", r"\[").replace("{", r"\{")):
        read_search_space(text)


def test_grids_of_the_command_line():
    np.testing.assert_allclose(parse_grid("log:1e-5:1e-1:9"), np.logspace(-5, -1, 9), rtol=1e-12)
    np.testing.assert_allclose(parse_grid("linear:0:1:3"), [0, 0.5, 1])
    np.testing.assert_allclose(parse_grid("logit:0.1:0.9:3"), [0.1, 0.5, 0.9])
    assert parse_grid("0.1,0.3, 1") == (0.1, 0.3, 1.0)
    assert parse_grid("3e-4") == (3e-4,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Grid '' is not understood; write scale:low:high:count"),
        ("a,b", "'a,b' is not understood"),
        ("0.1,,1", "is not understood"),
        ("log:1:2", "'log:1:2' is not understood"),
        ("log:1:2:3:4", "is not understood"),
        ("log:a:2:3", "is not understood"),
        ("log:1:2:2.5", "is not understood"),
        ("cubic:1:2:3", "unknown scale 'cubic'; use linear, log, logit"),
        ("choice:1:2:3", "unknown scale 'choice'"),
        ("log:0:1:3", "must start above 0"),
        ("log:2:1:3", "from 2 to 1 is empty"),
        ("log:1:2:0", "grid of 0 values"),
        ("log:1:2:-1", "grid of -1 values"),
    ],
)
def test_grids_that_cannot_be_read(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_grid(text)
