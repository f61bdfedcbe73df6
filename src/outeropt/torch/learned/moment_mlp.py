"""What AdafacMLP and MLPNominal have in common: one network on the same moments of each tensor."""

import abc
import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from outeropt.errors import ConfigError
from outeropt.torch.learned import moments
from outeropt.torch.learned.base import LearnedOptimizer
from outeropt.torch.learned.moments import FEATURES, FULL, ORDER, SIDE, TIME_SCALES, Decays, Sources
from outeropt.torch.optimizer import Batch


SCHEDULES = ("constant", "linear", "cosine")

# Coordinates of a part of a tensor whose features are written down together. With smaller parts a CPU spends
# its time on calls, with larger ones it waits for memory (benchmarks/torch_learned_step.py).
BLOCK, WIDE_BLOCK = 65_536, 2**20


class Network(NamedTuple):
    """The network and what its inputs are averaged with.

    Attributes:
      layers: weight `[outputs, inputs]` and bias `[outputs, 1]` of each; the first without the time.
      time: weight `[outputs, times]` of the time in the first layer.
      scales: those of the time.
      decays: shares of new gradients in the averages.
    """

    layers: list[tuple[Tensor, Tensor]]
    time: Tensor
    scales: Tensor
    decays: Decays


class MomentMLP(LearnedOptimizer):
    """A network on 28 features of each parameter and 11 of the time. Subclasses make a step of its outputs.

    Features are divided by their root mean square over the tensor, in the first layer. They are made twice,
    for those means and for the network, in parts: the features of a whole tensor are never written down.
    """

    outputs: int

    @property
    @abc.abstractmethod
    def needs_means(self) -> bool:
        """Whether `finish` asks for means over the tensor."""

    @abc.abstractmethod
    def finish(self, outputs: Tensor, sources: Sources, means: Sequence[Tensor]) -> Tensor:
        """What is subtracted from the parameters.

        Args:
          outputs: of the network, `[outputs, *shape]`; may be overwritten.
          sources: of the same part of a tensor.
          means: those of the outputs over the whole tensor and that of the gradient, if `needs_means`.
        """

    def check_settings(self) -> None:
        if self.settings["schedule"] not in SCHEDULES:
            raise ConfigError(
                f"There is no schedule = {self.settings['schedule']!r}; give one of {', '.join(SCHEDULES)}."
            )

    def prepare(self, weights: dict[str, Tensor]) -> Network:
        widths = [self.settings["hidden_size"]] * self.settings["hidden_layers"]
        sizes = [FEATURES + len(TIME_SCALES), *widths, self.outputs]
        layers = []
        for index, (inputs, outputs) in enumerate(pairwise(sizes)):
            weight, bias = (weights[f"net.layers[{index}].{part}"] for part in ("weight", "bias"))
            if weight.shape != (inputs, outputs):
                raise ValueError(f"layer {index} maps {weight.shape[0]} inputs to {weight.shape[1]} outputs")
            layers.append((weight.T.contiguous(), bias[:, None]))
        (first, bias), *rest = layers
        layers = [(first[:, list(ORDER)], bias), *rest]
        scales = torch.tensor(TIME_SCALES).to(first)
        return Network(layers, first[:, FEATURES:], scales, moments.learned_decays(weights))

    def begin(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        del group
        return moments.zeros(torch.atleast_1d(param))

    def move(self, batches: list[Batch], shared: dict[str, Tensor], value: Tensor | None) -> None:
        count = shared["count"]
        for batch in batches:
            factor = -self.schedule(count, batch.group["num_steps"]) * batch.group["lr"]
            for param, grad, state in zip(batch.params, batch.grads, batch.states):
                if param.numel():
                    self.move_tensor(torch.atleast_1d(param), torch.atleast_1d(grad), state, count, factor)
        count.add_(1)

    def schedule(self, count: Tensor, num_steps: int | None) -> Tensor:
        """What the next update is multiplied with: 1, or from 1 at the first step down to 0 at the end."""
        if self.settings["schedule"] == "constant" or num_steps is None:
            return torch.ones_like(count)
        progress = torch.clamp_max(count / num_steps, 1.0)
        if self.settings["schedule"] == "linear":
            return 1.0 - progress
        return 0.5 * (1.0 + torch.cos(math.pi * progress))

    def move_tensor(
        self, param: Tensor, grad: Tensor, state: dict[str, Tensor], count: Tensor, factor: Tensor
    ) -> None:
        """One step of one tensor of rank 1 or more, in place."""
        layers, time, scales, decays = self.network(param)
        moments.advance_factored(state, grad, decays)
        whole = Sources.of(grad, param, state)
        narrow = param.device.type == "cpu" and not torch.compiler.is_compiling()
        places = cuts(param.shape, BLOCK if narrow else WIDE_BLOCK)
        parts = [(whole.part(*place), place[2] / param.shape[place[0]]) for place in places]
        scratch = param.new_empty(FULL * max(part.grad.numel() for part, _ in parts))

        full, squares = scratch, param.new_zeros(FEATURES)
        for part, share in parts:
            part.advance(decays)
            full = part.full(scratch)
            squares += share * mean_squares(full, part)
        first, bias = layers[0]
        bias = torch.addmv(bias[:, 0], time, moments.tanh_embedding(count.to(param), scales))[:, None]
        layers = [(first * torch.rsqrt(1e-5 + squares), bias), *layers[1:]]

        def outputs() -> Iterator[tuple[Tensor, Sources, float]]:
            for part, share in parts:
                # What lies in the memory of the features is, of a single part, still right.
                made = full if len(parts) == 1 else part.full(scratch)
                yield evaluate(layers, made, part), part, share

        means: Sequence[Tensor] = ()
        if self.needs_means:
            mean = sum(share * out.reshape(self.outputs, -1).mean(dim=1) for out, _, share in outputs())
            means = [*mean.unbind(), grad.mean()]  # pyright: ignore[reportAttributeAccessIssue]
        for out, part, _ in outputs():
            part.param.addcmul_(self.finish(out, part, means), factor.to(param))


def cuts(shape: Sequence[int], most: int) -> list[tuple[int, int, int]]:
    """Parts of a tensor along one axis, of about so many coordinates: the axis, the start and the length.

    The axis is the first one, where a part is one piece of memory, unless its slices are too large.
    """
    count = math.prod(shape)
    axis = 0 if count <= most * shape[0] else max(range(len(shape)), key=lambda a: shape[a])
    length = max(1, most * shape[axis] // count)
    return [(axis, at, min(length, shape[axis] - at)) for at in range(0, shape[axis], length)]


def mean_squares(full: Tensor, part: Sources) -> Tensor:
    """The mean square of each of the 28 features."""
    sides = [side.reshape(SIDE, -1).square().mean(dim=1) for side in part.sides()]
    return torch.cat([torch.linalg.vector_norm(full, dim=1).square() / full.shape[1], sides[0], sides[-1]])


def evaluate(layers: list[tuple[Tensor, Tensor]], full: Tensor, part: Sources) -> Tensor:
    """The network's outputs `[outputs, *shape]`, from the features of each parameter and of its part.

    A feature that is constant along an axis meets its weights before it is spread out.
    """
    first, bias = layers[0]
    units = (first[:, :FULL] @ full).view(-1, *part.grad.shape)
    weights = [first[:, FULL : FULL + SIDE], first[:, FULL + SIDE :]]
    sides = part.sides()
    if len(sides) == 1:
        weights = [weights[0] + weights[1]]
    for weight, side in zip(weights, sides):
        units += torch.addmm(bias, weight, side.reshape(SIDE, -1)).view(-1, *side.shape[1:])
        bias = torch.zeros_like(bias)
    units = units.view(len(units), -1)
    for weight, bias in layers[1:]:
        units = torch.addmm(bias, weight, units.relu_())
    return units.view(-1, *part.grad.shape)
