"""What AdafacMLP and MLPNominal keep of a tensor's gradients, and the 28 features they make of it.

Equations as in `outeropt.learned.moments` and `features`: Metz et al. 2022, arXiv 2203.11860.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


MOMENTUM = (0.9, 0.99, 0.999)
RMS = (0.999,)
FACTORED = (0.9, 0.99, 0.999)
TIME_SCALES = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000)

FEATURES = 28
FULL, SIDE = 16, 6
"""Features that every parameter has for itself; features of averages over rows, and as many over columns."""
ORDER = (*range(13), *range(25, 28), *(13, 14, 15, 19, 20, 21), *(16, 17, 18, 22, 23, 24))
"""Places, in published networks, of the features as they are made here: `FULL`, rows, columns."""


class Decays(NamedTuple):
    """Shares `1 - decay` that a new gradient has in the averages, `[averages]`."""

    momentum: Tensor
    rms: Tensor
    factored: Tensor


def learned_decays(theta: dict[str, Tensor]) -> Decays:
    """Shares `exp(10 theta) (1 - initial)`, at most 1, in float32 as in meta-training."""
    shares = []
    for name, initial in (("momentum", MOMENTUM), ("rms", RMS), ("factored", FACTORED)):
        of = theta[f"decays.{name}"]
        start = torch.log(1.0 - torch.tensor(initial, device=of.device)) / 10.0
        decays = torch.clamp(1.0 - torch.exp(10.0 * (start + of.float())), 0.0, 1.0)
        shares.append((1.0 - decays).to(of.dtype))
    return Decays(*shares)


def tanh_embedding(step: Tensor, scales: Tensor) -> Tensor:
    """`tanh(step / s - 1)` for each of the eleven `TIME_SCALES` s."""
    return torch.tanh(step / scales - 1.0)


def factored_axes(shape: Sequence[int]) -> tuple[int, int] | None:
    """The axes (d1, d0) of the second largest and the largest dimension; None below rank 2."""
    order = sorted(range(len(shape)), key=lambda axis: shape[axis])
    return (order[-2], order[-1]) if len(shape) > 1 else None


def zeros(param: Tensor) -> dict[str, Tensor]:
    """The accumulators of a tensor of rank 1 or more before the first gradient.

    `momentum` `[3, *shape]`; `rms` `[*shape]`; `row` and `col`, averages of the square over the axes d0 and
    d1, `[3, *shape]` with length 1 along the axis. Below rank 2 `row` is the full average and there is no
    `col`.
    """
    axes = factored_axes(param.shape)
    found = {"momentum": param.new_zeros((len(MOMENTUM), *param.shape)), "rms": torch.zeros_like(param)}
    if axes is None:
        return {**found, "row": param.new_zeros((len(FACTORED), *param.shape))}
    for name, gone in zip(("col", "row"), axes):
        rest = [1 if axis == gone else length for axis, length in enumerate(param.shape)]
        found[name] = param.new_zeros((len(FACTORED), *rest))
    return found


def advance_factored(state: dict[str, Tensor], grad: Tensor, decays: Decays) -> None:
    """One more gradient for the averages over rows and columns: of `g^2 + 1e-30`."""
    axes = factored_axes(grad.shape)
    square = (grad * grad).add_(1e-30)
    share = as_channels(decays.factored, grad.dim())
    if axes is None:
        state["row"].lerp_(square[None], share)
    else:
        for name, gone in zip(("col", "row"), axes):
            state[name].lerp_(square.mean(dim=gone, keepdim=True)[None], share)


class Sources(NamedTuple):
    """What the features of a tensor, or of a part of it, are made of.

    Attributes:
      grad: the gradient, `[*shape]`.
      param: the parameters, `[*shape]`.
      momentum: averages of the gradient, `[3, *shape]`.
      rms: average of its square, `[*shape]`.
      row: averages of its square, `[3, *shape]` or with length 1 along an axis.
      col: the same along another axis, or None.
      row_factor: with the next one what the gradient is multiplied with, like `row`.
      col_factor: like `col`.
      momentum_factor: what the momenta are multiplied with in the place of `row_factor`.
    """

    grad: Tensor
    param: Tensor
    momentum: Tensor
    rms: Tensor
    row: Tensor
    col: Tensor | None
    row_factor: Tensor
    col_factor: Tensor | None
    momentum_factor: Tensor

    @classmethod
    def of(cls, grad: Tensor, param: Tensor, state: dict[str, Tensor]) -> "Sources":
        """Those of a whole tensor, whose factored averages have seen the gradient already.

        The factors are `rsqrt(max(row / (mean_d1(row) + 1e-9), 1e-9))` and `rsqrt(max(col, 1e-9))`; below
        rank 2 `rsqrt(v + 1e-9)` and 1, and `rsqrt(v + 1e-6)` for the momenta.
        """
        row, col, axes = state["row"], state.get("col"), factored_axes(grad.shape)
        if axes is None or col is None:
            factor, damped = torch.rsqrt(row + 1e-9), torch.rsqrt(row + 1e-6)
            return cls(grad, param, state["momentum"], state["rms"], row, None, factor, None, damped)
        mean = row.mean(dim=1 + axes[0], keepdim=True) + 1e-9
        factor = torch.rsqrt(torch.clamp_min(row / mean, 1e-9))
        other = torch.rsqrt(torch.clamp_min(col, 1e-9))
        return cls(grad, param, state["momentum"], state["rms"], row, col, factor, other, factor)

    def part(self, axis: int, start: int, length: int) -> "Sources":
        """A slice of all along one of the tensor's axes; what is constant along it holds for every slice."""
        rank, whole = self.grad.dim(), self.grad.shape[axis]
        parts = [
            source
            if source is None or source.shape[axis - rank] != whole
            else source.narrow(axis - rank, start, length)
            for source in self
        ]
        return Sources(*parts)  # pyright: ignore[reportArgumentType]

    def advance(self, decays: Decays) -> None:
        """One more gradient for the averages that every parameter has for itself, in place."""
        self.momentum.lerp_(self.grad[None], as_channels(decays.momentum, self.grad.dim()))
        self.rms.lerp_(self.grad * self.grad, decays.rms[0])

    def full(self, scratch: Tensor) -> Tensor:
        """The first features, `[FULL, coordinates]`, in the memory of a vector that is long enough."""
        made = scratch[: FULL * self.grad.numel()].view(FULL, *self.grad.shape)
        made[0].copy_(self.grad)
        made[1].copy_(self.param)
        made[2:5].copy_(self.momentum)
        made[5].copy_(self.rms)
        made[9].copy_(self.rms).add_(1e-6).rsqrt_()
        made[6:9].copy_(self.momentum).mul_(made[9])
        made[10:13].copy_(self.row_factor)
        made[13:16].copy_(self.momentum_factor)
        if self.col_factor is not None:
            made[10:13].mul_(self.col_factor)
            made[13:16].mul_(self.col_factor)
        made[10:13].mul_(self.grad)
        made[13:16].mul_(self.momentum)
        return made.view(FULL, -1)

    def sides(self) -> list[Tensor]:
        """The features of rows and of columns, `[SIDE, *shape]` with length 1 along an axis.

        They are the averages and one over their roots. Below rank 2 there are rows alone, for both.
        """
        averages = [self.row] if self.col is None else [self.row, self.col]
        return [torch.cat([average, torch.rsqrt(average + 1e-8)]) for average in averages]


def as_channels(values: Tensor, rank: int) -> Tensor:
    """A vector as the first axis of an array with `rank` more."""
    return values.reshape(-1, *[1] * rank)
