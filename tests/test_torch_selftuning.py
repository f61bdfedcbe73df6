"""Self-tuning optimizers of PyTorch: golden numbers (tests/golden), and what each does that others do not."""

import copy
import functools
import math
import pathlib

import jax
import numpy as np
import pytest


torch = pytest.importorskip("torch")

import outeropt.torch  # noqa: E402
from outeropt import optimizers, selftuning  # noqa: E402
from outeropt.errors import ConfigError, OuteroptError, UnknownName  # noqa: E402
from outeropt.torch import HypergradientDescent, MetaAdam, MetaDescent, MetaOpt, OnePass, Prodigy  # noqa: E402
from outeropt.torch.selftuning.control.disturbances import AdamScaled, Clipped, Raw  # noqa: E402
from torch_problem import STEPS, flat, in_jax, loss, offered, parameters, train  # noqa: E402


GOLDEN = pathlib.Path(__file__).parent / "golden"
CLOSE = {"rtol": 1e-8, "atol": 1e-10}
KINDS = {"scalar": "scalar", "block": "per_tensor", "diagonal": "diagonal"}


@functools.cache
def golden(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


def number(file, name):
    return float(file[name])


def pair(file, name):
    return tuple(float(value) for value in file[name])


class Quadratic:
    """The least-squares problem of a golden file: two parameters, and a loss for each step."""

    def __init__(self, file, start="problem.x0"):
        self.a, self.b = torch.tensor(file["problem.A"]), torch.tensor(file["problem.b"])
        first = int(file["problem.leaf_sizes"][0])
        self.sizes = first, len(file[start]) - first
        self.params = [torch.nn.Parameter(part) for part in torch.tensor(file[start]).split(self.sizes)]

    def loss(self, step):
        return 0.5 * ((self.a[step] @ torch.cat(self.params) - self.b[step]) ** 2).sum()

    def run(self, optimizer, steps=40, first=0, told=lambda: None):
        """Parameters after each step, and what is told then."""
        rows, notes = [], []
        for step in range(first, first + steps):
            value = self.loss(step)
            optimizer.zero_grad()
            value.backward()
            optimizer.step(value=value.detach(), train_loss=functools.partial(self.loss, step))
            rows.append(flat(self.params))
            notes.append(told())
        return np.stack(rows), notes


class Network:
    """The classifier of a golden file."""

    shapes = ((8, 6), (6,), (6, 3), (3,))

    def __init__(self, file):
        self.x, self.y = torch.tensor(file["problem.X"]), torch.tensor(file["problem.Y"])
        self.sizes = [math.prod(shape) for shape in self.shapes]
        parts = torch.tensor(file["problem.x0"]).split(self.sizes)
        self.params = [torch.nn.Parameter(part.reshape(shape)) for part, shape in zip(parts, self.shapes)]

    def loss(self, step):
        first, bias, second, last = self.params
        logits = torch.tanh(self.x @ first + bias) @ second + last
        return torch.nn.functional.cross_entropy(logits, self.y.long())

    run = Quadratic.run


def started(optimizer, problem, value, kind):
    """The optimizer with golden coefficients: one tensor, one for each parameter, or one for each entry."""
    value = torch.tensor(value)
    if kind in ("scalar", "full"):
        optimizer.shared()["coefficients"].copy_(value)
        return optimizer
    parts = value.unbind(1) if kind == "block" else value.split(problem.sizes, 1)
    for param, part in zip(problem.params, parts):
        optimizer.state[param].update(optimizer.begin(param.detach()))
        optimizer.state[param]["coefficients"].copy_(part.reshape_as(optimizer.state[param]["coefficients"]))
    return optimizer


def disturbance_of(file, name):
    if name != "adam":
        return Raw() if name == "raw" else Clipped(number(file, "settings.clip"))
    prefix = "settings.disturbance_adam" if "settings.disturbance_adam_eps" in file else "settings.adam"
    eps, root = number(file, f"{prefix}_eps"), number(file, f"{prefix}_eps_root")
    return AdamScaled(pair(file, f"{prefix}_betas"), eps, root)


CASES = [
    *(
        ("quad", kind, disturbance, meta, estimator, "masked")
        for kind in KINDS
        for disturbance in ("raw", "adam")
        for meta in ("sgd", "adam")
        for estimator in ("gaps", "fake", "cf1")
    ),
    *(("quad", "scalar", "adam", "adam", estimator, "wait") for estimator in ("gaps", "fake", "cf1")),
    *(("mlp", kind, "adam", "adam", estimator, "masked") for kind in KINDS for estimator in ("gaps", "cf1")),
]


@pytest.mark.parametrize("case", CASES, ids=".".join)
def test_metaopt_equals_the_aligned_algorithm(case):
    problem, kind, disturbance, meta, estimator, start = case
    file = golden(f"meta_opt/aligned_{problem}")
    problem = {"quad": Quadratic, "mlp": Network}[problem](file)
    horizon, memory = int(file["settings.HH"]), int(file[f"settings.{kind}.H"])
    rate = number(file, f"settings.meta_lr_{meta}")
    betas, eps = pair(file, "settings.meta_adam_betas"), number(file, "settings.meta_adam_eps")
    optimizer = MetaOpt(
        torch.optim.SGD(problem.params, lr=number(file, f"settings.{kind}.{disturbance}.eta")),
        MetaDescent(rate) if meta == "sgd" else MetaAdam(rate, betas, eps),
        disturbance_of(file, disturbance),
        weight_decay=number(file, "settings.delta"),
        memory=memory,
        horizon=horizon,
        controller=KINDS[kind],
        estimator=estimator,
        learn_from=1 if start == "masked" else memory + horizon,
    )
    rows, _ = problem.run(started(optimizer, problem, file[f"M0.{kind}"], kind))
    saved = file["saved_steps"] if case[0] == "mlp" else slice(None)
    np.testing.assert_allclose(rows[saved], file[f"{'.'.join(case[1:])}.params"], **CLOSE)


def extra(problem, kind, **settings):
    """The optimizer of the further runs."""
    file = golden("meta_opt/aligned_extra")
    eta = "settings.eta_adam" if isinstance(settings.get("disturbance"), AdamScaled) else "settings.eta_raw"
    optimizer = MetaOpt(
        torch.optim.SGD(problem.params, lr=number(file, eta)),
        MetaAdam(number(file, "settings.meta_lr_adam")),
        weight_decay=number(file, "settings.delta"),
        memory=int(file.get(f"{kind}.H", file["scalar.H"])),
        horizon=int(file["settings.HH"]),
        controller=kind,
        **settings,
    )
    return started(optimizer, problem, file[f"{kind}.M0"], kind)


@pytest.mark.parametrize("estimator", ["gaps", "fake", "cf1"])
@pytest.mark.parametrize("part", ["full", "cosine", "clip"])
def test_metaopt_equals_the_aligned_algorithm_in_further_forms(part, estimator):
    file = golden("meta_opt/aligned_extra")
    problem = Quadratic(file)
    settings = {"disturbance": Clipped(number(file, "clip.value"))} if part == "clip" else {}
    optimizer = extra(problem, "full" if part == "full" else "scalar", estimator=estimator, **settings)
    if part == "cosine":
        rates = [*file["cosine.eta"], 0.0]
        start = optimizer.param_groups[0]["lr"]
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rates[step] / start)
    rows = []
    for step in range(40):
        rows += [*problem.run(optimizer, 1, step)[0]]
        if part == "cosine":
            scheduler.step()
    np.testing.assert_allclose(np.stack(rows), file[f"{part}.{estimator}.params"], **CLOSE)


