"""What learned optimizers share: weights and settings from a file, and copies that keep them."""

import abc
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from outeropt.errors import ConfigError, OuteroptError, unknown_name
from outeropt.torch.learned import files
from outeropt.torch.optimizer import Optimizer, Params


class LearnedOptimizer(Optimizer):
    """An optimizer whose rule is a small trained network.

    Subclasses are final, one for each architecture. They fill in `prepare` beside what every `Optimizer`
    does. Meta-parameters are part of the program: `state_dict` does not hold them.

    Args:
      params: as for `torch.optim.Optimizer`.
      weights: a name that ships with the package, a file, or a folder of `metatrain` or `amalgamate`.
      lr: factor on the update, for groups and schedulers; 1 is what the optimizer was trained for.
      num_steps: length of the run, for optimizers with a schedule over it; others ignore it.
      **settings: of the architecture, in place of those in the file.

    Raises:
      UnknownName: there are no such weights, or no such setting.
      OuteroptError: the file is of another architecture or does not fit the settings, or the length of the
        run is needed.
    """

    def __init__(
        self,
        params: Params,
        weights: str | Path,
        *,
        lr: float | Tensor = 1.0,
        num_steps: int | None = None,
        **settings: Any,
    ):
        kind, found = type(self).__name__, files.read(weights)
        if found.architecture != kind:
            raise ConfigError(f"{found.source} is of architecture {found.architecture}, not {kind}.")
        for name in settings:
            if name not in found.settings:
                raise unknown_name(f"setting of {kind}", name, found.settings, ", ".join(found.settings))
        if num_steps is not None and num_steps < 1:
            raise OuteroptError(f"{kind}: num_steps = {num_steps} is not allowed; give at least 1.")
        self.settings = {**found.settings, **settings}
        self.weights = found.weights
        self.networks: dict[tuple[torch.dtype, torch.device], Any] = {}
        schedule = self.settings.get("schedule", "constant")
        if schedule != "constant" and num_steps is None:
            raise ConfigError(
                f"This learned optimizer follows a {schedule} schedule and needs the length of the run: give "
                f"num_steps, as in {kind}(params, {str(weights)!r}, num_steps=10_000)."
            )
        self.check_settings()
        try:
            self.network(torch.zeros(()))
        except (KeyError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"{found.source} does not fit {kind} with {self.settings} ({error})."
            ) from error
        super().__init__(params, {"lr": lr, "num_steps": num_steps})

    @abc.abstractmethod
    def check_settings(self) -> None:
        """Raises `ConfigError` for settings that are not allowed."""

    @abc.abstractmethod
    def prepare(self, weights: dict[str, Tensor]) -> Any:
        """The network in the form in which steps use it, from weights of the right type and device."""

    def network(self, like: Tensor) -> Any:
        """The network for tensors like one."""
        key = like.dtype, like.device
        if key not in self.networks:
            self.networks[key] = self.prepare({name: w.to(like) for name, w in self.weights.items()})
        return self.networks[key]

    def begin_shared(self, zero: Tensor) -> dict[str, Tensor]:
        return {"count": zero.clone()}

    def __getstate__(self) -> dict[str, Any]:
        # A scheduler hangs a function of its own in the place of `step`.
        return {name: value for name, value in vars(self).items() if name[0] != "_" and name != "step"}
