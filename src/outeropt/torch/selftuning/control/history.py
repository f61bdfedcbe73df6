"""The last rows of a tensor's history, as a ring: nothing moves when a row is added.

Rows are a tensor with a leading axis; the row of index `s` is at `s % length`, and `count` rows were written.
Rows from before the first count as zeros. Ages count back from the newest row, which has age 0.
"""

import torch
from torch import Tensor


def push(rows: list[Tensor], count: Tensor, new: list[Tensor]) -> None:
    """Writes one row more to each history, in place of the oldest; `count` is as it was before."""
    for ring, row in zip(rows, new):
        ring.index_copy_(0, (count % ring.shape[0]).reshape(1), row.to(ring.dtype)[None])


def places(count: Tensor, length: int, number: int, age: int = 0) -> Tensor:
    """Where the rows of ages `age` to `age + number - 1` are, in this order."""
    return (count - 1 - age - torch.arange(number, device=count.device)) % length


def newest(rows: Tensor, count: Tensor, number: int, age: int = 0) -> Tensor:
    """The rows of ages `age` to `age + number - 1`, in this order."""
    return rows[places(count, rows.shape[0], number, age)]


def products(rows: Tensor, count: Tensor, other: Tensor) -> Tensor:
    """Inner products of all rows with another tensor, by age."""
    length = rows.shape[0]
    found = rows.reshape(length, -1).to(other.dtype) @ other.reshape(-1)
    return found[places(count, length, length)]


def weighted(rows: Tensor, count: Tensor, weights: Tensor, age: int = 0) -> Tensor:
    """The sum of the rows from one age on, each times its weight (number,), by age."""
    length, number = rows.shape[0], weights.shape[0]
    # A row's age follows from its place: the weights are put in order, not the rows.
    ages = (count - 1 - torch.arange(length, device=count.device)) % length - age
    counts = (ages >= 0) & (ages < number)
    placed = torch.where(counts, weights[ages.clamp(0, number - 1)], 0.0)
    return (placed @ rows.reshape(length, -1).to(weights.dtype)).reshape(rows.shape[1:])
