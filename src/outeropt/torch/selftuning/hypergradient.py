"""Hypergradient descent on the learning rate of any torch optimizer, at each step."""

import math
from typing import Any, Literal

import torch
from torch import Tensor

from outeropt.errors import OuteroptError
from outeropt.torch.arithmetic import inner, quotient, squared_norm
from outeropt.torch.optimizer import widened
from outeropt.torch.selftuning.meta import Meta, MetaDescent
from outeropt.torch.selftuning.wrapping import Wrapping, grads_of


META = MetaDescent(0.05)
"""What moves a learning rate where nothing else is said."""
LEAST, MOST = 1e-7, 1e3
"""Between which a learning rate is tuned."""


class HypergradientDescent(Wrapping):
    """Descends on the learning rate of the optimizer inside while that trains.

    With `u` the last update, `g` the gradient now, and `z` the logarithm of the learning rate, to which
    updates are proportional (`d u / d z = u`):

        h_t = <g_t, u_(t-1)>, over |g_t| |u_(t-1)| if `signal="cosine"`
        z_t = meta's step on z_(t-1) with gradient h_t;   x_(t+1) = x_t + u_t

    Baydin et al., "Online Learning Rate Adaptation with Hypergradient Descent", 2017, arXiv 1703.04782; its
    additive rule is `coordinates="plain"`, `signal="gradient"`, where `z` is the learning rate and
    `d u / d z = u / z`. `outeropt.selftuning.HypergradientDescent` in torch. Nothing is learned at the first
    step, nor from a number that is not finite. It costs a copy of the parameters, and no gradient.

    All groups share the factor that is learned. Each keeps the `lr` that it and its scheduler have, and steps
    at `lr * rate / (the largest lr that a group began with)`. `diagnostics()["lr"]` is `rate`: the learning
    rate of the group with the largest one, if there were no scheduler.

    A torch optimizer gets its learning rate as a Python number, for which a GPU is waited for; with
    `capturable=True` it gets a tensor, and nothing waits.

    Args:
      base: any optimizer whose updates are proportional to its `lr`, as those of all common ones are.
      meta: what moves `z`; `MetaDescent(0.05)` changes the rate by a factor of at most `e^0.05` in a step.
      coordinates: `"log"` or `"plain"`.
      signal: `"cosine"`, which lies in [-1, 1] and knows no scale, or `"gradient"`.
      most: the rate never exceeds this; it lies in [1e-7, 1e3] in any case.

    Raises:
      OuteroptError: a setting is none of those, or no group has an `lr` above 0.
    """

    def __init__(
        self,
        base: torch.optim.Optimizer,
        meta: Meta = META,
        coordinates: Literal["log", "plain"] = "log",
        signal: Literal["cosine", "gradient"] = "cosine",
        most: float = math.inf,
    ):
        if coordinates not in ("log", "plain"):
            raise OuteroptError(f'Coordinates are "log" or "plain", not {coordinates!r}.')
        if signal not in ("cosine", "gradient"):
            raise OuteroptError(f'Signals are "cosine" or "gradient", not {signal!r}.')
        if not most > LEAST:
            raise OuteroptError(f"most = {most} is not allowed; give more than {LEAST:g}.")
        super().__init__(base)
        self.meta, self.coordinates, self.signal = meta, coordinates, signal
        self.limits = LEAST, min(most, MOST)
        self.reference = max(float(group["lr"]) for group in base.param_groups)
        if not self.reference > 0.0:
            raise OuteroptError("HypergradientDescent multiplies the learning rate; give an lr above 0.")

    def begin(self, param: Tensor) -> dict[str, Tensor]:
        return {"last_update": torch.zeros_like(param)}

    def begin_shared(self, zero: Tensor) -> dict[str, Tensor]:
        rate = (zero + self.reference).clamp(*self.limits)
        return {
            "rate": rate,
            "reference": zero + self.reference,
            "known": torch.zeros_like(zero, dtype=torch.bool),
            "learned": zero.clone(),
            **self.meta.begin(rate),
        }

    def move(self, params: list[Tensor], shared: dict[str, Tensor], value: Any, **functions: Any) -> None:
        last = self.states(params, "last_update")
        self._learn([widened(grad) for grad in grads_of(params)], last, shared)
        torch._foreach_copy_(last, params)
        factor = shared["rate"] / shared["reference"]
        self.play([{"lr": group["lr"] * factor} for group in self.param_groups])
        torch._foreach_sub_(last, params)
        torch._foreach_neg_(last)
        for still in self.idle("last_update"):
            still.zero_()
        # One sum says whether all entries are finite.
        shared["known"].copy_(torch.isfinite(squared_norm(last)))

    def _learn(self, grads: list[Tensor], last: list[Tensor], shared: dict[str, Tensor]) -> None:
        rate = shared["rate"]
        product = inner(grads, last)
        if self.signal == "cosine":
            product = quotient(product, torch.sqrt(squared_norm(grads)) * torch.sqrt(squared_norm(last)))
        elif self.coordinates == "plain":
            product = product / rate
        learns = shared["known"] & torch.isfinite(product)
        logarithmic = self.coordinates == "log"
        start = torch.log(rate) if logarithmic else rate
        end = self.meta.moved(start, product, shared, shared["learned"], learns)
        new = (torch.exp(end) if logarithmic else end).clamp(*self.limits)
        learns = learns & torch.isfinite(end)
        shared["rate"].copy_(torch.where(learns, new, rate))
        shared["learned"].add_(learns)

    def diagnostics(self) -> dict[str, float]:
        """`lr`, the learning rate as it is tuned, and what the inner optimizer says."""
        return {**super().diagnostics(), "lr": self.shared()["rate"].item()}
