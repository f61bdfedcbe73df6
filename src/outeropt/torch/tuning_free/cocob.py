"""COCOB: every parameter bets on its own gradients."""

from typing import Any

import torch
from torch import Tensor

from outeropt.torch.arithmetic import blocks, decayed
from outeropt.torch.optimizer import Batch, Optimizer, Params


class COCOB(Optimizer):
    """Coin betting: each parameter stakes a part of what it has won, and no step size is set.

    For each entry, with `g` the gradient plus `weight_decay * x`, times `lr`:

        L <- max(L, |g|)         G <- G + |g|         R <- max(R - g (x - x_0), 0)         C <- C - g
        x <- x_0 + C / (L max(G + L, alpha L)) (L + R)

    Orabona and Tommasi, "Training Deep Networks without Learning Rates Through Coin Betting", 2017, arXiv
    1705.07795, algorithm 2; `outeropt.optimizers.get("cocob")` in torch. The factor `lr` changes nothing as
    long as it is constant.

    Args:
      params: as for `torch.optim.Optimizer`.
      lr: factor on the gradients.
      alpha: smaller bets at first, in multiples of the largest gradient.
      eps: first `L`.
      weight_decay: L2 penalty.
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1.0,
        alpha: float = 100.0,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        super().__init__(params, {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay})

    def begin(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        return {
            "start": param.clone(),
            "largest": torch.full_like(param, group["eps"]),
            "absolute_sum": torch.zeros_like(param),
            "reward": torch.zeros_like(param),
            "grad_sum": torch.zeros_like(param),
        }

    def move(self, batches: list[Batch], shared: dict[str, Tensor], value: Tensor | None) -> None:
        for batch in batches:
            group, names = batch.group, ("start", "largest", "absolute_sum", "reward", "grad_sum")
            for grads, params, start, largest, sizes, reward, grad_sum in blocks(
                batch.grads, batch.params, *map(batch.state, names)
            ):
                scaled = torch._foreach_mul(decayed(grads, params, group["weight_decay"]), group["lr"])
                torch._foreach_sub_(grad_sum, scaled)
                way = torch._foreach_sub(start, params)
                torch._foreach_addcmul_(reward, scaled, way)
                torch._foreach_clamp_min_(reward, 0.0)
                torch._foreach_abs_(scaled)
                torch._foreach_maximum_(largest, scaled)
                torch._foreach_add_(sizes, scaled)

                least = torch._foreach_add(sizes, largest)
                torch._foreach_maximum_(least, torch._foreach_mul(largest, group["alpha"]))
                torch._foreach_mul_(least, largest)
                wealth = torch._foreach_add(largest, reward)
                torch._foreach_mul_(wealth, grad_sum)
                torch._foreach_copy_(params, start)
                torch._foreach_addcdiv_(params, wealth, least)
