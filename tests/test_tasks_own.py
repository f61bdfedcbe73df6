"""A user's own tasks, and what is said of broken ones."""

import sys

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from outeropt import tasks
from outeropt.errors import OuteroptError
from task_fixtures import KEY, on_all_splits, started


def test_own_functions_in_all_their_forms():
    def init(key):
        return jax.random.normal(key, (2,))

    rows = {"x": np.ones((5, 2), np.float32)}
    forms = [
        (lambda p, batch: jnp.sum(batch["x"] @ p), rows),
        (lambda p, batch: jnp.sum(batch["x"] @ p), on_all_splits(rows)),
        (lambda p, batch, key: jnp.sum(batch["x"] @ p), rows),
        (lambda p, batch, key=None: jnp.sum(batch["x"] @ p), rows),
        (lambda p, batch: (jnp.sum(batch["x"] @ p), {"accuracy": 0.5}), rows),
        (lambda p: jnp.sum(p**2), None),
        (lambda p, key: jnp.sum(p**2), None),
    ]
    for loss, given in forms:
        task = tasks.from_functions(init=init, loss=loss, data=given, batch_size=4)
        tasks.check(task)
        again = tasks.from_functions(init=init, loss=loss, data=given, batch_size=4)
        assert jax.tree.structure(task) == jax.tree.structure(again)
    task = tasks.from_functions(init=init, loss=forms[4][0], data=rows)
    assert task.loss(*started(task), None)[1][1]["accuracy"] == 0.5


def test_own_functions_with_state():
    def init(key):
        return jnp.ones(2), jnp.zeros(())

    def loss(params, state, batch, key):
        return jnp.sum(params**2), state if key is None else state + 1, {"seen": state}

    task = tasks.from_stateful_functions(init=init, loss=loss)
    tasks.check(task)
    params, state = task.init(KEY)
    assert task.loss(params, state, None, KEY)[1][0] == 1 and task.loss(params, state, None, None)[1][0] == 0
    plain = tasks.from_stateful_functions(init=init, loss=lambda p, s, b, k: loss(p, s, b, k)[:2])
    tasks.check(plain)


def test_own_functions_accept_token_data_and_other_libraries():
    nn = pytest.importorskip("flax.linen")
    model = nn.Dense(7)
    data = tasks.TokenData(on_all_splits(jnp.arange(50) % 7), batch_size=3, length=4)

    def loss(params, batch):
        logits = model.apply(params, jax.nn.one_hot(batch["obs"], 7))
        return -jnp.mean(jnp.sum(jax.nn.log_softmax(logits) * jax.nn.one_hot(batch["target"], 7), axis=-1))

    tasks.check(
        tasks.from_functions(init=lambda key: model.init(key, jnp.ones((1, 7))), loss=loss, data=data)
    )

    def arrays(key):
        return eqx.filter(eqx.nn.Linear(2, 1, key=key), eqx.is_inexact_array)

    tasks.check(tasks.from_functions(init=arrays, loss=lambda model: jnp.sum(model.weight**2)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"loss": lambda p: 0.0, "data": np.ones((4, 2), "f")},
            r"take \(params, batch\) or \(params, batch, key\)",
        ),
        ({"loss": lambda p, b, k: 0.0}, r"must take \(params\) or \(params, key\)"),
        (
            {"loss": lambda p, b: 0.0, "data": {"train": np.ones(3, "f"), "dev": np.ones(3, "f")}},
            "split 'dev'",
        ),
        (
            {"loss": lambda p, b: 0.0, "data": {"x": np.ones(3, "f"), "y": np.ones(4, "f")}},
            "equally many rows",
        ),
    ],
)
def test_own_functions_say_what_is_wrong(arguments, message):
    with pytest.raises(OuteroptError, match=message):
        tasks.from_functions(init=lambda key: jnp.ones(2), **arguments)


