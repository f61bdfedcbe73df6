"""Models of flax, equinox and haiku as tasks."""

import importlib.util
import inspect
import subprocess
import sys
import textwrap

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import outeropt
from outeropt import tasks, tree
from outeropt._sweep.runner import Runner
from outeropt.cli.main import main
from outeropt.errors import OuteroptError
from task_fixtures import KEY, gradient, started


ROWS = {
    "image": np.random.default_rng(0).integers(0, 255, size=(60, 4, 2, 1), dtype=np.uint8),
    "label": np.arange(60) % 3,
}


def linen(**how):
    nn = pytest.importorskip("flax.linen")

    class Net(nn.Module):
        width: int = 5

        @nn.compact
        def __call__(self, x, train):
            x = nn.Dense(self.width)(x.reshape(len(x), -1))
            x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(x)
            x = nn.Dropout(0.3, deterministic=not train)(nn.relu(x))
            return nn.Dense(3)(x)

    return tasks.from_flax_linen(Net(), "cross_entropy", data=ROWS, batch_size=20, **how)


def nnx(**how):
    nnx = pytest.importorskip("flax.nnx")

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(8, 5, rngs=rngs)
            self.norm = nnx.BatchNorm(5, momentum=0.5, rngs=rngs)
            self.drop = nnx.Dropout(0.3, rngs=rngs)
            self.last = nnx.Linear(5, 3, rngs=rngs)

        def __call__(self, x):
            return self.last(self.drop(nnx.relu(self.norm(self.first(x.reshape(len(x), -1))))))

    return tasks.from_flax_nnx(Net, "cross_entropy", data=ROWS, batch_size=20, **how)


def equinox(**how):
    class Net(eqx.Module):
        first: eqx.nn.Linear
        norm: eqx.nn.BatchNorm
        drop: eqx.nn.Dropout
        last: eqx.nn.Linear
        order: jax.Array

        def __init__(self, key):
            one, two = jax.random.split(key)
            self.first = eqx.nn.Linear(8, 5, key=one)
            self.norm = eqx.nn.BatchNorm(5, "batch", mode="ema", momentum=0.5)
            self.drop = eqx.nn.Dropout(0.3)
            self.last = eqx.nn.Linear(5, 3, key=two)
            self.order = jax.random.permutation(key, 8)  # whole numbers: part of the state

        def __call__(self, x, state, *, key=None):
            x, state = self.norm(self.first(x.reshape(-1)[self.order]), state)
            return self.last(self.drop(jax.nn.relu(x), key=key)), state

    return tasks.from_equinox(eqx.nn.make_with_state(Net), "cross_entropy", data=ROWS, batch_size=20, **how)


def haiku(**how):
    hk = pytest.importorskip("haiku")

    def net(x, is_training):
        x = hk.BatchNorm(True, True, 0.5)(hk.Linear(5)(hk.Flatten()(x)), is_training)
        if is_training:
            x = hk.dropout(hk.next_rng_key(), 0.3, x)
        return hk.Linear(3)(jax.nn.relu(x))

    return tasks.from_haiku(net, "cross_entropy", data=ROWS, batch_size=20, **how)


MODELS = [linen, nnx, equinox, haiku]


@pytest.mark.parametrize("make", MODELS)
def test_a_model_is_a_task(make):
    task = make(name="mine")
    tasks.check(task)
    params, state, batch = started(task)
    assert task.name == "mine" and all(jnp.issubdtype(p.dtype, jnp.floating) for p in jax.tree.leaves(params))
    again = [jax.tree.leaves(task.init(jax.random.key(seed))[0]) for seed in (0, 1)]
    assert all(map(np.array_equal, jax.tree.leaves(params), again[0]))
    assert not all(map(np.array_equal, jax.tree.leaves(params), again[1]))

    loss, (new, metrics) = task.loss(params, state, batch, KEY)
    assert not all(map(np.array_equal, jax.tree.leaves(state), jax.tree.leaves(new))), (
        "statistics stand still"
    )
    assert loss == task.loss(params, state, batch, KEY)[0]
    assert loss != task.loss(params, state, batch, jax.random.key(1))[0], "no dropout"
    assert 0 <= metrics["accuracy"] <= 1

    still, (same, _) = task.loss(params, state, batch, None)
    assert all(map(np.array_equal, jax.tree.leaves(state), jax.tree.leaves(same)))
    assert task.loss(params, new, batch, None)[0] != still, "evaluation does not use the statistics"
    slopes = jax.tree.leaves(gradient(task, params, state, batch, KEY))
    assert all(np.isfinite(slope).all() for slope in slopes) and any(
        np.abs(slope).max() > 0 for slope in slopes
    )


