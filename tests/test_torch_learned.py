"""Learned optimizers of `outeropt.torch`: recordings of the original systems, files, schedules, memory."""

import math

import numpy as np
import pytest


torch = pytest.importorskip("torch")

import outeropt.torch  # noqa: E402
import test_learned_amalgamation as amalgamation  # noqa: E402
from learned_golden import assert_same_updates, below, load  # noqa: E402
from outeropt import learned  # noqa: E402
from outeropt.errors import ConfigError, OuteroptError, UnknownName  # noqa: E402
from outeropt.torch import AdafacMLP, MLPNominal, RNNProp  # noqa: E402
from outeropt.torch.learned import moment_mlp, rnnprop  # noqa: E402
from test_learned_mlp import original  # noqa: E402
from torch_problem import flat, parameters, train  # noqa: E402


MLPS = (
    *("adafac_h4", "adafac_h4_bigstep", "adafac_h32", "adafac_h32_bigstep"),
    *("mlpnom_default", "mlpnom_nominal_wd", "mlpnom_flags2", "mlpnom_flags3"),
)
LSTMS = ("rnnprop_min-max-1", "rnnprop_choice-large-3", "rnnprop_random", "adam_lr", "rmsprop_lr")


def replay(optimizer, params, grads):
    """All updates `[steps, *shape]` by name, of parameters by name, on gradients that are given."""
    updates = {name: [] for name in params}
    for step in range(len(next(iter(grads.values())))):
        before = {name: param.detach().clone() for name, param in params.items()}
        for name, param in params.items():
            param.grad = torch.tensor(grads[name][step], dtype=param.dtype)
        optimizer.step()
        for name, param in params.items():
            updates[name].append((param.detach() - before[name]).double().numpy())
    return {name: np.stack(all_of_it) for name, all_of_it in updates.items()}


def as_parameters(arrays, dtype):
    return {name: torch.nn.Parameter(torch.tensor(value, dtype=dtype)) for name, value in arrays.items()}


@pytest.fixture(params=[torch.float32, torch.float64], ids=str)
def dtype(request):
    return request.param


@pytest.fixture(params=[16_384, 24], ids=lambda size: f"blocks_of_{size}")
def block(request, monkeypatch):
    monkeypatch.setattr(moment_mlp, "BLOCK", request.param)
    monkeypatch.setattr(rnnprop, "BLOCK", request.param)


@pytest.mark.parametrize("name", MLPS)
def test_recorded_trajectories_of_mlps(name, dtype, block, tmp_path):
    arrays, config = load(f"learned/{name}")
    original(arrays, config).save(tmp_path / "optimizer.safetensors")
    params = as_parameters(below(arrays, "params0"), dtype)
    optimizer = outeropt.torch.load(tmp_path, params.values())
    updates = replay(optimizer, params, below(arrays, "grads"))
    if dtype == torch.float32:  # differences of parameters have their rounding
        arrays = {key: value for key, value in arrays.items() if not key.startswith("updates64/")}
    assert_same_updates(updates, arrays)


@pytest.mark.parametrize("name", LSTMS)
def test_recorded_trajectories_of_lstms(name, dtype, block, tmp_path):
    arrays, inputs = amalgamation.load(f"updates_{name}"), amalgamation.load("updates_inputs")
    shape = amalgamation.PUBLISHED[name][0]
    shape.from_published(amalgamation.below(arrays, "weights/")).save(tmp_path / "optimizer.safetensors")
    # From zero, where float32 rounds no update.
    params = as_parameters(amalgamation.below(inputs, "params0/"), dtype)
    for param in params.values():
        param.data.zero_()
    optimizer = outeropt.torch.load(tmp_path / "optimizer.safetensors", params.values())
    updates = replay(optimizer, params, amalgamation.below(inputs, "grads/"))
    for tensor, wanted in amalgamation.below(arrays, "f64/delta/").items():
        axes = tuple(range(1, wanted.ndim))
        largest = np.abs(wanted).max(axis=axes)
        slack = 1e-7 * np.abs(np.cumsum(wanted, axis=0)).max() if dtype == torch.float32 else 0.0
        assert (np.abs(updates[tensor] + wanted).max(axis=axes) <= 1e-5 * largest + slack).all(), tensor


