"""D-Adaptation for AdaGrad."""

import math
from typing import Any

import torch
from torch import Tensor

from outeropt.torch.arithmetic import absolute_sum, blocks, decayed, inner, quotient, total
from outeropt.torch.optimizer import Batch, Optimizer, Params
from outeropt.torch.tuning_free.estimate import raised


FIRST_SQUARE = 1e-6
"""What the sum of squared gradients starts at."""


class DAdaptAdaGrad(Optimizer):
    """AdaGrad, by dual averaging, whose step size is a growing lower bound of the distance to the solution.

    With `g` the gradient plus `weight_decay * x`, `l = d * lr`, and sums over all groups together:

        a <- a + g^2                     w = 1 / (sqrt(a) + eps)
        s <- s + l g                     q <- q + l^2 sum(w g^2)
        d <- max(d, min((sum(w s^2) - q) / |s|_1, d * growth_rate))
        x <- momentum * x + (1 - momentum) * (x_0 - w s)

    Defazio and Mishchenko, "Learning-Rate-Free Learning by D-Adaptation", 2023, arXiv 2301.07733, algorithm
    3; `a` starts at 1e-6 as in the authors' package. `outeropt.optimizers.get("dadapt_adagrad")` in torch.

    Args:
      params: as for `torch.optim.Optimizer`.
      lr: factor on the estimated step size.
      momentum: in [0, 1), by primal averaging.
      weight_decay: L2 penalty.
      eps: added to the root of the sum of squares.
      d0: first estimate of the distance; too small is safe.
      growth_rate: the estimate grows by at most this factor a step.
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1.0,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        eps: float = 1e-6,
        d0: float = 1e-6,
        growth_rate: float = math.inf,
    ):
        settings = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "eps": eps,
            "d0": d0,
            "growth_rate": growth_rate,
        }
        super().__init__(params, settings)

    def begin(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        return {
            "start": param.clone(),
            "grad_sum": torch.zeros_like(param),
            "square_sum": torch.full_like(param, FIRST_SQUARE),
        }

    def begin_shared(self, zero: Tensor) -> dict[str, Tensor]:
        return {"d": zero + self.defaults["d0"], "grad_weighted": zero.clone()}

    def move(self, batches: list[Batch], shared: dict[str, Tensor], value: Tensor | None) -> None:
        gains, losses, sizes = [], [], []
        for batch in batches:
            group, step = batch.group, shared["d"] * batch.group["lr"]
            for grads, params, start, sums, squares in blocks(
                *(batch.grads, batch.params, *map(batch.state, ("start", "grad_sum", "square_sum")))
            ):
                grads = decayed(grads, params, group["weight_decay"])
                torch._foreach_addcmul_(squares, grads, grads)
                roots = torch._foreach_sqrt(squares)
                torch._foreach_add_(roots, group["eps"])
                way = torch._foreach_div(grads, roots)
                losses.append(step**2 * inner(way, grads))

                torch._foreach_add_(sums, torch._foreach_mul(grads, step))
                sizes.append(absolute_sum(sums))
                way = torch._foreach_div(sums, roots)
                gains.append(inner(way, sums))
                goal = torch._foreach_sub(start, way)
                torch._foreach_lerp_(params, goal, 1.0 - group["momentum"])
        shared["grad_weighted"].add_(total(losses))
        candidate = quotient(total(gains) - shared["grad_weighted"], total(sizes))
        shared["d"].copy_(raised(shared["d"], candidate, self.defaults["growth_rate"]))
