"""A task from a module of flax.nnx."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from outeropt.errors import ConfigError
from outeropt.tasks.contract import kind
from outeropt.tasks.models.calling import flags
from outeropt.tasks.models.fields import Inputs, Loss
from outeropt.tasks.models.libraries import load
from outeropt.tasks.models.model_task import ModelTask, Network, model_task


def from_flax_nnx(
    build: Callable[[Any], Any],
    loss: Loss,
    *,
    data: Any,
    inputs: Inputs = None,
    name: str = "own",
    batch_size: int = 128,
) -> ModelTask:
    """A task from a module of flax.nnx.

    The parameters are the variables of type `nnx.Param`, as a dictionary. All other variables
    (`nnx.BatchStat`) are the model state: what a call in training changes in them is kept, and evaluation
    leaves them as they are. The module is put into training or evaluation by its `train()` and `eval()`, and
    by arguments of its `__call__` as in `from_flax_linen`. Its streams of random numbers are seeded with the
    step's key.

    Args:
      build: `rngs -> module`, such as `lambda rngs: Net(rngs=rngs)`. It is called with `nnx.Rngs` of another
        key for every seed.
      loss, data, inputs, name, batch_size: as for `from_flax_linen`.

    Raises:
      ConfigError: flax is not installed, `build` gives no module of it, or a batch lacks what is read.
      UnknownName: no loss is called so.
      OuteroptError: the data are no such rows.
    """
    load("flax.nnx", "flax")
    if not callable(build):
        raise ConfigError(
            f"build is {kind(build)}; from_flax_nnx takes a function: lambda rngs: Net(rngs=rngs)."
        )
    return model_task(Nnx(build), loss, data, inputs, name, batch_size)


@dataclasses.dataclass(frozen=True)
class Nnx(Network):
    """A module of flax.nnx; `build` makes it from its streams of random numbers."""

    build: Callable[[Any], Any]

    def init(self, inputs, key):
        """Values of the `nnx.Param`, and of all other variables if there are any."""
        nnx = load("flax.nnx", "flax")
        _, params, _, others = _split(self._module(key))
        return nnx.to_pure_dict(params), nnx.to_pure_dict(others) or None

    def apply(self, params, state, inputs, key):
        """A call of the module."""
        nnx = load("flax.nnx", "flax")
        graph, own, streams, others = _split(nnx.eval_shape(lambda: self._module(jax.random.key(0))))
        nnx.replace_by_pure_dict(own, params)
        nnx.replace_by_pure_dict(others, state or {})
        streams = _seeded(streams, jax.random.key(0) if key is None else key)
        module = nnx.merge(graph, own, streams, others)
        training = key is not None
        module.train() if training else module.eval()
        outputs = module(*inputs, **flags(type(module).__call__, training))
        if not training:
            return outputs, state
        return outputs, nnx.to_pure_dict(_split(module)[3]) or None

    def _module(self, key):
        nnx = load("flax.nnx", "flax")
        module = self.build(nnx.Rngs(key))
        if not isinstance(module, nnx.Module):
            raise ConfigError(f"build gave {kind(module)}; it must give a flax.nnx.Module.")
        return module


def _split(module):
    """Graph, parameters, streams of random numbers, and all other variables."""
    nnx = load("flax.nnx", "flax")
    return nnx.split(module, nnx.Param, nnx.RngState, ...)


def _seeded(streams, key):
    """The streams at their beginning, each with a key of its own."""
    leaves, form = jax.tree.flatten(streams)
    seeded = [
        jax.random.fold_in(key, i)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        else jnp.zeros_like(leaf)
        for i, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(form, seeded)