@pytest.mark.parametrize("disturbance", ["raw", "adam"])
def test_episodes_keep_the_controller_and_nothing_else(disturbance):
    file = golden("meta_opt/aligned_extra")
    problem = Quadratic(file)
    optimizer = extra(problem, "scalar", disturbance=disturbance_of(file, disturbance))
    key = f"episodes.{disturbance}.gaps"
    rows, _ = problem.run(optimizer, 20)
    np.testing.assert_allclose(rows, file[f"{key}.episode1.params"], **CLOSE)
    for param, part in zip(problem.params, torch.tensor(file["episodes.episode2.x0"]).split(problem.sizes)):
        param.data.copy_(part)
    optimizer.new_episode()
    rows, _ = problem.run(optimizer, 20, 20)
    np.testing.assert_allclose(rows, file[f"{key}.episode2.params"], **CLOSE)


@pytest.mark.parametrize("kind", ["scalar", "diagonal", "full"])
@pytest.mark.parametrize("disturbance", ["raw", "clip", "adam"])
def test_a_frozen_metaopt_equals_the_original(disturbance, kind):
    file = golden("meta_opt/original_frozen_quad")
    problem = Quadratic(file)
    eta = number(file, "settings.eta_adam" if disturbance == "adam" else "settings.eta_raw")
    optimizer = MetaOpt(
        torch.optim.SGD(problem.params, lr=eta),
        disturbance=disturbance_of(file, disturbance),
        weight_decay=number(file, "settings.delta"),
        memory=len(file[f"{kind}.M"]),
        controller=kind,
        frozen=True,
    )
    rows, _ = problem.run(started(optimizer, problem, file[f"{kind}.M"], kind), 30)
    np.testing.assert_allclose(rows, file[f"{kind}.{disturbance}.params"], **CLOSE)


