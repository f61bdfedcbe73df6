"""Counterfactual rollouts: where parameters would be, had today's coefficients played the last steps."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from outeropt.torch.optimizer import moved, widened
from outeropt.torch.selftuning.control import history
from outeropt.torch.selftuning.control.controllers import Controller
from outeropt.torch.selftuning.control.disturbances import Disturbance


Loss = Callable[[], Tensor]


class Past:
    """What a rollout must know of one step beside the disturbances, as it was before that step.

    It lies in a parameter's state as dictionaries by the age of the step, `"0"` for the last one.
    """

    @staticmethod
    def push(
        state: dict[str, Any], param: Tensor, lr: Any, base: torch.optim.Optimizer, horizon: int
    ) -> None:
        """One step more, at a learning rate, and none that is older than `horizon`."""
        before = {name: state[name] for name in ("mean", "square") if name in state}
        now = {
            "param": param.detach(),
            "lr": float(lr),
            "base": dict(base.state.get(param, {})),
            "disturbance": before,
        }
        older = state["past"]
        kept = {str(age + 1): older[str(age)] for age in range(min(len(older), horizon - 1))}
        state["past"] = {"0": moved(now, param.device), **kept}


def gradient_of(loss: Loss, params: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """A loss at the parameters as they are, and its gradient; zeros for those that it does not depend on."""
    with torch.enable_grad():
        value = loss()
        found = torch.autograd.grad(value, params, allow_unused=True)
    pairs = zip(params, found)
    return value.detach(), [torch.zeros_like(p) if grad is None else grad.detach() for p, grad in pairs]


@contextmanager
def put_back(params: list[Tensor], base: torch.optim.Optimizer) -> Iterator[None]:
    """Within it, parameters and their optimizer's state may change; then they are as before, exactly."""
    values, grads = [param.detach().clone() for param in params], [param.grad for param in params]
    states = [base.state.get(param) for param in params]
    try:
        yield
    finally:
        torch._foreach_copy_(params, values)
        for param, grad, state in zip(params, grads, states):
            param.grad = grad
            _set(base, param, state)


def roll(
    params: list[Tensor],
    states: list[dict[str, Any]],
    base: torch.optim.Optimizer,
    play: Callable[[int], None],
    controller: Controller,
    disturbance: Disturbance | None,
    coefficients: list[Tensor],
    count: Tensor,
    kept: float,
    losses: list[Loss],
) -> None:
    """Moves the parameters to where they would be now, had `coefficients` played the last steps.

    From the real parameters of that time on, with the recorded disturbances `w` as constants in the control,
    for each step `s` up to the one before this:

        y_(s+1) = kept y_s + base(v_s) + sum_i M_i w_(s-i)

    where `v_s` is the disturbance of a fresh gradient at `y_s`, or `w_s` itself. With coefficients that never
    changed it ends at the real parameters (Chen and Hazan, "Online Control for Meta-optimization", 2023,
    arXiv 2301.07902).

    Args:
      params: moved in place; their gradients and the state of `base` are lost, see `put_back`.
      states: of the parameters, with what `Past` keeps.
      play: a step of `base`, at the learning rate of the step of an age.
      disturbance: makes disturbances of fresh gradients; None to play the recorded ones.
      losses: of the last steps, the last one last, for fresh gradients.
    """
    length = min(len(state["past"]) for state in states)
    rows = [state["rows"] for state in states]
    if not length:
        return
    own: list[dict[str, Tensor]] = []
    for param, state in zip(params, states):
        past = moved(state["past"][str(length - 1)], param.device)
        param.copy_(past["param"])
        _set(base, param, past["base"] or None)
        own.append(past["disturbance"])
    for age in range(length - 1, -1, -1):
        if disturbance is None:
            played = [history.newest(ring, count, 1, age)[0] for ring in rows]
        else:
            _, grads = gradient_of(losses[-1 - age], params)
            played = disturbance([widened(grad) for grad in grads], own, count - 1 - age)
        extra = controller.play(coefficients, rows, count, age)
        if kept != 1.0:
            torch._foreach_add_(extra, [widened(param.detach()) for param in params], alpha=kept - 1.0)
        for param, w in zip(params, played):
            param.grad = w.to(param.dtype)
        play(age)
        torch._foreach_add_(params, extra)


def _set(base: torch.optim.Optimizer, param: Tensor, state: Any) -> None:
    """Gives an optimizer a state of one parameter, or none."""
    if state is None:
        base.state.pop(param, None)
    else:
        base.state[param] = state