@pytest.mark.parametrize("make", MODELS)
def test_a_sweep_trains_a_model(make):
    adam = outeropt.optimizers.get("adam")
    rates = outeropt.grid(adam, learning_rate=[0.0, 0.03])
    archive = outeropt.sweep(make(), rates, seeds=2, steps=60, eval_every=30)
    still, trained = archive.final("train/loss").mean(axis=1)
    assert np.isfinite([still, trained]).all() and trained < 0.9 * still


def test_what_the_models_give_is_what_their_libraries_give():
    nn = pytest.importorskip("flax.linen")
    module = nn.Dense(3)
    task = tasks.from_flax_linen(
        module, lambda outputs, batch: outputs.sum(), data={"x": np.ones((5, 2), "f")}, batch_size=4
    )
    params, state, batch = started(task)
    assert state is None
    np.testing.assert_allclose(
        task.loss(params, state, batch, KEY)[0], module.apply({"params": params}, batch["x"]).sum()
    )

    build = eqx.nn.MLP
    task = tasks.from_equinox(
        lambda key: build(2, 3, 4, 1, key=key),
        lambda outputs, batch: outputs.sum(),
        data={"x": np.ones((5, 2), "f")},
    )
    params, state, batch = started(task)
    assert state is None
    want = jax.vmap(build(2, 3, 4, 1, key=KEY))(batch["x"]).sum()
    np.testing.assert_allclose(task.loss(params, state, batch, KEY)[0], want, rtol=1e-6)


@pytest.mark.parametrize("flag", ["train", "training", "is_training", "deterministic", "inference"])
def test_a_flag_says_whether_the_model_trains(flag):
    nn = pytest.importorskip("flax.linen")
    text = f"class Net(nn.Module):\n    def __call__(self, x, {flag}):\n        return float({flag})\n"
    names = {"nn": nn}
    exec(text, names)
    task = tasks.from_flax_linen(
        names["Net"](), lambda outputs, batch: outputs, data=np.ones((4, 2), "f"), inputs=lambda x: x
    )
    training = 0.0 if flag in ("deterministic", "inference") else 1.0
    assert task.loss({}, None, np.ones((4, 2), "f"), KEY)[0] == training
    assert task.loss({}, None, np.ones((4, 2), "f"), None)[0] == 1 - training


def test_inputs_are_a_field_several_or_a_function():
    class Sum(eqx.Module):
        weight: jax.Array

        def __call__(self, *inputs):
            return self.weight * sum(jnp.mean(x) for x in inputs)

    def build(key):
        return Sum(jnp.float32(1))

    rows = {
        "a": np.full((4, 2), 255, np.uint8),
        "b": np.full((4, 2), 2, np.float32),
        "y": np.full(4, 3, np.float32),
    }
    for inputs, want in (
        ("a", (1 - 3) ** 2),
        ("b", (2 - 3) ** 2),
        (lambda batch: batch["b"] * 2, (4 - 3) ** 2),
        (lambda batch: (batch["b"], batch["b"]), (4 - 3) ** 2),
    ):
        task = tasks.from_equinox(build, "mean_squared_error", data=rows, inputs=inputs)
        np.testing.assert_allclose(task.loss(*started(task), KEY)[0], want, rtol=1e-6)


