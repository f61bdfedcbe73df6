"""AdaGrad-Norm: one accumulated step size for all parameters."""

import torch
from torch import Tensor

from outeropt.torch.arithmetic import blocks, quotient, squared_norm, total
from outeropt.torch.optimizer import Batch, Optimizer, Params


class AdaGradNorm(Optimizer):
    """SGD whose step size falls with the norms of all gradients so far.

    With the norm of all groups together:

        b^2 <- b^2 + |g|^2                     x <- x - lr / b * g

    Ward, Wu and Bottou, "AdaGrad stepsizes: Sharp convergence over nonconvex landscapes", 2018, arXiv
    1806.01811, algorithm 1: it converges for every `lr` and every first `b`, if not at the same speed.
    `outeropt.optimizers.get("adagrad_norm")` in torch.

    Args:
      params: as for `torch.optim.Optimizer`.
      lr: step size, relative to `b`.
      initial_accumulator_value: first `b^2`.
    """

    def __init__(self, params: Params, lr: float | Tensor = 1.0, initial_accumulator_value: float = 1e-2):
        settings = {"lr": lr, "initial_accumulator_value": initial_accumulator_value}
        super().__init__(params, settings)

    def begin_shared(self, zero: Tensor) -> dict[str, Tensor]:
        return {"square_sum": zero + self.defaults["initial_accumulator_value"]}

    def move(self, batches: list[Batch], shared: dict[str, Tensor], value: Tensor | None) -> None:
        shared["square_sum"].add_(total(squared_norm(batch.grads) for batch in batches))
        scale = quotient(torch.ones_like(shared["square_sum"]), torch.sqrt(shared["square_sum"]))
        for batch in batches:
            step = -scale * batch.group["lr"]
            for grads, params in blocks(batch.grads, batch.params):
                torch._foreach_add_(params, torch._foreach_mul(grads, step))
