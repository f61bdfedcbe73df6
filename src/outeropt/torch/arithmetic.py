"""Sums over whole lists of tensors."""

from collections.abc import Iterable

import torch
from torch import Tensor


Tensors = list[Tensor] | tuple[Tensor, ...]


def inner(first: Tensors, second: Tensors) -> Tensor:
    """Inner product, all entries together."""
    return total(torch.dot(a.reshape(-1), b.reshape(-1)) for a, b in zip(first, second))


def total(numbers: Iterable[Tensor]) -> Tensor:
    """The sum of at least one number."""
    return torch.stack(list(numbers)).sum()


def squared_norm(values: Tensors) -> Tensor:
    """Sum of the squares of all entries."""
    return inner(values, values)


def absolute_sum(values: Tensors) -> Tensor:
    """Sum of the magnitudes of all entries."""
    return total(torch._foreach_norm(values, 1))


def quotient(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient, or 0 where the denominator is 0."""
    known = denominator != 0
    return torch.where(known, numerator / torch.where(known, denominator, 1.0), 0.0)
