"""One-pass tuning by implicit differentiation of the weight update, around a torch optimizer."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from outeropt.errors import OuteroptError
from outeropt.torch.arithmetic import inner, squared_norm
from outeropt.torch.optimizer import moved, widened
from outeropt.torch.selftuning.control.rollouts import gradient_of
from outeropt.torch.selftuning.meta import Meta, MetaAdam
from outeropt.torch.selftuning.onepass.coordinates import Coordinate, Coordinates, coordinates_of
from outeropt.torch.selftuning.onepass.rules import rule_of
from outeropt.torch.selftuning.wrapping import Wrapping, grads_of


Loss = Callable[[], Tensor]
META = MetaAdam(0.05)
"""What moves coordinates where nothing else is said: half a decade in ten tunings at the most."""


class OnePass(Wrapping):
    """Tunes hyperparameters of the optimizer inside in one run, by the parameters' best response to them.

    Clarke, Oldewage and Hernandez-Lobato, "Scalable One-Pass Optimisation of High-Dimensional Weight-Update
    Hyperparameters by Implicit Differentiation", 2022, arXiv 2110.10461. With `F(w, z)` the map of one step
    (gradient on its minibatch, update of the optimizer inside at the coordinates `z`) and `V` the validation
    loss, once in a block of `every` steps

        h = grad V(F(w, z))  sum_(j < lookback) (dF/dw)^j  dF/dz;      z = meta's step on z with gradient h

    which is what unrolling gives if all earlier parameters had been the present ones.
    `outeropt.selftuning.OnePass` in torch.

        loss = train_loss()
        loss.backward()
        optimizer.step(train_loss=train_loss, valid_loss=valid_loss, value=loss.detach())

    `train_loss()` and `valid_loss()` return the loss of this step's training minibatch and of one of other
    data, at the parameters as they are, without `backward`. They are called every `every` steps alone: once
    each, and the gradient of the former is differentiated `lookback - 1` times; all other steps cost what
    those of `base` do. Gradients in `grad` may have been clipped, unscaled or reduced. `train_loss` draws its
    own dropout masks.

    Where the training loss (`value`, or what the closure returns) is not finite, or has risen from the first
    one's `f` to more than `f + (rescue - 1) |f|`, the run is lost: it goes back to the last block's
    beginning, to learn at a tenth of the learning rate, if that is tuned. This reads the loss at every step.
    Without a `value` nothing is rescued. A hypergradient that is not finite teaches nothing, and is counted
    as `skipped`.

    What is in `param_groups` stays as it was set, and is scaled: see `Coordinate`. So a scheduler of `lr`
    multiplies what is tuned. `diagnostics` says where the hyperparameters are.

    Args:
      base: `torch.optim.SGD`, `Adam` or `AdamW`.
      tune: which of `"lr"`, `"weight_decay"`, `"momentum"`, `"beta1"`, `"beta2"`.
      lookback: terms of the sum, at least 1. An even sum leaves out its last term if that is the longest: it
        can point the wrong way where the map expands.
      every: steps from one tuning to the next.
      meta: moves the coordinates.
      coordinates: `"decades"` (log10 of rates, logit of momenta), `"log"` (natural logarithms) or `"plain"`.
      ranges: ranges of values by name, in place of 1e-7 to 1e3 for rates, 0.5 to 0.999 for momenta (0.8 to
        0.99999 for `"beta2"`).
      rescue: how high the training loss may rise, relative to the first one; above 1, or `math.inf`.

    Raises:
      UnknownName: `base` has no such hyperparameter.
      OuteroptError: `base` is another one, a setting is not allowed, or (from `step`) a loss is missing.
    """

    def __init__(
        self,
        base: torch.optim.Optimizer,
        tune: Sequence[str] = ("lr",),
        lookback: int = 5,
        every: int = 10,
        meta: Meta = META,
        coordinates: Coordinates = "decades",
        ranges: Mapping[str, tuple[float, float]] | None = None,
        rescue: float = 2.0,
    ):
        for name, value in {"lookback": lookback, "every": every}.items():
            if value < 1:
                raise OuteroptError(f"OnePass: {name} = {value} is not allowed; give at least 1.")
        if not rescue > 1.0:
            raise OuteroptError(f"OnePass: rescue = {rescue} is not allowed; give more than 1, or math.inf.")
        super().__init__(base)
        self.lookback, self.every, self.meta, self.rescue = lookback, every, meta, rescue
        tune = (tune,) if isinstance(tune, str) else tuple(tune)
        self.charts: list[Coordinate] = coordinates_of(base.param_groups, tune, coordinates, ranges or {})
        rule_of(base)
        self.rescues = "lr" in tune and rescue < math.inf

    def begin_shared(self, zero: Tensor) -> dict[str, Tensor]:
        # On the host, where all of it is read at every step.
        numbers = {name: torch.zeros((), dtype=torch.int64) for name in ("count", "skipped", "rescued")}
        starts = torch.tensor([chart.start for chart in self.charts], dtype=zero.dtype)
        point = torch.tensor([chart.of(chart.start) for chart in self.charts], dtype=zero.dtype)
        first = torch.tensor(math.inf, dtype=zero.dtype)
        shared = {"point": point, "reference": starts, "learned": torch.zeros_like(first), "first": first}
        return {**shared, **numbers, **self.meta.begin(point)}

    def move(self, params: list[Tensor], shared: dict[str, Tensor], value: Any, **functions: Any) -> None:
        train_loss, valid_loss = (self._asked(functions, name) for name in ("train_loss", "valid_loss"))
        count = int(shared["count"])
        if not count and self.rescues:
            self._anchor(params, [param.detach() for param in params], [{}] * len(params))
        due = (count + 1) % self.every == 0
        lost = self._lost(shared, value, count)
        before = [param.detach().clone() for param in params] if due else []
        states = (
            [moved(dict(self.base.state.get(param, {})), param.device) for param in params] if due else []
        )
        if due or not lost:
            values = [chart.value(z).item() for chart, z in zip(self.charts, shared["point"])]
            self.play([self._settings(group, values) for group in self.param_groups])
        if due:
            self._learn(params, before, states, shared, train_loss, valid_loss)
        if lost:
            for param in params:
                if "anchor" in self.state[param]:
                    anchor = moved(self.state[param]["anchor"], param.device)
                    param.copy_(anchor["param"])
                    self.base.state[param] = anchor["base"]
            shared["point"].copy_(self._slower(shared["point"]))
            shared["rescued"].add_(1)
        elif due and self.rescues:
            self._anchor(params, before, states)
        shared["count"].add_(1)

    def _asked(self, functions: dict[str, Any], name: str) -> Loss:
        if functions.get(name) is None:
            raise OuteroptError(
                f"OnePass needs {name} at every step: step(train_loss=f, valid_loss=g), with f() and g() the "
                "losses of a training and a validation minibatch at the parameters as they are."
            )
        return functions[name]

    def _lost(self, shared: dict[str, Tensor], value: Any, count: int) -> bool:
        """Whether the loss has risen too high."""
        if value is None or not self.rescues:
            return False
        loss = float(value)
        if not count:
            shared["first"].fill_(loss)
        first = shared["first"].item()
        return not loss <= first + (self.rescue - 1.0) * abs(first)

    def _anchor(self, params: list[Tensor], values: list[Tensor], states: list[dict[str, Any]]) -> None:
        """Remembers parameters and states of the optimizer inside, to go back to."""
        for param, value, state in zip(params, values, states):
            self.state[param]["anchor"] = moved({"param": value, "base": state}, param.device)

    def _slower(self, point: Tensor) -> Tensor:
        """The point with a tenth of the learning rate."""
        values = []
        for chart, z in zip(self.charts, point):
            value = chart.value(z).item()
            values.append(chart.of(value / 10.0) if chart.name == "lr" else z.item())
        return torch.tensor(values).to(point)

    def _settings(self, group: Mapping[str, Any], values: Sequence[Any]) -> dict[str, Any]:
        """A group's settings where hyperparameters have these values."""
        found = dict(group)
        for chart, value, reference in zip(self.charts, values, self.shared()["reference"].tolist()):
            found |= chart.inside(found, value, reference)
        return {name: value for name, value in found.items() if name != "params"}

    def _learn(
        self,
        params: list[Tensor],
        before: list[Tensor],
        states: list[dict[str, Any]],
        shared: dict[str, Tensor],
        train_loss: Loss,
        valid_loss: Loss,
    ) -> None:
        _, start = gradient_of(valid_loss, params)
        after = [param.detach().clone() for param in params]
        torch._foreach_copy_(params, before)
        point = shared["point"].to(start[0].device, widened(start[0]).dtype)
        try:
            signal = self._hypergradient(params, before, states, point, start, train_loss)
        finally:
            torch._foreach_copy_(params, after)
        signal = signal.to(shared["point"])
        learns = torch.isfinite(signal).all()
        new = self.meta.moved(shared["point"], signal, shared, shared["learned"], learns)
        ends = [[chart.of(end) for chart in self.charts] for end in (-math.inf, math.inf)]
        low, high = (torch.tensor(end).to(new) for end in ends)
        shared["point"].copy_(torch.where(torch.isfinite(new).all(), new.clamp(low, high), shared["point"]))
        shared["learned"].add_(learns)
        shared["skipped"].add_(int(not learns))

    def _hypergradient(
        self,
        params: list[Tensor],
        before: list[Tensor],
        states: list[dict[str, Any]],
        point: Tensor,
        start: list[Tensor],
        train_loss: Loss,
    ) -> Tensor:
        """How the loss whose gradient after the step is `start` depends on the point."""
        groups = {param: group for group in self.param_groups for param in group["params"]}
        own, rule = [groups[param] for param in params], rule_of(self.base)
        states = [{name: wide_state(entry) for name, entry in state.items()} for state in states]
        size = len(params)
        with torch.enable_grad():
            z = point.detach().requires_grad_()
            # Parameters, then gradients.
            given = [widened(param).detach().clone().requires_grad_() for param in before]
            given += [widened(grad).detach().clone().requires_grad_() for grad in grads_of(params)]
            values = [chart.value(each) for chart, each in zip(self.charts, z)]
            settings = [self._settings(group, values) for group in own]
            ends = [rule(*four) for four in zip(given[:size], given[size:], states, settings)]
            found = torch.autograd.grad(train_loss(), params, create_graph=True, allow_unused=True)
        curved = [i for i, grad in enumerate(found) if grad is not None and grad.requires_grad]

        def pull(v: list[Tensor]) -> list[Tensor]:
            """Back through the update, to parameters and gradients."""
            pulled = torch.autograd.grad(ends, given, v, retain_graph=True, allow_unused=True)
            return [torch.zeros_like(leaf) if d is None else d for leaf, d in zip(given, pulled)]

        # Where a derivative is not finite it is so whatever it is multiplied by.
        sound = [torch.isfinite(leaf) for leaf in pull([torch.ones_like(end) for end in ends])]

        def back(v: list[Tensor]) -> list[Tensor]:
            # The step is the gradient and what the optimizer makes of it. Going back through the gradient is
            # a product with the Hessian, which is symmetric.
            pulled = [torch.where(ok, leaf, 0.0) for ok, leaf in zip(sound, pull(v))]
            outputs, along = [found[i] for i in curved], [pulled[size + i].to(found[i].dtype) for i in curved]
            if not curved:
                return pulled[:size]
            products = torch.autograd.grad(outputs, params, along, retain_graph=True, allow_unused=True)
            return [a if b is None else a + widened(b) for a, b in zip(pulled, products)]

        last = [widened(grad) for grad in start]
        total, first = last, squared_norm(last)
        for _ in range(self.lookback - 1):
            last = back(last)
            total = torch._foreach_add(total, last)
        if self.lookback % 2 == 0:
            expands = squared_norm(last) > first
            total = [torch.where(expands, a - b, a) for a, b in zip(total, last)]

        # Forward by going back twice: entry by entry, where a sum with one that is not finite would be lost.
        with torch.enable_grad():
            seeds = [torch.zeros_like(end, requires_grad=True) for end in ends]
            (pulled,) = torch.autograd.grad(ends, z, seeds, create_graph=True)
            parts = pulled.unbind()
        signal = []
        for each in parts:
            tangent = torch.autograd.grad(each, seeds, retain_graph=True, allow_unused=True)
            pairs = [(a, t) for a, t in zip(total, tangent) if t is not None]
            signal.append(inner([a for a, _ in pairs], [torch.where(t.isfinite(), t, 0.0) for _, t in pairs]))
        return torch.stack(signal)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what `state_dict` gave, exactly."""
        super().load_state_dict(state_dict)
        shared = self.shared()
        shared.update({name: number.cpu() for name, number in shared.items()})

    def diagnostics(self) -> dict[str, float]:
        """The tuned hyperparameters by name, `skipped` and `rescued`."""
        shared = self.shared()
        values = {chart.name: chart.value(z).item() for chart, z in zip(self.charts, shared["point"])}
        return {**values, "skipped": shared["skipped"].item(), "rescued": shared["rescued"].item()}


def wide_state(entry: Any) -> Any:
    """An entry of a state, in float32 if it is narrower."""
    return widened(entry) if isinstance(entry, Tensor) else entry
