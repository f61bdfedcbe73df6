"""The contract of an optimizer: a pytree whose numeric leaves an outer loop may change."""

import abc
from collections.abc import Collection, Mapping
from typing import Any

import equinox as eqx
import jax
import optax
from jax.core import Tracer
from jaxtyping import Array, PRNGKeyArray, PyTree

from outeropt import tree
from outeropt.errors import UnknownName, unknown_name
from outeropt.space import Space


OptState = PyTree
Params = PyTree


class Optimizer(eqx.Module):
    """An optimizer whose array leaves are hyperparameters or meta-parameters, and all else static.

    `vmap` over the leaves sweeps it, `grad` with respect to them gives hypergradients, and `tree` functions
    save and shard it. Subclasses are final: they add fields and fill in `init` and `update`.

    Examples:
      >>> from outeropt import optimizers
      >>> adam = optimizers.get("adam")
      >>> sorted(adam.hyperparameters)
      ['b1', 'b2', 'eps', 'eps_root', 'learning_rate']
      >>> faster = adam.replace({"learning_rate": 0.25})
      >>> float(faster.hyperparameters["learning_rate"]), float(adam.hyperparameters["b1"]) > 0.8
      (0.25, True)
    """

    @abc.abstractmethod
    def init(
        self, params: Params, *, num_steps: int | Array | None = None, key: PRNGKeyArray | None = None
    ) -> OptState:
        """The state before the first step.

        Args:
          params: parameters to be optimized, any pytree of floating arrays.
          num_steps: length of the coming run, for schedules that span it; None if unknown.
          key: randomness for optimizers that draw some.

        Returns:
          A pytree of arrays, of constant structure, shapes and dtypes from step to step.
        """

    @abc.abstractmethod
    def update(
        self, grads: Params, state: OptState, params: Params, **context: Any
    ) -> tuple[Params, OptState]:
        """One step.

        Args:
          grads: gradient of the training loss at `params`, same structure as `params`.
          state: what `init` or the previous `update` returned.
          params: current parameters.
          **context: what the inner loop offers; ignore what is not needed. `value` (training loss at
            `params`), `grad` (as `grads`), `value_fn` (`params -> loss` on this minibatch), `value_at`
            (`(params, step) -> loss` on the minibatch of an earlier step), `valid_fn` (`params -> loss` on a
            validation minibatch), `loss_at` (`(params, settings) -> loss` on this minibatch, with leaves of
            the task by name), `key` (randomness for this step), `step` (inner step, from 0), `due`
            (`(rhythm, bool)`, plain numbers: whether `step + 1` is a multiple of `rhythm`).

        Returns:
          Updates to be ADDED to the parameters, and the next state.
        """

    def observe(self, grads: Params, state: OptState, params: Params, **context: Any) -> OptState:
        """The next state where something else moves the parameters, as in a warm-up.

        By default that of `update`. An optimizer that remembers its own updates keeps those parts as they
        are.
        """
        return self.update(grads, state, params, **context)[1]

    def eval_params(self, state: OptState, params: Params) -> Params:
        """The point to evaluate at, for optimizers whose answer is not the training point (averages)."""
        del state
        return params

    def restart(
        self,
        state: OptState,
        params: Params,
        *,
        num_steps: int | Array | None = None,
        key: PRNGKeyArray | None = None,
    ) -> OptState:
        """The state before another episode, which starts anew from `params`.

        An optimizer that learns about training while it trains keeps what it learned; the rest of its state
        is as `init` makes it, and so is all of it by default.
        """
        del state
        return self.init(params, num_steps=num_steps, key=key)

    def after(self, state: OptState) -> "Optimizer":
        """This optimizer with what it learned in a run in place of the leaves that it started from.

        Its next run begins where that one ended, on the same task or another. By default itself.
        """
        del state
        return self

    def diagnostics(self, state: OptState) -> dict[str, Array]:
        """Scalars worth watching, by name: the learning rate of the moment, a controller's coefficients.

        Evaluations log them as `optimizer/NAME`. Their names do not change from step to step.
        """
        del state
        return {}

    @property
    def gradients(self) -> float:
        """Gradients of a loss that a step takes on average, the one that it is given among them.

        What a product with a Hessian, or the way back through a gradient, costs more counts as another one.
        """
        return 1.0

    @property
    def rhythm(self) -> int:
        """Steps from one that does more than the others to the next; 10 if those are 9, 19 and so on.

        An inner loop that knows beforehand which they are can say so, as `due`.
        """
        return 1

    def task_settings(self, state: OptState) -> dict[str, Array]:
        """Values that leaves of the task should have in the training loss now, by name.

        For optimizers that tune the loss (a label smoothing, the strength of an augmentation). Validation and
        evaluation do not hear of it.
        """
        del state
        return {}

    @property
    def spaces(self) -> dict[str, Space]:
        """Spaces of the hyperparameters that have one, by leaf name."""
        return {}

    @property
    def hyperparameters(self) -> dict[str, Array]:
        """Numeric leaves by dotted name, in tree order."""
        return tree.named_leaves(eqx.filter(self, eqx.is_array))

    def replace(self, values: Mapping[str, Any] | None = None, /, **keywords: Any) -> "Optimizer":
        """A copy with some leaves replaced, by name.

        Args:
          values: new values by name, for names that are no identifiers (`{"inner.b1": 0.9}`).
          **keywords: the same by keyword. The last part of a dotted name is enough when only one leaf ends
            so.

        Raises:
          UnknownName: no leaf, or more than one, has that name.
          OutOfSpace: a value lies outside the leaf's space. (Traced values are not checked.)
        """
        given = {**(values or {}), **keywords}
        leaves = self.hyperparameters
        spaces = self.spaces
        full = {resolve(name, leaves): value for name, value in given.items()}
        for name, value in full.items():
            if name in spaces and not isinstance(value, Tracer):
                spaces[name].check(name, value)
        return tree.with_leaves(self, full)

    def as_optax(
        self, *, num_steps: int | None = None, key: PRNGKeyArray | None = None
    ) -> optax.GradientTransformationExtraArgs:
        """This optimizer as an optax transformation, for `optax.chain`, flax and any other optax loop.

        Args:
          num_steps: length of the run, for optimizers that need it (optax's `init` has no place for it).
          key: randomness for optimizers that draw some.
        """

        def init(params):
            return self.init(params, num_steps=num_steps, key=key)

        def update(updates, state, params=None, **context):
            return self.update(updates, state, params, **context)

        return optax.GradientTransformationExtraArgs(init, update)


def resolve(name: str, leaves: Collection[str]) -> str:
    """The full leaf name that `name` (whole, or a unique dotted ending) stands for.

    Raises:
      UnknownName: none, or more than one.
    """
    if name in leaves:
        return name
    ends = [full for full in leaves if full.endswith("." + name)]
    if len(ends) == 1:
        return ends[0]
    if ends:
        raise UnknownName(f"Hyperparameter {name!r} is ambiguous; say which: {', '.join(ends)}.")
    error = unknown_name("hyperparameter", name, leaves)
    raise UnknownName(f"{error} This optimizer has: {', '.join(leaves) or 'none'}.")


def evaluates_apart(optimizer: Optimizer, state: OptState, params: Params) -> bool:
    """Whether `eval_params` gives anything but the parameters that it is given.

    The arrays of `state` and `params` may be `ShapeDtypeStruct`s.
    """
    same = []

    def point(state, params):
        found = optimizer.eval_params(state, params)
        same.extend(new is old for new, old in zip(jax.tree.leaves(found), jax.tree.leaves(params)))
        return found

    jax.eval_shape(point, state, params)
    return not all(same)
