"""One row of the table of optimizers, and how it becomes an optimizer."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from jax.core import Tracer

from outeropt.errors import unknown_name
from outeropt.optimizer import Optimizer
from outeropt.optimizers.optax_optimizer import build as build_optax
from outeropt.space import Space


@dataclasses.dataclass(frozen=True)
class Paper:
    """Where a method comes from.

    Attributes:
      title: of the paper, lecture or article.
      authors: family names; "and others" from the fourth on.
      year: of first publication.
      arxiv: identifier such as `"1412.6980"`; empty if it is not on arXiv.
    """

    title: str
    authors: str
    year: int
    arxiv: str = ""

    def __str__(self) -> str:
        where = f", arXiv {self.arxiv}" if self.arxiv else ""
        return f'{self.authors}, "{self.title}", {self.year}{where}'


@dataclasses.dataclass(frozen=True)
class Entry:
    """One registered optimizer.

    Attributes:
      factory: an optax factory, or an `Optimizer` class.
      paper: where the method comes from.
      given: values for arguments that the factory leaves open, or where ours differ; or a function that makes
        them, where they hold arrays, because importing a module must not start JAX.
      spaces: spaces by leaf name, beyond or instead of `spaces.BY_NAME`.
      tuning_free: whether it is meant to work at its defaults on any task.
      needs: names of the context that `update` cannot do without (`value`, `value_fn`).
    """

    factory: Callable[..., Any]
    paper: Paper
    given: Mapping[str, Any] | Callable[[], Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    spaces: Mapping[str, Space] = dataclasses.field(default_factory=dict)
    tuning_free: bool = False
    needs: tuple[str, ...] = ()

    def build(self, name: str, hyperparameters: Mapping[str, Any]) -> Optimizer:
        """The optimizer with these hyperparameters, and defaults for the others.

        Raises:
          UnknownName: there is no such hyperparameter.
          OutOfSpace: a value lies outside its space.
        """
        given = {**self.defaults, **hyperparameters}
        if self.makes_optimizer:
            known = inspect.signature(self.factory).parameters
            for key in hyperparameters:
                if key.partition(".")[0] not in known:
                    error = unknown_name("hyperparameter", key, known)
                    raise type(error)(f"{error} {name} has: {', '.join(known) or 'none'}.")
            optimizer = with_leaves(self.factory, given)
        else:
            optimizer = build_optax(self.factory, given, self.spaces, self.needs, name)
        check(optimizer)
        return optimizer

    @property
    def defaults(self) -> Mapping[str, Any]:
        """What is given, made."""
        return self.given() if callable(self.given) else self.given

    @property
    def makes_optimizer(self) -> bool:
        """Whether the factory is an `Optimizer` class rather than an optax factory."""
        return inspect.isclass(self.factory) and issubclass(self.factory, Optimizer)


def with_leaves(factory: Callable[..., Optimizer], given: Mapping[str, Any], *arguments: Any) -> Optimizer:
    """What `factory` makes, with the leaves that have dotted names (`meta.learning_rate`) set afterwards."""
    leaves = {name: value for name, value in given.items() if "." in name}
    made = factory(*arguments, **{name: value for name, value in given.items() if name not in leaves})
    return made.replace(leaves)


def check(optimizer: Optimizer) -> None:
    """Raises `OutOfSpace` if a leaf lies outside its space."""
    leaves = optimizer.hyperparameters
    for name, space in optimizer.spaces.items():
        if not isinstance(leaves[name], Tracer):
            space.check(name, leaves[name])
