"""Hypergradient descent: an optimizer descends on the leaves of the optimizer inside it, at each step."""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from outeropt import optimizers, tree
from outeropt.errors import OuteroptError
from outeropt.optimizer import Optimizer, OptState, Params
from outeropt.optimizers.wrappers.base import Wrapper, prefixed
from outeropt.selftuning import sensitivity
from outeropt.selftuning.sensitivity import Chart, Coordinates, Signal, Tuned
from outeropt.space import Space


class HypergradientState(NamedTuple):
    """State of `HypergradientDescent`.

    Attributes:
      inner: the inner optimizer's state.
      coordinates: where the tuned leaves are now.
      meta: the state of the optimizer that moves them.
      tangents: derivatives of the last updates with respect to them, one copy of the parameters each.
      known: whether there was a step to learn from, and a finite one.
      mean: mean of the coordinates over the episode, in which step `t` counts `1 / t`.
      count: steps of the episode so far.
    """

    inner: OptState
    coordinates: Float[Array, " leaves"]
    meta: OptState
    tangents: tuple[Params, ...]
    known: Bool[Array, ""]
    mean: Float[Array, " leaves"]
    count: Int[Array, ""]


class HypergradientDescent(Wrapper):
    """Descends on leaves of the inner optimizer while it trains.

    At step `t`, with `z` the coordinates of the tuned leaves, `u(z)` the inner optimizer's update as a
    function of them, and `g` the gradient:

        h_t = <g_t, d u_(t-1) / d z>       (derivative of f_t(x_(t-1) + u_(t-1)) by z)
        z_t = z_(t-1) + meta.update(h_t)
        x_(t+1) = x_t + u_t(z_t)

    Baydin et al., "Online Learning Rate Adaptation with Hypergradient Descent", 2017, arXiv 1703.04782. Its
    SGD-HD and Adam-HD are SGD and Adam inside, SGD as `meta`, `coordinates="plain"` and `signal="gradient"`;
    its multiplicative rule, `lr *= 1 + step * cosine`, is `"space"` and `"cosine"` to first order. The
    derivative is taken through `inner.update` itself, so any leaf of any optimizer will do. Learning happens
    before playing. Nothing is learned at the first step of an episode, nor where a number is not finite.

    The inner optimizer's leaves are where a run starts; the state holds where they are. `restart` and `after`
    start the next run from their `sensitivity.early_mean` over this one, because what suits the end of a run,
    where a rate has grown or died, does not suit a beginning.
    `restart` keeps the meta-optimizer's state too.

    Attributes:
      inner: the optimizer inside.
      meta: the optimizer that descends on the coordinates. One that tunes itself makes a `tower`.
      tuned: names of the leaves to tune; the last part of a dotted name is enough when it is unique.
      coordinates: `"space"` (log of a learning rate, logit of a momentum) or `"plain"`; see
        `sensitivity.chart`.
      signal: `"cosine"` (in [-1, 1], so that the meta-optimizer's step size has no unit) or `"gradient"`;
        see `sensitivity.signals`.

    Raises:
      UnknownName: the inner optimizer has no such leaf.
      OuteroptError: a leaf has no such coordinates, or a setting is not one of those above.

    Examples:
      >>> from outeropt import optimizers
      >>> from outeropt.selftuning import HypergradientDescent
      >>> opt = HypergradientDescent(optimizers.get("adam"), optimizers.get("sgd", learning_rate=0.25))
      >>> float(opt.hyperparameters["meta.learning_rate"])
      0.25
    """

    inner: Optimizer
    meta: Optimizer = eqx.field(default_factory=lambda: optimizers.get("sgd", learning_rate=DEFAULT_STEP))
    tuned: Tuned = eqx.field(static=True, default=("learning_rate",), converter=sensitivity.listed)
    coordinates: Coordinates = eqx.field(static=True, default="space")
    signal: Signal = eqx.field(static=True, default="cosine")
    limits: tuple[float, float] | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if self.signal not in sensitivity.SIGNALS:
            raise OuteroptError(f"Signals are {' or '.join(sensitivity.SIGNALS)}, not {self.signal!r}.")
        self._chart()

    def init(
        self, params: Params, *, num_steps: int | Array | None = None, key: PRNGKeyArray | None = None
    ) -> OptState:
        inner_key, meta_key = (None, None) if key is None else jax.random.split(key)
        chart = self._chart()
        coordinates = chart.read(self.inner)
        return HypergradientState(
            chart.write(self.inner, coordinates).init(params, num_steps=num_steps, key=inner_key),
            coordinates,
            self.meta.init(coordinates, num_steps=num_steps, key=meta_key),
            sensitivity.still(chart, params),
            jnp.array(False),
            coordinates,
            jnp.zeros((), jnp.int32),
        )

    def update(
        self, grads: Params, state: OptState, params: Params, **context: Any
    ) -> tuple[Params, OptState]:
        chart = self._chart()
        signal = sensitivity.signals(self.signal, grads, state.tangents, state.coordinates.dtype)
        coordinates, meta = sensitivity.learn(
            self.meta, signal, state.meta, state.coordinates, state.known, context, chart.clip
        )
        updates, inner, tangents = sensitivity.step(
            self.inner, chart, coordinates, grads, state.inner, params, context
        )
        known, count = tree.all_finite(updates), state.count + 1
        mean = sensitivity.early_mean(state.mean, coordinates, count)
        return updates, HypergradientState(inner, coordinates, meta, tangents, known, mean, count)

    def inner_state(self, state: OptState) -> OptState:
        return state.inner

    def restart(
        self,
        state: OptState,
        params: Params,
        *,
        num_steps: int | Array | None = None,
        key: PRNGKeyArray | None = None,
    ) -> OptState:
        chart = self._chart()
        now = chart.write(self.inner, state.mean)
        return HypergradientState(
            now.restart(state.inner, params, num_steps=num_steps, key=key),
            state.mean,
            state.meta,
            sensitivity.still(chart, params),
            jnp.array(False),
            state.mean,
            jnp.zeros((), jnp.int32),
        )

    def freeze(self) -> Optimizer:
        """The inner optimizer, at the leaves that were learned."""
        return self.inner

    def after(self, state: OptState) -> Optimizer:
        inner = self._chart().write(self.inner.after(state.inner), state.mean)
        both = inner, self.meta.after(state.meta)
        return eqx.tree_at(lambda optimizer: (optimizer.inner, optimizer.meta), self, both)

    def diagnostics(self, state: OptState) -> dict[str, Array]:
        """The tuned leaves by name, what the inner optimizer says, and as `meta.NAME` what the other does."""
        above = self.meta.diagnostics(state.meta)
        return {
            **self.inner.diagnostics(state.inner),
            **self._chart().values(state.coordinates),
            **{f"meta.{name}": value for name, value in above.items()},
        }

    @property
    def spaces(self) -> dict[str, Space]:
        return {**prefixed("inner", self.inner.spaces), **prefixed("meta", self.meta.spaces)}

    def _chart(self) -> Chart:
        return sensitivity.chart(self.inner, self.tuned, self.coordinates, self.limits)


