"""Models of PyTorch as tasks: their curves are those of PyTorch's own loop."""

import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import outeropt
from outeropt import tasks
from outeropt.errors import OuteroptError
from outeropt.tasks.models import torch_program
from outeropt.training.inner import _step_keys
from task_fixtures import KEY, started


torch = pytest.importorskip("torch")
nn = torch.nn

RANDOM = np.random.default_rng(0)
ROWS = {
    "image": RANDOM.integers(0, 255, size=(60, 4, 2, 1), dtype=np.uint8),
    "label": np.arange(60) % 3,
}
POINTS = {"x": RANDOM.normal(size=(40, 3)).astype("f"), "y": RANDOM.normal(size=(40, 2)).astype("f")}


def normed():
    """With running statistics, and a layer that is frozen."""
    frozen = nn.Linear(5, 4).requires_grad_(False)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(8, 5), nn.BatchNorm1d(5, momentum=0.5), nn.Tanh(), frozen, nn.Linear(4, 3)
    )


def dropping():
    return nn.Sequential(nn.Flatten(), nn.Linear(8, 5), nn.ReLU(), nn.Dropout(0.3), nn.Linear(5, 3))


def convolving():
    order = (0, 3, 1, 2)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 2)
            self.last = nn.Linear(6, 3)

        def forward(self, x):
            return self.last(torch.relu(self.conv(x.permute(*order))).flatten(1))

    return Net()


def smooth():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def classifier(build, **how):
    return tasks.from_torch(build, "cross_entropy", data=ROWS, batch_size=20, **how)


def regression():
    return tasks.from_torch(smooth, "mean_squared_error", data=POINTS, batch_size=16)


def leaves_of(task, seed=0):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(task.init(jax.random.key(seed)))]


@pytest.mark.parametrize("build", [normed, dropping, convolving])
def test_a_module_is_a_task(build):
    task = classifier(build, name="mine")
    tasks.check(task)
    params, state, batch = started(task)
    trained = dict(build().named_parameters())
    assert {name: leaf.shape for name, leaf in params.items()} == {
        name: tuple(p.shape) for name, p in trained.items() if p.requires_grad
    }
    assert all(map(np.array_equal, leaves_of(task), leaves_of(task)))
    assert not all(map(np.array_equal, leaves_of(task), leaves_of(task, 1)))
    loss, (new, metrics) = task.loss(params, state, batch, KEY)
    assert loss == task.loss(params, state, batch, KEY)[0] and 0 <= metrics["accuracy"] <= 1
    assert (loss != task.loss(params, state, batch, jax.random.key(1))[0]) == (build is dropping)
    still, (same, _) = task.loss(params, state, batch, None)
    if build is not normed:
        assert state is None and new is None
        return
    assert all(np.array_equal(state[name], same[name]) for name in state)
    assert new["2.num_batches_tracked"] == 1 and np.array_equal(new["4.weight"], state["4.weight"])
    assert not np.array_equal(new["2.running_mean"], state["2.running_mean"])
    assert task.loss(params, new, batch, None)[0] != still


