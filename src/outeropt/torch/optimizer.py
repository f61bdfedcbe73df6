"""What the optimizers of this room share: a step that is one function of all parameters."""

import abc
from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor

from outeropt.errors import OuteroptError


SHARED = "shared"
"""Where in the first parameter's state lies what belongs to no parameter alone, such as an estimate."""
TRAINING_POINT = "training_point"
"""Where in a parameter's state lies what `train` brings back after `eval`."""

Params = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]


class Batch(NamedTuple):
    """The parameters of one group that have gradients, in order, with what belongs to them.

    Attributes:
      group: the group's settings by name.
      params: what `Optimizer.move` changes in place; float32 copies of narrower parameters.
      grads: their gradients, of the same types.
      states: their states.
    """

    group: dict[str, Any]
    params: list[Tensor]
    grads: list[Tensor]
    states: list[dict[str, Tensor]]

    def state(self, name: str) -> list[Tensor]:
        """One entry of all states."""
        return [state[name] for state in self.states]


class Optimizer(torch.optim.Optimizer, abc.ABC):
    """A torch optimizer that sees all parameters at once, and the loss if it is given.

    Parameter groups, schedulers of `lr`, hooks, `state_dict` and `torch.amp.GradScaler` work as with those of
    `torch.optim`. State of half-precision parameters is kept in float32, also when it is loaded. Numbers that
    change from step to step are tensors: `torch.compile` compiles a step once, and nothing waits for a GPU.

    Some methods are evaluated elsewhere than they train, at an average. `eval` moves the parameters there and
    `train` moves them back, as for modules; for all others both do nothing.

    Subclasses are final: they give their defaults, and fill in `begin`, `begin_shared` and `move`, and
    `evaluation_point` where there is one.

    Args:
      params: parameters, named parameters, or groups of either, as for `torch.optim.Optimizer`.
      defaults: settings by name, where a group gives none of its own.

    Raises:
      OuteroptError: a setting is outside its range.
    """

    def __init__(self, params: Params, defaults: dict[str, Any]):
        super().__init__(params, defaults)
        for group in self.param_groups:
            check(type(self).__name__, group)

    def begin(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """The state of a parameter before its first step; `param` is float32 or wider."""
        del param, group
        return {}

    def begin_shared(self, zero: Tensor) -> dict[str, Tensor]:
        """What is shared before the first step, from a zero of the right type and device."""
        del zero
        return {}

    @abc.abstractmethod
    def move(self, batches: list[Batch], shared: dict[str, Tensor], value: Tensor | None) -> None:
        """One step, in place.

        Args:
          batches: at least one, none of them empty.
          shared: what `begin_shared` gave, to be changed in place.
          value: the loss, if the caller gave it.
        """

    def evaluation_point(self, batch: Batch) -> list[Tensor] | None:
        """Where to evaluate instead of at `batch.params`, which may be none; None if that is no other point.

        Args:
          batch: parameters that have made a step, and no gradients.
        """
        del batch
        return None

    @torch.no_grad()
    def eval(self) -> None:
        """Moves the parameters to where they are to be evaluated, until `train` is called."""
        for group in self.param_groups:
            own = [param for param in group["params"] if TRAINING_POINT not in self.state[param]]
            begun = [param for param in own if _begun(self.state[param])]
            wide = [widened(param.detach()) for param in begun]
            points = self.evaluation_point(Batch(group, wide, [], [self.state[param] for param in begun]))
            if points is None:
                continue
            for param in own:
                self.state[param][TRAINING_POINT] = param.detach().clone()
            if begun:
                torch._foreach_copy_(begun, points)

    @torch.no_grad()
    def train(self) -> None:
        """Moves the parameters back to where they train, exactly."""
        for group in self.param_groups:
            for param in group["params"]:
                if TRAINING_POINT in self.state[param]:
                    param.copy_(self.state[param].pop(TRAINING_POINT))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, value: Any = None) -> Any:
        """One step from the gradients in `grad`.

        Args:
          closure: computes the gradients anew and returns the loss.
          value: the loss, for optimizers that need it and where there is no closure.

        Returns:
          The loss: what the closure returned, or `value`.

        Raises:
          OuteroptError: the optimizer needs the loss and was not given it, a gradient is sparse, or the
            parameters are at their evaluation point.
        """
        if TRAINING_POINT in self.state[self.param_groups[0]["params"][0]]:
            raise OuteroptError(
                f"{type(self).__name__} is at its evaluation point and does not train there; call train()."
            )
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        batches, narrow = self._batches()
        if batches:
            first = self.state[self.param_groups[0]["params"][0]]
            if SHARED not in first:
                like = batches[0].params[0]
                first[SHARED] = self.begin_shared(torch.zeros((), dtype=like.dtype, device=like.device))
            self.move(batches, first[SHARED], value)
            for params, wide in narrow:
                torch._foreach_copy_(params, wide)
        return value

    def _batches(self) -> tuple[list[Batch], list[tuple[list[Tensor], list[Tensor]]]]:
        """Batches, and what has to be written back to narrow parameters."""
        batches, narrow = [], []
        for group in self.param_groups:
            own = [param for param in group["params"] if param.grad is not None]
            if not own:
                continue
            if any(param.grad.is_sparse for param in own):
                raise OuteroptError(
                    f"{type(self).__name__} takes no sparse gradients; give nn.Embedding sparse=False."
                )
            wide = [widened(param.detach()) for param in own]
            if any(new.dtype != old.dtype for new, old in zip(wide, own)):
                narrow.append((own, wide))
            for param, new in zip(own, wide):
                state = self.state[param]
                if not _begun(state):
                    state.update(self.begin(new, group))
            grads = [widened(param.grad) for param in own]
            batches.append(Batch(group, wide, grads, [self.state[param] for param in own]))
        return batches, narrow

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, whose settings are checked like those of the first ones."""
        super().add_param_group(param_group)
        check(type(self).__name__, self.param_groups[-1])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what `state_dict` gave, exactly: numbers keep their types, and share no memory with it."""
        super().load_state_dict(state_dict)
        params = [param for group in self.param_groups for param in group["params"]]
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        for param, number in zip(params, numbers):
            if number in state_dict["state"]:
                self.state[param] = moved(state_dict["state"][number], param.device)


