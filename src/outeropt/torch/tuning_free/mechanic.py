"""Mechanic: finds the scale of any optimizer's updates."""

import inspect
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from outeropt.errors import OuteroptError
from outeropt.torch.arithmetic import blocks, inner, squared_norm, total
from outeropt.torch.optimizer import Batch, Optimizer, Params, check


FIRST_PRODUCT = 1e-6
"""What the largest inner product so far starts at."""
EPSILON = 1e-8
"""Keeps quotients finite."""


class Mechanic(Optimizer):
    """Lets the inner optimizer give directions and finds how far to go along their sum.

        optimizer = outeropt.torch.Mechanic(torch.optim.AdamW(model.parameters(), lr=1.0))

    With `u` the inner update at `x`, `x' = x + u`, `s` the sum of the scales, decays `b = 0.9, 0.99, ...`,
    `eps = 1e-8`, and all groups together:

        delta = (x - x_0) / (s + eps)
        h = <delta, g + s_decay * s * |g| / (|x'| + eps) * x'>
        m <- max(b m, |h|)               v <- b^2 v + h^2               r <- max(b r - s_b h, 0)
        s_b <- (m s_init / num_betas + r) / (sqrt(v) + eps)
        x <- x_0 + s (delta + u), with the new `s`

    Cutkosky, Defazio and Mehta, "Mechanic: A Learning Rate Tuner", 2023, arXiv 2306.00144, algorithm 1, and
    in its details the authors' PyTorch package; `outeropt.optimizers.get("mechanic:NAME")` in torch.

    The learning rate inside is still a factor, and may follow a schedule: parameter groups, and so learning
    rates, are those of the inner optimizer. Step, save and load this one alone.

    Args:
      inner: the optimizer inside, before its first step.
      s_decay: weight decay of the scale finder, relative to the norms of gradient and parameters, at least 0.
      s_init: the first scale, nearly; too small is safe.
      num_betas: how many decays are tried at once.

    Raises:
      OuteroptError: a setting is not allowed, or the inner optimizer has made steps.
    """

    def __init__(
        self,
        inner: torch.optim.Optimizer,
        s_decay: float = 0.01,
        s_init: float = 1e-8,
        num_betas: int = 6,
    ):
        if inner.state:
            raise OuteroptError("Mechanic: its inner optimizer has made steps already; give a fresh one.")
        self.inner = inner
        params = [param for group in inner.param_groups for param in group["params"]]
        super().__init__(params, {"s_decay": s_decay, "s_init": s_init, "num_betas": num_betas})
        self.param_groups = inner.param_groups
        self.defaults = {**inner.defaults, **self.defaults}

    def begin(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        return {"start": param.clone()}

    def begin_shared(self, zero: Tensor) -> dict[str, Tensor]:
        zeros = zero.repeat(self.defaults["num_betas"])
        names = ("scales", "rewards", "squares")
        return {"largest": zeros + FIRST_PRODUCT, **{name: zeros.clone() for name in names}}

    def move(self, batches: list[Batch], shared: dict[str, Tensor], value: Tensor | None) -> None:
        gains, squares, before = [], [], []
        for batch in batches:
            before.append([param.clone() for param in batch.params])
            for grads, params, start in blocks(batch.grads, batch.params, batch.state("start")):
                gains.append(inner(torch._foreach_sub(params, start), grads))
                squares.append(squared_norm(grads))
        grad_norm, gain = torch.sqrt(total(squares)), total(gains)

        self._inner_step(batches, value)

        pulls, squares = [], []
        for batch, points in zip(batches, before):
            for ahead, params, start in blocks(batch.params, points, batch.state("start")):
                pulls.append(inner(torch._foreach_sub(params, start), ahead))
                squares.append(squared_norm(ahead))
        old = shared["scales"].sum()
        scale = self._tuned(shared, gain, total(pulls), grad_norm / (torch.sqrt(total(squares)) + EPSILON))
        stretch = scale / (old + EPSILON) - 1.0

        # x_0 + scale (delta + u) as a change of x, without the rounding of x_0.
        for batch, points in zip(batches, before):
            for ahead, params, start in blocks(batch.params, points, batch.state("start")):
                torch._foreach_sub_(ahead, params)
                torch._foreach_mul_(ahead, scale)
                way = torch._foreach_sub(params, start)
                torch._foreach_mul_(way, stretch)
                torch._foreach_add_(ahead, way)
                torch._foreach_add_(ahead, params)

    def _tuned(self, shared: dict[str, Tensor], gain: Tensor, pull: Tensor, ratio: Tensor) -> Tensor:
        """The new scale.

        Args:
          shared: to be brought forward.
          gain: inner product of the way from the start and the gradient.
          pull: inner product of that way and the point ahead.
          ratio: norm of the gradient over that of the point ahead.
        """
        own, scales = self.defaults, shared["scales"]
        betas = 1.0 - 0.1 ** torch.arange(1, own["num_betas"] + 1, dtype=scales.dtype, device=scales.device)
        scale = scales.sum()
        product = (gain + own["s_decay"] * scale * ratio * pull) / (scale + EPSILON)
        largest = torch.maximum(betas * shared["largest"], product.abs())
        squares = betas**2 * shared["squares"] + product**2
        rewards = torch.clamp(betas * shared["rewards"] - scales * product, min=0.0)
        new = (largest * own["s_init"] / own["num_betas"] + rewards) / (torch.sqrt(squares) + EPSILON)
        for name, now in (("largest", largest), ("squares", squares), ("rewards", rewards), ("scales", new)):
            shared[name].copy_(now)
        return new.sum()

    def _inner_step(self, batches: list[Batch], value: Tensor | None) -> None:
        """A step of the inner optimizer on what the batches hold, which is wider than narrow parameters."""
        swapped = []
        for batch in batches:
            own = [param for param in batch.group["params"] if param.grad is not None]
            for param, wide, grad in zip(own, batch.params, batch.grads):
                if param.dtype != wide.dtype:
                    swapped.append((param, param.data, param.grad))
                    param.grad, param.data = None, wide
                    param.grad = grad
        given: dict[str, Any] = {"value": value} if isinstance(self.inner, Optimizer) else {}
        if torch.compiler.is_compiling():
            # What torch wraps around its own steps cannot be compiled from within another step.
            inspect.unwrap(type(self.inner).step)(self.inner, **given)
        else:
            self.inner.step(**given)
        for param, data, grad in swapped:
            param.grad, param.data = None, data
            param.grad = grad

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group to the inner optimizer, whose groups these are."""
        if self.param_groups is self.inner.param_groups:
            self.inner.add_param_group(param_group)
        else:
            super().add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The state, with the inner optimizer's under `inner`."""
        return {**super().state_dict(), "inner": self.inner.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what `state_dict` gave, also into the inner optimizer."""
        super().load_state_dict({name: part for name, part in state_dict.items() if name != "inner"})
        saved = state_dict["inner"]
        self.inner.load_state_dict(saved)
        params = [param for group in self.inner.param_groups for param in group["params"]]
        numbers = [number for group in saved["param_groups"] for number in group["params"]]
        for param, number in zip(params, numbers):
            if number in saved["state"]:
                self.inner.state[param] = exact(self.inner.state[param], saved["state"][number])
        self.param_groups = self.inner.param_groups

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "inner": self.inner}


def exact(loaded: Any, saved: Any) -> Any:
    """A copy of what was saved, of its type and where torch has loaded it to: step counts stay on the CPU."""
    if isinstance(saved, dict):
        return {name: exact(loaded[name], value) for name, value in saved.items()}
    return saved.detach().clone().to(loaded.device) if isinstance(saved, Tensor) else deepcopy(saved)


def mechanic_adamw(
    params: Params,
    lr: float | Tensor = 1.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    s_decay: float = 0.01,
    s_init: float = 1e-8,
    num_betas: int = 6,
    fused: bool | None = None,
) -> Mechanic:
    """`Mechanic` around `torch.optim.AdamW`.

    Args:
      params: as for `torch.optim.Optimizer`.
      lr: AdamW's learning rate, a factor on the scale that is found.
      betas: AdamW's decays of mean and square.
      eps: added to the root of the square.
      weight_decay: AdamW's weight decay.
      s_decay: Mechanic's own.
      s_init: the first scale, nearly.
      num_betas: how many decays of the scale are tried at once.
      fused: AdamW's own: its faster form, which `torch.compile` does not compile.
    """
    settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
    check("mechanic_adamw", settings)
    return Mechanic(torch.optim.AdamW(params, fused=fused, **settings), s_decay, s_init, num_betas)


def mechanic_sgd(
    params: Params,
    lr: float | Tensor = 1.0,
    momentum: float = 0.0,
    s_decay: float = 0.01,
    s_init: float = 1e-8,
    num_betas: int = 6,
) -> Mechanic:
    """`Mechanic` around `torch.optim.SGD`.

    Args:
      params: as for `torch.optim.Optimizer`.
      lr: SGD's learning rate, a factor on the scale that is found.
      momentum: SGD's momentum.
      s_decay: Mechanic's own.
      s_init: the first scale, nearly.
      num_betas: how many decays of the scale are tried at once.
    """
    check("mechanic_sgd", {"lr": lr, "momentum": momentum})
    return Mechanic(torch.optim.SGD(params, lr=lr, momentum=momentum), s_decay, s_init, num_betas)