def test_what_ships_is_what_ships_in_jax():
    assert [name for name in outeropt.torch.names() if name[:8] == "learned:"] == [
        f"learned:{name}" for name in learned.names()
    ]
    for name in learned.names():
        optimizer = outeropt.torch.load(name, parameters(), num_steps=9)
        wanted = learned.load(name)
        assert type(optimizer).__name__ == type(wanted).__name__
        found = {path.replace("[", ".").replace("]", ""): leaf for path, leaf in optimizer.weights.items()}
        assert found.keys() == wanted.hyperparameters.keys()
        for path, leaf in wanted.hyperparameters.items():
            np.testing.assert_array_equal(found[path], leaf)
        settings = {key: tuple(v) if isinstance(v, list) else v for key, v in optimizer.settings.items()}
        assert settings == wanted.settings


@pytest.mark.parametrize("weights", ["small_fc", "mlp_nominal", "amalgam-mean-1"])
def test_any_shape_and_order_of_memory(weights):
    torch.manual_seed(0)
    shapes = [(), (1,), (7,), (0, 3), (1, 5), (6, 1), (2, 3, 4), (4, 3, 2, 2)]
    straight = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    other = [torch.nn.Parameter(param.detach().clone()) for param in straight]
    other[-1] = torch.nn.Parameter(straight[-1].detach().to(memory_format=torch.channels_last, copy=True))
    other[4] = torch.nn.Parameter(straight[4].detach().t().clone().t())
    given = {"warmup_steps": 1} if "amalgam" in weights else {}
    optimizers = [outeropt.torch.load(weights, params, num_steps=9, **given) for params in (straight, other)]
    for _ in range(3):
        for one, two in zip(straight, other):
            one.grad = torch.randn(one.shape)
            two.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert not torch.equal(straight[-1], torch.zeros(4, 3, 2, 2))
    for one, two in zip(straight, other):
        assert torch.isfinite(one).all()
        torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weights", ["small_fc", "mlp_nominal", "amalgam-mean-1"])
def test_the_learning_rate_is_a_factor(weights):
    moves = []
    for lr in (1.0, 0.25, torch.tensor(0.25)):
        params = parameters()
        before = flat(params)
        given = {"warmup_steps": 0} if "amalgam" in weights else {}
        train(outeropt.torch.load(weights, params, lr=lr, num_steps=9, **given), params, 1)
        moves.append(flat(params) - before)
    assert np.abs(moves[0]).max() > 0
    for move in moves[1:]:
        np.testing.assert_allclose(move, 0.25 * moves[0], rtol=1e-6)


def test_parts_are_small_and_cover_the_tensor():
    for shape in [(5,), (1000,), (3, 700), (700, 3), (2, 2, 500), (1, 1)]:
        parts = moment_mlp.cuts(shape, 100)
        axis = {part[0] for part in parts}.pop()
        rest = math.prod(shape) // shape[axis]
        assert max(length for _, _, length in parts) * rest <= max(100, rest)
        assert rest <= 100 or shape[axis] == max(shape)
        covered = [i for _, start, length in parts for i in range(start, start + length)]
        assert covered == [*range(shape[axis])]
    placed = rnnprop.blocks([3, 0, 250, 7], 100)
    assert [sum(length for _, _, length in pieces) for pieces in placed] == [100, 100, 60]
    covered = [(i, start + k) for pieces in placed for i, start, length in pieces for k in range(length)]
    assert covered == [(i, k) for i, size in enumerate([3, 0, 250, 7]) for k in range(size)]


