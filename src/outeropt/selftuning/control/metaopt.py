"""The nonstochastic-control meta-optimizer."""

import dataclasses
from typing import Any, Literal, NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from outeropt import tree
from outeropt.errors import ConfigError, OuteroptError, unknown_name
from outeropt.optimizer import Optimizer, OptState, Params
from outeropt.optimizers import registry, spaces
from outeropt.optimizers.schedules import number
from outeropt.optimizers.wrappers.base import prefixed
from outeropt.selftuning.control.controllers import CONTROLLERS, Controller
from outeropt.selftuning.control.disturbances import Disturbance, as_disturbance
from outeropt.selftuning.control.history import History
from outeropt.selftuning.control.rollouts import Dynamics, Estimator, Past, end
from outeropt.selftuning.control.transfer import fitted
from outeropt.space import Space


ESTIMATORS = get_args(Estimator)


class MetaOptState(NamedTuple):
    """State of `MetaOpt`.

    Attributes:
      coefficients: the controller's coefficients `M`.
      meta: state of the meta-optimizer.
      base: state of the base optimizer.
      disturbance: state of the disturbance.
      history: the disturbances of the last steps.
      past: what rollouts need beside them; None where there are none.
      cost: the loss that the last gradient with respect to `M` was taken of; diagnostic.
    """

    coefficients: PyTree
    meta: OptState
    base: OptState
    disturbance: PyTree
    history: History
    past: Past | None
    cost: Float[Array, ""]


def _optional(value: Any) -> Array | None:
    return None if value is None else number(value)


