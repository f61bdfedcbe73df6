"""What every optimizer of `outeropt.torch` does, by being in its registry."""

import copy
import io
import subprocess
import sys
import warnings

import jax
import numpy as np
import pytest


torch = pytest.importorskip("torch")

from torch._dynamo.testing import CompileCounter  # noqa: E402

import outeropt.torch  # noqa: E402
from outeropt.errors import OuteroptError, UnknownName  # noqa: E402
from outeropt.torch import arithmetic  # noqa: E402
from torch_problem import (  # noqa: E402
    STEPS,
    evaluated_in_jax,
    flat,
    jax_optimizer,
    loss,
    offered,
    parameters,
    train,
)


# One of the optimizers that differ in their weights alone stands for all.
AMALGAM = "learned:amalgam-choice-large-1"
NAMES = [name for name in outeropt.torch.names() if "amalgam" not in name or name == AMALGAM]
# What some cannot do without, and a warm-up that ends within a test.
GIVEN = {
    "learned:small_fc": {"num_steps": 2 * STEPS},
    "learned:mlp_nominal": {"num_steps": 2 * STEPS},
    AMALGAM: {"warmup_steps": 3},
}
# Settings with which each is also compared to its sibling in JAX, beside its defaults.
SETTINGS = {
    "prodigy": [
        {"d0": 1e-3, "weight_decay": 0.01, "lr": 0.5},
        {"d0": 1e-3, "weight_decay": 0.01, "decouple": False, "slice_p": 3, "bias_correction": False},
        {"d0": 1e-3, "betas": (0.0, 0.99), "growth_rate": 1.1, "safeguard_warmup": True, "beta3": 0.9},
    ],
    "hypergradient:adam": [{"lr": 1e-5, "most": 2e-5}],
    "learned:small_fc": [{"schedule": "cosine", "step_mult": 0.02}],
    "metaopt": [{"controller": "diagonal", "memory": 3, "horizon": 2, "weight_decay": 0.01}],
    "metaopt:sgd": [
        {"estimator": "fake", "memory": 3, "horizon": 2, "controller": "per_tensor"},
        {"estimator": "cf1", "horizon": 3, "weight_decay": 0.01, "disturbance": "adam", "radius": 1e-3},
        {"controller": "full", "memory": 2},
    ],
    "one_pass:adamw": [{"every": 3, "tune": ("lr", "weight_decay", "beta1"), "lookback": 4}],
    "self_tuning": [{"num_steps": STEPS}],
    "adagrad_norm": [{"lr": 0.5, "initial_accumulator_value": 0.1}],
    "cocob": [{"lr": 0.5, "alpha": 10.0, "eps": 1e-3, "weight_decay": 0.01}],
    "dadapt_adagrad": [
        {"d0": 1e-2, "lr": 0.5, "momentum": 0.8, "weight_decay": 0.01, "eps": 1e-3, "growth_rate": 1.2},
    ],
    "dadapt_adam": [
        {"d0": 1e-2, "lr": 0.5, "betas": (0.8, 0.99), "weight_decay": 0.01, "growth_rate": 1.2},
        {"d0": 1e-2, "weight_decay": 0.01, "decouple": True, "bias_correction": True, "eps": 1e-3},
    ],
    "dadapt_adamw": [{"d0": 1e-2, "lr": 0.5, "betas": (0.8, 0.99), "weight_decay": 0.01}],
    "dadapt_adan": [{"d0": 1e-2, "lr": 0.5, "betas": (0.9, 0.8, 0.95), "growth_rate": 1.2, "eps": 1e-3}],
    "dadapt_lion": [{"d0": 1e-3, "lr": 0.5, "betas": (0.8, 0.95), "weight_decay": 0.01}],
    "dadapt_sgd": [{"d0": 1e-2, "lr": 0.5, "momentum": 0.8, "weight_decay": 0.01, "growth_rate": 1.2}],
    "dog": [{"reps_rel": 1e-2, "lr": 0.5, "weight_decay": 0.01, "eps": 1e-3}],
    "dowg": [{"init_estim_sq_dist": 1e-2, "lr": 0.5, "weight_decay": 0.01, "eps": 1e-3}],
    "ldog": [{"reps_rel": 1e-2, "lr": 0.5, "weight_decay": 0.01, "eps": 1e-3}],
    "mechanic_adamw": [
        {"lr": 0.1, "s_init": 1e-2, "s_decay": 0.1, "betas": (0.8, 0.99), "weight_decay": 0.01}
    ],
    "mechanic_sgd": [{"lr": 0.1, "s_init": 1e-2, "s_decay": 0.1, "num_betas": 4}],
    "momo": [
        {"lr": 0.1, "beta": 0.8, "lower_bound": 0.1, "weight_decay": 0.01},
        {"lr": 0.5, "weight_decay": 0.01, "adapt_lower_bound": True, "bias_correction": True},
    ],
    "momo_adam": [
        {"lr": 0.05, "betas": (0.8, 0.99), "lower_bound": 0.1, "weight_decay": 0.01, "eps": 1e-3},
        {"lr": 0.05, "weight_decay": 0.01, "adapt_lower_bound": True},
    ],
    "polyak_sgd": [
        {"lr": 0.5, "max_lr": 0.1, "f_min": 0.1, "eps": 1e-3},
        {"f_min": 1e3, "variant": "sps+", "max_lr": 3.0},
    ],
    "prodigy_schedule_free": [
        {
            "d0": 1e-3,
            "lr": 0.8,
            "betas": (0.8, 0.99),
            "weight_decay": 0.02,
            "d_coef": 1.5,
            "r": 0.5,
            "eps": 1e-3,
        },
    ],
    "schedule_free_adamw": [
        {"lr": 0.01, "betas": (0.8, 0.99), "warmup_steps": 8.0, "weight_decay": 0.1, "r": 0.5, "eps": 1e-3},
    ],
    "schedule_free_radam": [{"lr": 0.01, "betas": (0.8, 0.9), "weight_decay": 0.1, "weight_lr_power": 1.0}],
    "schedule_free_sgd": [{"lr": 0.1, "momentum": 0.8, "warmup_steps": 8.0, "weight_decay": 0.1, "r": 1.0}],
}
# How near, where derivatives of updates are not those of JAX to the last digit.
NEAR = {"self_tuning": 1e-7}  # Prodigy's updates are proportional to its lr but for an `eps` that it scales
# Where learned optimizers compute in float32 in JAX, and in the parameters' float64 in PyTorch.
NEAR |= {"learned:small_fc": 1e-6, "learned:mlp_nominal": 1e-6, AMALGAM: 1e-6}
# Where something of the contract does not hold, why.
UNSCHEDULED = {name: "what the controller adds has no learning rate" for name in ("metaopt", "metaopt:sgd")}
INTERPRETED = {"one_pass:adamw": "it differentiates the loss, by functions that are given at each step"}
# Those that go on for a while when the learning rate is 0, by what they have gathered.
COASTING = {
    *("dadapt_adagrad", "dadapt_adam", "dadapt_adamw", "dadapt_adan", "mechanic_adamw", "mechanic_sgd"),
    *("prodigy_schedule_free", "schedule_free_adamw", "schedule_free_radam", "schedule_free_sgd"),
}
NEEDS_THE_LOSS = ("momo", "momo_adam", "polyak_sgd")
CASES = [(name, settings) for name in NAMES for settings in ({}, *SETTINGS.get(name, ()))]


