"""What optimizers around a torch optimizer share: its groups, their state and its, and a step's frame."""

import abc
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from outeropt.errors import OuteroptError
from outeropt.torch.optimizer import SHARED, Optimizer, check, moved, widened


class Wrapping(torch.optim.Optimizer, abc.ABC):
    """A torch optimizer around another one, with the same parameters and groups.

    `param_groups` belong to the user and to schedulers, and stay as they left them. The inner optimizer has a
    copy of them, which every step brings up to date and in which tuned numbers take the place of the user's.
    So schedulers go around this optimizer, not around `base`. `state_dict` holds the inner optimizer's under
    `"base"`.

    Subclasses are final. They fill in `begin`, `begin_shared` and `move`; public attributes are what is
    copied with them.

    Args:
      base: the optimizer inside.

    Raises:
      OuteroptError: it is no torch optimizer.
    """

    def __init__(self, base: torch.optim.Optimizer):
        if not isinstance(base, torch.optim.Optimizer):
            raise OuteroptError(
                f"{type(self).__name__} takes an optimizer, such as torch.optim.AdamW(model.parameters()), "
                f"not {type(base).__name__}."
            )
        self.base = base
        super().__init__([dict(group) for group in base.param_groups], dict(base.defaults))
        for group in base.param_groups:
            group |= {name: own_copy(value) for name, value in group.items() if name != "params"}

    def begin(self, param: Tensor) -> dict[str, Tensor]:
        """The state of a parameter before its first step; `param` is float32 or wider."""
        del param
        return {}

    def begin_shared(self, zero: Tensor) -> dict[str, Tensor]:
        """What is shared before the first step, from a zero of the right type and device."""
        del zero
        return {}

    @abc.abstractmethod
    def move(self, params: list[Tensor], shared: dict[str, Tensor], value: Any, **functions: Any) -> None:
        """One step, in place.

        Args:
          params: those that have gradients; at least one.
          shared: what `begin_shared` gave, to be changed in place.
          value: the loss, if the caller gave it.
          **functions: what else the caller gave.
        """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, value: Any = None, **functions: Any) -> Any:
        """One step from the gradients in `grad`, which stay as they are.

        Args:
          closure: computes the gradients anew and returns the loss.
          value: the loss, where there is no closure.
          **functions: functions of no arguments that return a loss at the parameters as they are, for classes
            that ask for them.

        Returns:
          The loss: what the closure returned, or `value`.

        Raises:
          OuteroptError: a gradient is sparse, or the class needs a function that was not given.
        """
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        params = [param for group in self.param_groups for param in group["params"] if param.grad is not None]
        if params:
            if any(param.grad.is_sparse for param in params):
                raise OuteroptError(
                    f"{type(self).__name__} takes no sparse gradients; give nn.Embedding sparse=False."
                )
            shared = self._shared(params[0])
            for param in params:
                state = self.state[param]
                if not state or (len(state) == 1 and SHARED in state):
                    state.update(self.begin(widened(param.detach())))
            self.move(params, shared, value, **functions)
        return value

    def eval(self) -> None:
        """Moves the parameters to where the inner optimizer is to be evaluated, until `train` is called."""
        if isinstance(self.base, Optimizer | Wrapping):
            self.base.eval()

    def train(self) -> None:
        """Moves the parameters back to where they train, exactly."""
        if isinstance(self.base, Optimizer | Wrapping):
            self.base.train()

    def play(self, tuned: Sequence[dict[str, Any]] = ()) -> None:
        """A step of the inner optimizer.

        Args:
          tuned: settings of each group in place of the user's; numbers or tensors.
        """
        inner = self.base.param_groups
        for group, own, other in zip(inner, self.param_groups, tuned or [{}] * len(inner)):
            for name, value in {**own, **other}.items():
                old = group.get(name)
                if name == "params" or old is value:
                    continue
                if isinstance(value, Tensor) and isinstance(old, Tensor):
                    # In place: a compiled step that changed the group itself would be compiled again.
                    old.copy_(value)
                elif isinstance(value, Tensor) or isinstance(old, Tensor) or old != value:
                    group[name] = own_copy(value)
        ours = isinstance(self.base, Optimizer | Wrapping)
        if torch.compiler.is_compiling() and not ours:
            # What torch wraps around its own steps cannot be traced from within another step.
            inspect.unwrap(type(self.base).step)(self.base)
            return
        # Where a tensor would be read again for every parameter it is read once.
        read = [
            group
            for group in inner
            if not ours and not group.get("capturable") and isinstance(group["lr"], Tensor)
        ]
        rates = [group["lr"] for group in read]
        for group, rate in zip(read, rates):
            group["lr"] = rate.item()
        try:
            self.base.step()
        finally:
            for group, rate in zip(read, rates):
                group["lr"] = rate

    def diagnostics(self) -> dict[str, float]:
        """What it says of itself, by name."""
        return self.base.diagnostics() if isinstance(self.base, Wrapping) else {}

    def _shared(self, like: Tensor) -> dict[str, Tensor]:
        first = self.state[self.param_groups[0]["params"][0]]
        if SHARED not in first:
            zero = widened(torch.zeros((), dtype=like.dtype, device=like.device))
            first[SHARED] = self.begin_shared(zero)
        return first[SHARED]

    def shared(self) -> dict[str, Tensor]:
        """What is shared, as it is now."""
        return self._shared(self.param_groups[0]["params"][0].detach())

    def states(self, params: list[Tensor], name: str) -> list[Tensor]:
        """One entry of the states of some parameters."""
        return [self.state[param][name] for param in params]

    def idle(self, name: str) -> Iterator[Tensor]:
        """One entry of the states of parameters that have no gradient now."""
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None and name in self.state.get(param, {}):
                    yield self.state[param][name]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, to the inner optimizer too."""
        if len(self.param_groups) == len(self.base.param_groups):
            self.base.add_param_group(param_group)
            param_group = dict(self.base.param_groups[-1])
        super().add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """As of every optimizer, with the inner optimizer's as `"base"`."""
        return {**super().state_dict(), "base": self.base.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what `state_dict` gave, exactly: numbers keep their types, and share no memory with it.

        Raises:
          OuteroptError: it is the state of another optimizer.
        """
        if "base" not in state_dict:
            raise OuteroptError(
                f"This state is not one of {type(self).__name__}: it has no base. Load it into the optimizer "
                f"inside, {type(self.base).__name__}, as optimizer.base.load_state_dict(state)."
            )
        own = {name: entry for name, entry in state_dict.items() if name != "base"}
        super().load_state_dict(own)
        # Torch's own optimizers would go on in the tensors that they are given.
        self.base.load_state_dict(deepcopy(state_dict["base"]))
        params = [param for group in self.param_groups for param in group["params"]]
        numbers = [number for group in own["param_groups"] for number in group["params"]]
        for param, number in zip(params, numbers):
            if number in own["state"]:
                self.state[param] = moved(own["state"][number], param.device)

    def __getstate__(self) -> dict[str, Any]:
        # A scheduler hangs a function of its own in the place of `step`.
        return {name: value for name, value in vars(self).items() if name[0] != "_" and name != "step"}


@contextmanager
def gradients(params: list[Tensor], stand_ins: list[Tensor]) -> Iterator[None]:
    """Within it, other tensors stand in for the gradients of parameters."""
    own = grads_of(params)
    if torch.compiler.is_compiling():
        # A compiled step cannot give a parameter another tensor.
        kept = [grad.clone() for grad in own]
        torch._foreach_copy_(own, stand_ins)
        yield
        torch._foreach_copy_(own, kept)
        return
    for param, grad in zip(params, stand_ins):
        param.grad = grad.to(param.dtype)
    try:
        yield
    finally:
        for param, grad in zip(params, own):
            param.grad = grad


def grads_of(params: list[Tensor]) -> list[Tensor]:
    """The gradients of parameters that all have one."""
    return [param.grad for param in params if param.grad is not None]


def own_copy(value: Any) -> Any:
    """A setting, which shares no memory if it is a tensor."""
    return value.detach().clone() if isinstance(value, Tensor) else value


def checked_rate(name: str, lr: float) -> float:
    """A learning rate that may be used.

    Raises:
      OuteroptError: it may not.
    """
    check(name, {"lr": lr})
    return lr


def all_finite(tensors: list[Tensor]) -> Tensor:
    """Whether every entry is finite, as a tensor."""
    return torch.stack([torch.isfinite(tensor).all() for tensor in tensors]).all()
