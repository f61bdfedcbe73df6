"""One step of a submission as a compiled program over all devices, and the state that the harness keeps.

The batch is divided among the devices; parameters, model state and optimizer state are on each. Buffers of
the step before are given up to the new ones.
"""

import dataclasses
import functools
import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PRNGKeyArray, PyTree

from outeropt.algoperf.names import LOSS_NAMES
from outeropt.errors import OuteroptError
from outeropt.optimizer import Optimizer, OptState, Params, evaluates_apart


# What the baselines add to the norm before they divide by it.
_NORM_EPS = 1e-6
# The stream of an optimizer's randomness; the loss has the harness's key itself, as in the baselines.
_OPTIMIZER = 1


@dataclasses.dataclass(frozen=True)
class Layout:
    """How an optimizer's state becomes what the harness keeps, and back.

    The harness writes checkpoints with flax, which knows dictionaries and lists of arrays, but no classes and
    no typed PRNG keys. So it is given `{"optimizer": leaves, "training": leaves}`, lists in tree order.

    Where an optimizer is not evaluated at the point that it trains at, the parameters in the harness's hands
    are those of the last evaluation after one. The training point is then kept in `"training"`, and the
    parameters that come back are not looked at. For all others it is empty.

    Attributes:
      state: structure of the optimizer's state.
      keys: names of the generators of its leaves that are PRNG keys; None for other leaves.
      params: structure of the parameters.
      apart: whether evaluation is at another point than training.
    """

    state: Any
    keys: tuple[str | None, ...]
    params: Any
    apart: bool

    @classmethod
    def of(cls, optimizer: Optimizer, state: OptState, params: Params) -> "Layout":
        """The layout of a state; its arrays may be `ShapeDtypeStruct`s."""
        leaves, structure = jax.tree.flatten(state)
        keys = tuple(_generator(leaf) for leaf in leaves)
        return cls(structure, keys, jax.tree.structure(params), evaluates_apart(optimizer, state, params))

    def pack(self, state: OptState, params: Params) -> dict[str, list[Array]]:
        """What the harness keeps."""
        leaves = jax.tree.leaves(state)
        plain = [jax.random.key_data(leaf) if name else leaf for leaf, name in zip(leaves, self.keys)]
        return {"optimizer": plain, "training": jax.tree.leaves(params) if self.apart else []}

    def unpack(self, kept: Mapping[str, list[Array]], params: Params) -> tuple[OptState, Params]:
        """The optimizer's state and the training point; `params` is what the harness has."""
        leaves = [
            jax.random.wrap_key_data(leaf, impl=name) if name else leaf
            for leaf, name in zip(kept["optimizer"], self.keys)
        ]
        training = jax.tree.unflatten(self.params, kept["training"]) if self.apart else params
        return jax.tree.unflatten(self.state, leaves), training


def start(
    optimizer: Optimizer, params: Params, num_steps: int, key: Array
) -> tuple[Layout, dict[str, list[Array]]]:
    """The layout and the state before the first step, on every device."""

    def init(params, key):
        return optimizer.init(params, num_steps=num_steps, key=_key(key))

    layout = Layout.of(optimizer, jax.eval_shape(init, params, key), params)

    def packed(params, key):
        # Copies, since a state may hold the parameters themselves, and what is given up must not be shared.
        return jax.tree.map(jnp.copy, layout.pack(init(params, key), params))

    everywhere, _ = _shardings()
    return layout, jax.jit(packed, out_shardings=everywhere)(*_everywhere((params, key)))


def step(
    workload: Any,
    layout: Layout,
    optimizer: Optimizer,
    kept: Mapping[str, list[Array]],
    params: Params,
    model_state: PyTree,
    batch: Mapping[str, Any],
    settings: Mapping[str, Any],
    global_step: int,
    key: Array,
) -> tuple[dict[str, list[Array]], Params, PyTree, dict[str, Array]]:
    """One step: what the harness keeps, parameters, model state, and scalars to log.

    Args:
      settings: values of `LOSS_NAMES`; a name that is missing has the workload's own default.
    """
    arrays = {name: np.float32(value) for name, value in settings.items()}
    # The training point is in `kept`, if the two are apart.
    before = _everywhere((kept, None if layout.apart else params, model_state))
    arguments = (optimizer, *before, batch, arrays, np.int32(global_step), key)
    packed, new, model_state, scalars = _step(*_shardings())(workload, layout, *arguments)
    if layout.apart:
        # The training point itself: the state's arrays, without a copy.
        new = jax.tree.unflatten(layout.params, packed["training"])
    return packed, new, model_state, scalars


