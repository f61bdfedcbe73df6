"""Tuning by differentiation through the last steps as they were."""

import math
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from outeropt.errors import OuteroptError
from outeropt.optimizer import Optimizer, OptState, Params
from outeropt.selftuning import sensitivity
from outeropt.selftuning.onepass.point import Point, Ranges, Settings, ranges_of
from outeropt.selftuning.onepass.tuner import Step, Tuner, applied, branch, default_meta, finite
from outeropt.selftuning.sensitivity import Coordinates, Tuned


class Window(NamedTuple):
    """Where the window of steps began that is differentiated.

    Attributes:
      params: parameters before its first step.
      base: the base optimizer's state there.
    """

    params: Params
    base: OptState


class Unrolled(Tuner):
    """Tunes leaves by the exact derivative of the validation loss through the last `window` steps.

    The optimizer's state counts within the window; parameters and state before it are constants. Of each
    block of `every` steps the last `window` are played again on their minibatches (`value_at`), in pieces of
    about `sqrt(window)` that are played once more on the way back: so memory grows with the root of the
    window. With `window` and `every` the length of an episode, and episodes, this is tuning by whole runs.

    Clarke, Oldewage and Hernandez-Lobato 2022 (arXiv 2110.10461) call it Diff-through-Opt.

    Attributes:
      base: the optimizer that is tuned.
      tune: names of the leaves to tune.
      window: steps to differentiate through, at most `every`.
      every: inner steps from one tuning to the next.
      meta: the optimizer of the coordinates.
      coordinates: as in `OnePass`.
      ranges: as in `OnePass`.
      per_parameter: as in `OnePass`.
      rescue: as in `OnePass`.

    Raises:
      UnknownName: the base optimizer has no such leaf.
      OuteroptError: a setting cannot be used, or (from `update`) the loop offers no `value_at` or `valid_fn`.
    """

    base: Optimizer
    tune: Tuned = eqx.field(static=True, default=("learning_rate",), converter=sensitivity.listed)
    window: int = eqx.field(static=True, default=5)
    every: int = eqx.field(static=True, default=10)
    meta: Optimizer = eqx.field(default_factory=default_meta)
    coordinates: Coordinates = eqx.field(static=True, default="decades")
    ranges: Ranges = eqx.field(static=True, default=(), converter=ranges_of)
    per_parameter: bool = eqx.field(static=True, default=False)
    rescue: float = eqx.field(static=True, default=2.0)
    settings: Settings = eqx.field(static=True, init=False, default=())

    needs: ClassVar[tuple[str, ...]] = ("value_at", "valid_fn")

    def __check_init__(self):
        if not 1 <= self.window <= self.every:
            raise OuteroptError(
                f"window = {self.window} is not allowed; give 1 to every = {self.every} steps."
            )

    @property
    def gradients(self) -> float:
        # Played again twice, because the first time is not kept, and gone back through.
        return self.base.gradients + (1 + 4 * self.window) / self.every

    def begin(self, params: Params, inner: OptState) -> PyTree:
        # Copies: a loop that donates its buffers may not donate one twice.
        return jax.tree.map(jnp.array, Window(params, inner))

    def remember(self, memory: PyTree, step: Step, point: Point) -> PyTree:
        begins = step.number % self.every == self.every - self.window
        return branch(begins, lambda: Window(step.params, step.base), lambda: memory)

    def hypergradient(self, point: Point, step: Step, memory: PyTree) -> Point:
        value_at, valid = step.ask("value_at"), step.ask("valid_fn")
        first = step.number - (self.window - 1)
        piece = math.isqrt(self.window)

        def play(carry, number, point):
            params, base = carry
            floats, rest = eqx.partition(base, eqx.is_inexact_array)

            def loss(params):
                return value_at(params, number)

            value, grads = jax.value_and_grad(loss)(params)
            grads, floats = _finite_on_the_way_back((grads, floats))
            context = {**step.context, "value": value, "grad": grads, "value_fn": loss, "step": number}
            updates, base = self.play(point, grads, eqx.combine(floats, rest), params, context)
            return applied(params, updates), base

        @jax.checkpoint
        def pieces(carry, number, point):
            return jax.lax.fori_loop(0, piece, lambda i, carry: play(carry, number + i, point), carry)

        def end(point):
            carry = jax.lax.scan(
                lambda carry, i: (pieces(carry, first + piece * i, point), None),
                tuple(memory),
                jnp.arange(self.window // piece),
            )[0]
            rest = self.window % piece
            carry = jax.lax.fori_loop(
                0, rest, lambda i, carry: play(carry, first + self.window - rest + i, point), carry
            )
            return valid(carry[0])

        return jax.grad(end)(point)


@jax.custom_vjp
def _finite_on_the_way_back(values):
    """The values themselves; of what comes back to them, what is not finite counts as 0."""
    return values


_finite_on_the_way_back.defvjp(lambda values: (values, None), lambda _, back: (finite(back),))
