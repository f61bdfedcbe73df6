"""D-Adaptation for Adan."""

import math
from typing import Any

import torch
from torch import Tensor

from outeropt.torch.arithmetic import absolute_sum, blocks, inner, quotient, total
from outeropt.torch.optimizer import Batch, Optimizer, Params
from outeropt.torch.tuning_free.estimate import raised


class DAdaptAdan(Optimizer):
    """Adan whose step size is a growing lower bound of the distance to the solution.

    With `b1, b2, b3 = betas`, `l = d * lr`, `e` the gradient minus the last one (0 at the first step), and
    sums over all groups together:

        m <- b1 m + (1 - b1) l g         h <- b2 h + (1 - b2) l e         v <- b3 v + (1 - b3) (g + b2 e)^2
        s <- b3 s + (1 - b3) l g         w = 1 / (sqrt(v) + eps)          q <- b3 q + (1 - b3) l^2 sum(w g^2)
        d <- max(d, min((sum(w s^2) / (1 - b3) - q) / |s|_1, d * growth_rate))
        x <- (x - w (m + b2 h)) / (1 + l * weight_decay)

    The authors' combination of Defazio and Mishchenko, "Learning-Rate-Free Learning by D-Adaptation", 2023,
    arXiv 2301.07733, and Xie et al., "Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep
    Models", 2022, arXiv 2208.06677; they call it experimental. `outeropt.optimizers.get("dadapt_adan")` in
    torch.

    Args:
      params: as for `torch.optim.Optimizer`.
      lr: factor on the estimated step size.
      betas: decays of mean, mean difference and square.
      eps: added to the root of the square.
      weight_decay: proximal, multiplied by `l`.
      d0: first estimate of the distance; too small is safe.
      growth_rate: the estimate grows by at most this factor a step.
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1.0,
        betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.02,
        d0: float = 1e-6,
        growth_rate: float = math.inf,
    ):
        settings = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "d0": d0,
            "growth_rate": growth_rate,
        }
        super().__init__(params, settings)

    def begin(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        names = ("exp_avg", "exp_avg_diff", "exp_avg_sq", "grad_sum")
        return {name: torch.zeros_like(param) for name in names}

    def begin_shared(self, zero: Tensor) -> dict[str, Tensor]:
        return {"d": zero + self.defaults["d0"], "grad_weighted": zero.clone()}

    def move(self, batches: list[Batch], shared: dict[str, Tensor], value: Tensor | None) -> None:
        gains, losses, sizes = [], [], []
        for batch in batches:
            group, step = batch.group, shared["d"] * batch.group["lr"]
            b1, b2, b3 = group["betas"]
            for grad, state in zip(batch.grads, batch.states):
                if "last_grad" not in state:
                    state["last_grad"] = grad.clone()
            names = ("last_grad", "exp_avg", "exp_avg_diff", "exp_avg_sq", "grad_sum")
            for grads, params, last, means, slopes, squares, sums in blocks(
                batch.grads, batch.params, *map(batch.state, names)
            ):
                change = torch._foreach_sub(grads, last)
                torch._foreach_copy_(last, grads)
                ahead = torch._foreach_add(grads, change, alpha=b2)
                torch._foreach_mul_(squares, b3)
                torch._foreach_addcmul_(squares, ahead, ahead, value=1.0 - b3)
                roots = torch._foreach_sqrt(squares)
                torch._foreach_add_(roots, group["eps"])

                scaled = torch._foreach_mul(grads, step)
                losses.append((1.0 - b3) * step * inner(torch._foreach_div(scaled, roots), grads))
                torch._foreach_lerp_(sums, scaled, 1.0 - b3)
                sizes.append(absolute_sum(sums))
                gains.append(inner(torch._foreach_div(sums, roots), sums) / (1.0 - b3))

                torch._foreach_lerp_(means, scaled, 1.0 - b1)
                torch._foreach_mul_(change, step)
                torch._foreach_lerp_(slopes, change, 1.0 - b2)
                ahead = torch._foreach_add(means, slopes, alpha=b2)
                torch._foreach_addcdiv_(params, ahead, roots, value=-1.0)
                torch._foreach_div_(params, 1.0 + step * group["weight_decay"])
        # One distance for all groups, which share the decay of the first.
        shared["grad_weighted"].mul_(batches[0].group["betas"][2]).add_(total(losses))
        candidate = quotient(total(gains) - shared["grad_weighted"], total(sizes))
        shared["d"].copy_(raised(shared["d"], candidate, self.defaults["growth_rate"]))
