"""Pytree helpers, and the content hash that a trial's identity rests on."""

import dataclasses
import enum
import functools
import importlib.util
import logging
import os
import subprocess
import sys
import types

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from outeropt import optimizers, tasks, tree


class Inner(eqx.Module):
    rate: jax.Array
    pair: tuple[jax.Array, jax.Array]


class Outer(eqx.Module):
    values: dict[str, jax.Array]
    inner: Inner
    static: int = eqx.field(static=True, default=3)


def outer():
    one = jnp.float32(1)
    return Outer({"b": one, "a": one + 1}, Inner(one + 2, (one + 3, one + 4)))


def test_leaves_have_dotted_names_and_dictionaries_lend_their_keys():
    assert {name: float(leaf) for name, leaf in tree.named_leaves(outer()).items()} == {
        "a": 2,
        "b": 1,
        "inner.rate": 3,
        "inner.pair.0": 4,
        "inner.pair.1": 5,
    }
    assert list(tree.named_leaves({"x": {"y": [1.0]}})) == ["x.y.0"]
    assert tree.named_leaves(1.0) == {"": 1.0}
    wrapped = optimizers.get("clip:adam")
    assert "inner.learning_rate" in tree.named_leaves(eqx.filter(wrapped, eqx.is_array))


def test_stack_and_take_are_inverses():
    trees = [{"w": jnp.full((2,), i, jnp.float32), "n": jnp.int32(i)} for i in range(3)]
    stacked = tree.stack(trees)
    assert stacked["w"].shape == (3, 2) and stacked["n"].shape == (3,)
    assert tree.size(stacked) == 3 and tree.size({}) == 0
    for i, one in enumerate(trees):
        again = tree.take(stacked, i)
        assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all() and a.dtype == b.dtype, one, again))
    np.testing.assert_array_equal(tree.take(stacked, np.array([2, 0]))["n"], [2, 0])
    np.testing.assert_array_equal(tree.take(stacked, slice(1, None))["w"][:, 0], [1, 2])


def test_where_picks_a_whole_tree():
    new, old = {"w": jnp.ones(2), "n": jnp.int32(1)}, {"w": jnp.zeros(2), "n": jnp.int32(0)}
    for keep in (True, False):
        picked = jax.jit(tree.where)(jnp.array(keep), new, old)
        np.testing.assert_array_equal(picked["w"], np.full(2, keep, np.float32))
        assert int(picked["n"]) == keep and picked["n"].dtype == jnp.int32


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_all_finite(bad):
    good = {"w": jnp.ones(3), "n": jnp.int32(5), "key": jax.random.key(0)}
    assert tree.all_finite(good)
    assert not tree.all_finite({**good, "v": jnp.array([0.0, bad])})
    assert tree.all_finite({}) and tree.all_finite({"n": jnp.arange(3)})


# Fingerprints -----------------------------------------------------------------------------------------------

SCRIPT = """
import dataclasses, functools
import equinox as eqx, jax, jax.numpy as jnp, numpy as np
from outeropt import optimizers, tasks, tree

scale = {"b": 2.0, "a": (1, "x", None, 3 + 4j, b"z", ...)}
layers = {str(i) for i in range(50)}

def helper(x, *, factor=3):
    return x * factor * scale["b"] + len(layers)

class Net(eqx.Module):
    weights: jax.Array
    width: int = eqx.field(static=True)
    def __call__(self, x):
        return jnp.tanh(helper(x)) @ self.weights
    @property
    def depth(self):
        return 2

def make(power):
    def init(key):
        return {"w": jax.random.normal(key, (3,)) * power}
    return init

net = Net(jnp.arange(3, dtype=jnp.float32), 7)
task = tasks.from_functions(init=make(2), loss=lambda p: jnp.sum(net(p["w"])), name="script")
for value in (
    task, net, Net, helper, make(3), functools.partial(helper, factor=2), jax.jit(helper), net.__call__,
    scale, layers, frozenset(layers), jax.random.key(3), np.float64(2), jnp.ones((2, 1), jnp.bfloat16),
    optimizers.get("adam"), optimizers.get("clip:nadamw_cosine"), tasks.get("Quadratic_10"),
    np.dtype("int8"), None, jnp.tanh, jax.nn.relu, int,
):
    print(tree.fingerprint(value))
"""