@pytest.mark.parametrize(
    ("init", "loss", "message"),
    [
        (
            lambda k: jnp.ones(2),
            lambda p: p,
            r"gave an array float32\[2\]; it must be a floating scalar; return its mean",
        ),
        (lambda k: jnp.ones(2), lambda p: jnp.int32(1), "must be a floating scalar"),
        (lambda k: jnp.ones(2), lambda p: (p.sum(), 3.0), "metrics"),
        (lambda k: jnp.ones(2), lambda p: (p.sum(), {"each": p}), "'each'"),
        (lambda k: jnp.ones(2), lambda p: p["w"], "loss raised TypeError"),
        (lambda k: jnp.arange(2), lambda p: 1.0, "dtype int32"),
        (lambda k: {"f": jax.nn.relu}, lambda p: 1.0, r"eqx.filter\(model"),
        (lambda k: {}, lambda p: 1.0, "no parameters"),
        (lambda k: jnp.ones(2), lambda p, key: jax.random.normal(key) * p.sum(), "without a key"),
    ],
)
def test_check_says_what_is_wrong(init, loss, message):
    task = tasks.from_functions(init=init, loss=loss, name="mine")
    with pytest.raises(OuteroptError, match=message) as error:
        tasks.check(task)
    assert "\n" not in str(error.value) and "mine" in str(error.value)


def test_check_wants_constant_states_equal_batches_and_tasks():
    task = tasks.from_stateful_functions(
        init=lambda k: (jnp.ones(2), jnp.zeros(3)), loss=lambda p, s, b, k: (p.sum(), s[:2])
    )
    with pytest.raises(OuteroptError, match=r"float32\[3\] to float32\[2\]"):
        tasks.check(task)
    uneven = {"train": np.ones((5, 2), "f"), "valid": np.ones((3, 2), "f"), "test": np.ones((4, 2), "f")}

    class Whole(eqx.Module):
        splits: dict

        def batch(self, split, key):
            return self.splits[split]

    task = tasks.from_functions(
        init=lambda k: jnp.ones(2), loss=lambda p, b: jnp.sum(b @ p), data=Whole(uneven)
    )
    tasks.check(task)  # full batches: as many rows as their split
    other = {**uneven, "valid": np.ones((5, 3), "f")}
    task = tasks.from_functions(
        init=lambda k: jnp.ones(2), loss=lambda p, b: jnp.sum(b) * p.sum(), data=Whole(other)
    )
    with pytest.raises(OuteroptError, match=r"batch\('valid'\) gave float32\[5, 3\].*same form"):
        tasks.check(task)
    with pytest.raises(OuteroptError, match="int is no task"):
        tasks.check(3)


def test_a_task_from_a_file(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "beside", raising=False)
    (tmp_path / "beside.py").write_text("SIZE = 3\n")
    file = tmp_path / "my_task.py"
    file.write_text(
        "import jax.numpy as jnp\nfrom beside import SIZE\nfrom outeropt.tasks import from_functions\n"
        "def make():\n"
        "    return from_functions(init=lambda k: jnp.ones(SIZE), loss=lambda p: p @ p, name='mine')\n"
        "task = make()\n"
    )
    task = tasks.get(f"{file}:task")
    tasks.check(task)
    assert task.name == "mine" and jax.tree.structure(tasks.get(f"{file}:task")) == jax.tree.structure(task)
    assert tasks.get(f"{file}:make").name == "mine"
    facts = tasks.describe(f"{file}:task")
    assert (facts["family"], facts["parameters"]) == ("own", 3)
    # Another one, beside which a module of the same name lies.
    other = tmp_path / "other"
    other.mkdir()
    (other / "beside.py").write_text("SIZE = 5\n")
    (other / file.name).write_text(file.read_text())
    first = sys.modules["beside"]  # stays whose it was
    assert tasks.describe(f"{other / file.name}:task")["parameters"] == 5
    assert sys.modules["beside"] is first and first.SIZE == 3


@pytest.mark.parametrize(
    ("text", "attribute", "message"),
    [
        (None, "task", "does not exist"),
        ("task = 1 / 0\n", "task", r"raised ZeroDivisionError: division by zero \(line 1\)"),
        ("x = (\n", "task", r"SyntaxError.*\(line 1\)"),
        ("raise SystemExit(3)\n", "task", "SystemExit: 3"),
        ("x = 1\n", "task", "no attribute 'task'"),
        ("task = 1\n", "task", "task is int 1, no task"),
        (
            "\ndef task():\n    raise ValueError('first\\nsecond')\n",
            "task",
            r"raised ValueError: first \(line 3\)",
        ),
    ],
)
def test_a_broken_task_file_gives_one_line(tmp_path, text, attribute, message):
    file = tmp_path / "broken.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(OuteroptError, match=message) as error:
        tasks.get(f"{file}:{attribute}")
    assert "\n" not in str(error.value) and "broken.py" in str(error.value)


def test_a_file_without_an_attribute():
    with pytest.raises(OuteroptError, match=r"write my_task.py:attribute"):
        tasks.get("my_task.py")
