"""D-Adaptation for Lion."""

import math
from typing import Any

import torch
from torch import Tensor

from outeropt.torch.arithmetic import absolute_sum, blocks, inner, quotient, total
from outeropt.torch.optimizer import Batch, Optimizer, Params


class DAdaptLion(Optimizer):
    """Lion whose step size is a growing lower bound of the distance to the solution.

    With `b1, b2 = betas`, `c = sqrt(b2)`, `l = d * lr`, and sums over all groups together:

        u = sign(b1 m + (1 - b1) g)                  x <- (1 - l * weight_decay) x - l u
        m <- b2 m + (1 - b2) l g                     n <- c n + (1 - c) l <u, s>
        s <- c s + (1 - c) l u                       d <- max(d, n / ((1 - c) |s|_1))

    The authors' combination of Defazio and Mishchenko, "Learning-Rate-Free Learning by D-Adaptation", 2023,
    arXiv 2301.07733, and Chen et al., "Symbolic Discovery of Optimization Algorithms", 2023, arXiv
    2302.06675; they call it experimental. `outeropt.optimizers.get("dadapt_lion")` in torch.

    Args:
      params: as for `torch.optim.Optimizer`.
      lr: factor on the estimated step size.
      betas: decays in the sign and of the mean.
      weight_decay: decoupled, multiplied by `l`.
      d0: first estimate of the distance; too small is safe.
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1.0,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        d0: float = 1e-6,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "d0": d0})

    def begin(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        return {"exp_avg": torch.zeros_like(param), "sign_sum": torch.zeros_like(param)}

    def begin_shared(self, zero: Tensor) -> dict[str, Tensor]:
        return {"d": zero + self.defaults["d0"], "numerator": zero.clone()}

    def move(self, batches: list[Batch], shared: dict[str, Tensor], value: Tensor | None) -> None:
        gains, sizes = [], []
        for batch in batches:
            group, step = batch.group, shared["d"] * batch.group["lr"]
            b1, b2 = group["betas"]
            long = math.sqrt(b2)
            for grads, params, means, sums in blocks(
                batch.grads, batch.params, batch.state("exp_avg"), batch.state("sign_sum")
            ):
                ahead = torch._foreach_lerp(means, grads, 1.0 - b1)
                torch._foreach_sign_(ahead)
                torch._foreach_mul_(ahead, step)
                torch._foreach_lerp_(means, torch._foreach_mul(grads, step), 1.0 - b2)
                gains.append((1.0 - long) * inner(ahead, sums))
                torch._foreach_lerp_(sums, ahead, 1.0 - long)
                sizes.append((1.0 - long) * absolute_sum(sums))
                if group["weight_decay"]:
                    torch._foreach_mul_(params, 1.0 - group["weight_decay"] * step)
                torch._foreach_sub_(params, ahead)
        # One distance for all groups, which share the decay of the first.
        shared["numerator"].mul_(math.sqrt(batches[0].group["betas"][1])).add_(total(gains))
        shared["d"].copy_(torch.maximum(shared["d"], quotient(shared["numerator"], total(sizes))))
