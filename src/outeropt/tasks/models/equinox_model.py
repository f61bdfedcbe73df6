"""A task from a module of equinox."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jax.extend.core import jaxpr_as_fun
from jaxtyping import PRNGKeyArray

from outeropt.errors import ConfigError
from outeropt.tasks.contract import kind
from outeropt.tasks.models.calling import takes
from outeropt.tasks.models.fields import Inputs, Loss
from outeropt.tasks.models.model_task import ModelTask, Network, model_task


# The axis of rows, as equinox' own examples call it.
AXIS = "batch"


def from_equinox(
    build: Callable[[PRNGKeyArray], Any],
    loss: Loss,
    *,
    data: Any,
    inputs: Inputs = None,
    name: str = "own",
    batch_size: int = 128,
) -> ModelTask:
    """A task from a module of equinox, which is written for one row: it is mapped over the rows of a batch.

    The parameters are the module's floating arrays. Its other arrays, and the `eqx.nn.State` of layers that
    have one, are the model state. The axis of rows is called `"batch"`, for `eqx.nn.BatchNorm(...,
    axis_name="batch")`. At evaluation the module is in inference mode (`eqx.nn.inference_mode`) and its state
    stays as it is. If its `__call__` has an argument `key`, each row gets a key of its own, and None at
    evaluation.

    Args:
      build: `key -> module`, or `key -> (module, state)` as `eqx.nn.make_with_state(Net)` gives; the module
        is then called with the state after its inputs, and gives `(output, state)`.
      loss, data, inputs, name, batch_size: as for `from_flax_linen`; `loss` gets all rows.

    Raises:
      ConfigError: `build` gives no module, or a batch lacks what is read.
      UnknownName: no loss is called so.
      OuteroptError: the data are no such rows.
    """
    if not callable(build) or isinstance(build, eqx.Module):
        raise ConfigError(
            f"build is a {type(build).__name__}; from_equinox takes a function: lambda key: Net(key=key)."
        )
    return model_task(Equinox(build), loss, data, inputs, name, batch_size)


@dataclasses.dataclass(frozen=True)
class Equinox(Network):
    """A module of equinox; `build` makes it, or it and its state, from a key."""

    build: Callable[[PRNGKeyArray], Any]

    def init(self, inputs, key):
        """The floating arrays, and the leaves of everything else that holds numbers."""
        module, memory = self._parts(key)
        params, others = eqx.partition(module, eqx.is_inexact_array)
        return params, tuple(jax.tree.leaves((eqx.filter(others, eqx.is_array), memory))) or None

    def apply(self, params, state, inputs, key):
        """A call of the module for every row."""
        return _alone(self._apply, params, state, inputs, key)

    def _apply(self, params, state, inputs, key):
        module, memory = eqx.filter_eval_shape(self._parts, jax.random.key(0))
        _, others = eqx.partition(module, _is_inexact)
        shapes, rest = eqx.partition(others, _is_shape)
        arrays, memory = jax.tree.unflatten(jax.tree.structure((shapes, memory)), state or ())
        module = eqx.combine(params, arrays, rest)
        if key is None:
            module = eqx.nn.inference_mode(module)
        if memory is None:
            return self._rows(module, inputs, key), state
        outputs, memory = self._rows_with_state(module, inputs, memory, key)
        return outputs, state if key is None else tuple(jax.tree.leaves((arrays, memory)))

    def _parts(self, key):
        """The module, and its state or None."""
        built = self.build(key)
        module, memory = built if isinstance(built, tuple) and len(built) == 2 else (built, None)
        if not callable(module):
            raise ConfigError(
                f"build gave {kind(module)}; it must give an equinox module that can be called."
            )
        return module, memory

    def _rows(self, module, inputs, key):
        def one(row, key):
            return module(*row, **_key(module, key))

        return jax.vmap(one, in_axes=(0, 0), axis_name=AXIS)(inputs, _keys(inputs, key))

    def _rows_with_state(self, module, inputs, memory, key):
        def one(row, memory, key):
            return module(*row, memory, **_key(module, key))

        run = jax.vmap(one, in_axes=(0, None, 0), out_axes=(0, None), axis_name=AXIS)
        return run(inputs, memory, _keys(inputs, key))


def _alone(function, *arguments):
    """The function, traced as if there were one device.

    In a program of many devices types say so, and those of constants do not: equinox then takes a flag in a
    state for another type than the one that replaces it.
    """
    leaves, form = jax.tree.flatten(arguments)
    shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
        traced, result = jax.make_jaxpr(lambda *leaves: function(*form.unflatten(leaves)), return_shape=True)(
            *shapes
        )
    found = map(jax.numpy.asarray, jaxpr_as_fun(traced)(*leaves))
    return jax.tree.unflatten(jax.tree.structure(result), found)


def _key(module, key):
    return {"key": key} if takes(module.__call__, "key") else {}


def _keys(inputs, key):
    """A key for each row, or None."""
    return None if key is None else jax.random.split(key, jax.tree.leaves(inputs)[0].shape[0])


def _is_shape(leaf: Any) -> bool:
    return isinstance(leaf, jax.ShapeDtypeStruct)


def _is_inexact(leaf: Any) -> bool:
    return _is_shape(leaf) and jax.numpy.issubdtype(leaf.dtype, jax.numpy.inexact)
