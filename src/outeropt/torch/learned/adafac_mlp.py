"""AdafacMLP, also called small_fc: a per-parameter MLP on momenta and Adafactor's second moments."""

from collections.abc import Sequence

from torch import Tensor

from outeropt.torch.learned.moment_mlp import MomentMLP
from outeropt.torch.learned.moments import Sources


class AdafacMLP(MomentMLP):
    """A small network moves each parameter by `-lr step_mult direction exp(exp_mult magnitude)`.

    Its inputs are 28 normalised features of the parameter and 11 of the time; its outputs are direction and
    magnitude. Metz, Freeman, Harrison, Maheswaranathan and Sohl-Dickstein 2022, "Practical tradeoffs between
    memory, compute, and performance in learned optimizers" (arXiv 2203.11860). `outeropt.learned.AdafacMLP`
    in torch; it keeps four copies of the parameters.

        optimizer = AdafacMLP(model.parameters(), "small_fc", num_steps=10_000)

    Args:
      params: as for `torch.optim.Optimizer`.
      weights: `"small_fc"`, a file, or a folder of `outeropt metatrain`.
      lr: factor on the update, for groups and schedulers.
      num_steps: length of the run, over which a schedule lets the updates shrink to 0; `small_fc` has one.
      **settings: `step_mult`, `exp_mult` and `schedule` (`"constant"`, `"linear"` or `"cosine"`) in place of
        those in the file.
    """

    outputs = 2

    @property
    def needs_means(self) -> bool:
        return False

    def finish(self, outputs: Tensor, sources: Sources, means: Sequence[Tensor]) -> Tensor:
        direction, magnitude = outputs
        step = magnitude.mul_(self.settings["exp_mult"]).exp_().mul_(direction)
        return step.mul_(self.settings["step_mult"])