def eval_params(layout: Layout, optimizer: Optimizer, kept: Mapping[str, list[Array]]) -> Params:
    """The point to evaluate at, for an optimizer that evaluates apart."""
    return _eval_params(_shardings()[0])(layout, optimizer, kept)


@functools.cache
def _shardings() -> tuple[NamedSharding, NamedSharding]:
    """On every device, and divided along the first axis."""
    mesh = Mesh(np.asarray(jax.devices()), ("batch",))
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("batch"))


def _everywhere(tree: PyTree) -> PyTree:
    """The tree on all devices: what a workload made on one, or a checkpoint brought, would compile anew."""
    sharding, _ = _shardings()

    def placed(leaf):
        return leaf if getattr(leaf, "sharding", None) == sharding else jax.device_put(leaf, sharding)

    return jax.tree.map(placed, tree)


@functools.cache
def _step(everywhere: NamedSharding, divided: NamedSharding) -> Any:
    # Numbers of a trial are arguments: all trials of a study share one program.
    return jax.jit(
        _train,
        static_argnums=(0, 1),
        donate_argnums=(3, 4, 5),
        in_shardings=(
            everywhere,
            everywhere,
            everywhere,
            everywhere,
            divided,
            everywhere,
            everywhere,
            everywhere,
        ),
        out_shardings=everywhere,
    )


@functools.cache
def _eval_params(everywhere: NamedSharding) -> Any:
    def point(layout, optimizer, kept):
        return optimizer.eval_params(*layout.unpack(kept, None))

    return jax.jit(point, static_argnums=0, out_shardings=everywhere)


def _train(workload, layout, optimizer, kept, params, model_state, batch, settings, global_step, key):
    state, params = layout.unpack(kept, params)

    def loss_at(params, changed):
        return _loss(workload, params, model_state, batch, {**settings, **_known(changed)}, key)

    def loss_fn(params):
        return loss_at(params, optimizer.task_settings(state))

    (value, new_model_state), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(grads)))
    if "grad_clip" in settings:
        scale = jnp.clip(settings["grad_clip"] / (norm + _NORM_EPS), 0.0, 1.0)
        grads = jax.tree.map(lambda leaf: leaf * scale.astype(leaf.dtype), grads)
    updates, state = optimizer.update(
        grads,
        state,
        params,
        value=value,
        grad=grads,
        value_fn=lambda params: loss_fn(params)[0],
        loss_at=lambda params, changed: loss_at(params, changed)[0],
        key=jax.random.fold_in(_key(key), _OPTIMIZER),
        step=global_step,
    )
    params = jax.tree.map(lambda p, u: p + u.astype(p.dtype), params, updates)
    scalars = {"loss": value, "grad_norm": norm}
    scalars |= {f"optimizer/{name}": each for name, each in optimizer.diagnostics(state).items()}
    return layout.pack(state, params), None if layout.apart else params, new_model_state, scalars


def _loss(
    workload: Any,
    params: Params,
    model_state: PyTree,
    batch: Mapping[str, Any],
    settings: Mapping[str, Array],
    key: Array,
) -> tuple[Array, PyTree]:
    """The mean loss of the valid examples, and the new model state."""
    dropout = {name: settings[name] for name in ("dropout_rate",) if name in settings}
    logits, new_model_state = workload.model_fn(
        params, batch, model_state, _train_mode(), key, update_batch_norm=True, **dropout
    )
    smoothing = {name: settings[name] for name in ("label_smoothing",) if name in settings}
    losses = workload.loss_fn(
        label_batch=batch["targets"], logits_batch=logits, mask_batch=batch.get("weights"), **smoothing
    )
    return losses["summed"] / losses["n_valid_examples"], new_model_state


def _known(settings: Mapping[str, Array]) -> Mapping[str, Array]:
    for name in settings:
        if name not in LOSS_NAMES[:2]:
            raise OuteroptError(
                f"The optimizer tunes {name} of the loss; AlgoPerf's has {' and '.join(LOSS_NAMES[:2])}."
            )
    return settings


def _train_mode() -> Any:
    """AlgoPerf's word for training; the harness has loaded it before any submission."""
    spec = sys.modules.get("algoperf.spec")
    if spec is None:
        raise OuteroptError(
            "The package algoperf is not loaded; run the submission with its submission_runner."
        )
    return spec.ForwardPassMode.TRAIN


def _key(key: Array) -> PRNGKeyArray:
    """A typed key; the harness's keys are plain integers."""
    return key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)


def _generator(leaf: Any) -> str | None:
    if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return None
    return str(jax.random.key_impl(leaf))
