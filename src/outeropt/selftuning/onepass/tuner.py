"""What tuners share: a base optimizer whose leaves move every few steps, against the validation loss."""

import abc
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from outeropt import optimizers, tree
from outeropt.errors import OuteroptError
from outeropt.optimizer import Optimizer, OptState, Params
from outeropt.optimizers.wrappers.base import prefixed
from outeropt.selftuning import sensitivity
from outeropt.selftuning.onepass.point import Charts, Point, Ranges, Settings, is_rate
from outeropt.selftuning.onepass.rescue import Anchor
from outeropt.selftuning.sensitivity import Coordinates, Tuned
from outeropt.space import Space


class TunerState(NamedTuple):
    """State of a `Tuner`.

    Attributes:
      base: the base optimizer's state.
      point: where the tuned leaves are now.
      meta: the state of the optimizer that moves them.
      memory: what the method remembers of earlier steps.
      skipped: hypergradients so far that were not finite, and taught nothing.
      count: steps so far.
      anchor: where to go back to when a run is lost; None where none is rescued.
    """

    base: OptState
    point: Point
    meta: OptState
    memory: PyTree
    skipped: Int[Array, ""]
    count: Int[Array, ""]
    anchor: Anchor | None


class Step(NamedTuple):
    """The last inner step of a block, which a hypergradient is taken through.

    Attributes:
      params: where it began.
      grads: the gradient there.
      base: the base optimizer's state there.
      moved: where it led to.
      number: its number in the run, from 0.
      context: what the inner loop offered.
    """

    params: Params
    grads: Params
    base: OptState
    moved: Params
    number: Int[Array, ""]
    context: Mapping[str, Any]

    def ask(self, name: str) -> Callable[..., Any]:
        """A function that the inner loop offers.

        Raises:
          OuteroptError: it does not offer it.
        """
        found = self.context.get(name)
        if found is None:
            raise OuteroptError(
                f"This tuner needs `{name}` in every call of update (see Optimizer.update): "
                "the training loss is `value_fn`, the validation loss `valid_fn`."
            )
        return found