def _begun(state: dict[str, Any]) -> bool:
    """Whether the state is that of a parameter which has made a step."""
    return len(state) > (SHARED in state)


def widened(tensor: Tensor) -> Tensor:
    """The tensor as float32 if it is narrower: narrow types hold no small differences."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def moved(entry: Any, device: torch.device) -> Any:
    """A copy on a device, of a tensor or of a dictionary with tensors in it."""
    if isinstance(entry, dict):
        return {name: moved(value, device) for name, value in entry.items()}
    return entry.detach().clone().to(device) if isinstance(entry, Tensor) else deepcopy(entry)


def loss_of(name: str, value: Any, like: Tensor) -> Tensor:
    """The loss as a number of the type and device of `like`.

    Args:
      name: of the optimizer.
      value: what the caller gave; None for nothing.
      like: gives type and device.

    Raises:
      OuteroptError: no loss was given.
    """
    if value is None:
        raise OuteroptError(f"{name} needs the loss; call step(closure) or step(value=loss).")
    return torch.as_tensor(value, dtype=like.dtype, device=like.device).detach()


_AT_LEAST_ZERO = (
    *("lr", "weight_decay", "eps", "s_decay", "alpha", "warmup_steps", "initial_accumulator_value"),
    *("max_lr", "d_coef"),
)
_ABOVE_ZERO = ("d0", "growth_rate", "reps_rel", "s_init", "num_betas")
_DECAYS = ("momentum", "beta")


def check(name: str, group: dict[str, Any]) -> None:
    """Raises `OuteroptError` for a learning rate, decay or momentum outside its range."""
    for setting in _AT_LEAST_ZERO:
        found = group.get(setting, 0.0)
        if not isinstance(found, Tensor) and not found >= 0.0:
            raise OuteroptError(f"{name}: {setting} = {found} is not allowed; give 0 or more.")
    decays = {f"betas[{index}]": beta for index, beta in enumerate(group.get("betas", ()))}
    for setting, beta in {**decays, **{key: group[key] for key in _DECAYS if key in group}}.items():
        if not 0.0 <= beta < 1.0:
            raise OuteroptError(f"{name}: {setting} = {beta} is not allowed; give at least 0, below 1.")
    for setting in _ABOVE_ZERO:
        if setting in group and not group[setting] > 0.0:
            raise OuteroptError(f"{name}: {setting} = {group[setting]} is not allowed; give more than 0.")
