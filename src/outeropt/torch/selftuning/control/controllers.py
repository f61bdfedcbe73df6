"""Controllers: how coefficients `M_0, M_1, ...` act on the disturbances of this step and the ones before.

A controller adds `sum_i M_i w_(t-i)` to step `t`. The classes differ in what a coefficient is; all of them
keep the axis of ages first.
"""

import abc

import torch
from torch import Tensor

from outeropt.errors import OuteroptError
from outeropt.torch.selftuning.control import history


class Controller(abc.ABC):
    """What a coefficient is. Subclasses are final.

    Args:
      memory: number `H` of coefficients, at least 1.
    """

    shared = False
    """Whether one tensor of coefficients serves all parameters, in place of one for each."""

    def __init__(self, memory: int):
        self.memory = memory

    @abc.abstractmethod
    def zeros(self, params: list[Tensor]) -> Tensor:
        """Coefficients that do nothing, for one parameter or, if they are shared, for all."""

    @abc.abstractmethod
    def play(
        self, coefficients: list[Tensor], rows: list[Tensor], count: Tensor, age: int = 0
    ) -> list[Tensor]:
        """`sum_i M_i w_(s-i)` for each parameter, where `w_s` is the row of the given age."""

    @abc.abstractmethod
    def along(
        self, rows: list[Tensor], count: Tensor, grads: list[Tensor], kept: float, horizon: int
    ) -> list[Tensor]:
        """The gradient with respect to the coefficients along the trajectory, GAPS with `horizon` terms.

        `x_t` depends on `M_i` by `a_i = sum_(b < horizon) kept^b w_(t-1-b-i)`: that, times the gradient at
        `x_t` (Lin et al., "Online Adaptive Policy Selection in Time-Varying Systems", 2023, arXiv 2210.12320,
        algorithm 1, for the dynamics `x' = kept x + sum_i M_i w_i`).

        Args:
          rows: disturbances up to `w_(t-1)`, at least `memory + horizon - 1` of them.
          count: how many were written.
          grads: gradient of the loss at `x_t`.
          kept: what a step leaves of the parameters, `1 - weight_decay`.
          horizon: how many past steps count, at least 1.
        """

    def projected(self, coefficients: Tensor, limits: Tensor) -> Tensor:
        """The nearest coefficients that are at most `limits` (H,) in magnitude."""
        bound = limits.to(coefficients).reshape(-1, *[1] * (coefficients.dim() - 1))
        return torch.clamp(coefficients, -bound, bound)

    def summary(self, coefficients: list[Tensor]) -> Tensor:
        """The mean of all entries of each age."""
        return torch.cat([each.reshape(self.memory, -1) for each in coefficients], dim=1).mean(dim=1)


class Scalar(Controller):
    """One number for each age: a filter that all parameters share. `M` has shape (H,)."""

    shared = True

    def zeros(self, params: list[Tensor]) -> Tensor:
        return params[0].new_zeros(self.memory)

    def play(
        self, coefficients: list[Tensor], rows: list[Tensor], count: Tensor, age: int = 0
    ) -> list[Tensor]:
        return [history.weighted(ring, count, coefficients[0].to(ring.device), age) for ring in rows]

    def along(
        self, rows: list[Tensor], count: Tensor, grads: list[Tensor], kept: float, horizon: int
    ) -> list[Tensor]:
        found = torch.stack([history.products(ring, count, grad) for ring, grad in zip(rows, grads)]).sum(0)
        return [_summed(found, kept, self.memory, horizon)]


class PerTensor(Controller):
    """One number for each age and parameter. `M` has shape (H,) for each."""

    def zeros(self, params: list[Tensor]) -> Tensor:
        return params[0].new_zeros(self.memory)

    def play(
        self, coefficients: list[Tensor], rows: list[Tensor], count: Tensor, age: int = 0
    ) -> list[Tensor]:
        return [history.weighted(ring, count, weights, age) for ring, weights in zip(rows, coefficients)]

    def along(
        self, rows: list[Tensor], count: Tensor, grads: list[Tensor], kept: float, horizon: int
    ) -> list[Tensor]:
        found = [history.products(ring, count, grad) for ring, grad in zip(rows, grads)]
        return [_summed(each, kept, self.memory, horizon) for each in found]


