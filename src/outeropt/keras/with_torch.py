"""Optimizers of PyTorch on Keras's PyTorch backend, without JAX."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import torch

import outeropt.torch
from outeropt.errors import OuteroptError
from outeropt.keras.engines import Engine, full_name, needs_more


# What the entries of a store are called that hold the state.
FORM, TENSOR = "form", "tensor_"


class TorchEngine(Engine):
    """A `torch.optim.Optimizer` on the tensors of Keras's variables; Keras's learning rate is its `lr`."""

    @staticmethod
    def names() -> list[str]:
        return outeropt.torch.names()

    def __init__(self, name: str, num_steps: int | None, settings: Mapping[str, Any]):
        super().__init__(full_name(name, self.names()), num_steps, settings)
        # Of one parameter, so that mistakes are told now.
        self.inner = self._make([torch.nn.Parameter(torch.zeros(1))])

    @property
    def learning_rate(self) -> float:
        return float(self.inner.param_groups[0]["lr"])

    def build(self, owner: keras.optimizers.Optimizer, variables: Sequence[keras.Variable]) -> None:
        del owner
        self.inner = self._make([variable.value for variable in variables])

    def _make(self, params: list[torch.Tensor]) -> torch.optim.Optimizer:
        word, _, rest = self.name.partition(":")
        timed = {} if self.num_steps is None else {"num_steps": self.num_steps}
        try:
            if word == "learned":
                return outeropt.torch.load(rest, params, **timed, **self.settings)
            return outeropt.torch.get(self.name, params, **timed, **self.settings)
        except TypeError as error:
            raise OuteroptError(f"{self.name} does not take what it is given in PyTorch: {error}.") from error

    def step(self, grads: Sequence[Any], variables: Sequence[keras.Variable], learning_rate: Any) -> None:
        for group in self.inner.param_groups:
            group["lr"] = float(learning_rate)
            for param in group["params"]:
                param.grad = None
        for variable, grad in zip(variables, grads):
            variable.value.grad = grad.to(variable.value.dtype)
        try:
            self.inner.step()
        except OuteroptError as error:
            raise needs_more(self.name, error) from error

    def swap(self) -> list[Any]:
        if hasattr(self.inner, "eval"):
            self.inner.eval()  # pyright: ignore[reportAttributeAccessIssue]
        return []

    def swap_back(self, kept: list[Any]) -> None:
        if hasattr(self.inner, "train"):
            self.inner.train()  # pyright: ignore[reportAttributeAccessIssue]

    def save(self, store: Any) -> None:
        tensors: list[torch.Tensor] = []
        form = json.dumps(_taken_apart(self.inner.state_dict(), tensors))
        store[FORM] = np.frombuffer(form.encode(), np.uint8)
        for index, tensor in enumerate(tensors):
            # numpy has no bfloat16, and float32 has all its numbers.
            wide = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
            store[f"{TENSOR}{index}"] = wide.detach().cpu().numpy()

    def load(self, store: Any) -> None:
        form = json.loads(np.array(store[FORM]).tobytes())
        self.inner.load_state_dict(_together(form, lambda index: np.array(store[f"{TENSOR}{index}"])))


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


def _together(form: Any, array: Any) -> Any:
    """The inverse of `_taken_apart`."""
    ((kind, value), *rest) = form.items()
    if kind == "tensor":
        return torch.tensor(array(value), dtype=getattr(torch, dict(rest)["dtype"]))
    if kind == "dict":
        return {key: _together(entry, array) for key, entry in value}
    if kind in ("list", "tuple"):
        entries = [_together(entry, array) for entry in value]
        return tuple(entries) if kind == "tuple" else entries
    return value
