"""Learned optimizers by name: where they come from, what readers see, and what they refuse."""

from collections.abc import Iterable
from pathlib import Path

from outeropt.errors import ConfigError


WORD = "learned:"


def label(weights: str) -> str:
    """What readers see of weights: a shipped name, or the last part of a path.

    `my_lopt` for `runs/my_lopt`, `runs/my_lopt.safetensors` and `runs/my_lopt/optimizer.safetensors`. A
    number alone says nothing: a replicate is `policy/experiment/3`, with the two folders above it.
    """
    from outeropt.weight_files import FILE, names

    if weights in names():
        return weights
    path = Path(weights)
    folder = path.parent if path.name == FILE else path
    _, *above, last = folder.resolve().parts
    name = last.removesuffix(".safetensors")
    return "/".join([*above[-2:], name]) if name.isdecimal() else name


def shown(optimizer: str) -> str:
    """An optimizer's name for readers: `clip:learned:my_lopt` for `clip:learned:runs/my_lopt`."""
    wrappers, weights = _parts(optimizer)
    return optimizer if weights is None else f"{wrappers}{WORD}{label(weights)}"


def refuse_hyperparameters(optimizer: str, names: Iterable[str]) -> None:
    """Checks that hyperparameters are meant for a learned optimizer's wrappers, and not for itself.

    Raises:
      ConfigError: one is not.
    """
    wrappers, weights = _parts(optimizer)
    if weights is None:
        return
    from outeropt.optimizers.own_table import PREFIXES

    own = [name for word in wrappers.split(":") if word in PREFIXES for name in PREFIXES[word].arguments]
    for name in names:
        if name.rpartition(".")[2] not in own:
            do = f"Its wrappers have: {', '.join(own)}." if own else "Leave it out."
            raise ConfigError(
                f"{WORD}{weights} takes no hyperparameter {name}: all its numbers are meta-parameters, which "
                f"meta-training finds. {do}"
            )


def _parts(optimizer: str) -> tuple[str, str | None]:
    """The wrappers of a name, and the weights of the learned optimizer inside; None for another one."""
    wrappers, found, weights = optimizer.partition(WORD)
    return (wrappers, weights) if found and (not wrappers or wrappers.endswith(":")) else (optimizer, None)
