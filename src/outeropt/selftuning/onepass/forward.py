"""Tuning by forward-mode differentiation of the run so far."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from outeropt.errors import OuteroptError
from outeropt.optimizer import Optimizer, OptState, Params
from outeropt.optimizers.arithmetic import inner as product
from outeropt.selftuning import sensitivity
from outeropt.selftuning.onepass.point import Point, Ranges, Settings, ranges_of
from outeropt.selftuning.onepass.tuner import Step, Tuner, applied, default_meta, finite
from outeropt.selftuning.sensitivity import Coordinates, Tuned


class ForwardMode(Tuner):
    """Tunes a few leaves by derivatives that are carried along with the run.

    With `s` parameters and optimizer state together, `F` the map of one step, and `Z` the derivative of `s`
    by the coordinates:

        Z <- decay * dF/ds Z + dF/dz,      h = grad V(w) Z_w

    Franceschi, Donini, Frasconi and Pontil, "Forward and Reverse Gradient-Based Hyperparameter Optimization",
    2017, arXiv 1703.01785, section 3.2; with `decay` as in Micaelli and Storkey 2021 and MARTHE (Donini and
    others 2020, arXiv 1910.08525), which forget. It costs about two gradients and one copy of parameters and
    state for each leaf, at every step, and needs no `value_at`.

    Attributes:
      base: the optimizer that is tuned.
      tune: names of the leaves to tune.
      decay: how much of the past counts, in [0, 1]: 1 counts all of the run.
      every: inner steps from one tuning to the next.
      meta: the optimizer of the coordinates.
      coordinates: as in `OnePass`.
      ranges: as in `OnePass`.
      rescue: as in `OnePass`.

    Raises:
      UnknownName: the base optimizer has no such leaf.
      OuteroptError: a setting cannot be used, or (from `update`) the loop offers no `value_fn` or `valid_fn`.
    """

    base: Optimizer
    tune: Tuned = eqx.field(static=True, default=("learning_rate",), converter=sensitivity.listed)
    decay: float = eqx.field(static=True, default=1.0)
    every: int = eqx.field(static=True, default=10)
    meta: Optimizer = eqx.field(default_factory=default_meta)
    coordinates: Coordinates = eqx.field(static=True, default="decades")
    ranges: Ranges = eqx.field(static=True, default=(), converter=ranges_of)
    per_parameter: bool = eqx.field(static=True, init=False, default=False)
    rescue: float = eqx.field(static=True, default=2.0)
    settings: Settings = eqx.field(static=True, init=False, default=())

    def __check_init__(self):
        if not 0 <= self.decay <= 1:
            raise OuteroptError(f"decay = {self.decay} is not allowed; give 0 to 1.")

    @property
    def gradients(self) -> float:
        return self.base.gradients + 1 + 2 * len(self.tune) + 1 / self.every

    def begin(self, params: Params, inner: OptState) -> PyTree:
        both = params, eqx.filter(inner, eqx.is_inexact_array)
        return tuple(jax.tree.map(jnp.zeros_like, both) for _ in self.tune)

    def remember(self, memory: PyTree, step: Step, point: Point) -> PyTree:
        loss = step.ask("value_fn")
        floats, rest = eqx.partition(step.base, eqx.is_inexact_array)

        def map_of(params, floats, shared):
            value, grads = jax.value_and_grad(loss)(params)
            context = {**step.context, "value": value, "grad": grads}
            base = eqx.combine(floats, rest)
            updates, base = self.play(point._replace(shared=shared), grads, base, params, context)
            return applied(params, updates), eqx.filter(base, eqx.is_inexact_array)

        _, push = jax.linearize(map_of, step.params, floats, point.shared)

        def forth(direction, carried):
            faded = jax.tree.map(lambda leaf: self.decay * leaf, carried)
            return finite(push(*faded, direction))

        directions = jnp.eye(len(self.tune), dtype=point.shared.dtype)
        return tuple(forth(direction, carried) for direction, carried in zip(directions, memory))

    def hypergradient(self, point: Point, step: Step, memory: PyTree) -> Point:
        slope = jax.grad(step.ask("valid_fn"))(step.moved)
        found = [product(slope, carried[0]).astype(point.shared.dtype) for carried in memory]
        return Point(jnp.stack(found), None, jnp.zeros_like(point.settings))
