"""Hyperparameters that a controller drives, from what the last steps' hypergradients said."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from outeropt import optimizers, tree
from outeropt.errors import OuteroptError
from outeropt.optimizer import Optimizer, OptState, Params
from outeropt.optimizers.schedules import number
from outeropt.optimizers.wrappers.base import Wrapper, prefixed
from outeropt.selftuning import sensitivity
from outeropt.selftuning.driving import COEFFICIENT, Controller, LinearController
from outeropt.selftuning.sensitivity import Chart, Coordinates, Tuned
from outeropt.space import Space


class DrivenState(NamedTuple):
    """State of `DrivenHyperparameters`.

    Attributes:
      inner: the inner optimizer's state.
      base: coordinates that the controller's outputs are added to.
      controller: the controller as it is now.
      meta: the state of the optimizer that learns it.
      window: the last signals of each hyperparameter, newest first.
      tangents: derivatives of the last updates with respect to the coordinates, one copy of the parameters
        each.
      known: whether there was a step to learn from, and a finite one.
      mean: mean of the driven coordinates over the episode, in which step `t` counts `1 / t`.
      count: steps of the episode so far.
    """

    inner: OptState
    base: Float[Array, " leaves"]
    controller: Controller
    meta: OptState
    window: Float[Array, "leaves memory"]
    tangents: tuple[Params, ...]
    known: Bool[Array, ""]
    mean: Float[Array, " leaves"]
    count: Int[Array, ""]


class DrivenHyperparameters(Wrapper):
    """Drives leaves of the inner optimizer by a controller that is learned while it trains.

    At step `t`, with `z` the coordinates of a leaf, `u(z)` the inner update as a function of them, `g` the
    gradient, and `C` a controller with the numbers `phi`:

        s_t   = cos(g_t, d u_(t-1) / d z)                    the signal, in [-1, 1]
        phi_t = phi_(t-1) + meta.update(s_t * d z_(t-1) / d phi)
        z_t   = b_(t-1) + C(phi_t; s_t, s_(t-1), ..., s_(t-memory+1))
        b_t   = b_(t-1) + follow * (z_t - b_(t-1))
        x_(t+1) = x_t + u_t(z_t)

    The disturbance-action controllers of nonstochastic control (Chen and Hazan, "A Nonstochastic Control
    Approach to Optimization", 2023, arXiv 2301.07902) act on the parameters; this one acts on the
    hyperparameters, where the disturbance is what the last step should have been. It learns along the real
    trajectory, from how the last step alone depended on it. A controller of zeros that does not learn is the
    inner optimizer. Nothing is learned at the first step of an episode, nor where a number is not finite.

    `restart` keeps the controller and the meta-optimizer's state, and starts the base from the
    `sensitivity.early_mean` of `z`; `after` returns them.

    Attributes:
      inner: the optimizer inside.
      meta: the optimizer that learns the controllers.
      controller: where they start, one for each tuned leaf.
      follow: how fast the base follows, in [0, 1]. With 0 it stays, and the leaf comes back to where it
        started when the signals fade: a leaf that starts decades away is then hardly found.
      tuned: names of the leaves to drive; the last part of a dotted name is enough when it is unique.
      coordinates: as in `HypergradientDescent`.

    Raises:
      UnknownName: the inner optimizer has no such leaf.
      OuteroptError: a leaf has no such coordinates, or there are more or fewer controllers than leaves.

    Examples:
      >>> from outeropt import optimizers
      >>> from outeropt.selftuning import DrivenHyperparameters, LinearController
      >>> opt = DrivenHyperparameters(optimizers.get("adam"), controller=LinearController.zeros(memory=4))
      >>> opt.tuned
      ('learning_rate',)
    """

    inner: Optimizer
    meta: Optimizer = eqx.field(default_factory=lambda: optimizers.get("sgd", learning_rate=DEFAULT_STEP))
    controller: Controller = eqx.field(default_factory=LinearController.zeros)
    follow: Float[Array, ""] = eqx.field(converter=number, default=0.1)
    tuned: Tuned = eqx.field(static=True, default=("learning_rate",), converter=sensitivity.listed)
    coordinates: Coordinates = eqx.field(static=True, default="space")

    def __check_init__(self):
        leaves = len(self._chart().names)
        if self.controller.leaves != leaves:
            raise OuteroptError(
                f"{leaves} leaves are tuned by {self.controller.leaves} controllers; give a controller with "
                f"leaves={leaves}."
            )

    def init(
        self, params: Params, *, num_steps: int | Array | None = None, key: PRNGKeyArray | None = None
    ) -> OptState:
        inner_key, meta_key = (None, None) if key is None else jax.random.split(key)
        chart = self._chart()
        base = chart.read(self.inner)
        # A copy: a loop that donates its buffers may not donate one that the optimizer holds.
        controller = jax.tree.map(jnp.array, self.controller)
        return DrivenState(
            chart.write(self.inner, base).init(params, num_steps=num_steps, key=inner_key),
            base,
            controller,
            self.meta.init(controller, num_steps=num_steps, key=meta_key),
            jnp.zeros((len(chart.names), controller.memory), base.dtype),
            sensitivity.still(chart, params),
            jnp.array(False),
            base,
            jnp.zeros((), jnp.int32),
        )

    def update(
        self, grads: Params, state: OptState, params: Params, **context: Any
    ) -> tuple[Params, OptState]:
        chart = self._chart()
        signal = sensitivity.signals("cosine", grads, state.tangents, state.base.dtype)
        outputs, pull = jax.vjp(lambda controller: controller(state.window), state.controller)
        (gradient,) = pull(signal.astype(outputs.dtype))
        controller, meta = sensitivity.learn(
            self.meta, gradient, state.meta, state.controller, state.known, context
        )
        heard = jnp.where(jnp.isfinite(signal), signal, 0.0)
        window = jnp.concatenate([heard[:, None], state.window[:, :-1]], axis=1)
        coordinates = chart.clip(state.base + controller(window).astype(state.base.dtype))
        base = state.base + self.follow.astype(state.base.dtype) * (coordinates - state.base)
        updates, inner, tangents = sensitivity.step(
            self.inner, chart, coordinates, grads, state.inner, params, context
        )
        known, count = tree.all_finite(updates), state.count + 1
        mean = sensitivity.early_mean(state.mean, coordinates, count)
        return updates, DrivenState(inner, base, controller, meta, window, tangents, known, mean, count)

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
        return state._replace(
            base=state.mean,
            count=jnp.zeros((), jnp.int32),
            inner=now.restart(state.inner, params, num_steps=num_steps, key=key),
            window=jnp.zeros_like(state.window),
            tangents=sensitivity.still(chart, params),
            known=jnp.array(False),
        )

    def freeze(self) -> Optimizer:
        """The inner optimizer, at the bases that were learned."""
        return self.inner

    def after(self, state: OptState) -> Optimizer:
        inner = self._chart().write(self.inner.after(state.inner), state.mean)
        return eqx.tree_at(
            lambda optimizer: (optimizer.inner, optimizer.meta, optimizer.controller),
            self,
            (inner, self.meta.after(state.meta), state.controller),
        )

    def diagnostics(self, state: OptState) -> dict[str, Array]:
        """The driven leaves by name, those of their bases as `base.NAME`, and the inner one's own."""
        chart = self._chart()
        # The last step was played from the base before this one.
        now = chart.clip(state.base + state.controller(state.window).astype(state.base.dtype))
        return {
            **self.inner.diagnostics(state.inner),
            **chart.values(now),
            **{f"base.{name}": value for name, value in chart.values(state.base).items()},
        }

    @property
    def spaces(self) -> dict[str, Space]:
        return {
            "follow": Space.log(1e-4, 1.0, allowed=(0.0, 1.0)),
            **{f"controller.{name}": COEFFICIENT for name in tree.named_leaves(self.controller)},
            **prefixed("inner", self.inner.spaces),
            **prefixed("meta", self.meta.spaces),
        }

    def _chart(self) -> Chart:
        return sensitivity.chart(self.inner, self.tuned, self.coordinates)


DEFAULT_STEP, DEFAULT_FOLLOW = 0.01, 0.1


def driven(
    inner: Optimizer,
    meta_learning_rate: float | Array = DEFAULT_STEP,
    memory: float = 8,
    follow: float | Array = DEFAULT_FOLLOW,
) -> DrivenHyperparameters:
    """`DrivenHyperparameters` on the learning rate, by a linear controller and plain SGD.

    Args:
      inner: the optimizer inside, which has a leaf called `learning_rate`.
      meta_learning_rate: step size of the controller's coefficients.
      memory: how many signals the controller sees.
      follow: how fast the base follows.
    """
    meta = optimizers.get("sgd", learning_rate=meta_learning_rate)
    return DrivenHyperparameters(inner, meta, LinearController.zeros(memory=int(memory)), follow)
