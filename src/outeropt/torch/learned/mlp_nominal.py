"""MLPNominal: AdafacMLP's network beside a hand-designed step and a weight decay, which it may scale."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from outeropt.errors import ConfigError
from outeropt.torch.learned.moment_mlp import MomentMLP
from outeropt.torch.learned.moments import Sources


def _inverse_root(sources: Sources) -> Tensor:
    return torch.rsqrt(sources.rms + 1e-6)


# What the nominal step follows, by the name of the optimizer that would.
ESTIMATES: dict[str, Callable[[Sources], Tensor]] = {
    "SGD": lambda sources: sources.grad,
    "SGDM": lambda sources: sources.momentum[-1],
    "AggMo": lambda sources: sources.momentum.mean(dim=0),
    "Adam": lambda sources: sources.momentum[-1] * _inverse_root(sources),
    "AdamAggMo": lambda sources: sources.momentum.mean(dim=0) * _inverse_root(sources),
}


class MLPNominal(MomentMLP):
    """A network's step, a nominal step and a weight decay, added up.

        x <- x - lr (step_mult direction exp(exp_mult[0] magnitude)
                     + nominal_stepsize exp(exp_mult[1] nominal) estimate
                     + weight_decay exp(exp_mult[2] regularization) x)

    `direction`, `magnitude`, `nominal` and `regularization` are the outputs of a network with the inputs of
    `AdafacMLP`; the estimate is that of a hand-designed optimizer. Harrison, Metz and Sohl-Dickstein 2022, "A
    closer look at learned optimization: stability, robustness, and inductive biases" (arXiv 2209.11208);
    `outeropt.learned.MLPNominal` in torch, which says what each setting means.

        optimizer = MLPNominal(model.parameters(), "mlp_nominal", num_steps=10_000)

    Args:
      params: as for `torch.optim.Optimizer`.
      weights: `"mlp_nominal"`, a file, or a folder of `outeropt metatrain`.
      lr: factor on the update, for groups and schedulers.
      num_steps: length of the run, over which a schedule lets the updates shrink to 0; `mlp_nominal` has one.
      **settings: in place of those in the file, such as `nominal_stepsize` or `schedule`.
    """

    outputs = 4

    def check_settings(self) -> None:
        super().check_settings()
        estimator = self.settings["nominal_grad_estimator"]
        if estimator not in ESTIMATES:
            raise ConfigError(
                f"There is no nominal_grad_estimator = {estimator!r}; give one of {', '.join(ESTIMATES)}."
            )
        if len(self.settings["exp_mult"]) != 3:
            raise ConfigError(f"exp_mult = {self.settings['exp_mult']} must be three numbers.")
        for name in ("nominal_stepsize", "weight_decay"):
            if not self.settings[name] >= 0:
                raise ConfigError(f"{name} must be at least 0, not {self.settings[name]}.")

    @property
    def needs_means(self) -> bool:
        switches = ("aggregate_magnitude", "aggregate_nom_magnitude", "aggregate_reg_magnitude")
        return any(self.settings[name] for name in (*switches, "selfnormalize_blackbox"))

    def finish(self, outputs: Tensor, sources: Sources, means: Sequence[Tensor]) -> Tensor:
        own = self.settings
        scales = own["exp_mult"]
        kinds = ("aggregate_magnitude", "aggregate_nom_magnitude", "aggregate_reg_magnitude")

        def scale(which: int) -> Tensor:
            one_for_all = own[kinds[which]]
            return torch.exp(scales[which] * (means[1 + which] if one_for_all else outputs[1 + which]))

        step = own["step_mult"] * outputs[0] * scale(0)
        if own["normalize_blackbox"]:
            step = step * _inverse_root(sources)
        if own["selfnormalize_blackbox"]:
            step = step * means[-1]
        if own["nominal_stepsize"]:
            nominal = scale(1) if own["nominal_controller"] else math.exp(scales[1])
            estimate = ESTIMATES[own["nominal_grad_estimator"]](sources)
            step = step + own["nominal_stepsize"] * nominal * estimate
        if own["weight_decay"]:
            kept = own["weight_decay"] * sources.param
            step = step + (scale(2) * kept if own["regularization_controller"] else kept)
        return step
