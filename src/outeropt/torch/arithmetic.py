"""Sums over whole lists of tensors, and lists in pieces."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


Tensors = list[Tensor] | tuple[Tensor, ...]

BLOCK = 2**18
"""Entries of a piece on a CPU: a handful of such tensors stays in the cache."""


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
    if values[0].device.type == "cpu":  # where norms of order 1 take five times as long
        return total(sizes.sum() for sizes in torch._foreach_abs(values))
    return total(torch._foreach_norm(values, 1))


def quotient(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient, or 0 where the denominator is 0."""
    known = denominator != 0
    return torch.where(known, numerator / torch.where(known, denominator, 1.0), 0.0)


def add_number(values: Tensors, number: Tensor) -> None:
    """Adds a number to every entry, in place. torch's own form for lists waits for the GPU to know it."""
    for value in values:
        value.add_(number)


def blocks(*lists: Tensors) -> list[tuple[list[Tensor], ...]]:
    """Lists of tensors of the same shapes in pieces, for several operations on one piece after another.

    On a CPU a piece has about `BLOCK` entries, so that each operation finds in the cache what the last one
    left: large tensors are cut, into views, and small ones are put together. Elsewhere, and in compiled
    programs, which bring operations together by themselves, everything is one piece.
    """
    return _pieces([*zip(*lists)], cut=lambda tensors: all(tensor.is_contiguous() for tensor in tensors))


def whole_blocks(*lists: Tensors) -> list[tuple[list[Tensor], ...]]:
    """As `blocks`, but no tensor is cut."""
    return _pieces([*zip(*lists)], cut=lambda tensors: False)


def _pieces(
    rows: list[tuple[Tensor, ...]], cut: Callable[[tuple[Tensor, ...]], bool]
) -> list[tuple[list[Tensor], ...]]:
    if torch.compiler.is_compiling() or rows[0][0].device.type != "cpu":
        return [_columns(rows)]
    found, held, size = [], [], 0
    for row in rows:
        entries = row[0].numel()
        if entries > BLOCK and cut(row):
            flat = [tensor.reshape(-1) for tensor in row]
            found += [tuple([each[at : at + BLOCK]] for each in flat) for at in range(0, entries, BLOCK)]
            continue
        held.append(row)
        size += entries
        if size >= BLOCK:
            found.append(_columns(held))
            held, size = [], 0
    return [*found, _columns(held)] if held else found


def _columns(rows: list[tuple[Tensor, ...]]) -> tuple[list[Tensor], ...]:
    return tuple(list(column) for column in zip(*rows))


def decayed(grads: Tensors, params: Tensors, weight_decay: float) -> Tensors:
    """Gradients with those of an L2 penalty."""
    return torch._foreach_add(grads, params, alpha=weight_decay) if weight_decay else grads
