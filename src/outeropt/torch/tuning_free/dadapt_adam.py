"""D-Adaptation for Adam, in the authors' own form."""

import math
from typing import Any

import torch
from torch import Tensor

from outeropt.torch.arithmetic import absolute_sum, blocks, decayed, inner, quotient, total
from outeropt.torch.optimizer import Batch, Optimizer, Params
from outeropt.torch.tuning_free.estimate import raised


class DAdaptAdam(Optimizer):
    """Adam whose step size is a growing lower bound of the distance to the solution.

    With `b1, b2 = betas`, `c = sqrt(b2)`, `l = d * lr`, times `sqrt(1 - b2^t) / (1 - b1^t)` with bias
    correction, and sums over all groups together:

        n <- c n + (1 - c) l <g, s / (sqrt(v) + eps)>
        m <- b1 m + (1 - b1) l g         v <- b2 v + (1 - b2) g^2         s <- c s + (1 - c) l g
        d <- max(d, min(n / ((1 - c) |s|_1), d * growth_rate))
        x <- x - m / (sqrt(v) + eps)

    Defazio and Mishchenko, "Learning-Rate-Free Learning by D-Adaptation", 2023, arXiv 2301.07733, algorithm
    5; `outeropt.optimizers.get("dadapt_adam")` in torch.

    Args:
      params: as for `torch.optim.Optimizer`.
      lr: factor on the estimated step size.
      betas: decays of mean and square.
      eps: added to the root of the square.
      weight_decay: an L2 penalty or, decoupled, multiplied by `l`.
      d0: first estimate of the distance; too small is safe.
      growth_rate: the estimate grows by at most this factor a step.
      decouple: whether the weight decay stays out of the gradient, as in AdamW.
      bias_correction: whether to correct the means' bias, as Adam does.
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        d0: float = 1e-6,
        growth_rate: float = math.inf,
        decouple: bool = False,
        bias_correction: bool = False,
    ):
        settings = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "d0": d0,
            "growth_rate": growth_rate,
            "decouple": decouple,
            "bias_correction": bias_correction,
        }
        super().__init__(params, settings)

    def begin(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        return {name: torch.zeros_like(param) for name in ("exp_avg", "exp_avg_sq", "grad_sum")}

    def begin_shared(self, zero: Tensor) -> dict[str, Tensor]:
        return {"d": zero + self.defaults["d0"], "numerator": zero.clone(), "count": zero.clone()}

    def move(self, batches: list[Batch], shared: dict[str, Tensor], value: Tensor | None) -> None:
        count, gains, sizes = shared["count"].add_(1), [], []
        for batch in batches:
            group = batch.group
            (b1, b2), eps, decay = group["betas"], group["eps"], group["weight_decay"]
            coupled, decoupled = (0.0, decay) if group["decouple"] else (decay, 0.0)
            long, step = math.sqrt(b2), shared["d"] * group["lr"]
            if group["bias_correction"]:
                step = step * torch.sqrt(1.0 - b2**count) / (1.0 - b1**count)
            for grads, params, means, squares, sums in blocks(
                batch.grads, batch.params, *map(batch.state, ("exp_avg", "exp_avg_sq", "grad_sum"))
            ):
                grads = decayed(grads, params, coupled)
                roots = torch._foreach_sqrt(squares)
                torch._foreach_add_(roots, eps)
                scaled = torch._foreach_mul(grads, step)
                gains.append((1.0 - long) * inner(scaled, torch._foreach_div(sums, roots)))
                torch._foreach_lerp_(sums, scaled, 1.0 - long)
                sizes.append((1.0 - long) * absolute_sum(sums))

                torch._foreach_lerp_(means, scaled, 1.0 - b1)
                torch._foreach_mul_(squares, b2)
                torch._foreach_addcmul_(squares, grads, grads, value=1.0 - b2)
                roots = torch._foreach_sqrt(squares)
                torch._foreach_add_(roots, eps)
                if decoupled:
                    torch._foreach_mul_(params, 1.0 - decoupled * step)
                torch._foreach_addcdiv_(params, means, roots, value=-1.0)
        # One distance for all groups, which share the decay of the first.
        shared["numerator"].mul_(math.sqrt(batches[0].group["betas"][1])).add_(total(gains))
        candidate = quotient(shared["numerator"], total(sizes))
        shared["d"].copy_(raised(shared["d"], candidate, self.defaults["growth_rate"]))


def dadapt_adamw(
    params: Params,
    lr: float | Tensor = 1.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    d0: float = 1e-6,
) -> DAdaptAdam:
    """`DAdaptAdam` with bias correction and decoupled weight decay: the form that optax has.

    Args:
      params: as for `torch.optim.Optimizer`.
      lr: factor on the estimated step size.
      betas: decays of mean and square.
      eps: added to the root of the square.
      weight_decay: decoupled, multiplied by the step size.
      d0: first estimate of the distance; too small is safe.
    """
    return DAdaptAdam(params, lr, betas, eps, weight_decay, d0, decouple=True, bias_correction=True)
