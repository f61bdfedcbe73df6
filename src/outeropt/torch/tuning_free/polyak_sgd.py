"""SGD with Polyak's step size, from the loss."""

import torch
from torch import Tensor

from outeropt.errors import OuteroptError
from outeropt.torch.arithmetic import blocks, squared_norm, total
from outeropt.torch.optimizer import Batch, Optimizer, Params, loss_of


VARIANTS = ("sps", "sps+")


class PolyakSGD(Optimizer):
    """SGD with the step size at which a linear model of the loss reaches its minimum.

    With `u = lr * g`, and norms of all groups together:

        x <- x - min((loss - f_min) / (|u|^2 + eps), max_lr) u, with no step where |u|^2 + eps is zero

    Loizou et al., "Stochastic Polyak Step-size for SGD: An Adaptive Learning Rate for Fast Convergence",
    2020, arXiv 2002.10542, equation 5 (SPS_max); `outeropt.optimizers.get("polyak_sgd")` in torch. It needs
    the loss: `step(closure)` or `step(value=loss)`.

    Args:
      params: as for `torch.optim.Optimizer`.
      lr: factor on the gradients.
      max_lr: largest step size.
      f_min: smallest value of the loss.
      eps: added to the squared norm.
      variant: "sps", or "sps+" for steps of zero instead of backward ones where the loss is below `f_min`.

    Raises:
      OuteroptError: a setting is not allowed.
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1.0,
        max_lr: float = 1.0,
        f_min: float = 0.0,
        eps: float = 0.0,
        variant: str = "sps",
    ):
        if variant not in VARIANTS:
            raise OuteroptError(f"PolyakSGD: variant = {variant!r} is not allowed; give 'sps' or 'sps+'.")
        settings = {"lr": lr, "max_lr": max_lr, "f_min": f_min, "eps": eps, "variant": variant}
        super().__init__(params, settings)

    def move(self, batches: list[Batch], shared: dict[str, Tensor], value: Tensor | None) -> None:
        found, own = loss_of("PolyakSGD", value, batches[0].params[0]), self.defaults
        gap = found - own["f_min"]
        if own["variant"] == "sps+":
            gap = torch.clamp(gap, min=0.0)
        square = own["eps"] + total(
            batch.group["lr"] ** 2 * squared_norm(grads)
            for batch in batches
            for (grads,) in blocks(batch.grads)
        )
        step = torch.clamp(gap / square, max=own["max_lr"])
        step = torch.where(square <= torch.finfo(square.dtype).eps, 0.0, step)
        for batch in batches:
            for grads, params in blocks(batch.grads, batch.params):
                torch._foreach_sub_(params, torch._foreach_mul(grads, step * batch.group["lr"]))