def test_cross_entropy_of_many_positions_is_that_of_their_rows():
    scores = np.random.default_rng(0).normal(size=(4, 3, 5)).astype("f")
    target = np.arange(12).reshape(4, 3) % 5
    rows = {"obs": scores, "target": target}

    def build(key):
        return eqx.nn.Lambda(lambda x: x)

    task = tasks.from_equinox(build, "cross_entropy", data=rows, batch_size=6)
    batch = task.batch("train", KEY)
    loss, (_, metrics) = task.loss(*started(task)[:2], batch, KEY)
    log_p = np.asarray(jax.nn.log_softmax(batch["obs"])).reshape(-1, 5)
    label = np.asarray(batch["target"]).reshape(-1)
    np.testing.assert_allclose(loss, -log_p[np.arange(len(label)), label].mean(), rtol=1e-6)
    assert metrics["accuracy"] == np.float32((log_p.argmax(axis=1) == label).mean())


def dense(width):
    return pytest.importorskip("flax.linen").Dense(width)


@pytest.mark.parametrize(
    ("loss", "how", "message"),
    [
        ("crossentropy", {}, "No loss is called 'crossentropy'. Did you mean cross_entropy?"),
        (3, {}, "loss = 3 is not usable"),
        ("cross_entropy", {"data": None}, "A model needs data"),
        ("cross_entropy", {"inputs": "pixels"}, "fields image, label, and the model reads pixels"),
        ("cross_entropy", {}, r"the model gave float32\[20, 4, 2, 3\], and the batch has int32\[20\]"),
        ("mean_squared_error", {}, "mean_squared_error reads y or target"),
        (lambda outputs, batch: outputs, {}, "floating scalar; return its mean"),
        (lambda outputs, batch: (outputs.mean(), 1, 2), {}, "gave 3 values"),
        (lambda outputs, batch: outputs @ batch["label"], {}, "loss raised TypeError"),
    ],
)
def test_what_is_said_of_a_wrong_loss(loss, how, message):
    with pytest.raises(OuteroptError, match=message) as error:
        tasks.check(tasks.from_flax_linen(dense(3), loss, **{"data": ROWS, "batch_size": 20, **how}))
    assert "\n" not in str(error.value)