DEFAULT_STEP = 0.05


def hypergradient(
    inner: Optimizer, meta_learning_rate: float | Array = DEFAULT_STEP, most: float = math.inf
) -> HypergradientDescent:
    """`HypergradientDescent` on the learning rate in its default form, by plain SGD.

    Args:
      inner: the optimizer inside, which has a leaf called `learning_rate`.
      meta_learning_rate: the most that the logarithm of the learning rate moves in a step.
      most: the learning rate never exceeds this.
    """
    meta = optimizers.get("sgd", learning_rate=meta_learning_rate)
    return HypergradientDescent(inner, meta, limits=None if most == math.inf else (0.0, float(most)))


def tower(
    *levels: Optimizer,
    tuned: Tuned = ("learning_rate",),
    coordinates: Coordinates = "space",
    signal: Signal = "cosine",
) -> Optimizer:
    """Optimizers all the way up: each descends on leaves of the one before it, the first on the parameters.

    Chandra et al., "Gradient Descent: The Ultimate Optimizer", 2022, arXiv 1909.13371, with derivatives of
    one step at each level.

    Args:
      *levels: from the bottom up; one alone is that optimizer as it is.
      tuned: names of the leaves to tune, at every level but the top one.
      coordinates: as in `HypergradientDescent`, at every level.
      signal: likewise.

    Raises:
      OuteroptError: there is no level.

    Examples:
      >>> from outeropt import optimizers
      >>> from outeropt.selftuning import tower
      >>> two = tower(optimizers.get("adam"), optimizers.get("sgd"), optimizers.get("sgd"))
      >>> type(two.meta).__name__
      'HypergradientDescent'
    """
    if not levels:
        raise OuteroptError("A tower needs at least one optimizer.")
    *below, top = levels
    for level in reversed(below):
        top = HypergradientDescent(level, top, tuned, coordinates, signal)
    return top
