"""Layer-wise distance over gradients."""

from typing import Any

import torch
from torch import Tensor

from outeropt.torch.arithmetic import decayed, quotient, whole_blocks
from outeropt.torch.optimizer import Batch, Optimizer, Params


class LDoG(Optimizer):
    """SGD with a step size for each tensor: distance from the start over the root of the sum of squares.

    For each tensor, with `g` the gradient plus `weight_decay * x`:

        r <- max(r, |x - x_0|), at first reps_rel * (1 + |x_0|)         G <- G + |g|^2, at first with eps
        x <- x - lr * r / sqrt(G) * g

    Ivgi, Hinder and Carmon, "DoG is SGD's Best Friend: A Parameter-Free Dynamic Step Size Schedule", 2023,
    arXiv 2302.12022, section 3.3 (L-DoG); the authors advise to average its iterates. `DoG` has one step size
    for all tensors. `outeropt.optimizers.get("ldog")` in torch.

    Args:
      params: as for `torch.optim.Optimizer`.
      lr: factor on the step size.
      reps_rel: first distance, relative to one plus the parameters' norm.
      weight_decay: L2 penalty.
      eps: first term of the sum of squares.
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1.0,
        reps_rel: float = 1e-6,
        weight_decay: float = 0.0,
        eps: float = 1e-8,
    ):
        super().__init__(params, {"lr": lr, "reps_rel": reps_rel, "weight_decay": weight_decay, "eps": eps})

    def begin(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        norm = torch.linalg.vector_norm(param)
        return {
            "start": param.clone(),
            "distance": group["reps_rel"] * (1.0 + norm),
            "square_sum": torch.full_like(norm, group["eps"]),
        }

    def move(self, batches: list[Batch], shared: dict[str, Tensor], value: Tensor | None) -> None:
        for batch in batches:
            group, names = batch.group, ("start", "distance", "square_sum")
            for grads, params, start, distances, sums in whole_blocks(
                batch.grads, batch.params, *map(batch.state, names)
            ):
                ways = torch._foreach_norm(torch._foreach_sub(params, start))
                torch._foreach_maximum_(distances, ways)
                grads = decayed(grads, params, group["weight_decay"])
                torch._foreach_add_(sums, torch._foreach_pow(torch._foreach_norm(grads), 2.0))
                steps = group["lr"] * quotient(torch.stack(distances), torch.sqrt(torch.stack(sums)))
                torch._foreach_sub_(params, torch._foreach_mul(grads, list(steps.unbind())))