def test_what_is_said_of_a_wrong_model():
    nn, hk = pytest.importorskip("flax.linen"), pytest.importorskip("haiku")

    class Pair(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(x), x

    class Blind(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(use_running_average=False)(nn.Dense(3)(x.reshape(len(x), -1)))

    def given(make, model):
        return lambda: tasks.check(make(model, "cross_entropy", data=ROWS))

    wrong = [
        (given(tasks.from_flax_linen, nn.Dense), "made: Net()"),
        (given(tasks.from_flax_linen, Pair()), "the model gave a tuple"),
        (given(tasks.from_flax_linen, Blind()), "evaluation"),
        (given(tasks.from_flax_nnx, 3), "build is int 3"),
        (given(tasks.from_flax_nnx, lambda rngs: 3), "build gave int 3"),
        (given(tasks.from_equinox, eqx.nn.MLP(2, 3, 4, 1, key=KEY)), "lambda key: Net"),
        (given(tasks.from_equinox, lambda key: 3), "build gave int 3"),
        (given(tasks.from_equinox, lambda key: eqx.nn.Linear(7, 3, key=key)), "init raised|loss raised"),
        (given(tasks.from_haiku, hk.transform(lambda x: x)), "the function itself"),
    ]
    for attempt, message in wrong:
        with pytest.raises(OuteroptError, match=message) as error:
            attempt()
        assert "\n" not in str(error.value)


def test_a_library_that_is_missing_is_named():
    code = """
    import sys
    import outeropt.tasks
    print(sorted({"flax", "haiku", "torch"} & {*sys.modules}))
    for name in ("flax.linen", "flax.nnx", "haiku", "torch"):
        sys.modules[name] = sys.modules[name.partition(".")[0]] = None
    for make in ("flax_linen", "flax_nnx", "haiku", "torch"):
        try:
            getattr(outeropt.tasks, f"from_{make}")(lambda: None, "cross_entropy", data=None)
        except outeropt.errors.ConfigError as error:
            print(error)
    """
    told = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120, check=True
    ).stdout.splitlines()
    missing = "This model needs {0}, which is not installed: pip install {0}."
    assert told == ["[]", *(missing.format(name) for name in ("flax", "flax", "dm-haiku", "torch"))]


FILES = {
    "flax": """
        import flax.linen as nn
        import numpy as np
        from outeropt import tasks

        class Net(nn.Module):
            @nn.compact
            def __call__(self, x):
                return nn.Dense(1)(nn.tanh(nn.Dense(4)(x)))[:, 0]

        rows = {"x": np.ones((30, 2), "f"), "y": np.ones(30, "f")}
        task = tasks.from_flax_linen(Net(), "mean_squared_error", data=rows, name="mine")
    """,
    "equinox": """
        import equinox as eqx
        import jax
        import numpy as np
        from outeropt import tasks

        class Net(eqx.Module):
            layer: eqx.nn.Linear

            def __init__(self, key):
                self.layer = eqx.nn.Linear(2, "scalar", key=key)

            def __call__(self, x):
                return jax.numpy.tanh(self.layer(x))

        rows = {"x": np.ones((30, 2), "f"), "y": np.ones(30, "f")}
        task = tasks.from_equinox(lambda key: Net(key), "mean_squared_error", data=rows, name="mine")
    """,
    "haiku": """
        import haiku as hk
        import jax
        import numpy as np
        from outeropt import tasks

        def net(x):
            return jax.nn.tanh(hk.Linear(1)(x))[:, 0]

        rows = {"x": np.ones((30, 2), "f"), "y": np.ones(30, "f")}
        task = tasks.from_haiku(net, "mean_squared_error", data=rows, name="mine")
    """,
    "torch": """
        import numpy as np
        import torch
        from outeropt import tasks

        class Net(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = torch.nn.Linear(2, 1)

            def forward(self, x):
                return torch.tanh(self.layer(x))[:, 0]

        rows = {"x": np.ones((30, 2), "f"), "y": np.ones(30, "f")}
        task = tasks.from_torch(lambda: Net(), "mean_squared_error", data=rows, name="mine")
    """,
}


@pytest.mark.parametrize("library", FILES)
def test_a_sweep_of_a_file_goes_on_until_the_model_changes(library, tmp_path, monkeypatch):
    pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    file = tmp_path / f"my_{library}.py"
    file.write_text(textwrap.dedent(FILES[library]))
    ran, run = [], Runner.run
    monkeypatch.setattr(
        Runner, "run", lambda self, chunk, partial: ran.append(chunk.lanes) or run(self, chunk, partial)
    )

    def lanes(seeds):
        ran.clear()
        words = [
            "sweep",
            "--task",
            f"{file.name}:task",
            "--optimizer",
            "sgd",
            "--grid",
            "learning_rate=0.1,0.2",
        ]
        assert main([*words, "--seeds", str(seeds), "--steps", "4", "--store", "runs.db"]) == 0
        return sum(ran)

    before = tree.fingerprint(tasks.get(f"{file.name}:task"))
    assert lanes(2) == 4
    assert lanes(2) == 0
    assert lanes(3) == 2
    file.write_text(file.read_text().replace("tanh", "relu" if library != "equinox" else "sin"))
    assert tree.fingerprint(tasks.get(f"{file.name}:task")) != before
    assert lanes(2) == 4


def test_another_process_sees_the_same_tasks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [name for name in FILES if importlib.util.find_spec(name)]
    for name in names:
        (tmp_path / f"my_{name}.py").write_text(textwrap.dedent(FILES[name]))
    files = [f"my_{name}.py:task" for name in names]
    code = f"from outeropt import tasks, tree; print(*(tree.fingerprint(tasks.get(f)) for f in {files}))"
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert told.stdout.split() == [tree.fingerprint(tasks.get(file)) for file in files]


@pytest.mark.parametrize(
    "change", [('{"x"', '{"pixels"'), ('"mean_squared_error"', '"squared"'), ("(4)", "(-1)")]
)
def test_the_command_line_says_in_one_line_what_is_wrong(change, tmp_path, monkeypatch, capsys):
    pytest.importorskip("flax")
    monkeypatch.chdir(tmp_path)
    text = inspect.cleandoc(FILES["flax"]).replace(*change)
    (tmp_path / "wrong.py").write_text(text)
    assert main(["train", "--task", "wrong.py:task", "--optimizer", "sgd", "--steps", "4"]) == 2
    told = capsys.readouterr()
    assert told.err.count("\n") == 1 and "Traceback" not in told.err