def test_sixteen_lanes_are_as_many_loops_of_pytorch():
    task, rates, steps = classifier(normed), np.geomspace(1e-3, 1, 16), 12
    sgd = outeropt.optimizers.get("sgd")
    archive = outeropt.sweep(
        task, outeropt.grid(sgd, learning_rate=list(rates)), seeds=[3], steps=steps, eval_every=1, lanes=16
    )
    key = jax.random.key(3)
    for lane, rate in enumerate(rates):
        module = normed()
        start = outeropt.training.start(task, sgd, key)
        params, state = start.params, start.model
        module.load_state_dict(
            {name: torch.tensor(np.asarray(leaf)) for name, leaf in {**params, **state}.items()}
        )
        plain = torch.optim.SGD(
            [p for p in module.parameters() if p.requires_grad], lr=float(np.float32(rate))
        )
        losses = []
        for step in range(steps):
            batch = task.batch("train", _step_keys(key, step)[0])
            image = torch.tensor(np.asarray(batch["image"])).float() / 255
            loss = nn.functional.cross_entropy(module(image), torch.tensor(np.asarray(batch["label"])).long())
            plain.zero_grad()
            loss.backward()
            plain.step()
            losses.append(loss.item())
        np.testing.assert_allclose(archive.curves["inner/loss"][lane, 0, 1:], losses, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("build", [normed, dropping, convolving])
def test_a_lane_is_the_same_beside_others(build):
    before = torch.get_rng_state()
    task, sgd = classifier(build), outeropt.optimizers.get("sgd")

    def curves(rates, seeds):
        settings = outeropt.grid(sgd, learning_rate=rates)
        return outeropt.sweep(task, settings, seeds=seeds, steps=10, eval_every=5).curves["train/loss"]

    wide, narrow = curves([0.001, 0.01, 0.1], [0, 1]), curves([0.01], [1])
    assert np.array_equal(wide, curves([0.001, 0.01, 0.1], [0, 1]))
    np.testing.assert_allclose(wide[1, 1], narrow[0, 0], rtol=1e-4)
    assert not np.array_equal(wide[:, 0], wide[:, 1])
    assert torch.equal(before, torch.get_rng_state()), "the caller's random numbers were used"


def test_vmap_runs_lanes_side_by_side_where_it_can(monkeypatch):
    widths, once = [], torch_program.Program._evaluate

    def counted(self, form, point, rest):
        widths.append(torch._C._functorch.maybe_current_level())
        return once(self, form, point, rest)

    def runs(build, seeds):
        task = classifier(build)
        params, state = jax.vmap(task.init)(jax.random.split(KEY, 4))
        batch, keys = task.batch("train", KEY), jax.random.split(KEY, seeds)
        task.loss(*jax.tree.map(lambda leaf: leaf[0], (params, state)), batch, KEY)
        monkeypatch.setattr(torch_program.Program, "_evaluate", counted)
        widths.clear()
        one = jax.vmap(
            lambda p, s, key: task.loss(p, s, batch, key)[0], in_axes=(0, 0, 0 if seeds > 1 else None)
        )
        assert len(set(np.asarray(one(params, state, keys if seeds > 1 else KEY)).tolist())) == 4
        monkeypatch.undo()
        return len(widths)

    assert runs(normed, 1) == 1 and runs(normed, 4) == 1
    assert runs(dropping, 1) == 1 and runs(dropping, 4) == 4
    assert runs(convolving, 1) == 4


def test_derivatives_are_those_of_the_same_model_in_jax():
    task = regression()
    params, state, batch = started(task)

    def torch_loss(params, x):
        return task.loss(params, state, {**batch, "x": x}, KEY)[0]

    def jax_loss(params, x):
        hidden = jnp.tanh(x @ params["0.weight"].T + params["0.bias"][None])
        return jnp.mean((hidden @ params["2.weight"].T + params["2.bias"][None] - batch["y"]) ** 2)

    def agree(derivative, rtol=2e-5):
        got, want = (derivative(loss) for loss in (torch_loss, jax_loss))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6), got, want)

    x = batch["x"]
    direction = jax.tree.map(
        lambda leaf: jnp.cos(jnp.arange(leaf.size, dtype=jnp.float32)).reshape(leaf.shape), params
    )

    def dot(a, b):
        return sum(jnp.vdot(p, q) for p, q in zip(jax.tree.leaves(a), jax.tree.leaves(b)))

    agree(lambda f: jax.grad(f)(params, x))
    agree(lambda f: jax.grad(f, argnums=(0, 1))(params, x))
    agree(lambda f: jax.jvp(lambda p: f(p, x), (params,), (direction,)))
    agree(lambda f: jax.jvp(lambda p: jax.grad(f)(p, x), (params,), (direction,)))
    agree(lambda f: jax.grad(lambda p: dot(jax.grad(f)(p, x), direction))(params))
    agree(lambda f: jax.grad(lambda x: dot(jax.grad(f)(params, x), direction))(x))
    wide = jax.tree.map(lambda leaf: jnp.stack([leaf, -leaf]), params)
    agree(lambda f: jax.vmap(lambda p: jax.jvp(lambda p: jax.grad(f)(p, x), (p,), (direction,)))(wide))
    with pytest.raises(OuteroptError, match="third order"):
        jax.grad(lambda p: dot(jax.grad(lambda p: dot(jax.grad(torch_loss)(p, x), direction))(p), direction))(
            params
        )


