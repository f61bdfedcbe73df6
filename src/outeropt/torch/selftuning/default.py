"""The self-tuning optimizer to take when nothing is known: no hyperparameter to set."""

from typing import Any

from torch import Tensor

from outeropt.errors import OuteroptError
from outeropt.torch.optimizer import Params
from outeropt.torch.selftuning.hypergradient import HypergradientDescent
from outeropt.torch.selftuning.wrapping import Wrapping, checked_rate
from outeropt.torch.tuning_free.prodigy import Prodigy


class SelfTuning(Wrapping):
    """Prodigy, hypergradient descent on its factor, and a decay at the end where that is known.

    * `Prodigy` (Mishchenko and Defazio 2023, arXiv 2306.06101) finds the size of Adam's steps. Its estimate
      only grows; it starts at 1e-3, and the square of the gradient is averaged over 50 steps.
    * `HypergradientDescent` (Baydin et al. 2017, arXiv 1703.04782) moves a factor on that size, of at most 2,
      by what each gradient says of the step before: it takes back what the estimate overshot.
    * In the last 30 % of `num_steps` the size falls to zero in a straight line.

    `outeropt.optimizers.get("self_tuning")` in torch; `docs/selftuning.md` says how it was chosen. It costs
    one gradient a step, and six copies of the parameters.

    Args:
      params: as for `torch.optim.Optimizer`.
      num_steps: length of the run, at least 1; None where it is not known, for no decay.
      lr: factor on the size of steps, for groups and schedulers; leave it at 1.
      weight_decay: decoupled, times the size of the step.

    Raises:
      OuteroptError: a setting is outside its range.
    """

    def __init__(
        self, params: Params, num_steps: int | None = None, lr: float = 1.0, weight_decay: float = 0.0
    ):
        if num_steps is not None and num_steps < 1:
            raise OuteroptError(f"SelfTuning: num_steps = {num_steps} is not allowed; give at least 1.")
        lr = checked_rate("SelfTuning", lr)
        prodigy = Prodigy(params, lr=lr, betas=(0.9, 0.98), d0=1e-3, weight_decay=weight_decay)
        super().__init__(HypergradientDescent(prodigy, most=2.0))
        self.num_steps = num_steps

    def begin_shared(self, zero: Tensor) -> dict[str, Tensor]:
        return {"count": zero.clone()}

    def move(self, params: list[Tensor], shared: dict[str, Tensor], value: Any, **functions: Any) -> None:
        if self.num_steps is None:
            self.play()
        else:
            left = (self.num_steps - shared["count"]) / (TAIL * self.num_steps)
            self.play([{"lr": group["lr"] * left.clamp(0.0, 1.0)} for group in self.param_groups])
        shared["count"].add_(1)

    def diagnostics(self) -> dict[str, float]:
        """`lr`, the factor on Prodigy's size of steps."""
        return super().diagnostics()


TAIL = 0.3
"""Part of a run in which its steps fall to zero."""
