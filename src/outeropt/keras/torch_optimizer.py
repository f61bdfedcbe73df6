"""Any optimizer of `outeropt.torch` as a Keras optimizer on the PyTorch backend.

It moves the model's own tensors. Its state is not in Keras variables: most of it begins with the first step.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import torch

import outeropt.torch
from outeropt.errors import ConfigError, OuteroptError
from outeropt.keras.base import KerasOptimizer, needs_more


FORM, TENSOR = "torch_form", "torch_tensor_"
"""How the entries of a saved model are called that hold the state: JSON, and its tensors by number."""


@keras.saving.register_keras_serializable(package="outeropt", name="Optimizer")
class Optimizer(KerasOptimizer):
    """An optimizer of `outeropt.torch` as a Keras optimizer; see `load` for its arguments."""

    def __init__(
        self,
        method: str,
        learning_rate: Any = None,
        *,
        num_steps: int | None = None,
        seed: int = 0,
        hyperparameters: Mapping[str, Any] | None = None,
        **settings: Any,
    ):
        own = dict(hyperparameters or {})
        if isinstance(learning_rate, int | float):
            own["lr"] = learning_rate
        defaults = _try(method, num_steps, own).defaults
        if settings.get("weight_decay") is not None and "weight_decay" in defaults:
            own["weight_decay"] = settings.pop("weight_decay")
            _try(method, num_steps, own)
        own.pop("lr", None)
        if learning_rate is None:
            learning_rate = float(defaults["lr"])
        super().__init__(
            method, learning_rate, num_steps=num_steps, seed=seed, hyperparameters=own, **settings
        )
        self._inner: Any = None

    def build(self, variables: Any) -> None:
        """Gives the variables' tensors to the optimizer."""
        if self.built:
            return
        super().build(variables)
        params = [variable.value for variable in self.moved()]
        settings = {**self.hyperparameters, "lr": float(self._rate())}
        self._inner = _make(self.method, params, self.num_steps, settings)

    def _rate(self) -> torch.Tensor:
        rate: Any = keras.ops.convert_to_tensor(self.learning_rate)
        return rate.detach()

    @torch.no_grad()
    def _backend_update_step(self, grads: Any, trainable_variables: Any, learning_rate: Any) -> None:
        del learning_rate
        params = [param for group in self._inner.param_groups for param in group["params"]]
        given = {id(variable.value): grad for variable, grad in zip(trainable_variables, grads)}
        kept = [param.grad for param in params]
        for group in self._inner.param_groups:
            group["lr"] = self._rate()
        for param in params:
            param.grad = given.get(id(param))
        try:
            self._inner.step()
        finally:
            for param, grad in zip(params, kept):
                param.grad = grad

    def eval(self) -> None:
        if self._inner is not None:
            self._inner.eval()

    def train(self) -> None:
        if self._inner is not None:
            self._inner.train()

    def save_own_variables(self, store: Any) -> None:
        """Puts Keras's numbers and the state into a store."""
        super().save_own_variables(store)
        if self._inner is not None:
            tensors: list[torch.Tensor] = []
            form = json.dumps(_taken_apart(self._inner.state_dict(), tensors))
            store[FORM] = np.frombuffer(form.encode(), np.uint8)
            for number, tensor in enumerate(tensors):
                # numpy has no bfloat16, and float32 has all its numbers.
                wide = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
                store[f"{TENSOR}{number}"] = wide.detach().cpu().numpy()

    def load_own_variables(self, store: Any) -> None:
        """Sets Keras's numbers and the state to saved ones."""
        names = list(store.keys())
        super().load_own_variables({name: store[name] for name in names if not name.startswith("torch_")})
        if self._inner is not None and FORM in names:
            form = json.loads(np.array(store[FORM]).tobytes())
            self._inner.load_state_dict(
                _together(form, lambda number: np.array(store[f"{TENSOR}{number}"]), self._rate().device)
            )


def _make(method: str, params: Any, num_steps: int | None, settings: dict[str, Any]) -> Any:
    """The torch optimizer, which is told the length of the run if it asks for it."""
    name = f"learned:{method}" if f"learned:{method}" in outeropt.torch.names() else method
    word, _, weights = name.partition(":")
    timed = {} if num_steps is None else {"num_steps": num_steps}
    for told in [timed, {}] if timed else [{}]:
        try:
            if word == "learned":
                return outeropt.torch.load(weights, params, **settings, **told)
            return outeropt.torch.get(name, params, **settings, **told)
        except TypeError as error:
            if not (told and "num_steps" in str(error)):
                raise ConfigError(f"{method}: {error}.") from error
    raise AssertionError


def _try(method: str, num_steps: int | None, settings: dict[str, Any]) -> Any:
    """The optimizer of a small model after a step, so that what it lacks is said when it is made.

    Raises:
      OuteroptError: there is none, it needs more than gradients, or the length of the run.
    """
    params = [torch.nn.Parameter(torch.ones(shape)) for shape in ((2, 3), (3,))]
    made = _make(method, params, num_steps, settings)
    for param in params:
        param.grad = torch.ones_like(param)
    try:
        made.step()
    except OuteroptError as error:
        raise needs_more(method, error) from None
    return made


def _taken_apart(value: Any, tensors: list[torch.Tensor]) -> Any:
    """A state as JSON, with its tensors in a list."""
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return {"tensor": len(tensors) - 1, "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, dict):
        return {"dict": [[key, _taken_apart(entry, tensors)] for key, entry in value.items()]}
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_taken_apart(entry, tensors) for entry in value]}
    return {"plain": value}


def _together(form: Any, array: Callable[[int], np.ndarray], device: torch.device) -> Any:
    """The inverse of `_taken_apart`."""
    ((kind, value), *rest) = form.items()
    if kind == "tensor":
        return torch.tensor(array(value), dtype=getattr(torch, dict(rest)["dtype"]), device=device)
    if kind == "dict":
        return {key: _together(entry, array, device) for key, entry in value}
    if kind in ("list", "tuple"):
        entries = [_together(entry, array, device) for entry in value]
        return tuple(entries) if kind == "tuple" else entries
    return value
