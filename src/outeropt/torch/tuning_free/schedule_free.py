"""Schedule-free methods: gradients taken between the iterate and its average, which is the answer."""

import abc
from typing import Any

import torch
from torch import Tensor

from outeropt.errors import OuteroptError
from outeropt.torch.arithmetic import Tensors, blocks, decayed, quotient
from outeropt.torch.optimizer import Batch, Optimizer, Params


def average(points: Tensors, z: Tensors, b1: float) -> list[Tensor]:
    """`x`, the average, from `y = b1 x + (1 - b1) z`: where to evaluate."""
    return list(torch._foreach_lerp(points, z, 1.0 - 1.0 / b1))


def follow(points: Tensors, z: Tensors, moves: Tensors, share: Tensor, b1: float) -> None:
    """Moves the iterate, and the training point with it, in place.

    With `y = b1 x + (1 - b1) z`, `z <- z + u` and `x <- (1 - c) x + c z`, the point `y` moves by
    `c (z - y) + (1 - b1 (1 - c)) u`, with `z` from before: `x` need not be kept.

    Args:
      points: `y`, where gradients are taken.
      z: the iterate.
      moves: `u`, its move; overwritten.
      share: `c`, its part in the average.
      b1: how near to the average gradients are taken.
    """
    way = torch._foreach_sub(z, points)
    torch._foreach_mul_(way, share)
    torch._foreach_add_(points, way)
    torch._foreach_add_(z, moves)
    torch._foreach_mul_(moves, 1.0 - b1 * (1.0 - share))
    torch._foreach_add_(points, moves)


def nearness(group: dict[str, Any]) -> float:
    """`b1`: how near to the average gradients are taken."""
    return group["momentum"] if "momentum" in group else group["betas"][0]