def test_the_length_of_the_run_is_asked_for():
    for name in ("small_fc", "mlp_nominal"):
        with pytest.raises(ConfigError, match="follows a linear schedule and needs the length of the run"):
            outeropt.torch.load(name, parameters())
        outeropt.torch.load(name, parameters(), schedule="constant")
    with pytest.raises(OuteroptError, match="num_steps = 0 is not allowed"):
        outeropt.torch.load("small_fc", parameters(), num_steps=0)
    RNNProp(parameters(), "amalgam-mean-1")


@pytest.mark.parametrize(
    ("kind", "weights", "settings", "message"),
    [
        (AdafacMLP, "small_fc", {"stepmult": 1.0}, "No setting of AdafacMLP is called 'stepmult'.*step_mult"),
        (AdafacMLP, "small_fc", {"schedule": "liner"}, "no schedule = 'liner'; give one of constant"),
        (AdafacMLP, "small_fc", {"hidden_size": 5}, "does not fit AdafacMLP"),
        (AdafacMLP, "small_fc", {"hidden_layers": 3}, "does not fit AdafacMLP"),
        (AdafacMLP, "amalgam-mean-1", {}, "is of architecture RNNProp, not AdafacMLP"),
        (MLPNominal, "mlp_nominal", {"nominal_grad_estimator": "Adm"}, "give one of SGD, SGDM"),
        (MLPNominal, "mlp_nominal", {"exp_mult": (1.0,)}, "three numbers"),
        (MLPNominal, "mlp_nominal", {"weight_decay": -1.0}, "weight_decay must be at least 0"),
        (RNNProp, "amalgam-mean-1", {"output": "sgd"}, "no output = 'sgd'; give update, adam, rmsprop"),
        (RNNProp, "amalgam-mean-1", {"warmup_steps": -1}, "warmup_steps must be at least 0"),
        (RNNProp, "amalgam-mean-1", {"warmup_rate": -0.1}, "warmup_rate must be a number from 0 on"),
        (RNNProp, "amalgam-mean-1", {"decays": (0.9,)}, "decays must be two numbers"),
        (RNNProp, "amalgam-mean-1", {"eps": 0.0}, "eps must be above 0"),
        (RNNProp, "amalgam-mean-1", {"hidden_sizes": (20,)}, "does not fit RNNProp"),
        (RNNProp, "amalgam-maen-1", {}, "amalgam-maen-1"),
    ],
)
def test_mistakes_are_one_line(kind, weights, settings, message):
    with pytest.raises(OuteroptError, match=message) as raised:
        kind(parameters(), weights, num_steps=9, **settings)
    assert "\n" not in str(raised.value)


def test_files_are_looked_at(tmp_path):
    learned.build("RNNMLP", {}).save(tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match="holds a RNNMLP, not there in PyTorch; AdafacMLP, MLPNominal"):
        outeropt.torch.load(tmp_path / "other.safetensors", parameters())
    with pytest.raises(OuteroptError, match=r"holds no optimizer\.safetensors"):
        outeropt.torch.load(tmp_path, parameters())
    with pytest.raises(UnknownName, match="smal_fc"):
        outeropt.torch.load("smal_fc", parameters())
    learned.load("small_fc").save(tmp_path / "whole.safetensors")
    bytes_of_it = (tmp_path / "whole.safetensors").read_bytes()
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(bytes_of_it[:-9])
    with pytest.raises(OuteroptError, match="truncated or damaged"):
        outeropt.torch.load(broken, parameters(), num_steps=9)
    broken.write_bytes(bytes_of_it[:-1] + bytes([bytes_of_it[-1] ^ 1]))
    with pytest.raises(OuteroptError, match="its checksum differs"):
        outeropt.torch.load(broken, parameters(), num_steps=9)
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, broken)
    with pytest.raises(ConfigError, match="holds no learned optimizer"):
        outeropt.torch.load(broken, parameters(), num_steps=9)
