"""Prodigy: Adam whose step size is a growing estimate of the distance to the solution."""

import math
from typing import Any

import torch
from torch import Tensor

from outeropt.torch.arithmetic import (
    Tensors,
    absolute_sum,
    add_number,
    blocks,
    decayed,
    inner,
    quotient,
    total,
)
from outeropt.torch.optimizer import Batch, Optimizer, Params


class Prodigy(Optimizer):
    """Adam whose step size is a growing estimate of the distance to the solution.

    With `b1, b2 = betas`, `b3 = beta3`, `l = d * lr`, times `sqrt(1 - b2^t) / (1 - b1^t)` with bias
    correction, and sums over every `slice_p`-th entry of each parameter, in all groups together:

        n <- b3 n + d / d0 l <g, x_0 - x>                              s <- b3 s + d / d0 l g
        m <- b1 m + (1 - b1) d g                                       v <- b2 v + (1 - b2) d^2 g^2
        d <- max(d, d_coef * n / |s|_1), growing by at most the factor growth_rate a step
        x <- x - l m / (sqrt(v) + d eps), with the old `l` and the new `d`

    Mishchenko and Defazio, "Prodigy: An Expeditiously Adaptive Parameter-Free Learner", 2023, arXiv
    2306.06101, algorithm 4; `outeropt.optimizers.get("prodigy")` in torch. Leave `lr` at 1, and schedule it
    as one would schedule Adam's. The authors' package corrects no bias by default: `bias_correction=False`.

    Args:
      params: as for `torch.optim.Optimizer`.
      lr: factor on the estimated step size.
      betas: decays of mean and square.
      beta3: decay of the sums that the estimate is made from; None for the root of the second one of `betas`.
      eps: added, times `d`, to the root of the square.
      weight_decay: multiplied by `l` or, coupled, an L2 penalty.
      d0: first estimate of the distance; too small is safe.
      d_coef: factor on the estimate.
      growth_rate: the estimate grows by at most this factor a step, but for its first growth.
      safeguard_warmup: whether a learning rate that warms up stays out of `s`.
      slice_p: estimates from every `slice_p`-th entry, which saves memory; 11 is the authors' advice.
      decouple: whether the weight decay stays out of the gradient, as in AdamW.
      bias_correction: whether to correct the means' bias, as Adam does.
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        beta3: float | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        d0: float = 1e-6,
        d_coef: float = 1.0,
        growth_rate: float = math.inf,
        safeguard_warmup: bool = False,
        slice_p: int = 1,
        decouple: bool = True,
        bias_correction: bool = True,
    ):
        settings = {
            "lr": lr,
            "betas": betas,
            "beta3": beta3,
            "eps": eps,
            "weight_decay": weight_decay,
            "d0": d0,
            "d_coef": d_coef,
            "growth_rate": growth_rate,
            "safeguard_warmup": safeguard_warmup,
            "slice_p": slice_p,
            "decouple": decouple,
            "bias_correction": bias_correction,
        }
        super().__init__(params, settings)

    def begin(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        start = sliced([param], group["slice_p"])[0].clone()
        return {
            "exp_avg": torch.zeros_like(param),
            "exp_avg_sq": torch.zeros_like(param),
            "grad_sum": torch.zeros_like(start),
            "start": start,
        }

    def begin_shared(self, zero: Tensor) -> dict[str, Tensor]:
        d0 = self.defaults["d0"]
        return {"d": zero + d0, "d_max": zero + d0, "numerator": zero.clone(), "count": zero.clone()}

    def move(self, batches: list[Batch], shared: dict[str, Tensor], value: Tensor | None) -> None:
        d, d0, count = shared["d"].clone(), self.defaults["d0"], shared["count"].add_(1)
        gains, sizes, steps = [], [], []
        for batch in batches:
            group = batch.group
            (b1, b2), decay = group["betas"], 0.0 if group["decouple"] else group["weight_decay"]
            long = math.sqrt(b2) if group["beta3"] is None else group["beta3"]
            step = d * group["lr"]
            if group["bias_correction"]:
                step = step * torch.sqrt(1.0 - b2**count) / (1.0 - b1**count)
            steps.append(step)

            # The estimate is a ratio: dividing both by d0 keeps them in range.
            gain, length = d / d0 * step, d / d0 * (d if group["safeguard_warmup"] else step)
            some = (sliced(values, group["slice_p"]) for values in (batch.grads, batch.params))
            for grads, params, start, sums in blocks(*some, batch.state("start"), batch.state("grad_sum")):
                grads = decayed(grads, params, decay)
                gains.append(gain * inner(grads, torch._foreach_sub(start, params)))
                torch._foreach_mul_(sums, long)
                torch._foreach_add_(sums, torch._foreach_mul(grads, length))
                sizes.append(absolute_sum(sums))

            for grads, params, means, squares in blocks(
                batch.grads, batch.params, batch.state("exp_avg"), batch.state("exp_avg_sq")
            ):
                scaled = torch._foreach_mul(decayed(grads, params, decay), d)
                torch._foreach_lerp_(means, scaled, 1.0 - b1)
                torch._foreach_mul_(squares, b2)
                torch._foreach_addcmul_(squares, scaled, scaled, value=1.0 - b2)

        # One distance for all groups, which share the decay of the first.
        first = batches[0].group
        long = math.sqrt(first["betas"][1]) if first["beta3"] is None else first["beta3"]
        shared["numerator"].mul_(long).add_(total(gains))
        candidate = self.defaults["d_coef"] * quotient(shared["numerator"], total(sizes))
        grown = torch.where(d <= d0, torch.maximum(d, candidate), d)
        shared["d_max"].copy_(torch.maximum(shared["d_max"], candidate))
        estimate = torch.minimum(shared["d_max"], grown * self.defaults["growth_rate"])
        shared["d"].copy_(estimate)

        for batch, step in zip(batches, steps):
            group = batch.group
            # Without momentum the gradient itself is the direction, and is scaled by the new estimate.
            ahead = step * estimate / d if group["betas"][0] == 0.0 else step
            for params, means, squares in blocks(
                batch.params, batch.state("exp_avg"), batch.state("exp_avg_sq")
            ):
                if group["weight_decay"] and group["decouple"]:
                    torch._foreach_mul_(params, 1.0 - group["weight_decay"] * step)
                roots = torch._foreach_sqrt(squares)
                add_number(roots, estimate * group["eps"])
                torch._foreach_div_(roots, -ahead)
                torch._foreach_addcdiv_(params, means, roots)


def sliced(values: Tensors, slice_p: int) -> Tensors:
    """Every `slice_p`-th entry of each tensor."""
    return values if slice_p == 1 else [value.reshape(-1)[::slice_p] for value in values]
