"""Disturbances: what a controller remembers of a gradient, and what the base optimizer is given."""

import abc
import dataclasses

import torch
from torch import Tensor

from outeropt.errors import unknown_name


class Disturbance(abc.ABC):
    """A transformation of gradients. Subclasses are final."""

    def begin(self, param: Tensor) -> dict[str, Tensor]:
        """The state for one parameter before the first gradient."""
        del param
        return {}

    @abc.abstractmethod
    def __call__(self, grads: list[Tensor], states: list[dict[str, Tensor]], count: Tensor) -> list[Tensor]:
        """The disturbances that gradients are; states change in place.

        Args:
          grads: gradients.
          states: what `begin` gave for each parameter.
          count: how many came before.
        """


@dataclasses.dataclass(frozen=True)
class Raw(Disturbance):
    """The gradient itself."""

    def __call__(self, grads: list[Tensor], states: list[dict[str, Tensor]], count: Tensor) -> list[Tensor]:
        return grads


@dataclasses.dataclass(frozen=True)
class Clipped(Disturbance):
    """The gradient, clipped entry by entry to [-limit, limit].

    Attributes:
      limit: positive.
    """

    limit: float = 1.0

    def __call__(self, grads: list[Tensor], states: list[dict[str, Tensor]], count: Tensor) -> list[Tensor]:
        return [grad.clamp(-self.limit, self.limit) for grad in grads]


@dataclasses.dataclass(frozen=True)
class AdamScaled(Disturbance):
    """Adam's direction: `w = m^ / (sqrt(v^ + eps_root) + eps)` with bias-corrected averages `m^` and `v^`.

    Kingma and Ba, "Adam", 2014, arXiv 1412.6980, algorithm 1.

    Attributes:
      betas: decays of mean and square.
      eps: added to the root.
      eps_root: added inside the root.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    eps_root: float = 1e-12

    def begin(self, param: Tensor) -> dict[str, Tensor]:
        return {"mean": torch.zeros_like(param), "square": torch.zeros_like(param)}

    def __call__(self, grads: list[Tensor], states: list[dict[str, Tensor]], count: Tensor) -> list[Tensor]:
        (b1, b2), time = self.betas, (count + 1).to(grads[0].dtype)
        means, squares = ([state[name] for state in states] for name in ("mean", "square"))
        torch._foreach_lerp_(means, grads, 1.0 - b1)
        torch._foreach_mul_(squares, b2)
        torch._foreach_addcmul_(squares, grads, grads, value=1.0 - b2)
        roots = torch._foreach_div(squares, 1.0 - b2**time)
        torch._foreach_add_(roots, self.eps_root)
        torch._foreach_sqrt_(roots)
        torch._foreach_add_(roots, self.eps)
        torch._foreach_mul_(roots, 1.0 - b1**time)
        return list(torch._foreach_div(means, roots))


BY_NAME: dict[str, type[Disturbance]] = {"raw": Raw, "clip": Clipped, "adam": AdamScaled}


def as_disturbance(given: str | Disturbance) -> Disturbance:
    """A disturbance by name, or as it is.

    Raises:
      UnknownName: there is none of that name.
    """
    if isinstance(given, Disturbance):
        return given
    if given not in BY_NAME:
        raise unknown_name("disturbance", given, BY_NAME, see=", ".join(BY_NAME))
    return BY_NAME[given]()
