"""MoMo: Polyak-type step sizes for momentum and for Adam, from a lower bound of the loss."""

from typing import Any

import torch
from torch import Tensor

from outeropt.torch.arithmetic import blocks, inner, quotient, squared_norm, total
from outeropt.torch.optimizer import Batch, Optimizer, Params, loss_of


class Momo(Optimizer):
    """SGD with momentum and the step size at which a model of the loss reaches its lower bound.

    With `k = 1 + lr * weight_decay` and `r = 1`, or `1 - beta^t` with bias correction:

        m <- beta m + (1 - beta) g,     f likewise of the loss,     c likewise of <g, x>
        h = f - r lower_bound - c + <m, x> / k
        x <- (x - min(1 / r, max(h, 0) / (lr |m|^2 / k)) lr m) / k

    Schaipp et al., "MoMo: Momentum Models for Adaptive Learning Rates", 2023, arXiv 2305.07583, algorithm 1,
    and section 4 for the adapted lower bound; `outeropt.optimizers.get("momo")` in torch. Without bias
    correction the means start at their first values. The model is one of all groups: `h` has a sum of
    `<m, x> / k` over them, and the step size one of `lr |m|^2 / k`. It needs the loss: `step(closure)` or
    `step(value=loss)`.

    Args:
      params: as for `torch.optim.Optimizer`.
      lr: largest step size; large is safe.
      beta: decay of the means.
      lower_bound: of the loss; the first one, if it adapts.
      weight_decay: proximal.
      adapt_lower_bound: whether to estimate the bound on the way.
      bias_correction: whether to start the means at zero and correct for it.
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1.0,
        beta: float = 0.9,
        lower_bound: float = 0.0,
        weight_decay: float = 0.0,
        adapt_lower_bound: bool = False,
        bias_correction: bool = False,
    ):
        settings = {
            "lr": lr,
            "beta": beta,
            "lower_bound": lower_bound,
            "weight_decay": weight_decay,
            "adapt_lower_bound": adapt_lower_bound,
            "bias_correction": bias_correction,
        }
        super().__init__(params, settings)

    def begin(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        return {"exp_avg": torch.zeros_like(param)} if self.defaults["bias_correction"] else {}

    def begin_shared(self, zero: Tensor) -> dict[str, Tensor]:
        averages = {"value_avg": zero.clone(), "product_avg": zero.clone()}
        return {
            "lower_bound": zero + self.defaults["lower_bound"],
            "count": zero.clone(),
            **(averages if self.defaults["bias_correction"] else {}),
        }

    def move(self, batches: list[Batch], shared: dict[str, Tensor], value: Tensor | None) -> None:
        found, beta = loss_of("Momo", value, batches[0].params[0]), self.defaults["beta"]
        count, sums = shared["count"].add_(1), Sums()
        size = 1.0 - beta**count if self.defaults["bias_correction"] else torch.ones_like(count)
        for batch in batches:
            lr, shrunk = batch.group["lr"], 1.0 + batch.group["lr"] * batch.group["weight_decay"]
            for grad, state in zip(batch.grads, batch.states):
                if "exp_avg" not in state:
                    state["exp_avg"] = grad.clone()
            for grads, params, means in blocks(batch.grads, batch.params, batch.state("exp_avg")):
                torch._foreach_lerp_(means, grads, 1.0 - beta)
                sums.add(inner(grads, params), inner(means, params), squared_norm(means), lr, shrunk)
        step = sums.step(found, beta, size, shared, self.defaults)
        for batch in batches:
            lr, shrunk = batch.group["lr"], 1.0 + batch.group["lr"] * batch.group["weight_decay"]
            for params, means in blocks(batch.params, batch.state("exp_avg")):
                torch._foreach_sub_(params, torch._foreach_mul(means, step * lr))
                if batch.group["weight_decay"]:
                    torch._foreach_div_(params, shrunk)


class MomoAdam(Optimizer):
    """Adam with the step size at which a model of the loss reaches its lower bound.

    As `Momo` with bias correction and the first one of `betas` for `beta`, in the metric
    `D = sqrt(v / (1 - b2^t)) + eps`: `|m|^2` becomes `<m, m / D>`, and the direction `m / D`. Schaipp et al.,
    "MoMo: Momentum Models for Adaptive Learning Rates", 2023, arXiv 2305.07583, algorithm 2;
    `outeropt.optimizers.get("momo_adam")` in torch. It needs the loss: `step(closure)` or `step(value=loss)`.

    Args:
      params: as for `torch.optim.Optimizer`.
      lr: largest step size; larger than Adam's is safe.
      betas: decays of means and square.
      eps: added to the root of the square.
      lower_bound: of the loss; the first one, if it adapts.
      weight_decay: proximal.
      adapt_lower_bound: whether to estimate the bound on the way.
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-2,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        lower_bound: float = 0.0,
        weight_decay: float = 0.0,
        adapt_lower_bound: bool = False,
    ):
        settings = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "lower_bound": lower_bound,
            "weight_decay": weight_decay,
            "adapt_lower_bound": adapt_lower_bound,
        }
        super().__init__(params, settings)

    def begin(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        return {"exp_avg": torch.zeros_like(param), "exp_avg_sq": torch.zeros_like(param)}

    def begin_shared(self, zero: Tensor) -> dict[str, Tensor]:
        names = ("value_avg", "product_avg", "count")
        return {
            "lower_bound": zero + self.defaults["lower_bound"],
            **{name: zero.clone() for name in names},
        }

    def move(self, batches: list[Batch], shared: dict[str, Tensor], value: Tensor | None) -> None:
        found, b1 = loss_of("MomoAdam", value, batches[0].params[0]), self.defaults["betas"][0]
        count, sums = shared["count"].add_(1), Sums()
        for batch in batches:
            group, b2 = batch.group, batch.group["betas"][1]
            lr, shrunk = group["lr"], 1.0 + group["lr"] * group["weight_decay"]
            for grads, params, means, squares in blocks(
                batch.grads, batch.params, batch.state("exp_avg"), batch.state("exp_avg_sq")
            ):
                torch._foreach_lerp_(means, grads, 1.0 - b1)
                torch._foreach_mul_(squares, b2)
                torch._foreach_addcmul_(squares, grads, grads, value=1.0 - b2)
                square = inner(means, torch._foreach_div(means, _metric(squares, b2, count, group["eps"])))
                sums.add(inner(grads, params), inner(means, params), square, lr, shrunk)
        step = sums.step(found, b1, 1.0 - b1**count, shared, self.defaults)
        for batch in batches:
            group, b2 = batch.group, batch.group["betas"][1]
            for params, means, squares in blocks(
                batch.params, batch.state("exp_avg"), batch.state("exp_avg_sq")
            ):
                sizes = _metric(squares, b2, count, group["eps"])
                torch._foreach_div_(sizes, -step * group["lr"])
                torch._foreach_addcdiv_(params, means, sizes)
                if group["weight_decay"]:
                    torch._foreach_div_(params, 1.0 + group["lr"] * group["weight_decay"])


def _metric(squares: list[Tensor], b2: float, count: Tensor, eps: float) -> list[Tensor]:
    roots = list(torch._foreach_sqrt(squares))
    torch._foreach_div_(roots, torch.sqrt(1.0 - b2**count))
    torch._foreach_add_(roots, eps)
    return roots


class Sums:
    """What the model of the loss is made of, added up over pieces of parameters."""

    def __init__(self):
        self.fresh, self.products, self.shrunk, self.curvatures = [], [], [], []

    def add(self, fresh: Tensor, product: Tensor, square: Tensor, lr: float | Tensor, shrunk: Any) -> None:
        """Adds a piece.

        Args:
          fresh: inner product of gradients and parameters.
          product: inner product of mean gradients and parameters.
          square: squared norm of the mean gradients, in the metric.
          lr: largest step size.
          shrunk: what the weight decay divides the new point by.
        """
        self.fresh.append(fresh)
        self.products.append(product)
        self.shrunk.append(product / shrunk)
        self.curvatures.append((lr * square, lr * square / shrunk))

    def step(
        self, value: Tensor, beta: float, size: Tensor, shared: dict[str, Tensor], own: dict[str, Any]
    ) -> Tensor:
        """The step size relative to `lr`; averages and the lower bound in `shared` go on.

        Args:
          value: the loss.
          beta: decay of the averages.
          size: sum of the averages' weights.
          shared: averages, which start at the first values if they are not there, and the lower bound.
          own: settings.
        """
        for name, new in (("value_avg", value), ("product_avg", total(self.fresh))):
            if name not in shared:
                shared[name] = new.clone()
            shared[name].lerp_(new, 1.0 - beta)
        level, bound = shared["value_avg"] - shared["product_avg"], shared["lower_bound"]
        cap = level + total(self.shrunk)
        if own["adapt_lower_bound"]:
            reset = torch.clamp(cap / (2.0 * size), min=own["lower_bound"])
            bound = torch.where(cap < size * bound, reset, bound)
        gap = torch.clamp(cap - size * bound, min=0.0)
        step = torch.minimum(1.0 / size, quotient(gap, total(full for _, full in self.curvatures)))
        if own["adapt_lower_bound"]:
            curvature = total(plain for plain, _ in self.curvatures)
            reached = level + total(self.products) - 0.5 * step * curvature
            shared["lower_bound"].copy_(torch.clamp(reached / size, min=own["lower_bound"]))
        return step
