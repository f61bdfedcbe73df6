"""RNNProp: an LSTM for each coordinate that reads what Adam and RMSProp would do."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from outeropt.errors import ConfigError
from outeropt.torch.learned.base import LearnedOptimizer
from outeropt.torch.optimizer import Batch


# Coordinates for which the network runs at once: on a CPU what it makes of them stays in the cache.
BLOCK, WIDE_BLOCK = 8192, 2**18

# The step in units of `output_scale`, from the network's output and the scaled mean and gradient.
_MOVES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "update": lambda out, mean, grad: out,
    "adam": lambda out, mean, grad: torch.exp(out) * mean,
    "rmsprop": lambda out, mean, grad: torch.exp(out) * grad,
}


class Network(NamedTuple):
    """The network.

    Attributes:
      gates: for each layer the weights `[4 hidden, inputs + hidden + 1]` of input gate, forget gate, output
        gate and candidate, in this order, on inputs, hidden state and 1.
      head: weight `[1, hidden]`.
      bias: of the head, `[1]`.
    """

    gates: list[Tensor]
    head: Tensor
    bias: Tensor


class RNNProp(LearnedOptimizer):
    """A stack of LSTMs with shared weights that runs on each coordinate by itself and reads scaled gradients.

    With averages m and v of the gradient and its square, and `r = sqrt(v / (1 - b2) + eps)`:

        m~ = m / (1 - b1) / r      g~ = g / r      h, state = LSTMs([m~, g~], state)      o = tanh(h w + b)
        x <- x - lr output_scale o

    In the first `warmup_steps` steps `x <- x - lr warmup_rate g`, and the network rests. Lv, Jiang and Li,
    "Learning gradient descent: better generalization and longer horizons", 2017, arXiv 1703.03633; the
    students of Huang et al., "Optimizer amalgamation", 2022, arXiv 2203.06474. `outeropt.learned.RNNProp` in
    torch. With the weights that ship it keeps 82 copies of the parameters: it is for small models.

        optimizer = RNNProp(model.parameters(), "amalgam-choice-large-7")

    Args:
      params: as for `torch.optim.Optimizer`.
      weights: a name such as `"amalgam-choice-large-7"`, a file, or a folder of `outeropt amalgamate`.
      lr: factor on the update, for groups and schedulers.
      num_steps: ignored.
      **settings: `warmup_steps` (100 for the weights that ship), `warmup_rate`, `output_scale`, `decays`,
        `eps` and `output` (`"update"`, `"adam"` or `"rmsprop"`) in place of those in the file.
    """

    def check_settings(self) -> None:
        own = self.settings
        if own["output"] not in _MOVES:
            raise ConfigError(f"There is no output = {own['output']!r}; give {', '.join(_MOVES)}.")
        if own["warmup_steps"] < 0:
            raise ConfigError(f"warmup_steps must be at least 0, not {own['warmup_steps']}.")
        if not 0 <= own["warmup_rate"] < float("inf"):
            raise ConfigError(f"warmup_rate must be a number from 0 on, not {own['warmup_rate']}.")
        if len(own["decays"]) != 2 or not all(0 <= decay < 1 for decay in own["decays"]):
            raise ConfigError(f"decays must be two numbers from 0 to below 1, not {own['decays']}.")
        if not own["eps"] > 0:
            raise ConfigError(f"eps must be above 0, not {own['eps']}.")

    def prepare(self, weights: dict[str, Tensor]) -> Network:
        gates, inputs, layers = [], 2, self.settings["hidden_sizes"]
        if len(weights) != 3 * len(layers) + 2:
            raise ValueError(f"{len(weights)} arrays are not those of {len(layers)} layers")
        for index, hidden in enumerate(layers):
            parts = [weights[f"lstms.layers[{index}].{part}"] for part in ("kernel", "recurrent_kernel")]
            both = torch.cat([*parts, weights[f"lstms.layers[{index}].bias"][None]])
            if both.shape != (inputs + hidden + 1, 4 * hidden):
                raise ValueError(f"layer {index} has other sizes")
            i, f, candidate, o = both.T.split(hidden)
            gates.append(torch.cat([i, f, o, candidate]))
            inputs = hidden
        return Network(gates, weights["head.weight"].T.contiguous(), weights["head.bias"])

    def begin(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        del group
        rows = 2 * sum(self.settings["hidden_sizes"])
        return {
            "mean": torch.zeros_like(param),
            "square": torch.zeros_like(param),
            "lstms": param.new_zeros((rows, param.numel())),
        }

    def move(self, batches: list[Batch], shared: dict[str, Tensor], value: Tensor | None) -> None:
        count, warmup = shared["count"], self.settings["warmup_steps"]
        b1, b2 = self.settings["decays"]
        for batch in batches:
            torch._foreach_lerp_(batch.state("mean"), batch.grads, 1.0 - b1)
            torch._foreach_mul_(batch.state("square"), b2)
            torch._foreach_addcmul_(batch.state("square"), batch.grads, batch.grads, value=1.0 - b2)
        resting = count < warmup if warmup else None
        # To look at a number is free on a CPU only. Elsewhere both are done, and one of them is taken.
        if resting is not None and count.device.type == "cpu" and not torch.compiler.is_compiling():
            if resting:
                for batch in batches:
                    self.step_down(batch)
                batches = []
            resting = None
        for batch in batches:
            self.step_by_network(batch, resting)
        count.add_(1)

    def step_down(self, batch: Batch) -> None:
        """A step of SGD."""
        steps = torch._foreach_mul(batch.grads, -self.settings["warmup_rate"])
        torch._foreach_mul_(steps, batch.group["lr"])
        torch._foreach_add_(batch.params, steps)

    def step_by_network(self, batch: Batch, resting: Tensor | None) -> None:
        """A step of the network; where `resting` is true, one of SGD."""
        means, squares = ([each.reshape(1, -1) for each in batch.state(name)] for name in ("mean", "square"))
        grads, states = [grad.reshape(1, -1) for grad in batch.grads], batch.state("lstms")
        moves = [torch.empty_like(grad) for grad in grads]
        narrow = grads[0].device.type == "cpu" and not torch.compiler.is_compiling()
        b1, b2 = self.settings["decays"]
        places = blocks([grad.shape[1] for grad in grads], BLOCK if narrow else WIDE_BLOCK)
        sizes = self.settings["hidden_sizes"]
        longest = max([0, *(sum(length for _, _, length in pieces) for pieces in places)])
        # One memory for all blocks: to ask for it anew would take longer than to fill it.
        scratch = grads[0].new_empty((3 + 6 * max(sizes)) * longest)
        for pieces in places:
            grad, mean, square, last = (together(whole, pieces) for whole in (grads, means, squares, states))
            over_root = torch.rsqrt(square / (1.0 - b2) + self.settings["eps"])
            scaled_mean, scaled_grad = mean / (1.0 - b1) * over_root, grad * over_root
            following = last.clone() if resting is not None else last
            out = self.read(torch.cat([scaled_mean, scaled_grad]), following, scratch)
            move = _MOVES[self.settings["output"]](out, scaled_mean, scaled_grad)
            move = move * self.settings["output_scale"]
            if resting is not None:
                move = torch.where(resting, self.settings["warmup_rate"] * grad, move)
                following = torch.where(resting, last, following)
            at = 0
            for index, start, length in pieces:
                moves[index].narrow(1, start, length).copy_(move.narrow(1, at, length))
                if len(pieces) > 1 or resting is not None:
                    states[index].narrow(1, start, length).copy_(following.narrow(1, at, length))
                at += length
        torch._foreach_mul_(moves, -1.0)
        torch._foreach_mul_(moves, batch.group["lr"])
        torch._foreach_add_(batch.params, [move.view_as(own) for move, own in zip(moves, batch.params)])

    def read(self, x: Tensor, state: Tensor, scratch: Tensor) -> Tensor:
        """The network's output `[1, coordinates]` on inputs `[2, coordinates]`, and its next state in place.

        Hidden state and cell of each layer stand one below the other; `scratch` may be overwritten.
        """
        network, at, count = self.network(x), 0, x.shape[1]
        for weight, size in zip(network.gates, self.settings["hidden_sizes"]):
            hidden, cell = state[at : at + size], state[at + size : at + 2 * size]
            rows, inputs = weight.shape
            gates = scratch[: rows * count].view(rows, count)
            given = scratch[rows * count : (rows + inputs) * count].view(inputs, count)
            given[: len(x)].copy_(x)
            given[len(x) : -1].copy_(hidden)
            given[-1].fill_(1.0)
            torch.mm(weight, given, out=gates)
            i, f, o = gates[: 3 * size].sigmoid_().split(size)
            cell.mul_(f).addcmul_(i, gates[3 * size :].tanh_())
            hidden.copy_(cell).tanh_().mul_(o)
            x, at = hidden, at + 2 * size
        return torch.addmm(network.bias, network.head, x).tanh_()


Piece = tuple[int, int, int]


def blocks(sizes: list[int], most: int) -> list[list[Piece]]:
    """The coordinates of all tensors, in blocks of at most so many.

    Returns:
      For each block its pieces: the tensor, where the piece starts and its length.
    """
    found: list[list[Piece]] = []
    room = 0
    for index, size in enumerate(sizes):
        start = 0
        while start < size:
            if room == 0:
                found.append([])
                room = most
            length = min(room, size - start)
            found[-1].append((index, start, length))
            start, room = start + length, room - length
    return found


def together(tensors: list[Tensor], pieces: list[Piece]) -> Tensor:
    """The pieces of tensors `[rows, coordinates]` side by side; a view if it is one piece."""
    parts = [tensors[index].narrow(1, start, length) for index, start, length in pieces]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
