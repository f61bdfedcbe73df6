"""PyTorch functions of many lanes at once."""

from collections.abc import Callable, Sequence
from typing import Any

from outeropt.tasks.models.libraries import load


Tensors = Sequence[Any]


def over_lanes(
    function: Callable[..., Tensors], axes: int, arguments: Tensors, seeds: Any, batched: bool
) -> list[Any]:
    """Runs a function over leading axes of lanes, of length 1 where an argument does not vary.

    Lanes run side by side by `torch.func.vmap`. Those with seeds of their own run after each other, since
    PyTorch has one stream of random numbers for all that `vmap` runs.

    Args:
      function: tensors of one lane to tensors of one lane; it takes the lane's seed after them.
      axes: how many axes of lanes there are.
      arguments: tensors with these axes.
      seeds: a numpy array of seeds with these axes, or None if nothing is random.
      batched: whether `vmap` can run the function; otherwise all lanes run after each other.

    Returns:
      Tensors with these axes.
    """
    torch = load("torch", "torch")
    if not axes:
        return list(function(*arguments, seeds))
    given = [*arguments] if seeds is None else [*arguments, seeds]
    count = max(each.shape[0] for each in given)

    def at(i):
        rows = [argument[min(i, argument.shape[0] - 1)] for argument in arguments]
        seed = None if seeds is None else seeds[min(i, seeds.shape[0] - 1)]
        return over_lanes(function, axes - 1, rows, seed, batched)

    if count == 1 or not batched or (seeds is not None and seeds.shape[0] > 1):
        return [torch.stack(parts) for parts in zip(*(at(i) for i in range(count)), strict=True)]

    seed = None if seeds is None else seeds[0]
    varying = [argument.shape[0] > 1 for argument in arguments]
    rows = [argument if varies else argument[0] for argument, varies in zip(arguments, varying, strict=True)]

    def inner(*rows):
        return tuple(over_lanes(function, axes - 1, rows, seed, batched))

    run = torch.func.vmap(
        inner, in_dims=tuple(0 if varies else None for varies in varying), randomness="same"
    )
    return list(run(*rows))