@pytest.mark.parametrize("kind", ["scalar", "per_tensor", "diagonal"])
def test_a_controller_of_jax_goes_on_in_torch(kind, tmp_path):
    learned = {"scalar": np.float32([0.5, 0.25]), "per_tensor": {"a": [0.5, 0.25], "b": [1.5, 0.75]}}
    leaves = jax.tree.map(
        np.float32, learned.get(kind, learned["per_tensor"]), is_leaf=lambda x: type(x) is list
    )
    before = selftuning.MetaOpt()
    selftuning.save(tmp_path, before, before.with_controller(leaves))
    params = [("b", torch.nn.Parameter(torch.zeros(3))), ("c", torch.nn.Parameter(torch.zeros(2)))]
    optimizer = MetaOpt(torch.optim.SGD(params, lr=0.1), memory=3, controller=kind).load_controller(tmp_path)
    found = [
        coefficients.flatten(1).T[0].tolist() if coefficients.dim() > 1 else coefficients.tolist()
        for coefficients in optimizer.coefficients()
    ]
    if kind == "scalar":
        assert found == [[0.5, 0.25, 0.0]]
    else:
        assert found == [[1.5, 0.75, 0.0], [1.0, 0.5, 0.0]]  # by name, and the mean of all
    with pytest.raises(OuteroptError, match="no controller at"):
        optimizer.load_controller(tmp_path / "nowhere")
    tuned = optimizers.get("hypergradient:sgd")
    selftuning.save(tmp_path / "other", tuned, tuned.replace({"inner.learning_rate": 0.5}))
    with pytest.raises(ConfigError, match="holds 0 controllers"):
        optimizer.load_controller(tmp_path / "other")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    with pytest.raises(OuteroptError, match="truncated or damaged"):
        optimizer.load_controller(tmp_path / "broken.safetensors")


def test_rollouts_leave_everything_where_it_was():
    params = parameters()
    base = torch.optim.Adam(params, lr=0.01)
    optimizer = MetaOpt(base, MetaDescent(0.0), memory=2, horizon=3, estimator="cf1")
    plain = parameters()
    train(optimizer, params)
    train(torch.optim.Adam(plain, lr=0.01), plain)
    # Coefficients stay zero: what is left is the base, to the last bit but for the gradient of the last step.
    np.testing.assert_array_equal(flat(params), flat(plain))
    assert optimizer.diagnostics()["cost"] == pytest.approx(loss(params).item(), rel=0.05)