class Tuner(Optimizer):
    """Tunes leaves of the base optimizer while it trains, once in a block of `every` steps.

    With `z` the coordinates of the tuned leaves and `h` the method's estimate of how the validation loss
    after the block depends on them:

        z <- z + meta.update(h),   moved into their ranges

    Training goes on from where it is. But where the training loss (`value`) is not finite, or has risen from
    the first one's `f` to more than `f + (rescue - 1) |f|`, the run is lost: it goes back to the last block's
    beginning, to learn at a tenth of the learning rate, if that is tuned. So a start far too high does no
    harm. A hypergradient with a number that is not finite teaches nothing, and is counted as `skipped`.

    The base optimizer's leaves are where a run starts; `restart` and `after` start the next run from where
    this one ended, and `restart` keeps the meta-optimizer's state.

    Subclasses are one method each: they fill in `hypergradient`, and `remember` if they need earlier steps.
    """

    base: eqx.AbstractVar[Optimizer]
    tune: eqx.AbstractVar[Tuned]
    meta: eqx.AbstractVar[Optimizer]
    every: eqx.AbstractVar[int]
    coordinates: eqx.AbstractVar[Coordinates]
    ranges: eqx.AbstractVar[Ranges]
    per_parameter: eqx.AbstractVar[bool]
    rescue: eqx.AbstractVar[float]
    settings: eqx.AbstractVar[Settings]

    needs: ClassVar[tuple[str, ...]] = ("value_fn", "valid_fn")
    """What the inner loop must offer."""

    def __check_init__(self):
        if self.every < 1:
            raise OuteroptError(f"every = {self.every} is not allowed; tune at least every 1 step.")
        if not self.rescue > 1:
            raise OuteroptError(f"rescue = {self.rescue} is not allowed; give more than 1, or math.inf.")
        self._charts()

    @abc.abstractmethod
    def hypergradient(self, point: Point, step: Step, memory: PyTree) -> Point:
        """How the validation loss where the step led to depends on the point."""

    def begin(self, params: Params, base: OptState) -> PyTree:
        """What is remembered before the first step."""
        del params, base
        return ()

    def remember(self, memory: PyTree, step: Step, point: Point) -> PyTree:
        """What is remembered after a step."""
        del step, point
        return memory

    def init(
        self, params: Params, *, num_steps: int | Array | None = None, key: PRNGKeyArray | None = None
    ) -> OptState:
        base_key, meta_key = (None, None) if key is None else jax.random.split(key)
        point = self._charts().start(self.base, params, self.settings)
        base = self.base_at(point).init(params, num_steps=num_steps, key=base_key)
        meta = self.meta.init(point, num_steps=num_steps, key=meta_key)
        zero = jnp.zeros((), jnp.int32)
        return TunerState(base, point, meta, self.begin(params, base), zero, zero, self._anchor(params, base))

    def update(
        self, grads: Params, state: OptState, params: Params, **context: Any
    ) -> tuple[Params, OptState]:
        charts = self._charts()
        updates, base = self.play(state.point, grads, state.base, params, context)
        # A clock that all lanes of a sweep share: then all of them tune at once, and none of them in vain.
        number = jnp.asarray(context.get("step", state.count))
        step = Step(params, grads, state.base, applied(params, updates), number, context)
        for name in (*self.needs, *(("loss_at",) if self.settings else ())):
            step.ask(name)
        memory = self.remember(state.memory, step, state.point)

        def learn():
            signal = self.hypergradient(state.point, step, memory)
            known = tree.all_finite(signal)
            point, meta = sensitivity.learn(
                self.meta, signal, state.meta, state.point, known, context, charts.clip
            )
            return point, meta, state.skipped + jnp.where(known, 0, 1)

        def wait():
            return state.point, state.meta, state.skipped

        rhythm, due = context.get("due", (0, False))
        if rhythm != self.every:
            due = (number + 1) % self.every == 0
        point, meta, skipped = branch(due, learn, wait)
        anchor, value = state.anchor, context.get("value")
        if anchor is not None and value is not None:
            anchor = anchor.begun(value, state.count)
            lost = anchor.lost(value, self.rescue)
            updates, base, point = tree.where(
                lost,
                (anchor.way_back(params), anchor.base, charts.slower(point)),
                (updates, base, point),
            )
            anchor = anchor._replace(rescued=anchor.rescued + jnp.where(lost, 1, 0))
            # Copies of parameters and state are made once in a block, not at every step.
            anchor = branch(due, functools.partial(anchor.moved, lost, params, state.base), lambda: anchor)
        return updates, TunerState(base, point, meta, memory, skipped, state.count + 1, anchor)

    def play(
        self, point: Point, grads: Params, base: OptState, params: Params, context: Mapping[str, Any]
    ) -> tuple[Params, OptState]:
        """The base optimizer's update at a point, and its next state."""
        updates, base = self.base_at(point).update(grads, base, params, **context)
        if point.own is not None:
            rates = self._charts().rates(point.own)
            updates = jax.tree.map(lambda rate, u: rate.astype(u.dtype) * u, rates, updates)
        return updates, base

    def base_at(self, point: Point) -> Optimizer:
        """The base optimizer at a point; with learning rates of their own, at a learning rate of 1."""
        charts = self._charts()
        base = charts.shared.write(self.base, point.shared)
        return base if charts.own is None else base.replace({charts.own.names[0]: 1.0})

    @property
    def rhythm(self) -> int:
        return self.every

    def task_settings(self, state: OptState) -> dict[str, Array]:
        return self._charts().settings.values(state.point.settings)

    def eval_params(self, state: OptState, params: Params) -> Params:
        return self.base.eval_params(state.base, params)

    def restart(
        self,
        state: OptState,
        params: Params,
        *,
        num_steps: int | Array | None = None,
        key: PRNGKeyArray | None = None,
    ) -> OptState:
        base = self.base_at(state.point).restart(state.base, params, num_steps=num_steps, key=key)
        memory, anchor = self.begin(params, base), self._anchor(params, base)
        return state._replace(base=base, memory=memory, count=jnp.zeros_like(state.count), anchor=anchor)

    def freeze(self) -> Optimizer:
        """The base optimizer, at the leaves that were learned.

        Raises:
          OuteroptError: every parameter has a learning rate of its own, which no other optimizer could hold.
        """
        if self.per_parameter:
            raise OuteroptError("Learning rates for every parameter end with their run; tune a shared one.")
        return self.base

    def after(self, state: OptState) -> Optimizer:
        base, charts = self.base.after(state.base), self._charts()
        base = charts.shared.write(base, state.point.shared)
        if charts.own is not None:
            base = base.replace({charts.own.names[0]: charts.middle(state.point.own)})
        both = base, self.meta.after(state.meta)
        return eqx.tree_at(lambda tuner: (tuner.base, tuner.meta), self, both)

    def diagnostics(self, state: OptState) -> dict[str, Array]:
        """The tuned leaves by name (a geometric mean where each has its own), `skipped` and `rescued`."""
        charts, point = self._charts(), state.point
        found = {**self.base.diagnostics(state.base), **charts.shared.values(point.shared)}
        if charts.own is not None:
            found[charts.own.names[0]] = charts.middle(point.own)
        found |= charts.settings.values(point.settings)
        short = {_short(name, found): value for name, value in found.items()}
        rescued = {} if state.anchor is None else {"rescued": state.anchor.rescued}
        return {**short, "skipped": state.skipped, **rescued}

    @property
    def spaces(self) -> dict[str, Space]:
        return {**prefixed("base", self.base.spaces), **prefixed("meta", self.meta.spaces)}

    def _anchor(self, params: Params, base: OptState) -> Anchor | None:
        return Anchor.at(params, base) if any(map(is_rate, self.tune)) and self.rescue < math.inf else None

    def _charts(self) -> Charts:
        return Charts.of(
            self.base, self.tune, self.coordinates, self.ranges, self.per_parameter, self.settings
        )


def branch(condition: Array, yes: Callable[[], Any], no: Callable[[], Any]) -> Any:
    """`lax.cond`, without compiling anything in a loop that is not compiled itself."""
    if isinstance(condition, Tracer):
        return jax.lax.cond(condition, yes, no)
    return yes() if condition else no()


def applied(params: Params, updates: Params) -> Params:
    """The parameters after a step."""
    return jax.tree.map(lambda p, u: p + u.astype(p.dtype), params, updates)


def finite(values: PyTree) -> PyTree:
    """The values, with 0 for entries that are not finite.

    Where no gradient ever came, roots of its mean square have no derivative, and one such entry would leave
    nothing of a sum.
    """
    return jax.tree.map(lambda leaf: jnp.where(jnp.isfinite(leaf), leaf, 0.0), values)


def _short(name: str, names: Mapping[str, Any]) -> str:
    """The last part of a dotted name where no other ends so."""
    last = name.split(".")[-1]
    return last if [other.split(".")[-1] for other in names].count(last) == 1 else name


def default_meta() -> Optimizer:
    """Adam at a learning rate of 0.05, half a decade in ten updates at the most."""
    return optimizers.get("adam", learning_rate=0.05)
