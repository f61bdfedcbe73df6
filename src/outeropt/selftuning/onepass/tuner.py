"""What tuners share: a base optimizer whose leaves move every few steps, against the validation loss."""

import abc
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from outeropt import optimizers, tree
from outeropt.errors import OuteroptError
from outeropt.optimizer import Optimizer, OptState, Params, resolve
from outeropt.optimizers.wrappers.base import prefixed
from outeropt.selftuning import sensitivity
from outeropt.selftuning.onepass.rescue import Anchor
from outeropt.selftuning.sensitivity import Chart, Coordinates, Tuned
from outeropt.space import Space


_DECADE = math.log(10.0)

Ranges = tuple[tuple[str, tuple[float, float]], ...]


def ranges_of(given: Mapping[str, tuple[float, float]] | Ranges) -> Ranges:
    """Ranges by name in a form that can be hashed."""
    pairs = given.items() if isinstance(given, Mapping) else given
    return tuple((name, (float(low), float(high))) for name, (low, high) in pairs)


class Point(NamedTuple):
    """Where the tuned leaves are.

    Attributes:
      shared: coordinates of the leaves that all parameters share.
      own: coordinates of the learning rate that every parameter has for itself; None where it is shared.
    """

    shared: Float[Array, " leaves"]
    own: Params | None


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
    harm. A hypergradient with a number that is not finite teaches nothing, and
    is counted as `skipped`. The base optimizer's leaves are where a run starts; `restart` and `after` start
    the next run from where this one ended, and `restart` keeps the meta-optimizer's state.

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
        shared, own = self._charts()
        start = shared.read(self.base) if shared.names else jnp.zeros(0, jnp.float32)
        rates = None if own is None else _spread(own.read(self.base)[0], params)
        point = Point(start, rates)
        base = self.base_at(point).init(params, num_steps=num_steps, key=base_key)
        meta = self.meta.init(point, num_steps=num_steps, key=meta_key)
        zero = jnp.zeros((), jnp.int32)
        return TunerState(base, point, meta, self.begin(params, base), zero, zero, self._anchor(params, base))

    def update(
        self, grads: Params, state: OptState, params: Params, **context: Any
    ) -> tuple[Params, OptState]:
        updates, base = self.play(state.point, grads, state.base, params, context)
        # A clock that all lanes of a sweep share: then all of them tune at once, and none of them in vain.
        number = jnp.asarray(context.get("step", state.count))
        step = Step(params, grads, state.base, applied(params, updates), number, context)
        memory = self.remember(state.memory, step, state.point)

        def learn():
            signal = self.hypergradient(state.point, step, memory)
            known = tree.all_finite(signal)
            point, meta = sensitivity.learn(
                self.meta, signal, state.meta, state.point, known, context, self.clip
            )
            return point, meta, state.skipped + jnp.where(known, 0, 1)

        def wait():
            return state.point, state.meta, state.skipped

        due = (number + 1) % self.every == 0
        point, meta, skipped = jax.lax.cond(due, learn, wait)
        anchor, value = state.anchor, context.get("value")
        if anchor is not None and value is not None:
            anchor = anchor.begun(value, state.count)
            lost = anchor.lost(value, self.rescue)
            updates, base, point = tree.where(
                lost, (anchor.way_back(params), anchor.base, self._slower(point)), (updates, base, point)
            )
            anchor = anchor.moved(lost, due, params, state.base)
        return updates, TunerState(base, point, meta, memory, skipped, state.count + 1, anchor)

    def play(
        self, point: Point, grads: Params, base: OptState, params: Params, context: Mapping[str, Any]
    ) -> tuple[Params, OptState]:
        """The base optimizer's update at a point, and its next state."""
        updates, base = self.base_at(point).update(grads, base, params, **context)
        if point.own is not None:
            rates = self._rates(point.own)
            updates = jax.tree.map(lambda rate, u: rate.astype(u.dtype) * u, rates, updates)
        return updates, base

    def base_at(self, point: Point) -> Optimizer:
        """The base optimizer at a point; with learning rates of their own, at a learning rate of 1."""
        shared, own = self._charts()
        base = shared.write(self.base, point.shared) if shared.names else self.base
        return base if own is None else base.replace({own.names[0]: 1.0})

    def clip(self, point: Point) -> Point:
        """The nearest point in range."""
        shared, own = self._charts()
        moved = shared.clip(point.shared) if shared.names else point.shared
        if own is None:
            return Point(moved, None)

        def within(leaf):
            low, high = own.ends(leaf.dtype)
            return jnp.clip(leaf, low[0], high[0])

        return Point(moved, jax.tree.map(within, point.own))

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
        base = self.base.after(state.base)
        shared, own = self._charts()
        base = shared.write(base, state.point.shared) if shared.names else base
        if own is not None:
            base = base.replace({own.names[0]: self._middle(state.point)})
        both = base, self.meta.after(state.meta)
        return eqx.tree_at(lambda tuner: (tuner.base, tuner.meta), self, both)

    def diagnostics(self, state: OptState) -> dict[str, Array]:
        """The tuned leaves by name (a geometric mean where each has its own), `skipped` and `rescued`."""
        shared, own = self._charts()
        found = {**self.base.diagnostics(state.base), **shared.values(state.point.shared)}
        if own is not None:
            found[own.names[0]] = self._middle(state.point)
        short = {_short(name, found): value for name, value in found.items()}
        rescued = {} if state.anchor is None else {"rescued": state.anchor.rescued}
        return {**short, "skipped": state.skipped, **rescued}

    @property
    def spaces(self) -> dict[str, Space]:
        return {**prefixed("base", self.base.spaces), **prefixed("meta", self.meta.spaces)}

    def _anchor(self, params: Params, base: OptState) -> Anchor | None:
        rates = [name for name in self.tune if name.split(".")[-1] == "learning_rate"]
        return Anchor.at(params, base) if rates and self.rescue < math.inf else None

    def _slower(self, point: Point) -> Point:
        """The point with a tenth of the learning rate."""
        shared, own = self._charts()
        names = [name.split(".")[-1] == "learning_rate" for name in shared.names]
        decade = jnp.asarray([_DECADE / unit for unit in shared.units], point.shared.dtype)
        moved = jnp.where(jnp.asarray(names, bool), point.shared - decade, point.shared)
        if own is not None:
            step = _DECADE / own.units[0]
            return self.clip(Point(moved, jax.tree.map(lambda leaf: leaf - step, point.own)))
        return self.clip(Point(moved, None))

    def _rates(self, own: Params) -> Params:
        _, chart = self._charts()
        assert chart is not None
        return jax.tree.map(lambda leaf: chart.value(0, leaf), own)

    def _middle(self, point: Point) -> Float[Array, ""]:
        leaves = [leaf.ravel() for leaf in jax.tree.leaves(point.own)]
        _, chart = self._charts()
        assert chart is not None
        return chart.value(0, jnp.mean(jnp.concatenate(leaves)))

    def _charts(self) -> tuple[Chart, Chart | None]:
        """Coordinates of the shared leaves, and of the learning rate that each parameter has for itself."""
        full = [resolve(name, self.base.hyperparameters) for name in self.tune]
        ranges = {resolve(name, self.base.hyperparameters): ends for name, ends in self.ranges}
        own = [name for name in full if self.per_parameter and name.split(".")[-1] == "learning_rate"]
        if self.per_parameter and len(own) != 1:
            raise OuteroptError(
                f"per_parameter gives every parameter its own learning_rate, which is not among {self.tune}."
            )
        shared = [name for name in full if name not in own]

        def chart(names):
            within = {name: ends for name, ends in ranges.items() if name in names}
            return sensitivity.chart(self.base, names, self.coordinates, ranges=within)

        if not full:
            raise OuteroptError('No leaf is named to be tuned; name one, such as ("learning_rate",).')
        return chart(shared) if shared else Chart((), (), ()), chart(own) if own else None


def applied(params: Params, updates: Params) -> Params:
    """The parameters after a step."""
    return jax.tree.map(lambda p, u: p + u.astype(p.dtype), params, updates)


def finite(values: PyTree) -> PyTree:
    """The values, with 0 for entries that are not finite.

    Where no gradient ever came, roots of its mean square have no derivative, and one such entry would leave
    nothing of a sum.
    """
    return jax.tree.map(lambda leaf: jnp.where(jnp.isfinite(leaf), leaf, 0.0), values)


def _spread(value: Float[Array, ""], params: Params) -> Params:
    """The value for every entry of the parameters."""
    return jax.tree.map(lambda leaf: jnp.full(leaf.shape, value), params)


def _short(name: str, names: Mapping[str, Any]) -> str:
    """The last part of a dotted name where no other ends so."""
    last = name.split(".")[-1]
    return last if [other.split(".")[-1] for other in names].count(last) == 1 else name


def default_meta() -> Optimizer:
    """Adam at a learning rate of 0.05, half a decade in ten updates at the most."""
    return optimizers.get("adam", learning_rate=0.05)