def test_metaopt_asks_for_what_it_needs():
    params = parameters()
    optimizer = MetaOpt(torch.optim.SGD(params, lr=0.1), estimator="fake")
    loss(params).backward()
    with pytest.raises(OuteroptError, match="train_loss"):
        optimizer.step()
    with pytest.raises(UnknownName, match="gaps, fake, cf1"):
        MetaOpt(torch.optim.SGD(params, lr=0.1), estimator="cf")
    with pytest.raises(OuteroptError, match="memory = 0"):
        MetaOpt(torch.optim.SGD(params, lr=0.1), memory=0)
    with pytest.raises(OuteroptError, match="takes an optimizer"):
        MetaOpt(params)


@pytest.mark.parametrize("meta", ["sgd", "adam"])
@pytest.mark.parametrize("inner", ["sgd", "nesterov"])
def test_hypergradient_descent_has_the_originals_numbers(inner, meta):
    """The original plays first and learns afterwards; the parts are the same."""
    file, name = golden("meta_opt/original_hgd"), f"{inner}.{meta}_meta"
    problem = Quadratic(file)
    settings = (
        {"momentum": number(file, "settings.momentum"), "nesterov": True} if inner == "nesterov" else {}
    )
    rate = number(file, f"{name}.meta_lr")
    optimizer = HypergradientDescent(
        torch.optim.SGD(problem.params, lr=number(file, f"{name}.initial_lr"), **settings),
        MetaDescent(rate) if meta == "sgd" else MetaAdam(rate, pair(file, "settings.meta_adam_betas")),
        coordinates="plain",
        signal="gradient",
    )
    shared, params = optimizer.shared(), problem.params
    shared["known"].fill_(True)
    last, rows, rates = [torch.zeros_like(param) for param in params], [], []
    for step in range(40):
        optimizer.zero_grad()
        problem.loss(step).backward()
        before = [param.detach().clone() for param in params]
        used = shared["rate"].clone()
        with torch.no_grad():
            optimizer.play([{"lr": used}])
            optimizer._learn([param.grad for param in params], last, shared)
            # An update is taken to be in proportion to the rate that is known when it is learned from.
            scale = shared["rate"] / used
            last = [(param - old) * scale for param, old in zip(params, before)]
        rows.append(flat(params))
        rates.append(shared["rate"].item())
    np.testing.assert_allclose(rows, file[f"{name}.params"], **CLOSE)
    np.testing.assert_allclose(rates, file[f"{name}.lr"], rtol=1e-8)


def test_hypergradient_descent_equals_its_equations():
    file = golden("meta_opt/identities")
    problem = Quadratic(file)
    lr, meta = (number(file, f"hypergradient.{name}") for name in ("initial_lr", "meta_lr"))
    base = torch.optim.SGD(problem.params, lr=lr)
    optimizer = HypergradientDescent(base, MetaDescent(meta), coordinates="plain", signal="gradient")
    rows, rates = problem.run(optimizer, told=lambda: optimizer.diagnostics()["lr"])
    np.testing.assert_allclose(rows, file["hypergradient.delta0.params"], **CLOSE)
    np.testing.assert_allclose(rates, file["hypergradient.delta0.lr"], **CLOSE)
    again = Quadratic(file)
    control = MetaOpt(torch.optim.SGD(again.params, lr=lr), MetaDescent(meta), memory=1)
    rows, _ = again.run(control)
    np.testing.assert_allclose(rows, file["hypergradient.delta0.params"], **CLOSE)


def test_groups_keep_their_share_and_schedulers_theirs():
    params = parameters()
    base = torch.optim.AdamW([{"params": params[:2]}, {"params": params[2:], "lr": 1e-4}], lr=1e-3)
    optimizer = HypergradientDescent(base)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    seen = []
    base.register_step_pre_hook(lambda inner, *_: seen.append([group["lr"] for group in inner.param_groups]))
    for _ in range(3):
        train(optimizer, params, 1)
        scheduler.step()
    rate = optimizer.diagnostics()["lr"]
    assert rate != 1e-3
    np.testing.assert_allclose(seen[-1], [rate * 0.25, rate * 0.25 * 0.1], rtol=1e-12)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1.25e-4, 1.25e-5])


