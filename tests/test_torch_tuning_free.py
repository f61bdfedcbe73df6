"""What some tuning-free optimizers of PyTorch do beside the contract."""

import numpy as np
import pytest


torch = pytest.importorskip("torch")

from outeropt.errors import OuteroptError  # noqa: E402
from outeropt.torch import Mechanic, Momo, Prodigy, ScheduleFreeSGD, get  # noqa: E402
from outeropt.torch.arithmetic import blocks, whole_blocks  # noqa: E402
from torch_problem import flat, loss, parameters, train  # noqa: E402


def test_pieces_are_views_of_all_entries():
    large, small, other = torch.zeros(2**19 + 5), torch.zeros(3), torch.zeros(4)
    pieces = [tensor for (tensors,) in blocks([small, large, other]) for tensor in tensors]
    torch._foreach_add_(pieces, 1.0)
    assert len(pieces) == 5 and all((tensor == 1.0).all() for tensor in (large, small, other))
    assert [len(tensors) for (tensors,) in whole_blocks([small, large, other])] == [2, 1]


@pytest.mark.parametrize(
    "inside",
    [
        lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        lambda params: torch.optim.NAdam(params, lr=0.1),
        lambda params: torch.optim.RMSprop([{"params": params[:2], "lr": 0.01}, {"params": params[2:]}]),
        lambda params: Prodigy(params),
        lambda params: Momo(params),
    ],
)
def test_mechanic_works_around_others(inside):
    params = parameters(torch.float32)
    losses = train(Mechanic(inside(params), s_init=1e-3), params, 60)
    assert losses[-1] < 0.8 * losses[0]


def test_mechanic_has_the_groups_of_its_inner_optimizer():
    params = parameters()
    inner = torch.optim.SGD(params[:3], lr=0.1)
    optimizer = Mechanic(inner)
    optimizer.add_param_group({"params": params[3:], "lr": 0.2})
    assert optimizer.param_groups is inner.param_groups and len(inner.param_groups) == 2
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    train(optimizer, params, 2)
    scheduler.step()
    assert [group["lr"] for group in inner.param_groups] == [0.05, 0.1]
    saved = optimizer.state_dict()
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups is inner.param_groups


def test_mechanic_wants_a_fresh_optimizer():
    params = parameters()
    inner = torch.optim.AdamW(params)
    train(inner, params, 1)
    with pytest.raises(OuteroptError, match="fresh"):
        Mechanic(inner)


def test_the_inner_optimizer_sees_wide_parameters():
    params = parameters(torch.bfloat16)
    optimizer = Mechanic(torch.optim.Adam(params))
    train(optimizer, params, 3)
    for param in params:
        assert param.dtype == param.grad.dtype == torch.bfloat16
        wide = optimizer.inner.state[param]["exp_avg"]
        assert wide.dtype == torch.float32 and wide.abs().max() > 0


def test_one_model_of_the_loss_serves_groups_that_differ():
    # Half the learning rate is the parameter in units of half the size: x = w / sqrt(2).
    params, scaled = parameters(), parameters()
    root = np.sqrt(2.0)
    one = Momo([{"params": params[:2], "lr": 0.1}, {"params": params[2:], "lr": 0.05}])
    with torch.no_grad():
        for param in scaled[2:]:
            param.mul_(root)
    two = Momo(scaled, lr=0.1)
    for _ in range(20):
        train(one, params, 1)
        two.zero_grad()
        value = loss([*scaled[:2], *(param / root for param in scaled[2:])])
        value.backward()
        two.step(value=value)
    with torch.no_grad():
        for param in scaled[2:]:
            param.div_(root)
    np.testing.assert_allclose(flat(params), flat(scaled), rtol=1e-8)


@pytest.mark.parametrize("setting", [{"momentum": 0.0}, {"momentum": 1.0}, {"warmup_steps": -1.0}])
def test_settings_that_have_no_average_are_refused(setting):
    params = parameters()
    with pytest.raises(OuteroptError, match=r"momentum|warmup_steps"):
        ScheduleFreeSGD(parameters(), **setting)
    with pytest.raises(OuteroptError, match=r"momentum|warmup_steps"):
        ScheduleFreeSGD(params[:3]).add_param_group({"params": params[3:], **setting})
    with pytest.raises(OuteroptError, match=r"betas\[0\]"):
        get("schedule_free_adamw", parameters(), betas=(0.0, 0.99))
