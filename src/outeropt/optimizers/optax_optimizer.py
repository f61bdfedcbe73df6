"""Any optax factory as an `Optimizer`: its floats become leaves, everything else is static."""

import inspect
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from outeropt import tree
from outeropt.errors import OuteroptError, unknown_name
from outeropt.optimizer import Optimizer, OptState, Params
from outeropt.optimizers import schedules, spaces
from outeropt.optimizers.schedules import Schedule
from outeropt.space import Space


STATIC_ARGUMENTS: dict[Callable[..., Any], frozenset[str]] = {
    # Compared by Python `if`s when the factory is called.
    optax.contrib.reduce_on_plateau: frozenset({"factor", "rtol", "atol"}),
    # Kept in the state from `init` on, so that a leaf would change nothing later.
    optax.contrib.muon: frozenset({"ns_coeffs"}),
}
"""Float arguments that cannot be leaves, by factory; `static_arguments` adds to it."""


def static_arguments(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declares float arguments of a factory that cannot be leaves because they break when traced."""

    def declare(factory: Callable[..., Any]) -> Callable[..., Any]:
        STATIC_ARGUMENTS[factory] = frozenset(names)
        return factory

    return declare


class ScheduledState(NamedTuple):
    """State of an `OptaxOptimizer` with schedules.

    Attributes:
      inner: optax's own state.
      clock: the step and the length of the run; see `schedules.clock`.
    """

    inner: OptState
    clock: Int[Array, "2"]


class OptaxOptimizer(Optimizer):
    """An optax factory with its hyperparameters; made by `from_optax`.

    Each update calls the factory with the leaves of the moment. For float32 parameters the updates are those
    of `optax.inject_hyperparams` bit for bit. For narrower parameters the leaves stay float32 and, being
    weakly typed as Python floats are, leave the parameters' and the state's types alone (`inject_hyperparams`
    rounds them to the parameters' type, which turns b2 = 0.999 into 1 in bfloat16).

    Attributes:
      values: float32 arrays, tuples of them, and schedules, by name of the factory's argument.
      settings: every other argument, by name, sorted.
      factory: the optax factory.
      given_spaces: spaces by leaf name.
      needs: what `update` cannot do without: names of its context.
      label: what messages call this optimizer.
    """

    values: dict[str, Any]
    settings: tuple[tuple[str, Any], ...] = eqx.field(static=True)
    factory: Callable[..., optax.GradientTransformation] = eqx.field(static=True)
    given_spaces: tuple[tuple[str, Space], ...] = eqx.field(
        static=True, default=(), metadata=tree.NO_IDENTITY
    )
    needs: tuple[str, ...] = eqx.field(static=True, default=(), metadata=tree.NO_IDENTITY)
    label: str = eqx.field(static=True, default="this optimizer", metadata=tree.NO_IDENTITY)

    def init(
        self, params: Params, *, num_steps: int | Array | None = None, key: PRNGKeyArray | None = None
    ) -> OptState:
        scheduled = self._schedules()
        now = schedules.clock(scheduled, num_steps) if scheduled else None
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            inner = jax.tree.map(_strong, self._transformation(params, now, key).init(params))
        return inner if now is None else ScheduledState(inner, now)

    def update(
        self, grads: Params, state: OptState, params: Params, **context: Any
    ) -> tuple[Params, OptState]:
        for name in self.needs:
            if context.get(name) is None:
                raise OuteroptError(
                    f"{self.label} needs `{name}`, which was not given; "
                    f"call update(grads, state, params, {name}=...)."
                )
        if context.get("value_fn") is not None:
            context = _with_loss(context)
        inner, now = state if isinstance(state, ScheduledState) else (state, None)
        # optax mixes integer counts and floats of several types; that is its business.
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            transformation = optax.with_extra_args_support(self._transformation(params, now))
            updates, new = transformation.update(grads, inner, params, **context)
            updates = jax.tree.map(_like, updates, grads if params is None else params)
            new = jax.tree.map(_like, new, inner)
        return updates, new if now is None else ScheduledState(new, schedules.tick(now))

    def eval_params(self, state: OptState, params: Params) -> Params:
        """The averaged point of schedule-free methods; `params` for all others."""
        inner = state.inner if isinstance(state, ScheduledState) else state
        found = [
            part for part in jax.tree.leaves(inner, is_leaf=_is_schedule_free) if _is_schedule_free(part)
        ]
        if not found:
            return params
        with jax.numpy_dtype_promotion("standard"):
            return jax.tree.map(_like, optax.contrib.schedule_free_eval_params(found[0], params), params)

    @property
    def spaces(self) -> dict[str, Space]:
        known = dict(self.given_spaces)
        found = {}
        for name, value in self.values.items():
            if isinstance(value, Schedule):
                own = value.spaces(known.get(name))
                found.update({f"{name}.{field}": space for field, space in own.items()})
        names = self.hyperparameters
        return {name: space for name, space in {**known, **found}.items() if name in names}

    def _schedules(self) -> list[Schedule]:
        return [value for value in self.values.values() if isinstance(value, Schedule)]

    def _transformation(
        self, params: Params, now: Int[Array, "2"] | None, key: PRNGKeyArray | None = None
    ) -> optax.GradientTransformation:
        dtype = _leaf_dtype(params)
        arguments = dict(self.settings)
        for name, value in self.values.items():
            current = jax.tree.map(lambda leaf: _weak(leaf, dtype), schedules.value_at(value, now))
            arguments[name] = _fill(current, arguments[name]) if isinstance(value, tuple) else current
        if key is not None and "key" in arguments:
            arguments["key"] = key
        return self.factory(**arguments)


def from_optax(factory: Callable[..., Any], /, **hyperparameters: Any) -> OptaxOptimizer:
    """Makes any factory of an optax transformation an `Optimizer`.

    Floats (Python's, numpy's, float arrays, also inside tuples such as `betas=(0.9, 0.999)`) become float32
    leaves named after their arguments (`learning_rate`, `betas.0`), and so do arguments left at a float
    default. Schedules of `outeropt.optimizers.schedules` stay pytrees of their own numbers. Booleans,
    integers, None, strings and callables are static; an integer given where the default is a float, or as
    `learning_rate`, counts as a float.

    Args:
      factory: `optax.adam`, `optax.contrib.prodigy`, or your own function returning an optax transformation.
      **hyperparameters: its arguments.

    Raises:
      UnknownName: the factory has no such argument.
      OuteroptError: an argument is missing, or is neither numeric nor hashable.

    Examples:
      >>> import optax
      >>> from outeropt import optimizers
      >>> adamw = optimizers.from_optax(optax.adamw, learning_rate=0.5, weight_decay=0.0)
      >>> sorted(adamw.hyperparameters)
      ['b1', 'b2', 'eps', 'eps_root', 'learning_rate', 'weight_decay']
    """
    return build(factory, hyperparameters, {}, (), getattr(factory, "__name__", "this optimizer"))


def build(
    factory: Callable[..., Any],
    hyperparameters: Mapping[str, Any],
    extra_spaces: Mapping[str, Space],
    needs: tuple[str, ...],
    label: str,
) -> OptaxOptimizer:
    """`from_optax` with spaces beyond those of `spaces.BY_NAME`, needs and a name for messages."""
    given = dict(hyperparameters)
    known = inspect.signature(factory).parameters
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    for name in given:
        if name not in known and not open_ended:
            error = unknown_name("hyperparameter", name, known)
            raise type(error)(f"{error} {label} has: {', '.join(known)}.")
    static = STATIC_ARGUMENTS.get(factory, frozenset())
    values, settings = {}, {}
    for name, parameter in known.items():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        if name not in given and parameter.default is parameter.empty:
            raise OuteroptError(f"{label} needs `{name}`; give it: {label}(..., {name}=...).")
        value = given.pop(name, parameter.default)
        _sort(name, value, _wants_float(name, parameter.default), name in static, values, settings)
    for name, value in given.items():
        _sort(name, value, _wants_float(name, None), name in static, values, settings)
    own = {**spaces.BY_NAME, **extra_spaces}
    names = tree.named_leaves(_Named(values))
    return OptaxOptimizer(
        values=values,
        settings=tuple(sorted(settings.items())),
        factory=factory,
        given_spaces=tuple(item for item in own.items() if item[0] in names or item[0] in values),
        needs=needs,
        label=label,
    )


class _Named(eqx.Module):
    """Gives dictionary keys the leaf names they will have in an `OptaxOptimizer`."""

    values: dict[str, Any]


def _sort(name: str, value: Any, wants_float: bool, static: bool, values: dict, settings: dict) -> None:
    """Files one argument under leaves, under static settings, or (a mixed tuple) under both."""
    if static and isinstance(value, float | int | np.generic):
        value = float(value)
    if isinstance(value, Schedule):
        if static:
            raise OuteroptError(
                f"`{name}` is fixed when the optimizer is built and cannot follow a schedule."
            )
        values[name] = value
    elif isinstance(value, tuple | list) and not static and any(_is_float(item) for item in value):
        values[name] = tuple(_leaf(item) if _is_float(item) else None for item in value)
        settings[name] = tuple(None if _is_float(item) else item for item in value)
    elif not static and (_is_float(value) or (wants_float and _is_int(value))):
        values[name] = _leaf(value)
    else:
        value = tuple(value) if isinstance(value, list) else value
        if not isinstance(value, Hashable) or (tree.is_array(value) and not isinstance(value, np.generic)):
            raise OuteroptError(
                f"`{name}` = {type(value).__name__} is neither a float nor hashable; "
                "give a function returning it (optax takes one for masks)."
            )
        settings[name] = value.item() if isinstance(value, np.generic) else value


def _wants_float(name: str, default: Any) -> bool:
    return name == "learning_rate" or isinstance(default, float)


def _is_float(value: Any) -> bool:
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return bool(jnp.issubdtype(value.dtype, jnp.floating))
    return isinstance(value, float)


def _is_int(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _leaf(value: Any) -> Array:
    return jnp.asarray(value, jnp.float32)


def _with_loss(context: dict[str, Any]) -> dict[str, Any]:
    """The context with a `value_fn` that suits optax, also as `obj_fn`, the name that sophia knows it by.

    optax's line searches insist that `value_fn` takes every keyword of the update, and look at its signature.
    """
    loss = context["value_fn"]

    def value_fn(params, **ignored):
        del ignored
        return loss(params)

    first = inspect.Parameter("params", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    others = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in {"obj_fn": None, **context}]
    value_fn.__signature__ = inspect.Signature([first, *others])  # pyright: ignore[reportFunctionMemberAccess]
    return {"obj_fn": loss, **context, "value_fn": value_fn}


def _fill(current: tuple, settings: tuple) -> tuple:
    return tuple(setting if leaf is None else leaf for leaf, setting in zip(current, settings))


def _leaf_dtype(params: Params) -> Any:
    """float32, or float64 where the parameters have it."""
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(params) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.result_type(jnp.float32, *dtypes)


def _weak(leaf: Array, dtype: Any) -> Array:
    """The leaf with the weak type of a Python float: it takes part in arithmetic without promoting."""
    return jax.lax.convert_element_type_p.bind(
        leaf.astype(dtype), new_dtype=np.dtype(dtype), weak_type=True, sharding=None
    )


def _strong(leaf: Any) -> Array:
    leaf = jnp.asarray(leaf)
    return leaf if jnp.issubdtype(leaf.dtype, jax.dtypes.extended) else jnp.asarray(leaf, leaf.dtype)


def _like(leaf: Any, reference: Any) -> Array:
    """`leaf` with the type of `reference`: types must not drift from step to step."""
    leaf = jnp.asarray(leaf)
    return leaf if jnp.issubdtype(leaf.dtype, jax.dtypes.extended) else leaf.astype(reference.dtype)


def _is_schedule_free(part: PyTree) -> bool:
    return isinstance(part, optax.contrib.ScheduleFreeState)