class Diagonal(Controller):
    """One number for each age and entry of a parameter. `M` has shape (H, *shape) for each."""

    def zeros(self, params: list[Tensor]) -> Tensor:
        return params[0].new_zeros((self.memory, *params[0].shape))

    def play(
        self, coefficients: list[Tensor], rows: list[Tensor], count: Tensor, age: int = 0
    ) -> list[Tensor]:
        pairs = zip(coefficients, rows)
        return [(m * history.newest(ring, count, self.memory, age).to(m)).sum(0) for m, ring in pairs]

    def along(
        self, rows: list[Tensor], count: Tensor, grads: list[Tensor], kept: float, horizon: int
    ) -> list[Tensor]:
        number = self.memory + horizon - 1
        reach = [history.newest(ring, count, number).to(grad) for ring, grad in zip(rows, grads)]
        return [grad * _summed(each, kept, self.memory, horizon) for each, grad in zip(reach, grads)]


class Full(Controller):
    """A matrix over all parameters for each age. `M` has shape (H, n, n): for tiny models only."""

    shared = True

    def zeros(self, params: list[Tensor]) -> Tensor:
        size = sum(param.numel() for param in params)
        return params[0].new_zeros((self.memory, size, size))

    def play(
        self, coefficients: list[Tensor], rows: list[Tensor], count: Tensor, age: int = 0
    ) -> list[Tensor]:
        flat = _flat([history.newest(ring, count, self.memory, age) for ring in rows])
        if flat.shape[1] != coefficients[0].shape[2]:
            raise OuteroptError(
                f"A full controller of {coefficients[0].shape[2]} numbers was given {flat.shape[1]}; "
                "every parameter needs a gradient at every step, and no group may come later."
            )
        mixed = torch.einsum("hmn,hn->m", coefficients[0], flat.to(coefficients[0]))
        parts = mixed.split([ring[0].numel() for ring in rows])
        return [part.reshape(ring.shape[1:]) for part, ring in zip(parts, rows)]

    def along(
        self, rows: list[Tensor], count: Tensor, grads: list[Tensor], kept: float, horizon: int
    ) -> list[Tensor]:
        flat = _flat([history.newest(ring, count, self.memory + horizon - 1) for ring in rows]).to(grads[0])
        whole = torch.cat([grad.reshape(-1) for grad in grads])
        return [torch.einsum("m,hn->hmn", whole, _summed(flat, kept, self.memory, horizon))]

    def projected(self, coefficients: Tensor, limits: Tensor) -> Tensor:
        norms = coefficients.square().sum((1, 2)).sqrt()
        factors = torch.clamp(limits.to(coefficients) / torch.clamp(norms, min=1e-30), max=1.0)
        return coefficients * factors[:, None, None]

    def summary(self, coefficients: list[Tensor]) -> Tensor:
        return coefficients[0].diagonal(dim1=1, dim2=2).mean(dim=1)


CONTROLLERS: dict[str, type[Controller]] = {
    "scalar": Scalar,
    "per_tensor": PerTensor,
    "diagonal": Diagonal,
    "full": Full,
}


def _summed(by_age: Tensor, kept: float, memory: int, horizon: int) -> Tensor:
    """`sum_(b < horizon) kept^b by_age[b + i]` for each `i < memory`."""
    return sum((kept**b * by_age[b : b + memory] for b in range(1, horizon)), by_age[:memory])


def _flat(rows: list[Tensor]) -> Tensor:
    return torch.cat([each.reshape(each.shape[0], -1) for each in rows], dim=1)
