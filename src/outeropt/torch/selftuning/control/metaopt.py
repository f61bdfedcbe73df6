"""The nonstochastic-control meta-optimizer around a torch optimizer."""

from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor

from outeropt.errors import OuteroptError, unknown_name
from outeropt.torch.optimizer import widened
from outeropt.torch.selftuning.control import files, history
from outeropt.torch.selftuning.control.controllers import CONTROLLERS, Controller
from outeropt.torch.selftuning.control.disturbances import Disturbance, as_disturbance
from outeropt.torch.selftuning.control.rollouts import Loss, Past, gradient_of, put_back, roll
from outeropt.torch.selftuning.meta import Meta, MetaAdam
from outeropt.torch.selftuning.wrapping import Wrapping, all_finite, gradients, grads_of


META = MetaAdam(1e-3)
"""What moves coefficients where nothing else is said."""
ESTIMATORS = ("gaps", "fake", "cf1")


class MetaOpt(Wrapping):
    """A base optimizer, and a controller that learns to mix the last disturbances into its step.

    With `w_t` the disturbance of the gradient at `x_t` (the gradient itself, clipped, or Adam's direction)
    and `M` the coefficients of the controller, step `t` is

        G = d f_t / d M            by one of three estimators
        M = meta's step on M with gradient G                   (from the second step of a run on)
        x_(t+1) = (1 - weight_decay) x_t + base(w_t) + sum_(i < memory) M_i w_(t-i)

    so that one optimizer contains every learning rate, momentum and other filter of past gradients, and `M`
    descends on the very loss of the training (disturbance-action control; Chen and Hazan, "Online Control for
    Meta-optimization", 2023, arXiv 2301.07902). `outeropt.selftuning.MetaOpt` in torch. With `M = 0`, where
    it starts, it is the base optimizer.

    | estimator | gradient of | gradients of the loss beyond training's |
    |---|---|---|
    | `"gaps"` | the real trajectory, by the last `horizon` steps | none |
    | `"fake"` | the end of a rollout with recorded disturbances | 1 |
    | `"cf1"` | the end of a rollout with fresh gradients, constants | horizon + 1 |

    The last two need `step(train_loss=f)`, where `f()` is the loss of this step's minibatch at the parameters
    as they are, without `backward`; the parameters are moved for it, and put back exactly. `"cf1"` calls the
    functions of the last `horizon` steps again, so bind the minibatch (`functools.partial(loss, inputs,
    targets)`). They are in no `state_dict`: after loading, this step's function stands for them until there
    are others.

    `lr` and its schedule are the base's alone; what the controller adds does not follow them. A `G` that is
    not finite leaves `M`; a gradient that is not finite reaches the parameters, as in every torch optimizer,
    unless a `GradScaler` skips the step. `"gaps"` keeps `memory + horizon - 1` copies of the parameters,
    rollouts `horizon` more of parameters and of the states of base and disturbance.

    Args:
      base: any torch optimizer; it is given `w_t` in place of the gradient. A parameter without gradient does
        not move, and has a disturbance of zero.
      meta: moves `M`.
      disturbance: `"raw"`, `"clip"`, `"adam"`, or one of `control.disturbances`.
      weight_decay: part of the parameters that a step takes away, not multiplied by a learning rate.
      memory: number of coefficients.
      horizon: length of rollouts, or number of past steps that count in `"gaps"`.
      controller: `"scalar"` (a coefficient is one number), `"per_tensor"` (one for each parameter),
        `"diagonal"` (one for each entry) or `"full"` (a matrix over all, for tiny models).
      estimator: of `G`, from the table.
      radius: bound on the magnitude of `M_0`; None for no bound. That of `M_i` is
        `radius * (1 - radius_decay)^i`.
      radius_decay: in [0, 1).
      learn_from: first step of a run that learns, at least 1.
      frozen: whether `M` stays as it is.

    Raises:
      UnknownName: no such controller, estimator or disturbance.
      OuteroptError: a setting that is not allowed, or (from `step`) `train_loss` is missing.
    """

    def __init__(
        self,
        base: torch.optim.Optimizer,
        meta: Meta = META,
        disturbance: str | Disturbance = "raw",
        weight_decay: float = 0.0,
        memory: int = 4,
        horizon: int = 1,
        controller: Literal["scalar", "per_tensor", "diagonal", "full"] = "scalar",
        estimator: Literal["gaps", "fake", "cf1"] = "gaps",
        radius: float | None = None,
        radius_decay: float = 0.0,
        learn_from: int = 1,
        frozen: bool = False,
    ):
        if controller not in CONTROLLERS:
            raise unknown_name("controller", controller, CONTROLLERS, see=", ".join(CONTROLLERS))
        if estimator not in ESTIMATORS:
            raise unknown_name("estimator in PyTorch", estimator, ESTIMATORS, see=", ".join(ESTIMATORS))
        for name, value in {"memory": memory, "horizon": horizon, "learn_from": learn_from}.items():
            if value < 1:
                raise OuteroptError(f"MetaOpt: {name} = {value} is not allowed; give at least 1.")
        if not 0.0 <= weight_decay < 1.0:
            raise OuteroptError(f"MetaOpt: weight_decay = {weight_decay} is not allowed; give 0 up to 1.")
        super().__init__(base)
        self.meta, self.disturbance = meta, as_disturbance(disturbance)
        self.weight_decay, self.memory, self.horizon = weight_decay, memory, horizon
        self.controller: Controller = CONTROLLERS[controller](memory)
        self.estimator, self.learn_from, self.frozen = estimator, learn_from, frozen
        self.radius, self.radius_decay = radius, radius_decay
        self._losses: list[Loss] = []

    def begin(self, param: Tensor) -> dict[str, Any]:
        length = self.memory if self.frozen else self.memory + self.horizon - 1
        state = {"rows": param.new_zeros((length, *param.shape)), **self.disturbance.begin(param)}
        if not self.controller.shared:
            state |= self._coefficients([param])
        return state | ({"past": {}} if self._rolls else {})

    def begin_shared(self, zero: Tensor) -> dict[str, Tensor]:
        count = torch.zeros_like(zero, dtype=torch.int64)
        shared = {"count": count, "learned": zero.clone(), "cost": zero.clone()}
        if self.controller.shared:
            params = [widened(param.detach()) for group in self.param_groups for param in group["params"]]
            shared |= self._coefficients(params)
        return shared

    def _coefficients(self, params: list[Tensor]) -> dict[str, Tensor]:
        zeros = self.controller.zeros(params)
        return {"coefficients": zeros, **({} if self.frozen else self.meta.begin(zeros))}

    def move(self, params: list[Tensor], shared: dict[str, Tensor], value: Any, **functions: Any) -> None:
        states, count = [self.state[param] for param in params], shared["count"]
        holders = [shared] if self.controller.shared else states
        grads = [widened(grad) for grad in grads_of(params)]
        if not self.frozen:
            gradient = self._gradient(params, states, grads, shared, value, functions.get("train_loss"))
            self._learn(holders, gradient, shared)
        if self._rolls:
            for group in self.param_groups:
                for param in self._known([group]):
                    Past.push(self.state[param], param, group["lr"], self.base, self.horizon)

        w = self.disturbance(grads, states, count)
        rows = [state["rows"] for state in states]
        history.push(rows, count, w)
        idle = list(self.idle("rows"))
        history.push(idle, count, [torch.zeros_like(ring[0]) for ring in idle])
        count.add_(1)
        extra = self.controller.play(self.coefficients(holders), rows, count)
        if self.weight_decay:
            wide = [widened(param.detach()) for param in params]
            torch._foreach_add_(extra, wide, alpha=-self.weight_decay)
        if w is grads:
            self.play()
        else:
            with gradients(params, w):
                self.play()
        torch._foreach_add_(params, extra)

    def coefficients(self, holders: list[dict[str, Tensor]] | None = None) -> list[Tensor]:
        """The coefficients: one tensor, or one for each parameter that has moved."""
        if holders is None:
            shared = self.shared()
            holders = (
                [shared]
                if self.controller.shared
                else [self.state[param] for param in self._known(self.param_groups)]
            )
        return [holder["coefficients"] for holder in holders]

    def _gradient(
        self,
        params: list[Tensor],
        states: list[dict[str, Any]],
        grads: list[Tensor],
        shared: dict[str, Tensor],
        value: Any,
        train_loss: Loss | None,
    ) -> list[Tensor]:
        """The gradient of the cost with respect to the coefficients."""
        rows, count, kept = [state["rows"] for state in states], shared["count"], 1.0 - self.weight_decay
        if self._rolls:
            if train_loss is None:
                raise OuteroptError(
                    f"Estimator {self.estimator} of MetaOpt needs the loss at other parameters; call "
                    "step(train_loss=f) with f() the loss of this minibatch, or take estimator gaps."
                )
            holders = [shared] if self.controller.shared else states
            fresh = None if self.estimator == "fake" else self.disturbance
            losses = [train_loss] * (self.horizon - len(self._losses)) + self._losses
            coefficients = self.coefficients(holders)
            with put_back(params, self.base):
                arguments = (params, states, self.base, self._play_again, self.controller, fresh)
                roll(*arguments, coefficients, count, kept, losses)
                value, found = gradient_of(train_loss, params)
            grads = [widened(grad) for grad in found]
            self._losses = [*self._losses, train_loss][-self.horizon :]
        if value is not None:
            shared["cost"].copy_(torch.as_tensor(value).detach())
        return self.controller.along(rows, count, grads, kept, self.horizon)

    def _learn(
        self, holders: list[dict[str, Tensor]], gradient: list[Tensor], shared: dict[str, Tensor]
    ) -> None:
        learns = all_finite(gradient) & (shared["count"] >= self.learn_from)
        for holder, grad in zip(holders, gradient):
            new = self.meta.moved(holder["coefficients"], grad, holder, shared["learned"], learns)
            if self.radius is not None:
                ages = torch.arange(self.memory, device=new.device)
                limits = self.radius * (1.0 - self.radius_decay) ** ages
                new = torch.where(learns, self.controller.projected(new, limits), new)
            holder["coefficients"].copy_(new)
        shared["learned"].add_(learns)

    @torch.no_grad()
    def new_episode(self) -> None:
        """Begins another training: keeps the coefficients and what moves them, forgets all else.

        Give the parameters their new initial values yourself.
        """
        self.base.state.clear()
        for state in self.state.values():
            state |= {"past": {}} if "past" in state else {}
            for name in ("rows", "mean", "square"):
                if name in state:
                    state[name].zero_()
        self.shared()["count"].zero_()
        self._losses = []

    @torch.no_grad()
    def load_controller(self, path: str | Path) -> Self:
        """Starts from coefficients in a file that `outeropt train --out` or `outeropt.selftuning.save` wrote.

        They may come from another model, memory or kind: `control.files.fitted` says how they are brought
          into form.
        Parameters are found by name where the groups have names (`MetaOpt(SGD(model.named_parameters()))`).

        Args:
          path: the file, or the folder it is in.

        Raises:
          OuteroptError: there is no such file, it is damaged, or it holds no coefficients.
        """
        leaves, shared = files.read(path), self.shared()
        if self.controller.shared:
            shared["coefficients"].copy_(files.fitted(leaves, "", shared["coefficients"]))
            return self
        for group in self.param_groups:
            names = group.get("param_names", [""] * len(group["params"]))
            for param, name in zip(group["params"], names):
                state = self.state[param]
                state.update({} if "rows" in state else self.begin(widened(param.detach())))
                state["coefficients"].copy_(files.fitted(leaves, name, state["coefficients"]))
        return self

    def diagnostics(self) -> dict[str, float]:
        """Coefficients by age (means where there are many), their sum, `effective_lr` and `cost`."""
        means = self.controller.summary(self.coefficients())
        found = {f"coefficient.{age}": number for age, number in enumerate(means.tolist())}
        total, lr = means.sum().item(), float(self.param_groups[0]["lr"])
        # What a constant disturbance would be multiplied by.
        return {
            **found,
            "coefficients.sum": total,
            "effective_lr": lr - total,
            "cost": self.shared()["cost"].item(),
        }

    def _play_again(self, age: int) -> None:
        """A step of the base at the learning rates of the step of an age, where they are known."""
        rates: list[dict[str, Any]] = []
        for group in self.param_groups:
            pasts = [self.state[param]["past"] for param in self._known([group])]
            known = [past[str(age)]["lr"] for past in pasts if str(age) in past]
            rates.append({"lr": known[0]} if known else {})
        self.play(rates)

    def _known(self, groups: list[dict[str, Any]]) -> list[Tensor]:
        """The parameters of some groups that have moved."""
        return [param for group in groups for param in group["params"] if "rows" in self.state.get(param, {})]

    @property
    def _rolls(self) -> bool:
        return self.estimator != "gaps" and not self.frozen

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._losses = []