def make(name, params, **settings):
    return outeropt.torch.get(name, params, **{**GIVEN.get(name, {}), **settings})


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.mark.parametrize(("name", "settings"), CASES, ids=str)
def test_it_makes_the_steps_of_its_sibling_in_jax(name, settings):
    settings = {**GIVEN.get(name, {}), **settings}
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        points, averages = map(
            np.stack, zip(*evaluated_in_jax(jax_optimizer(name, settings), settings.get("num_steps")))
        )
    params = parameters()
    optimizer = make(name, params, **settings)
    start, found = flat(params), []
    for _ in range(STEPS):
        train(optimizer, params, 1)
        found.append(flat(params))
    assert np.abs(points[-1] - start).max() > 0 or settings.get("f_min") == 1e3
    near = NEAR.get(name, 1e-9)
    np.testing.assert_allclose(np.stack(found) - start, points - start, rtol=1e-5, atol=near)

    optimizer.eval()
    np.testing.assert_allclose(flat(params) - start, averages[-1] - start, rtol=1e-5, atol=near)
    assert (flat(params) != found[-1]).any() == (averages[-1] != points[-1]).any()
    optimizer.train()
    np.testing.assert_array_equal(flat(params), found[-1])


@pytest.mark.parametrize("steps", [0, STEPS // 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_looking_at_the_evaluation_point_changes_nothing(name, dtype, steps):
    whole = parameters(dtype)
    train(make(name, whole), whole)

    params = parameters(dtype)
    optimizer = make(name, params)
    train(optimizer, params, steps)
    for _ in range(2):  # a second time does nothing
        optimizer.eval()
    evaluated = flat(params)
    saved = copy.deepcopy(optimizer.state_dict())
    again = [torch.nn.Parameter(param.detach().clone()) for param in params]
    loaded = make(name, again)
    loaded.load_state_dict(saved)
    for made, own in ((optimizer, params), (loaded, again)):
        for _ in range(2):
            made.train()
        train(made, own, STEPS - steps)
        np.testing.assert_array_equal(flat(own), flat(whole))
    assert np.isfinite(evaluated).all()


def test_no_step_is_made_at_another_evaluation_point(name):
    for steps in (0, 8):
        params = parameters()
        optimizer = make(name, params)
        train(optimizer, params, steps)
        if "schedule_free" in name:
            optimizer.eval()
            with pytest.raises(OuteroptError, match="call train"):
                train(optimizer, params, 1)
            optimizer.train()
        else:
            before = flat(params)
            optimizer.eval()
            np.testing.assert_array_equal(flat(params), before)
        train(optimizer, params, 1)


def test_groups_of_equal_settings_are_as_one(name):
    one, two = parameters(), parameters()
    train(make(name, one), one)
    train(make(name, [{"params": two[:1]}, {"params": two[1:]}]), two)
    np.testing.assert_allclose(flat(two), flat(one), rtol=1e-8, atol=1e-9)


def test_pieces_change_nothing(name, monkeypatch):
    whole, cut = parameters(), parameters()
    for params in (whole, cut):  # one that is not contiguous
        params[2] = torch.nn.Parameter(params[2].detach().t().contiguous().t())
    train(make(name, whole), whole, 12)
    monkeypatch.setattr(arithmetic, "BLOCK", 7)
    train(make(name, cut), cut, 12)
    np.testing.assert_allclose(flat(cut), flat(whole), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_loaded_state_goes_on_exactly(name, dtype):
    whole = parameters(dtype)
    train(make(name, whole), whole)

    params = parameters(dtype)
    optimizer = make(name, params)
    train(optimizer, params, STEPS // 2)
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "params": params}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = [torch.nn.Parameter(param.detach()) for param in saved["params"]]
    loaded = make(name, again)
    loaded.load_state_dict(saved["optimizer"])
    train(loaded, again, STEPS - STEPS // 2)
    np.testing.assert_array_equal(flat(again), flat(whole))
    assert np.isfinite(flat(whole)).all()


def test_a_deep_copy_goes_on_by_itself(name):
    params = parameters()
    optimizer = make(name, params)
    train(optimizer, params, 5)
    memo: dict = {}
    copied = [copy.deepcopy(param, memo) for param in params]
    other = copy.deepcopy(optimizer, memo)
    train(other, copied, 5)
    before = flat(params)
    assert (before != flat(copied)).any()
    train(optimizer, params, 5)
    np.testing.assert_array_equal(flat(params), flat(copied))


def test_parameters_without_gradients_stay(name):
    params = parameters()
    optimizer = make(name, params)
    still = params[0]
    before = still.detach().clone()
    for _ in range(3):
        loss(params).backward()
        still.grad = None
        optimizer.step(value=loss(params).detach(), **offered(optimizer, params))
    assert torch.equal(still, before)
    assert any(param.grad is not None for param in params)


def test_a_group_can_come_later(name):
    params = parameters()
    optimizer = make(name, params[:2])
    train(optimizer, params, 3)
    late = params[2].detach().clone()
    optimizer.add_param_group({"params": params[2:]})
    train(optimizer, params, 10)
    assert not torch.equal(params[2], late)
    assert np.isfinite(flat(params)).all()


def test_schedulers_drive_the_learning_rate(name):
    if name in UNSCHEDULED:
        pytest.skip(UNSCHEDULED[name])
    params, steady = parameters(), parameters()
    optimizer = make(name, params)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 if step < 8 else 0.0)
    for _ in range(8):
        train(optimizer, params, 1)
        scheduler.step()
    before = flat(params)
    train(optimizer, params, 3)
    train(make(name, steady), steady, 11)
    assert (flat(params) != flat(steady)).any()
    if name not in COASTING:
        np.testing.assert_array_equal(flat(params), before)


def test_a_step_is_compiled_whole_and_once(name):
    if name in INTERPRETED:
        pytest.skip(INTERPRETED[name])
    params = parameters(torch.float32)
    optimizer = make(name, params)
    plain = parameters(torch.float32)
    train(make(name, plain), plain, 6)
    train(optimizer, params, 1)  # state is made in the first step
    torch._dynamo.reset()
    counter = CompileCounter()
    step = torch.compile(optimizer.step, backend=counter, fullgraph=True)
    for _ in range(5):
        optimizer.zero_grad()
        value = loss(params)
        value.backward()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch says of its own profiling
            step(value=value.detach())
    assert counter.frame_count == 1
    np.testing.assert_allclose(flat(params), flat(plain), rtol=1e-4, atol=1e-6)


def test_a_scaler_skips_steps_that_overflow(name):
    params = parameters(torch.float32)
    optimizer, scaler = make(name, params), torch.amp.GradScaler("cpu", init_scale=4.0)
    train(optimizer, params, 6)  # some take their time
    for overflow in (False, True, False):
        before = flat(params)
        optimizer.zero_grad()
        value = loss(params)
        scaler.scale(value).backward()
        if overflow:
            params[0].grad.fill_(float("inf"))
        scaler.step(optimizer, value=value.detach(), **offered(optimizer, params))
        scaler.update()
        assert (flat(params) == before).all() == overflow


def test_hooks_see_every_step(name):
    params = parameters()
    optimizer, seen = make(name, params), []
    optimizer.register_step_post_hook(lambda *_: seen.append(1))
    train(optimizer, params, 3)
    assert len(seen) == 3


def test_wrong_settings_are_one_line(name):
    with pytest.raises(OuteroptError, match="lr = -1"):
        make(name, parameters(), lr=-1.0)


def test_sparse_gradients_are_refused(name):
    params = parameters()
    optimizer = make(name, params)
    params[1].grad = torch.zeros(6, dtype=torch.float64).to_sparse()
    with pytest.raises(OuteroptError, match="sparse"):
        optimizer.step()


@pytest.mark.parametrize("name", NEEDS_THE_LOSS)
def test_the_loss_is_asked_for(name):
    params = parameters()
    optimizer = make(name, params)
    loss(params).backward()
    with pytest.raises(OuteroptError, match="needs the loss"):
        optimizer.step()
    optimizer.step(value=loss(params).item())


def test_an_unknown_name_is_one_line():
    with pytest.raises(UnknownName, match="prodigi"):
        outeropt.torch.get("prodigi", parameters())


def test_no_jax_is_loaded():
    code = "import sys, outeropt.torch; print(sorted({'jax', 'optax', 'equinox'} & {*sys.modules}))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["[]"]