class Averaged(Optimizer):
    """What schedule-free methods share: an iterate `z` in the state, and the average as evaluation point."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        if nearness(self.param_groups[-1]) == 0.0:
            setting = "momentum" if "momentum" in self.param_groups[-1] else "betas[0]"
            raise OuteroptError(
                f"{type(self).__name__}: {setting} = 0 is not allowed; give more than 0, below 1."
            )

    def evaluation_point(self, batch: Batch) -> list[Tensor]:
        return average(batch.params, batch.state("z"), nearness(batch.group)) if batch.params else []


class _Weighted(Averaged):
    """One average for all groups, whose weights follow the largest step size among them."""

    def begin_shared(self, zero: Tensor) -> dict[str, Tensor]:
        return {name: zero.clone() for name in ("count", "max_lr", "weight_sum")}

    def _share(self, count: Tensor, steps: list[Tensor], shared: dict[str, Tensor]) -> Tensor:
        """`c` for step sizes of all groups."""
        shared["max_lr"].copy_(torch.maximum(shared["max_lr"], torch.stack(steps).max()))
        weight = count ** self.defaults["r"] * shared["max_lr"] ** self.defaults["weight_lr_power"]
        return quotient(weight, shared["weight_sum"].add_(weight))


class ScheduleFreeSGD(_Weighted):
    """Schedule-free SGD.

    At step `t` (from 1), with `g` the gradient at `y` plus `weight_decay * y`:

        l = lr * min(1, t / warmup_steps)                        z <- z - l g
        weight = t^r max(l so far)^weight_lr_power               c = weight / sum of weights so far
        x <- (1 - c) x + c z                                     y <- momentum * x + (1 - momentum) * z

    Defazio et al., "The Road Less Scheduled", 2024, arXiv 2405.15682, algorithm 1. Training goes on at `y`;
    `eval()` moves the parameters to `x`, and `train()` back. `outeropt.optimizers.get("schedule_free_sgd")`
    in torch.

    Args:
      params: as for `torch.optim.Optimizer`.
      lr: step size.
      momentum: how near to the average gradients are taken, in (0, 1).
      warmup_steps: over which the step size rises linearly.
      weight_decay: L2 penalty at `y`.
      weight_lr_power: power of the largest step size so far in the average's weights.
      r: power of the step in the average's weights.
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1.0,
        momentum: float = 0.9,
        warmup_steps: float = 0.0,
        weight_decay: float = 0.0,
        weight_lr_power: float = 2.0,
        r: float = 0.0,
    ):
        settings = {
            "lr": lr,
            "momentum": momentum,
            "warmup_steps": warmup_steps,
            "weight_decay": weight_decay,
            "weight_lr_power": weight_lr_power,
            "r": r,
        }
        super().__init__(params, settings)

    def begin(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        return {"z": param.clone()}

    def move(self, batches: list[Batch], shared: dict[str, Tensor], value: Tensor | None) -> None:
        count = shared["count"].add_(1)
        steps = [batch.group["lr"] * warm(count, batch.group["warmup_steps"]) for batch in batches]
        share = self._share(count, steps, shared)
        for batch, step in zip(batches, steps):
            for grads, params, z in blocks(batch.grads, batch.params, batch.state("z")):
                grads = decayed(grads, params, batch.group["weight_decay"])
                follow(params, z, torch._foreach_mul(grads, -step), share, batch.group["momentum"])


class _AveragedAdam(_Weighted):
    """What schedule-free forms of Adam share: all but the step size."""

    def begin(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        return {"exp_avg_sq": torch.zeros_like(param), "z": param.clone()}

    @abc.abstractmethod
    def _step_size(self, count: Tensor, group: dict[str, Any]) -> Tensor:
        """At a count, from 1 on."""

    def move(self, batches: list[Batch], shared: dict[str, Tensor], value: Tensor | None) -> None:
        count = shared["count"].add_(1)
        steps = [self._step_size(count, batch.group) for batch in batches]
        share = self._share(count, steps, shared)
        for batch, step in zip(batches, steps):
            (b1, b2), decay = batch.group["betas"], batch.group["weight_decay"]
            correction = torch.sqrt(1.0 - b2**count)
            for grads, params, squares, z in blocks(
                batch.grads, batch.params, batch.state("exp_avg_sq"), batch.state("z")
            ):
                torch._foreach_mul_(squares, b2)
                torch._foreach_addcmul_(squares, grads, grads, value=1.0 - b2)
                roots = torch._foreach_sqrt(squares)
                torch._foreach_div_(roots, correction)
                torch._foreach_add_(roots, batch.group["eps"])
                moves = torch._foreach_div(grads, roots)
                if decay:
                    torch._foreach_add_(moves, params, alpha=decay)
                torch._foreach_mul_(moves, -step)
                follow(params, z, moves, share, b1)


class ScheduleFreeAdamW(_AveragedAdam):
    """Schedule-free AdamW.

    At step `t` (from 1), with `b1, b2 = betas`, `g` the gradient at `y`, and `w` one over Adam's corrected
    root mean square plus `eps`:

        l = lr * min(1, t / warmup_steps)                        z <- z - l (w g + weight_decay y)
        weight = t^r max(l so far)^weight_lr_power               c = weight / sum of weights so far
        x <- (1 - c) x + c z                                     y <- b1 x + (1 - b1) z

    Defazio et al., "The Road Less Scheduled", 2024, arXiv 2405.15682, algorithm 1. Training goes on at `y`;
    `eval()` moves the parameters to `x`, and `train()` back. `outeropt.optimizers.get("schedule_free_adamw")`
    in torch.

    Args:
      params: as for `torch.optim.Optimizer`.
      lr: step size.
      betas: how near to the average gradients are taken, in (0, 1), and the decay of the square.
      eps: added to the root of the square.
      warmup_steps: over which the step size rises linearly.
      weight_decay: decoupled, at `y`, multiplied by the step size.
      weight_lr_power: power of the largest step size so far in the average's weights.
      r: power of the step in the average's weights.
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 0.0025,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        warmup_steps: float = 0.0,
        weight_decay: float = 0.0,
        weight_lr_power: float = 2.0,
        r: float = 0.0,
    ):
        settings = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "warmup_steps": warmup_steps,
            "weight_decay": weight_decay,
            "weight_lr_power": weight_lr_power,
            "r": r,
        }
        super().__init__(params, settings)

    def _step_size(self, count: Tensor, group: dict[str, Any]) -> Tensor:
        return group["lr"] * warm(count, group["warmup_steps"])


class ScheduleFreeRAdam(_AveragedAdam):
    """Schedule-free AdamW whose step size is multiplied by RAdam's rectification instead of warming up.

    As long as the rectification is not defined (five steps, for `b2 = 0.999`), nothing moves, as is the
    authors' default. Defazio et al., "The Road Less Scheduled", 2024, arXiv 2405.15682; Liu et al., "On the
    Variance of the Adaptive Learning Rate and Beyond", 2019, arXiv 1908.03265.
    `outeropt.optimizers.get("schedule_free_radam")` in torch.

    Args:
      params: as for `torch.optim.Optimizer`.
      lr: step size.
      betas: how near to the average gradients are taken, in (0, 1), and the decay of the square.
      eps: added to the root of the square.
      weight_decay: decoupled, at `y`, multiplied by the step size.
      weight_lr_power: power of the largest step size so far in the average's weights.
      r: power of the step in the average's weights.
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 0.0025,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        weight_lr_power: float = 2.0,
        r: float = 0.0,
    ):
        settings = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "weight_lr_power": weight_lr_power,
            "r": r,
        }
        super().__init__(params, settings)

    def _step_size(self, count: Tensor, group: dict[str, Any]) -> Tensor:
        b2 = group["betas"][1]
        longest = 2.0 / (1.0 - b2) - 1.0
        length = longest - 2.0 * count * b2**count / (1.0 - b2**count)
        above = (length - 4.0) * (length - 2.0) * longest
        term = quotient(above, (longest - 4.0) * (longest - 2.0) * length)
        return group["lr"] * torch.sqrt(torch.where(length > 4.0, term, 0.0))


def warm(count: Tensor, warmup_steps: float) -> Tensor:
    """The factor of a linear warm-up at a count, from 1 on."""
    return torch.clamp(count / max(warmup_steps, 1.0), max=1.0)