def test_fingerprints_are_equal_in_every_process(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    told = []
    for seed in ("1", "2"):
        ended = subprocess.run(
            [sys.executable, tmp_path / "script.py"],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert ended.returncode == 0, ended.stderr
        told.append(ended.stdout.split())
    assert told[0] == told[1]
    assert len(set(told[0])) == len(told[0]) == 22


def test_fingerprints_tell_values_apart():
    x = np.arange(6, dtype=np.float32)
    values = [
        x,
        x.astype(np.float64),
        x.astype(np.int32),
        x.reshape(2, 3),
        x.reshape(3, 2),
        x + np.float32(1e-6),
        -x,
        np.zeros(2, np.float32),
        np.zeros(2, np.int32),
        [x],
        (x,),
        {"x": x},
        {"y": x},
        [x, x],
        0,
        False,
        0.0,
        -0.0,
        "0",
        b"0",
        None,
        1,
        True,
        1.0,
        (1, 2),
        (2, 1),
        [1, 2],
        {1, 2},
        frozenset({1, 2}),
        ((1,), 2),
        (1, (2,)),
        jax.random.key(0),
        jax.random.key(1),
        np.dtype("int32"),
        np.dtype("int64"),
        int,
        float,
    ]
    assert len({tree.fingerprint(value) for value in values}) == len(values)


def test_fingerprints_do_not_see_what_does_not_count():
    x = np.arange(6, dtype=np.float32)
    assert tree.fingerprint(x) == tree.fingerprint(jnp.asarray(x)) == tree.fingerprint(x[::-1][::-1].copy())
    assert tree.fingerprint(np.asfortranarray(x.reshape(2, 3))) == tree.fingerprint(x.reshape(2, 3))
    assert tree.fingerprint({"a": 1, "b": 2}) == tree.fingerprint({"b": 2, "a": 1})
    assert tree.fingerprint(optimizers.get("adam")) == tree.fingerprint(optimizers.get("adam"))
    assert tree.fingerprint(tasks.get("Quadratic_10")) == tree.fingerprint(tasks.get("Quadratic_10"))


def module(text: str, folder, name: str = "outeropt_test_own") -> types.ModuleType:
    """A user's module with this text, as a fresh process would load it."""
    path = folder / f"{name}.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(name, path)
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made
    spec.loader.exec_module(made)
    return made


BASE = """
import dataclasses, enum, functools, logging, threading
import equinox as eqx
import jax, jax.numpy as jnp

log = logging.getLogger("own")
lock = threading.Lock()
WIDTH = 4
TABLE = {"rate": 0.5}

class Kind(enum.Enum):
    A = 1
    B = 2

def deepest(x):
    return x + 1

def helper(x):
    return deepest(x) * WIDTH

@jax.jit
def compiled(x):
    return x - 1

class Parent:
    def scaled(self, x):
        return x * 3

class Model(Parent):
    depth = 2
    def __init__(self, width=4):
        self.width = width
    @property
    def area(self):
        return self.width * 5
    @staticmethod
    def fixed(x):
        return x - 6
    @classmethod
    def made(cls):
        return cls(7)
    def __call__(self, x):
        log.debug("called")
        return helper(x) + self.scaled(x)

class Slots:
    __slots__ = ("x",)
    def __init__(self, x):
        self.x = x

@dataclasses.dataclass
class Plain:
    x: int = 8

def loss(params, kind=Kind.A, *, power=9):
    with lock:
        return helper(params) ** power + compiled(params) + TABLE["rate"]

def recursive(n):
    return n * recursive(n - 1) if n else 10

def even(n):
    return n == 0 or odd(n - 1)

def odd(n):
    return n != 0 and even(n - 1)

def closed(a):
    def inner(x):
        return x + a if x else inner(1)
    return inner

model, slots, plain, closure = Model(), Slots(11), Plain(), closed(12)
bound = model.__call__
part = functools.partial(loss, power=13)
late = lambda x: late_helper(x)
def late_helper(x):
    return x + 14
"""
NAMES = {
    *("loss", "part", "helper", "late", "compiled", "closure", "recursive", "even", "odd"),
    *("model", "Model", "bound", "slots", "plain", "Plain", "Kind"),
}


def prints(text, folder):
    own = module(text, folder)
    return {name: tree.fingerprint(getattr(own, name)) for name in NAMES}


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("", "", ""),
        ("WIDTH = 4", "WIDTH = 5", "loss model Model bound part helper"),
        ('"rate": 0.5', '"rate": 0.6', "loss part"),
        ("return x + 1\n", "return x + 2\n", "loss model Model bound part helper"),
        ("return x - 1\n", "return x - 2\n", "loss part compiled"),
        ("return x * 3", "return x * 4", "model Model bound"),
        ("depth = 2", "depth = 3", "model Model bound"),
        ("self.width * 5", "self.width * 6", "model Model bound"),
        ("return x - 6", "return x - 7", "model Model bound"),
        ("return cls(7)", "return cls(8)", "model Model bound"),
        ("__init__(self, width=4)", "__init__(self, width=5)", "model Model bound"),
        ("kind=Kind.A", "kind=Kind.B", "loss part"),
        ("power=9", "power=8", "loss part"),
        ("power=13", "power=12", "part"),
        ("B = 2", "B = 3", "Kind loss part"),
        ("if n else 10", "if n else 11", "recursive"),
        ("n != 0", "n != 1", "even odd"),
        ("Slots(11)", "Slots(12)", "slots"),
        ("Plain()", "Plain(9)", "plain"),
        ("closed(12)", "closed(13)", "closure"),
        ("return x + 14", "return x + 15", "late"),
        ('getLogger("own")', 'getLogger("other")', ""),
        ("WIDTH = 4", "\n\nWIDTH = 4  # lines and comments do not count", ""),
    ],
)
def test_a_users_change_is_seen_wherever_it_is_used(old, new, changed, tmp_path):
    before = prints(BASE, tmp_path)
    logging.getLogger("own").setLevel(logging.ERROR)  # the state of the process does not count
    assert old in BASE
    after = prints(BASE.replace(old, new, 1) if old else BASE, tmp_path)
    assert {name for name in NAMES if before[name] != after[name]} == {*changed.split()}