@pytest.mark.parametrize(
    "base",
    [
        lambda params: Prodigy(params, d0=1e-3),
        lambda params: torch.optim.Adagrad(params, lr=1e-4),
        lambda params: torch.optim.NAdam(params, lr=1e-5),
        lambda params: torch.optim.RMSprop(params, lr=1e-5, momentum=0.9),
        lambda params: torch.optim.Adam(params, lr=torch.tensor(1e-5, dtype=torch.float64), capturable=False),
        lambda params: HypergradientDescent(torch.optim.SGD(params, lr=1e-4)),
    ],
)
def test_any_optimizer_can_be_inside(base):
    alone, params = parameters(), parameters()
    slow, fast = train(base(alone), alone, 60)[-1], train(HypergradientDescent(base(params)), params, 60)[-1]
    assert fast < slow


def test_what_is_not_finite_teaches_nothing():
    params = parameters()
    optimizer = HypergradientDescent(torch.optim.SGD(params, lr=0.01))
    train(optimizer, params, 3)
    before = optimizer.diagnostics()["lr"]
    for bad in (math.nan, 0.0):
        optimizer.zero_grad()
        loss(params).backward()
        params[0].grad[0, 0] += bad
        optimizer.step()
        assert optimizer.diagnostics()["lr"] == before  # nor from the step that went nowhere known
        if bad != bad:
            with torch.no_grad():
                params[0].nan_to_num_()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda base: HypergradientDescent(base, signal="sign"), "cosine"),
        (lambda base: HypergradientDescent(base, coordinates="space"), "log"),
        (lambda base: HypergradientDescent(base, most=0.0), "most = 0"),
        (lambda base: HypergradientDescent(base, MetaDescent(-1.0)), "lr = -1"),
        (lambda base: OnePass(base, ("momentun",)), "momentum"),
        (lambda base: OnePass(base, ()), "Nothing is named"),
        (lambda base: OnePass(base, every=0), "every = 0"),
        (lambda base: OnePass(base, rescue=1.0), "rescue = 1"),
        (lambda base: OnePass(base, coordinates="space"), "decades"),
        (lambda base: OnePass(base, ranges={"lr": (0.0, 1.0)}), "range of lr"),
        (lambda base: OnePass(torch.optim.Adagrad(base.param_groups[0]["params"])), "torch.optim.AdamW"),
        (
            lambda base: outeropt.torch.SelfTuning(base.param_groups[0]["params"], num_steps=0),
            "num_steps = 0",
        ),
        (lambda base: HypergradientDescent(base).load_state_dict(base.state_dict()), "has no base"),
        (lambda base: MetaOpt(base, controller="scaler"), "scalar"),
        (lambda base: MetaOpt(base, disturbance="row"), "raw"),
    ],
)
def test_mistakes_are_told(make, message):
    with pytest.raises(OuteroptError, match=message):
        make(torch.optim.SGD(parameters(), lr=0.1))


# One-pass tuning: UCI Energy as the released code of the paper trains it.
RANGES = {"lr": (1e-10, 1.0), "weight_decay": (1e-40, 1e10), "momentum": (1e-12, 1 - 1e-12)}
METHODS = {
    "Lorraine": ("weight_decay",),
    "Ours_LR": ("lr", "weight_decay"),
    "Ours_LR_Momentum": ("lr", "weight_decay", "momentum"),
}


