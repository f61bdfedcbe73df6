"""The small optimizers that move what is tuned: they can leave a step out without asking the device."""

import abc
import dataclasses

import torch
from torch import Tensor

from outeropt.errors import OuteroptError


@dataclasses.dataclass(frozen=True)
class Meta(abc.ABC):
    """An optimizer of a few numbers.

    Attributes:
      lr: its learning rate, at least 0.
    """

    lr: float

    def __post_init__(self):
        if not self.lr >= 0.0:
            raise OuteroptError(f"{type(self).__name__}: lr = {self.lr} is not allowed; give 0 or more.")

    def begin(self, value: Tensor) -> dict[str, Tensor]:
        """Its state before the first step."""
        del value
        return {}

    @abc.abstractmethod
    def moved(
        self, value: Tensor, grad: Tensor, state: dict[str, Tensor], count: Tensor, learns: Tensor
    ) -> Tensor:
        """New values, and their state in place; both as they were where nothing is learned.

        Args:
          value: what is tuned.
          grad: the gradient with respect to it.
          state: what `begin` gave.
          count: how many steps were learned from before.
          learns: whether this is one.
        """


@dataclasses.dataclass(frozen=True)
class MetaDescent(Meta):
    """`value - lr * grad`."""

    def moved(
        self, value: Tensor, grad: Tensor, state: dict[str, Tensor], count: Tensor, learns: Tensor
    ) -> Tensor:
        return torch.where(learns, value - self.lr * grad, value)


@dataclasses.dataclass(frozen=True)
class MetaAdam(Meta):
    """Adam (Kingma and Ba, "Adam", 2014, arXiv 1412.6980, algorithm 1), whose learning rate may fade.

    Attributes:
      lr: learning rate; with `fading`, its highest value.
      betas: decays of mean and square.
      eps: added to the root of the square.
      fading: None for a constant learning rate; else the step `w` up to which it grows, from where on it
        falls as `sqrt(w / t)`.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    fading: float | None = None

    def begin(self, value: Tensor) -> dict[str, Tensor]:
        return {"meta_mean": torch.zeros_like(value), "meta_square": torch.zeros_like(value)}

    def moved(
        self, value: Tensor, grad: Tensor, state: dict[str, Tensor], count: Tensor, learns: Tensor
    ) -> Tensor:
        b1, b2 = self.betas
        mean = b1 * state["meta_mean"] + (1.0 - b1) * grad
        square = b2 * state["meta_square"] + (1.0 - b2) * grad**2
        time = count + 1.0
        rate = self.lr
        if self.fading is not None:
            now = torch.clamp(count, min=1.0)
            rate = rate * torch.minimum(now / self.fading, torch.sqrt(self.fading / now))
        root = torch.sqrt(square / (1.0 - b2**time)) + self.eps
        new = value - rate * (mean / (1.0 - b1**time)) / root
        state["meta_mean"].copy_(torch.where(learns, mean, state["meta_mean"]))
        state["meta_square"].copy_(torch.where(learns, square, state["meta_square"]))
        return torch.where(learns, new, value)