def test_a_module_beside_the_users_file_counts(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    text = "import outeropt_test_beside\ndef loss(x):\n    return outeropt_test_beside.model(x)\n"

    def go(constant):
        module(f"unused = {constant}\ndef model(x):\n    return x + 1\n", tmp_path, "outeropt_test_beside")
        unchanged = tree.fingerprint(module(text, tmp_path).loss)
        module(f"def model(x):\n    return x + {constant}\n", tmp_path, "outeropt_test_beside")
        return unchanged, tree.fingerprint(module(text, tmp_path).loss)

    one, two = go(5), go(6)
    assert one[0] == two[0]
    assert one[1] != two[1]


def test_what_pytrees_hold_counts():
    class Colour(enum.Enum):
        RED = 1
        BLUE = 2

    @dataclasses.dataclass(frozen=True)
    class Point:
        x: int

    @dataclasses.dataclass(frozen=True)
    class Labelled:
        x: int
        label: str = dataclasses.field(default="", metadata=tree.NO_IDENTITY)

    assert tree.fingerprint(Labelled(1, "a")) == tree.fingerprint(Labelled(1, "b"))
    assert tree.fingerprint(Labelled(1, "a")) != tree.fingerprint(Labelled(2, "a"))
    values = [
        Colour.RED,
        Colour.BLUE,
        Point(1),
        Point(2),
        np.array([1, "a"], object),
        np.array([1, "b"], object),
    ]
    assert len({tree.fingerprint(value) for value in values}) == len(values)
    assert tree.fingerprint(np.array([1, "a"], object)) == tree.fingerprint(np.array([1, "a"], object))
    assert tree.fingerprint(functools.partial(max, 1)) != tree.fingerprint(functools.partial(max, 2))