@functools.cache
def energy():
    file = golden("clarke/one_pass")
    order, (train_rows, valid_rows, _) = file["energy/permutation"], file["energy/split_sizes"]
    x, y = file["energy/x"].astype(float)[order], file["energy/y"].astype(float).reshape(-1, 1)[order]
    both = slice(0, train_rows + valid_rows)
    x, y = (
        (z - z[both].mean(0)) / np.where(np.ptp(z[both], 0) == 0, 1, z[both].std(0, ddof=1)) for z in (x, y)
    )
    cuts = slice(0, train_rows), slice(train_rows, train_rows + valid_rows)
    return [(torch.tensor(x[cut]), torch.tensor(y[cut])) for cut in cuts]


def perceptron(weights, sizes):
    inputs, hidden, outputs = (int(size) for size in sizes)
    shapes = (hidden, inputs), (hidden,), (outputs, hidden), (outputs,)
    parts = torch.tensor(weights).split([math.prod(shape) for shape in shapes])
    return [torch.nn.Parameter(part.reshape(shape)) for part, shape in zip(parts, shapes)]


def regression(params, rows):
    first, bias, second, last = params
    return ((torch.relu(rows[0] @ first.T + bias) @ second.T + last - rows[1]) ** 2).mean()


def run_energy(key, sizes, tune, steps, **settings):
    """Losses and hyperparameters of a run from where the original started."""
    file, (train_rows, valid_rows) = golden("clarke/one_pass"), energy()
    raw, params = file[f"{key}/raw_init"], perceptron(file[f"{key}/weights_init"], file[sizes])
    rate, decay, momentum = 10 ** raw[0], 10 ** raw[1], 1 / (1 + math.exp(-raw[2]))
    base = torch.optim.SGD(params, lr=rate, weight_decay=decay, momentum=momentum)
    optimizer = OnePass(base, tune, ranges={name: RANGES[name] for name in tune}, rescue=math.inf, **settings)
    losses, told = [], []
    for _ in range(steps):
        value = regression(params, train_rows)
        optimizer.zero_grad()
        value.backward()
        optimizer.step(
            value=value.detach(),
            train_loss=lambda: regression(params, train_rows),
            valid_loss=lambda: regression(params, valid_rows),
        )
        losses.append(value.item())
        told.append(optimizer.diagnostics())
    return params, losses, told


