"""One-pass tuning by implicit differentiation of the weight update."""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from outeropt.errors import OuteroptError
from outeropt.optimizer import Optimizer, Params
from outeropt.optimizers.arithmetic import inner as product
from outeropt.optimizers.arithmetic import squared_norm
from outeropt.selftuning import sensitivity
from outeropt.selftuning.onepass.point import Point, Ranges, Settings, ranges_of, settings_of
from outeropt.selftuning.onepass.tuner import Step, Tuner, applied, default_meta, finite
from outeropt.selftuning.sensitivity import Coordinates, Tuned


Through = Literal["parameters", "state"]
Solver = Literal["series", "conjugate_gradient"]


class OnePass(Tuner):
    """Tunes leaves of any optimizer in one run, by the best response of the parameters to them.

    Clarke, Oldewage and Hernandez-Lobato, "Scalable One-Pass Optimisation of High-Dimensional Weight-Update
    Hyperparameters by Implicit Differentiation", 2022, arXiv 2110.10461. With `F(w, z)` the map of the
    block's last step (gradient on its minibatch, inner update at the coordinates `z`), `V` the validation
    loss, and everything but parameters and coordinates constant:

        h = grad V(F(w, z))  sum_(j < lookback) (dF/dw)^j  dF/dz

    which is what unrolling gives if all earlier parameters had been the present ones. It takes `lookback - 1`
    products with the Hessian, and no memory of the past. The method of Lorraine, Vicol and Duvenaud, 2020
    (arXiv 1911.02590) is this one on `weight_decay` alone.

    `through="state"` puts the base optimizer's state into the map as well, so that what momentum does later
    counts. `solver="conjugate_gradient"` solves for the limit of the sum, by `lookback` iterations of the
    stabilized biconjugate gradients (van der Vorst 1992; the map need not be symmetric). It is a reference,
    not for use: far from a minimum there is no limit.

    A sum of an even number of terms can point the wrong way where the map expands (the learning rate is above
    2 / curvature), and grows what diverges. So an even sum leaves out its last term if that is the longest.

    Attributes:
      base: the optimizer that is tuned.
      tune: names of the leaves to tune; the last part of a dotted name is enough when it is unique.
      lookback: terms of the sum, at least 1; odd numbers are safer.
      every: inner steps from one tuning to the next.
      meta: the optimizer of the coordinates.
      coordinates: `"decades"` (log10 of a learning rate or weight decay, logit of a momentum), `"space"` or
        `"plain"`; see `sensitivity.chart`.
      ranges: ranges in place of the leaves' spaces, by name: `{"learning_rate": (1e-10, 1.0)}`.
      per_parameter: whether every parameter has a learning rate of its own. The inner update must be
        proportional to its learning rate, as it is for all common optimizers.
      rescue: how high the training loss may rise, relative to the first one; above 1, or `math.inf`.
      settings: settings of the training loss to tune, by name, each with its start and space:
        `{"smoothing": (0.1, Space.log(1e-4, 0.5))}`. The inner loop trains at `task_settings(state)`, and
        offers `loss_at(params, settings)`. The validation loss does not know them.
      through: what the map is of: `"parameters"`, or `"state"` for parameters and optimizer state.
      solver: `"series"` or `"conjugate_gradient"`.

    Raises:
      UnknownName: the base optimizer has no such leaf.
      OuteroptError: a leaf has no such coordinates, a setting is not one of those above, or (from `update`)
        the loop offers no `value_fn` or `valid_fn`.

    Examples:
      >>> import jax, outeropt
      >>> from outeropt import optimizers, tasks
      >>> from outeropt.selftuning import OnePass
      >>> opt, key = OnePass(optimizers.get("sgd", learning_rate=1e-4)), jax.random.key(0)
      >>> run = outeropt.train(tasks.get("Quadratic_10"), opt, steps=20, eval_every=20, key=key)
      >>> bool(run.curves["optimizer/learning_rate"][-1] > 1e-4)  # it was far too small
      True
    """

    base: Optimizer
    tune: Tuned = eqx.field(static=True, default=("learning_rate",), converter=sensitivity.listed)
    lookback: int = eqx.field(static=True, default=5)
    every: int = eqx.field(static=True, default=10)
    meta: Optimizer = eqx.field(default_factory=default_meta)
    coordinates: Coordinates = eqx.field(static=True, default="decades")
    ranges: Ranges = eqx.field(static=True, default=(), converter=ranges_of)
    per_parameter: bool = eqx.field(static=True, default=False)
    rescue: float = eqx.field(static=True, default=2.0)
    settings: Settings = eqx.field(static=True, default=(), converter=settings_of)
    through: Through = eqx.field(static=True, default="parameters")
    solver: Solver = eqx.field(static=True, default="series")

    def __check_init__(self):
        if self.lookback < 1:
            raise OuteroptError(f"lookback = {self.lookback} is not allowed; look back at least 1 step.")
        if self.through not in ("parameters", "state"):
            raise OuteroptError(f'through is "parameters" or "state", not {self.through!r}.')
        if self.solver not in _SOLVERS:
            raise OuteroptError(f"Solvers are {' or '.join(_SOLVERS)}, not {self.solver!r}.")

    @property
    def gradients(self) -> float:
        terms = 2 * self.lookback if self.solver == "conjugate_gradient" else self.lookback - 1
        return self.base.gradients + (1 + 2 * terms) / self.every

    def hypergradient(self, point: Point, step: Step, memory: PyTree) -> Point:
        loss, valid = step.ask("value_fn"), step.ask("valid_fn")
        floats, rest = eqx.partition(step.base, eqx.is_inexact_array)
        # What the map carries from step to step beside the parameters.
        carried = floats if self.through == "state" else ()

        def move(point, params, grads, value, carried):
            base = eqx.combine(carried if self.through == "state" else floats, rest)
            context = {**step.context, "grad": grads, "value": value}
            updates, base = self.play(point, grads, base, params, context)
            return applied(params, updates), eqx.filter(base, eqx.is_inexact_array) if carried else ()

        value = loss(step.params) if step.context.get("value") is None else step.context["value"]
        given = step.params, step.grads, value, carried
        _, pull = jax.vjp(move, point, *given)

        start = jax.grad(valid)(step.moved), jax.tree.map(jnp.zeros_like, carried)
        # Where a derivative is not finite it is so whatever it is multiplied by; see `finite`.
        sound = jax.tree.map(jnp.isfinite, pull(jax.tree.map(jnp.ones_like, start)))

        def back(v):
            # The step is the gradient and what the optimizer makes of it. Going back through the gradient is
            # a product with the Hessian, which is symmetric; back to the point needs no gradient at all.
            pulled = jax.tree.map(lambda ok, leaf: jnp.where(ok, leaf, 0.0), sound, pull(v))
            _, of_params, of_grads, of_value, of_carried = pulled
            _, curved = jax.jvp(jax.grad(loss), (step.params,), (of_grads,))
            total = jax.tree.map(lambda a, b, g: a + b + of_value * g, of_params, curved, step.grads)
            return total, of_carried

        total = _SOLVERS[self.solver](back, start, self.lookback)

        def of_shared(direction):
            def along(shared):
                return move(point._replace(shared=shared), *given)

            _, tangent = jax.jvp(along, (point.shared,), (direction,))
            return product(total, finite(tangent)).astype(direction.dtype)

        # Entry by entry, not by the pull: a sum with one entry that is not finite would be lost.
        shared = [of_shared(direction) for direction in jnp.eye(len(point.shared), dtype=point.shared.dtype)]
        pulled, _, of_grads, *_ = pull(total)
        return Point(
            jnp.stack(shared) if shared else point.shared,
            pulled.own,
            self._of_settings(point.settings, finite(of_grads), step) if self.settings else point.settings,
        )

    def _of_settings(self, at: Array, of_grads: Params, step: Step) -> Array:
        """What the gradient's dependence on the loss's settings does, by what the gradient does."""
        loss_at, chart = step.ask("loss_at"), self._charts().settings

        def along(settings):
            def loss(params):
                return loss_at(params, chart.values(settings))

            return product(jax.grad(loss)(step.params), of_grads)

        return jax.grad(along)(at)


def _series(back, start, terms):
    """`sum_(j < terms) back^j start`, without the last term if it would make an expanding sum even."""

    def add(_, carry):
        last, total = carry
        last = back(last)
        return last, jax.tree.map(jnp.add, total, last)

    last, total = jax.lax.fori_loop(0, terms - 1, add, (start, start))
    if terms % 2:
        return total
    expands = squared_norm(last) > squared_norm(start)
    return jax.tree.map(lambda leaf, end: leaf - jnp.where(expands, end, 0.0), total, last)


def _conjugate_gradient(back, start, iterations):
    """`x` with `x - back(x) = start`."""

    def residual(x):
        return jax.tree.map(jnp.subtract, x, back(x))

    found, _ = jax.scipy.sparse.linalg.bicgstab(residual, start, maxiter=iterations)
    return found


_SOLVERS = {"series": _series, "conjugate_gradient": _conjugate_gradient}