def test_hypergradients_go_through_the_training_of_a_module():
    task = regression()

    def last(rate):
        sgd = outeropt.optimizers.get("sgd", learning_rate=0.1)
        sgd = jax.tree.map(lambda _: rate, sgd)
        return outeropt.unroll(task, sgd, outeropt.training.start(task, sgd, KEY), KEY, length=4)[1][-1]

    slope = jax.jit(jax.grad(last))(jnp.float32(0.1))
    near = (last(jnp.float32(0.11)) - last(jnp.float32(0.09))) / 0.02
    np.testing.assert_allclose(slope, near, rtol=0.02)


def test_a_loss_of_ones_own_gets_tensors():
    def loss(outputs, batch):
        assert isinstance(outputs, torch.Tensor) and batch["label"].dtype == torch.int64
        return nn.functional.cross_entropy(outputs, batch["label"]), {
            "largest": outputs.abs().max(),
            "half": 0.5,
        }

    task = tasks.from_torch(
        dropping, loss, data=ROWS, batch_size=20, inputs=lambda batch: batch["image"].float()
    )
    tasks.check(task)
    params, state, batch = started(task)
    value, (_, metrics) = task.loss(params, state, batch, None)
    module = dropping().eval()
    module.load_state_dict({name: torch.tensor(np.asarray(leaf)) for name, leaf in params.items()})
    outputs = module(torch.tensor(np.asarray(batch["image"])).float())
    want = loss(outputs, {"label": torch.tensor(np.asarray(batch["label"])).long()})[0]
    np.testing.assert_allclose(value, want.item(), rtol=1e-5)
    np.testing.assert_allclose(metrics["largest"], outputs.abs().max().item(), rtol=1e-5)
    assert metrics["half"] == 0.5


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 3)

    def forward(self, x):
        return self.layer(x), x


@pytest.mark.parametrize(
    ("build", "how", "message"),
    [
        (lambda: 3, {}, "build gave int 3"),
        (lambda: nn.Linear(1, 3).double(), {}, "parameter weight is torch.float64"),
        (Pair, {}, "the model gave a tuple"),
        (lambda: nn.Linear(7, 3), {}, "raised RuntimeError: mat1 and mat2 shapes cannot be multiplied"),
        (
            lambda: nn.Linear(1, 3),
            {},
            r"the model gave float32\[20, 4, 2, 3\], and the batch has int64\[20\]",
        ),
        (dropping, {"loss": "nll"}, "No loss is called 'nll'"),
        (
            dropping,
            {"loss": lambda o, b: o},
            r"gave a tensor float32\[20, 3\]; it must give a floating scalar",
        ),
        (dropping, {"loss": lambda o, b: (o.mean(), {"all": o})}, "metric 'all'"),
        (dropping, {"inputs": "pixels"}, "fields image, label"),
        (dropping, {"data": None}, "A model needs data"),
        (nn.Linear(1, 3), {}, r"a function that makes the model for every seed: lambda: Net\(\)"),
    ],
)
def test_what_is_said_of_a_wrong_module(build, how, message):
    with pytest.raises(OuteroptError, match=message) as error:
        given = {"loss": "cross_entropy", "data": ROWS, "batch_size": 20, **how}
        tasks.check(tasks.from_torch(build, given.pop("loss"), **given))
    assert "\n" not in str(error.value)


def test_two_devices_on_one_core_do_not_wait_for_each_other():
    code = """
    import os
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    os.environ["JAX_NUM_CPU_DEVICES"] = "2"
    import numpy as np
    import torch
    import outeropt
    from outeropt import tasks

    rows = {"x": np.ones((60, 2000), "f"), "y": np.ones((60, 100), "f")}
    task = tasks.from_torch(lambda: torch.nn.Linear(2000, 100), "mean_squared_error", data=rows)
    rates = outeropt.grid(outeropt.optimizers.get("sgd"), learning_rate=[0.0, 1e-5, 1e-4, 1e-3])
    print(outeropt.sweep(task, rates, seeds=1, steps=3, eval_every=1).final("train/loss").shape)
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=100
    )
    assert ended.stdout.split() == ["(4,", "1)"], ended.stderr