@pytest.mark.parametrize("start", ["cold", "hot"])
@pytest.mark.parametrize("name", METHODS)
def test_one_pass_makes_the_originals_trajectories(name, start):
    key, tune = f"energy/{name}/{start}", METHODS[name]
    file = golden("clarke/one_pass")
    steps = 400 if name == "Ours_LR_Momentum" else 100
    params, losses, told = run_energy(key, "energy/layer_sizes", tune, steps)
    want = file[f"{key}/loss_train"]
    stride = 400 // (len(want) - 1)
    np.testing.assert_allclose(losses[::stride], want[: -(-steps // stride)], rtol=1e-10)
    raw = file[f"{key}/raw"][: steps // 10]
    for column, found in enumerate(("lr", "weight_decay", "momentum")):
        if found in tune:
            value = np.array([row[found] for row in told[9::10]])
            ours = np.log10(value) if column < 2 else np.log(value) - np.log1p(-value)
            np.testing.assert_allclose(ours, raw[:, column], atol=1e-9)
    if steps == 400:
        np.testing.assert_allclose(flat(params), file[f"{key}/weights_after"], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("lookback", [1, 2, 3, 10])
def test_one_pass_looks_back_as_far_as_the_original(lookback):
    key, file = f"lookback/T10_i{lookback}/mid", golden("clarke/one_pass")
    tune = METHODS["Ours_LR_Momentum"]
    params, _, told = run_energy(key, "lookback/layer_sizes", tune, 100, lookback=lookback)
    np.testing.assert_allclose(math.log10(told[-1]["lr"]), file[f"{key}/raw"][-1, 0], atol=1e-10)
    np.testing.assert_allclose(flat(params), file[f"{key}/weights_after"], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "base", "tune"),
    [
        ("one_pass:heavy_ball", lambda params: torch.optim.SGD(params, 3.0, 0.9), ("lr", "momentum")),
        ("one_pass:adamw", lambda params: torch.optim.AdamW(params, 3.0, weight_decay=1e-4), ("lr", "beta1")),
    ],
)
def test_one_pass_rescues_as_in_jax(name, base, tune):
    """From a learning rate that is far too high."""
    words = {"lr": "learning_rate", "beta1": "b1"}
    built = optimizers.get(name, learning_rate=3.0, every=5, tune=[words.get(each, each) for each in tune])
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        expected = np.stack(list(in_jax(built, steps=60)))
    params = parameters()
    optimizer = OnePass(base(params), tune, every=5)
    rows = []
    for _ in range(60):
        train(optimizer, params, 1)
        rows.append(flat(params))
    told = optimizer.diagnostics()
    assert told["rescued"] > 0 and told["lr"] < 1.0
    # Steps of that size amplify roundings.
    np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=1e-6)


def test_one_pass_calls_its_functions_when_they_are_due():
    params, called = parameters(), []
    optimizer = OnePass(torch.optim.Adam(params, lr=1e-3), every=4)

    def told(name, rows=None):
        called.append(name)
        return loss(params) if rows is None else loss(params, rows)

    for _ in range(9):
        optimizer.zero_grad()
        loss(params).backward()
        before = [param.grad.clone() for param in params]
        optimizer.step(train_loss=lambda: told("train"), valid_loss=lambda: told("valid"))
        assert all(torch.equal(param.grad, grad) for param, grad in zip(params, before))
    assert called == ["valid", "train"] * 2
    with pytest.raises(OuteroptError, match="valid_loss"):
        optimizer.step(train_loss=lambda: loss(params))


def test_a_decay_of_zero_stays_where_others_are_tuned():
    params = parameters()
    groups = [{"params": params[::2], "weight_decay": 0.1}, {"params": params[1::2], "weight_decay": 0.0}]
    base = torch.optim.AdamW(groups, lr=1e-3)
    optimizer, seen = OnePass(base, ("weight_decay",), every=2), []
    base.register_step_pre_hook(
        lambda inner, *_: seen.append([group["weight_decay"] for group in inner.param_groups])
    )
    train(optimizer, params, 5)
    assert seen[-1][0] != seen[0][0] == pytest.approx(0.1)
    assert [row[1] for row in seen] == [0.0] * 5


def test_self_tuning_fades_at_the_end_of_a_run_that_is_known():
    known, unknown = parameters(), parameters()
    fading = outeropt.torch.SelfTuning(known, num_steps=STEPS)
    train(fading, known)
    train(outeropt.torch.SelfTuning(unknown), unknown)
    assert (flat(known) != flat(unknown)).any()
    end = flat(known)
    train(fading, known, 2)
    np.testing.assert_array_equal(flat(known), end)
    assert fading.param_groups[0]["lr"] == 1.0


@pytest.mark.parametrize("name", ["hypergradient:adam", "metaopt:sgd", "one_pass:adamw"])
def test_loaded_state_shares_no_memory(name):
    params = parameters()
    optimizer = outeropt.torch.get(name, params)
    train(optimizer, params, 12)
    again = [torch.nn.Parameter(param.detach().clone()) for param in params]
    other = outeropt.torch.get(name, again)
    other.load_state_dict(optimizer.state_dict())
    train(other, again, 12)
    train(optimizer, params, 12)
    np.testing.assert_array_equal(flat(params), flat(again))


def test_a_copy_with_a_scheduler_goes_on_by_itself():
    params = parameters()
    optimizer = HypergradientDescent(torch.optim.SGD(params, lr=0.01))
    torch.optim.lr_scheduler.StepLR(optimizer, 5)  # it takes the place of `step`
    memo: dict = {}
    copied = [copy.deepcopy(param, memo) for param in params]
    other = copy.deepcopy(optimizer, memo)
    train(other, copied, 2)
    np.testing.assert_array_equal(flat(params), flat(parameters()))
    assert (flat(copied) != flat(params)).any()
    assert offered(other, copied)