class MetaOpt(Optimizer):
    """A base optimizer, and a controller that learns to mix the last disturbances into its step.

    With `w_t` the disturbance of the gradient at `x_t` (the gradient itself, clipped, Adam's direction, or
    any optimizer's) and `M` the coefficients of the controller, step `t` is

        G = d f_t / d M            by one of four estimators
        M = meta-optimizer's step on M with gradient G          (from the second step of a run on)
        x_{t+1} = (1 - weight_decay) x_t + base(w_t) + sum_{i < memory} M_i w_{t-i}

    so that one optimizer contains every learning rate, momentum and other filter of past gradients, and `M`
    descends on the very loss of the training (disturbance-action control; Chen and Hazan, "Online Control
    for Meta-optimization", 2023, arXiv 2301.07902). With `M = 0`, where it starts, it is the base optimizer.

    | estimator | gradient of | gradients of the loss beyond training's | needs |
    |---|---|---|---|
    | `"gaps"` | the real trajectory, by the last `horizon` steps | none | |
    | `"fake"` | the end of a rollout with recorded disturbances | 1 | `value_fn` |
    | `"cf1"` | the end of a rollout with fresh gradients, constants | horizon + 1 | `value_fn`, `value_at` |
    | `"cf"` | the same, differentiated through them too | horizon + 1 and as many Hessian products | same |

    Without `value_at`, the loss of earlier steps, rollouts take the loss of this one's minibatch throughout.
    A gradient that is not finite leaves everything as it was; a `G` that is not finite leaves `M`.

    Attributes:
      base: any optimizer; it is given `w_t` in place of the gradient.
      meta: any optimizer, of `M`. Its own wrappers are the guards: `clip_norm:adam` bounds `G`,
        `inverse_sqrt:adam` lets learning fade, and `averaged:adam` plays an average of `M`.
      disturbance: `"raw"`, `"clip"`, `"adam"`, a `Disturbance`, or an optimizer with a learning rate of 1.
      weight_decay: part of the parameters that a step takes away, not multiplied by a learning rate.
      coefficients: where `M` starts; None for zeros. `with_controller` fills it from a file.
      radius: bound on the norm of `M_0`; None for no bound. `M_i` is bounded by
        `radius * (1 - radius_decay)^i`, by projection after each step.
      radius_decay: in [0, 1).
      memory: number of coefficients.
      horizon: length of rollouts, or number of past steps that count in `"gaps"`.
      controller: `"scalar"` (a coefficient is one number), `"per_tensor"` (one for each tensor), `"diagonal"`
        (one for each parameter) or `"full"` (a matrix).
      estimator: of `G`, from the table.
      play: `"real"`, or `"rollout"` to go on from the rollout's end instead of `x_t` (the original's
        non-counterfactual play); not for `"gaps"`, which has no rollout.
      learn_from: first step of a run that learns, at least 1.
      frozen: whether `M` stays as it is; then only `memory` disturbances are kept.
      history_dtype: type of the kept disturbances and parameters, such as `"bfloat16"`; None for their own.

    Raises:
      ConfigError: a setting that is not allowed.
      UnknownName: no such controller, estimator or disturbance.
    """

    base: Optimizer
    meta: Optimizer
    disturbance: Disturbance = eqx.field(converter=as_disturbance)
    weight_decay: Float[Array, ""] = eqx.field(converter=number)
    coefficients: PyTree
    radius: Float[Array, ""] | None = eqx.field(converter=_optional)
    radius_decay: Float[Array, ""] | None = eqx.field(converter=_optional)
    memory: int = eqx.field(static=True)
    horizon: int = eqx.field(static=True)
    controller: str = eqx.field(static=True)
    estimator: Estimator = eqx.field(static=True)
    play: Literal["real", "rollout"] = eqx.field(static=True)
    learn_from: int = eqx.field(static=True)
    frozen: bool = eqx.field(static=True)
    history_dtype: str | None = eqx.field(static=True)

    def __init__(
        self,
        base: Optimizer | None = None,
        meta: Optimizer | None = None,
        disturbance: str | Disturbance | Optimizer = "raw",
        weight_decay: float | Array = 0.0,
        coefficients: PyTree = None,
        radius: float | Array | None = None,
        radius_decay: float | Array | None = None,
        memory: int = 4,
        horizon: int = 1,
        controller: str = "scalar",
        estimator: Estimator = "gaps",
        play: Literal["real", "rollout"] = "real",
        learn_from: int = 1,
        frozen: bool = False,
        history_dtype: str | None = None,
    ):
        self.base = registry.get("sgd", learning_rate=0.01) if base is None else base
        # Coefficients of ages before the run have gradients of zero, where Adam's root has no derivative.
        self.meta = registry.get("adam", learning_rate=1e-3, eps_root=1e-24) if meta is None else meta
        self.disturbance = disturbance  # pyright: ignore[reportAttributeAccessIssue]
        self.weight_decay = weight_decay  # pyright: ignore[reportAttributeAccessIssue]
        self.coefficients = coefficients
        self.radius = radius  # pyright: ignore[reportAttributeAccessIssue]
        decay = 0.0 if radius is not None and radius_decay is None else radius_decay
        self.radius_decay = decay  # pyright: ignore[reportAttributeAccessIssue]
        self.memory, self.horizon, self.learn_from = memory, horizon, learn_from
        self.controller, self.estimator, self.play = controller, estimator, play
        self.frozen, self.history_dtype = frozen, history_dtype

    def __check_init__(self):
        if self.controller not in CONTROLLERS:
            raise unknown_name("controller", self.controller, CONTROLLERS, see=", ".join(CONTROLLERS))
        if self.estimator not in ESTIMATORS:
            raise unknown_name("estimator", self.estimator, ESTIMATORS, see=", ".join(ESTIMATORS))
        if self.play not in ("real", "rollout"):
            raise unknown_name("play", self.play, ("real", "rollout"), see="real, rollout")
        if self.play == "rollout" and not self._rolls:
            raise ConfigError(
                'play = "rollout" goes on from the end of a rollout, which '
                f"{'a frozen controller' if self.frozen else 'estimator gaps'} does not make; "
                "give estimator fake, cf1 or cf."
            )
        if self.radius is None and self.radius_decay is not None:
            raise ConfigError("radius_decay shrinks a radius that is not given; give radius too.")
        for name, least in (("memory", 1), ("horizon", 1), ("learn_from", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} = {getattr(self, name)} is not allowed; give at least {least}.")

    def init(
        self, params: Params, *, num_steps: int | Array | None = None, key: PRNGKeyArray | None = None
    ) -> OptState:
        zeros = self._controller.zeros(params)
        start = zeros if self.coefficients is None else fitted(self.coefficients, zeros)
        # The meta-optimizer is told no length: its run is all episodes together.
        meta = () if self.frozen else self.meta.init(start, key=key)
        return self._episode(start, meta, params, num_steps, key)

    def restart(
        self,
        state: MetaOptState,
        params: Params,
        *,
        num_steps: int | Array | None = None,
        key: PRNGKeyArray | None = None,
    ) -> OptState:
        return self._episode(state.coefficients, state.meta, params, num_steps, key)

    def _episode(self, coefficients, meta, params, num_steps, key) -> MetaOptState:
        base = self.base.init(params, num_steps=num_steps, key=key)
        own = self.disturbance.init(params)
        length = self.memory if self.frozen else self.memory + self.horizon - 1
        past = None
        if self._rolls:
            past = Past(
                History.empty(params, self.horizon, self.history_dtype),
                History.empty(base, self.horizon),
                None if self.estimator == "fake" else History.empty(own, self.horizon),
            )
        history = History.empty(params, length, self.history_dtype)
        return MetaOptState(coefficients, meta, base, own, history, past, jnp.zeros((), jnp.float32))

    def update(
        self, grads: Params, state: MetaOptState, params: Params, **context: Any
    ) -> tuple[Params, OptState]:
        fine = tree.all_finite(grads)
        coefficients, meta, cost, ahead = state.coefficients, state.meta, state.cost, None
        if not self.frozen:
            cost, gradient, ahead = self._gradient(grads, state, params, context)
            coefficients, meta = self._learn(gradient, state, fine)
        played = coefficients if self.frozen else self.meta.eval_params(meta, coefficients)

        w, own = self.disturbance(grads, state.disturbance, params)
        w = jax.tree.map(lambda leaf: jnp.where(fine, leaf, jnp.zeros_like(leaf)), w)
        history = state.history.push(w)
        # As they were before this step.
        past = None if state.past is None else state.past.push(params, state.base, state.disturbance)
        control = self._controller.play(played, history)
        updates, base = self.base.update(w, state.base, params, **context)

        def add(update, leaf, played):
            shrunk = update.astype(leaf.dtype) - self.weight_decay.astype(leaf.dtype) * leaf
            return shrunk + played.astype(leaf.dtype)

        step = jax.tree.map(add, updates, params, control)
        if self.play == "rollout":
            step = jax.tree.map(lambda leaf, reached, real: leaf + (reached - real), step, ahead, params)
        step = jax.tree.map(lambda leaf: jnp.where(fine, leaf, jnp.zeros_like(leaf)), step)
        base, own = (
            tree.where(fine, new, old) for new, old in ((base, state.base), (own, state.disturbance))
        )
        cost = jnp.where(fine, jnp.asarray(cost).astype(jnp.float32), state.cost)
        return step, MetaOptState(coefficients, meta, base, own, history, past, cost)

    def _gradient(self, grads, state: MetaOptState, params, context) -> tuple[Array, PyTree, Params | None]:
        """The cost, its gradient with respect to the coefficients, and the end of the rollout if any."""
        kept = 1.0 - self.weight_decay
        if not self._rolls:
            gradient = self._controller.along(state.history, grads, kept, self.horizon)
            return context.get("value", state.cost), gradient, None
        assert state.past is not None
        value_fn, value_at, step = (context.get(name) for name in ("value_fn", "value_at", "step"))
        if value_fn is None:
            raise OuteroptError(
                f"Estimator {self.estimator} of MetaOpt needs `value_fn`, which was not given; "
                "call update(grads, state, params, value_fn=...), or use estimator gaps."
            )

        def loss_at(point, ago):
            if value_at is None or step is None:
                return value_fn(point)
            return value_at(point, jnp.asarray(step).astype(ago.dtype) - ago)

        dynamics = Dynamics(self._controller, self.base, self.disturbance, kept)
        history, past = state.history, state.past

        def cost(coefficients):
            point = end(dynamics, coefficients, history, past, params, self.horizon, self.estimator, loss_at)
            return value_fn(point), point

        (value, ahead), gradient = jax.value_and_grad(cost, has_aux=True)(state.coefficients)
        return value, gradient, ahead

    def _learn(self, gradient, state: MetaOptState, fine: Array) -> tuple[PyTree, OptState]:
        learns = fine & tree.all_finite(gradient) & (state.history.count >= self.learn_from)
        # What is thrown away must not be zero: Adam's root has no derivative there, and NaN times 0 is NaN.
        gradient = jax.tree.map(lambda leaf: jnp.where(learns, leaf, jnp.ones_like(leaf)), gradient)
        updates, meta = self.meta.update(gradient, state.meta, state.coefficients)
        moved = jax.tree.map(jnp.add, state.coefficients, updates)
        if self.radius is not None and self.radius_decay is not None:
            ages = jnp.arange(self.memory, dtype=jnp.float32)
            moved = self._controller.project(moved, self.radius * (1.0 - self.radius_decay) ** ages)
        return tree.where(learns, moved, state.coefficients), tree.where(learns, meta, state.meta)

    def with_controller(self, coefficients: PyTree) -> "MetaOpt":
        """A copy that starts from these coefficients, of any memory, kind and model.

        They are brought into form when training starts; see `control.transfer.fitted`.
        """
        return eqx.tree_at(lambda o: o.coefficients, self, coefficients, is_leaf=lambda leaf: leaf is None)

    def freeze(self) -> "MetaOpt":
        """A copy whose coefficients stay as they are."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return type(self)(**{**fields, "frozen": True, "play": "real"})

    def after(self, state: MetaOptState) -> "MetaOpt":
        played = state.coefficients
        if not self.frozen:
            played = self.meta.eval_params(state.meta, played)
        return self.with_controller(played)

    def diagnostics(self, state: MetaOptState) -> dict[str, Array]:
        coefficients = self._controller.summary(state.coefficients)
        total = jnp.sum(coefficients)
        found = {"coefficients.sum": total}
        found |= {f"coefficient.{i}": coefficients[i] for i in range(self.memory)}
        found |= {f"base.{name}": value for name, value in self.base.diagnostics(state.base).items()}
        if not self.frozen:
            found["cost"] = state.cost
        if "learning_rate" in self.base.hyperparameters:
            # Of all disturbances together: what a constant gradient would be multiplied by.
            rate = self.base.hyperparameters["learning_rate"]
            found["effective_learning_rate"] = rate.astype(total.dtype) - total
        return found

    @property
    def gradients(self) -> float:
        # A rollout ends in a gradient; on its way it takes one at each step, and "cf" goes back through them.
        further = {"fake": 1, "cf1": 1 + self.horizon, "cf": 1 + 2 * self.horizon}
        return self.base.gradients + (further[self.estimator] if self._rolls else 0)

    @property
    def spaces(self) -> dict[str, Space]:
        own = {"weight_decay": spaces.WEIGHT_DECAY}
        if self.radius is not None:
            own |= {
                "radius": Space.log(1e-4, 10.0, allowed=(0.0, 1e9)),
                "radius_decay": Space.linear(0.0, 0.5, allowed=(0.0, 1.0)),
            }
        for part in ("base", "meta", "disturbance"):
            own |= prefixed(part, getattr(self, part).spaces)
        return own

    @property
    def _controller(self) -> Controller:
        return CONTROLLERS[self.controller](self.memory)

    @property
    def _rolls(self) -> bool:
        return self.estimator != "gaps" and not self.frozen
