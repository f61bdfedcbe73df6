"""D-Adaptation for SGD with momentum."""

import math
from typing import Any

import torch
from torch import Tensor

from outeropt.torch.arithmetic import blocks, decayed, inner, quotient, squared_norm, total
from outeropt.torch.optimizer import Batch, Optimizer, Params
from outeropt.torch.tuning_free.estimate import raised


class DAdaptSGD(Optimizer):
    """SGD whose step size is a growing lower bound of the distance to the solution.

    With `g` the gradient plus `weight_decay * x`, `l = d * lr / |g_0|`, and sums over all groups together:

        n <- n + l <g, s>        s <- s + l g        d <- max(d, min(2 n / |s|, d * growth_rate))
        x <- momentum * x + (1 - momentum) * (x_0 - s)

    Defazio and Mishchenko, "Learning-Rate-Free Learning by D-Adaptation", 2023, arXiv 2301.07733, algorithm 4
    (momentum by primal averaging), with the numerator as an inner product, as the authors' package has it.
    `outeropt.optimizers.get("dadapt_sgd")` in torch.

    Args:
      params: as for `torch.optim.Optimizer`.
      lr: factor on the estimated step size.
      momentum: in [0, 1).
      weight_decay: L2 penalty.
      d0: first estimate of the distance; too small is safe.
      growth_rate: the estimate grows by at most this factor a step.
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1.0,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        d0: float = 1e-6,
        growth_rate: float = math.inf,
    ):
        settings = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "d0": d0,
            "growth_rate": growth_rate,
        }
        super().__init__(params, settings)

    def begin(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        return {"start": param.clone(), "grad_sum": torch.zeros_like(param)}

    def begin_shared(self, zero: Tensor) -> dict[str, Tensor]:
        return {"d": zero + self.defaults["d0"], "numerator": zero.clone()}

    def move(self, batches: list[Batch], shared: dict[str, Tensor], value: Tensor | None) -> None:
        if "first_norm" not in shared:
            shared["first_norm"] = torch.sqrt(
                total(
                    squared_norm(decayed(grads, params, batch.group["weight_decay"]))
                    for batch in batches
                    for grads, params in blocks(batch.grads, batch.params)
                )
            )
        gains, sizes = [], []
        for batch in batches:
            group, step = batch.group, quotient(shared["d"] * batch.group["lr"], shared["first_norm"])
            for grads, params, start, sums in blocks(
                batch.grads, batch.params, batch.state("start"), batch.state("grad_sum")
            ):
                scaled = torch._foreach_mul(decayed(grads, params, group["weight_decay"]), step)
                gains.append(inner(scaled, sums))
                torch._foreach_add_(sums, scaled)
                sizes.append(squared_norm(sums))
                goal = torch._foreach_sub(start, sums)
                torch._foreach_lerp_(params, goal, 1.0 - group["momentum"])
        shared["numerator"].add_(total(gains))
        candidate = quotient(2.0 * shared["numerator"], torch.sqrt(total(sizes)))
        shared["d"].copy_(raised(shared["d"], candidate, self.defaults["growth_rate"]))
