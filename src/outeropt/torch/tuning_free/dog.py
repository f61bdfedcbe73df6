"""Distance over gradients, and over weighted gradients."""

from typing import Any

import torch
from torch import Tensor

from outeropt.torch.arithmetic import blocks, decayed, quotient, squared_norm, total
from outeropt.torch.optimizer import Batch, Optimizer, Params


class DoG(Optimizer):
    """SGD whose step size is the distance from the start over the root of the sum of squares.

    With `g` the gradient plus `weight_decay * x`, and norms of all groups together:

        r <- max(r, |x - x_0|), at first reps_rel * (1 + |x_0|)         G <- G + |g|^2
        x <- x - lr * r / sqrt(G + eps) * g

    Ivgi, Hinder and Carmon, "DoG is SGD's Best Friend: A Parameter-Free Dynamic Step Size Schedule", 2023,
    arXiv 2302.12022, algorithm 1; the authors advise to average its iterates.
    `outeropt.optimizers.get("dog")` in torch.

    Args:
      params: as for `torch.optim.Optimizer`.
      lr: factor on the step size.
      reps_rel: first distance, relative to one plus the parameters' norm.
      eps: added to the sum of squares.
      weight_decay: L2 penalty.
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1.0,
        reps_rel: float = 1e-6,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        super().__init__(params, {"lr": lr, "reps_rel": reps_rel, "eps": eps, "weight_decay": weight_decay})

    def begin(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        return {"start": param.clone()}

    def begin_shared(self, zero: Tensor) -> dict[str, Tensor]:
        return {"square_sum": zero.clone()}

    def move(self, batches: list[Batch], shared: dict[str, Tensor], value: Tensor | None) -> None:
        if "distance" not in shared:
            norm = torch.sqrt(total(squared_norm(batch.params) for batch in batches))
            shared["distance"] = self.defaults["reps_rel"] * (1.0 + norm)
        square, way = squares_of(batches)
        shared["distance"].copy_(torch.maximum(shared["distance"], torch.sqrt(way)))
        shared["square_sum"].add_(square)
        descend(batches, shared["distance"] / torch.sqrt(shared["square_sum"] + self.defaults["eps"]))


class DoWG(Optimizer):
    """SGD whose step size is the squared distance from the start over the root of weighted squares.

    With `g` the gradient plus `weight_decay * x`, and norms of all groups together:

        q <- max(q, |x - x_0|^2), at first init_estim_sq_dist         G <- G + q |g|^2
        x <- x - lr * q / (sqrt(G) + eps) * g

    Khaled, Mishchenko and Jin, "DoWG Unleashed: An Efficient Universal Parameter-Free Gradient Descent
    Method", 2023, arXiv 2305.16284, algorithm 1; `outeropt.optimizers.get("dowg")` in torch.

    Args:
      params: as for `torch.optim.Optimizer`.
      lr: factor on the step size.
      init_estim_sq_dist: first squared distance; None for `eps`.
      eps: added to the root.
      weight_decay: L2 penalty.
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1.0,
        init_estim_sq_dist: float | None = None,
        eps: float = 1e-4,
        weight_decay: float = 0.0,
    ):
        settings = {
            "lr": lr,
            "init_estim_sq_dist": init_estim_sq_dist,
            "eps": eps,
            "weight_decay": weight_decay,
        }
        super().__init__(params, settings)

    def begin(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        return {"start": param.clone()}

    def begin_shared(self, zero: Tensor) -> dict[str, Tensor]:
        first = self.defaults["init_estim_sq_dist"]
        return {
            "distance": zero + (self.defaults["eps"] if first is None else first),
            "square_sum": zero.clone(),
        }

    def move(self, batches: list[Batch], shared: dict[str, Tensor], value: Tensor | None) -> None:
        square, way = squares_of(batches)
        distance = shared["distance"].copy_(torch.maximum(shared["distance"], way))
        shared["square_sum"].add_(distance * square)
        descend(batches, quotient(distance, torch.sqrt(shared["square_sum"]) + self.defaults["eps"]))


def squares_of(batches: list[Batch]) -> tuple[Tensor, Tensor]:
    """Squared norms of the decayed gradients and of the way from the start."""
    squares, ways = [], []
    for batch in batches:
        for grads, params, start in blocks(batch.grads, batch.params, batch.state("start")):
            squares.append(squared_norm(decayed(grads, params, batch.group["weight_decay"])))
            ways.append(squared_norm(torch._foreach_sub(params, start)))
    return total(squares), total(ways)


def descend(batches: list[Batch], size: Tensor) -> None:
    """A step of this size, times the learning rate, against the decayed gradients."""
    for batch in batches:
        step = -size * batch.group["lr"]
        for grads, params in blocks(batch.grads, batch.params):
            moves = torch._foreach_mul(decayed(grads, params, batch.group["weight_decay"]), step)
            torch._foreach_add_(params, moves)
