"""Prodigy's estimate of the step size in a schedule-free method."""

import math
from typing import Any

import torch
from torch import Tensor

from outeropt.torch.arithmetic import absolute_sum, add_number, blocks, inner, quotient, total
from outeropt.torch.optimizer import Batch, Params
from outeropt.torch.tuning_free.schedule_free import Averaged, average, follow


class ProdigyScheduleFree(Averaged):
    """Schedule-free Adam with the step size that Prodigy estimates.

    At step `t` (from 1), with `b1, b2 = betas`, `g` the gradient at `y`, `l = d * lr`, `b3 = sqrt(b2)`, and
    sums over all groups together:

        n <- b3 n + d l <g, x_0 - z>           s <- b3 s + d l g           v <- b2 v + (1 - b2) d^2 g^2
        d <- max(d, d_coef * n / |s|_1)
        z <- z - l (d g / (sqrt(v) + d eps) + weight_decay x), with the old `l` and the new `d`
        c = t^r / (1^r + ... + t^r)            x <- (1 - c) x + c z        y <- b1 x + (1 - b1) z

    Mishchenko and Defazio, "Prodigy: An Expeditiously Adaptive Parameter-Free Learner", 2023, arXiv
    2306.06101, in Defazio et al., "The Road Less Scheduled", 2024, arXiv 2405.15682, in the way and with the
    defaults of the latter's entry to AlgoPerf. Training goes on at `y`; `eval()` moves the parameters to `x`,
    and `train()` back. `outeropt.optimizers.get("prodigy_schedule_free")` in torch.

    Args:
      params: as for `torch.optim.Optimizer`.
      lr: factor on the estimated step size.
      betas: how near to the average gradients are taken, in (0, 1), and the decay of the square.
      eps: added, times `d`, to the root of the square.
      weight_decay: decoupled, at `x`, multiplied by `l`.
      d0: first estimate of the distance; too small is safe.
      d_coef: factor on the estimate.
      r: power of the step in the average's weights.
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1.0,
        betas: tuple[float, float] = (0.9, 0.9955),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        d0: float = 1e-6,
        d_coef: float = 1.0,
        r: float = 0.75,
    ):
        settings = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "d0": d0,
            "d_coef": d_coef,
            "r": r,
        }
        super().__init__(params, settings)

    def begin(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        return {
            "exp_avg_sq": torch.zeros_like(param),
            "grad_sum": torch.zeros_like(param),
            "start": param.clone(),
            "z": param.clone(),
        }

    def begin_shared(self, zero: Tensor) -> dict[str, Tensor]:
        names = ("numerator", "count", "weight_sum")
        return {"d": zero + self.defaults["d0"], **{name: zero.clone() for name in names}}

    def move(self, batches: list[Batch], shared: dict[str, Tensor], value: Tensor | None) -> None:
        d, d0, count = shared["d"].clone(), self.defaults["d0"], shared["count"].add_(1)
        gains, sizes = [], []
        for batch in batches:
            b2 = batch.group["betas"][1]
            # The estimate is a ratio: dividing both by d0 keeps them in range.
            length = d / d0 * d * batch.group["lr"]
            for grads, start, z, sums, squares in blocks(
                batch.grads, *map(batch.state, ("start", "z", "grad_sum", "exp_avg_sq"))
            ):
                scaled = torch._foreach_mul(grads, length)
                gains.append(inner(scaled, torch._foreach_sub(start, z)))
                torch._foreach_mul_(sums, math.sqrt(b2))
                torch._foreach_add_(sums, scaled)
                sizes.append(absolute_sum(sums))
                scaled = torch._foreach_mul(grads, d)
                torch._foreach_mul_(squares, b2)
                torch._foreach_addcmul_(squares, scaled, scaled, value=1.0 - b2)

        # One distance for all groups, which share the decay of the first.
        shared["numerator"].mul_(math.sqrt(batches[0].group["betas"][1])).add_(total(gains))
        candidate = self.defaults["d_coef"] * quotient(shared["numerator"], total(sizes))
        shared["d"].copy_(torch.maximum(d, candidate))
        weight = count ** self.defaults["r"]
        share = weight / shared["weight_sum"].add_(weight)

        for batch in batches:
            group, b1 = batch.group, batch.group["betas"][0]
            step = d * group["lr"]
            for grads, params, z, squares in blocks(
                batch.grads, batch.params, batch.state("z"), batch.state("exp_avg_sq")
            ):
                roots = torch._foreach_sqrt(squares)
                add_number(roots, shared["d"] * group["eps"])
                torch._foreach_div_(roots, -step * shared["d"])
                moves = torch._foreach_div(grads, roots)
                if group["weight_decay"]:
                    decay = torch._foreach_mul(average(params, z, b1), step * group["weight_decay"])
                    torch._foreach_sub_(moves, decay)
                follow(params, z, moves, share, b1)
