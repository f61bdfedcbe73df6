"""Several processes that do one meta-training: what they have to agree on, and who writes.

Processes that JAX has joined (`jax.distributed`) run the same program on the same recipe, each on its own
devices. What depends on clocks and files is decided by the first and told to the others.
"""

import contextlib
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import PyTree

from outeropt.errors import ConfigError, OuteroptError
from outeropt.metatraining.devices import placed
from outeropt.progress import Scalars, scalars


Found = TypeVar("Found")

OTHER_RECIPE = (
    "Processes were given different recipes (tasks, optimizer, estimator, steps or seed), and do one "
    "meta-training together: give all of them the same, or let each run alone (metatrain --processes 1)."
)
DRIFTED = (
    "Processes have come to different meta-parameters, as on machines that round differently: run them on "
    "machines of one kind, with the same versions of JAX. The last checkpoint is from before that was seen."
)


class Together:
    """The processes whose devices share the particles.

    Args:
      mesh: the devices.

    Raises:
      ConfigError: they are devices of some processes, and others have none.

    Attributes:
      several: whether there is more than one.
      first: whether this process is the one that reads and writes files and tells how far the run is.
    """

    def __init__(self, mesh: Mesh):
        owners = {device.process_index for device in mesh.devices.flat}
        self.several = len(owners) > 1
        if self.several and len(owners) != jax.process_count():
            raise ConfigError(
                f"The devices are of {len(owners)} of {jax.process_count()} processes; give devices of all "
                "of them, or of this process alone."
            )
        self.first = not self.several or jax.process_index() == 0

    def told(self, find: Callable[[], Found]) -> Found:
        """What the first process finds, in all of them.

        Args:
          find: gives a JSON value, and may raise an `OuteroptError`, which is then raised in all processes.
        """
        if not self.several:
            return find()
        answer: dict[str, Any] = {}
        if self.first:
            try:
                answer = {"found": find()}
            except OuteroptError as error:
                answer = {"error": str(error)}
        text = np.frombuffer(json.dumps(answer).encode(), np.uint8)
        length = int(multihost_utils.broadcast_one_to_all(np.int32(text.size)))
        text = text if self.first else np.zeros(length, np.uint8)
        answer = json.loads(np.asarray(multihost_utils.broadcast_one_to_all(text)).tobytes())
        if "error" in answer:
            raise ConfigError(answer["error"])
        return answer["found"]

    def received(self, load: Callable[[PyTree], PyTree], like: PyTree) -> PyTree:
        """What the first process loads, in all of them.

        Args:
          load: called with what `like` looks like, gives that.
          like: where the arrays shall be.
        """
        if not self.several:
            return load(like)
        arrays, static = eqx.partition(like, eqx.is_array)
        sent = jax.tree.map(lambda leaf: np.zeros(_data_shape(leaf).nbytes, np.uint8), arrays)
        if self.first:
            # Loaded as arrays of this process alone, since the others' devices take no part in that.
            shapes = jax.tree.map(_shape, arrays)
            found = eqx.filter(load(eqx.combine(shapes, static)), eqx.is_array)
            sent = jax.tree.map(lambda leaf: np.frombuffer(_bytes(leaf), np.uint8), found)
        # As bytes, since a sum of floats would lose the sign of zeros.
        told = jax.tree.map(multihost_utils.broadcast_one_to_all, sent)
        return eqx.combine(jax.tree.map(_unpacked, told, arrays), static)

    @contextlib.contextmanager
    def log(self, folder: Path, since: int) -> Iterator[Scalars | None]:
        """A folder of TensorBoard scalars, of the first process only; see `progress.scalars`."""
        if not self.first:
            yield None
            return
        with scalars(folder, since) as writer:
            yield writer

    def check_same(self, tree: PyTree, otherwise: str) -> None:
        """Refuses to go on if an array or text differs between processes.

        Raises:
          ConfigError: it does; the message is `otherwise`.
        """
        if not self.several:
            return
        sums = [
            zlib.crc32(leaf.encode() if isinstance(leaf, str) else _bytes(leaf))
            for leaf in jax.tree.leaves(tree)
            if eqx.is_array(leaf) or isinstance(leaf, str)
        ]
        everyone = np.asarray(multihost_utils.process_allgather(np.asarray(sums, np.uint32)))
        if (everyone != everyone[:1]).any():
            raise ConfigError(otherwise)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _bytes(leaf: Any) -> bytes:
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf).tobytes()


def _shape(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if isinstance(leaf, jax.Array) else leaf


def _data_shape(leaf: Any) -> np.ndarray:
    """An array of the shape and type of a leaf's data; its numbers mean nothing."""
    data = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
    return np.empty(data.shape, data.dtype)


def _unpacked(sent: Any, like: Any) -> Any:
    """A leaf of its bytes, where `like` is."""
    data = _data_shape(like)
    value = np.frombuffer(np.asarray(sent).tobytes(), data.dtype).reshape(data.shape)
    if isinstance(like, np.ndarray):
        return value
    if _is_key(like):
        value = jax.random.wrap_key_data(jnp.asarray(value), impl=jax.random.key_impl(like))
    return placed(value, like.sharding) if like.committed else jnp.asarray(value)
