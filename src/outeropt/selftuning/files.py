"""What an optimizer learned while it trained, in a file: for a later run, another task or another model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

from outeropt import checkpoint, tree
from outeropt.errors import ConfigError, OuteroptError
from outeropt.optimizer import Optimizer
from outeropt.selftuning.control.metaopt import MetaOpt
from outeropt.selftuning.control.transfer import by_name


# What `save` calls its file in a folder.
FILE = "controller.safetensors"


def learned(before: Optimizer, after: Optimizer) -> dict[str, np.ndarray]:
    """The leaves of `after` that a run changed, by dotted name.

    Args:
      before: the optimizer that was run.
      after: the same with what it learned, `before.after(state)`.
    """
    old = before.hyperparameters
    return {
        name: np.asarray(leaf)
        for name, leaf in after.hyperparameters.items()
        if name not in old or not np.array_equal(old[name], leaf)
    }


def tunes_itself(optimizer: Optimizer) -> bool:
    """Whether a run can teach it anything.

    Examples:
      >>> from outeropt import optimizers, selftuning
      >>> selftuning.tunes_itself(optimizers.get("adam")), selftuning.tunes_itself(selftuning.default())
      (False, True)
    """
    nodes = jax.tree.leaves(optimizer, is_leaf=lambda node: hasattr(node, "freeze"))
    return any(hasattr(node, "freeze") for node in nodes)


def save(
    path: str | Path, before: Optimizer, after: Optimizer, about: Mapping[str, Any] | None = None
) -> Path:
    """Writes what a run taught an optimizer to one safetensors file, which `load` reads.

    Args:
      path: a file ending in `.safetensors`, or a folder, where it is called `controller.safetensors`.
      before: the optimizer that was run.
      after: the same with what it learned, `before.after(state)`.
      about: JSON values to keep beside it: how it was learned.

    Returns:
      The file.

    Raises:
      ConfigError: nothing was learned.
      OuteroptError: the file cannot be written.

    Examples:
      >>> import jax, outeropt
      >>> from outeropt import optimizers, selftuning, tasks
      >>> metaopt, key = optimizers.get("metaopt"), jax.random.key(0)
      >>> run = outeropt.train(tasks.get("Quadratic_10"), metaopt, steps=20, eval_every=20, key=key)
      >>> selftuning.save("runs/a", metaopt, metaopt.after(run.state.opt)).name
      'controller.safetensors'
      >>> frozen = selftuning.freeze(selftuning.load("runs/a", metaopt))
      >>> frozen.frozen
      True
    """
    arrays = learned(before, after)
    if not arrays:
        raise ConfigError(
            f"{type(before).__name__} learned nothing while it ran, so there is nothing to keep; "
            "optimizers that do are metaopt, hypergradient: and the like."
        )
    file = _file(path)
    shapes = {name: [leaf.dtype.name, list(leaf.shape)] for name, leaf in arrays.items()}
    checkpoint.save(file, arrays, {"controller": shapes, "about": dict(about or {})})
    return file


def read(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The leaves that `save` wrote, by dotted name, and what it was told about them.

    Raises:
      OuteroptError: there is no such file, or it is damaged. Nothing in it is ever executed.
      ConfigError: it is a checkpoint of something else.
    """
    file = _file(path)
    if not file.exists():
        raise OuteroptError(f"There is no controller at {file}; outeropt train --out {path} writes one.")
    told = checkpoint.metadata(file)
    if "controller" not in told:
        raise ConfigError(f"{file} is a checkpoint, but of no controller; outeropt train --out writes one.")
    like = {name: np.zeros(shape, dtype) for name, (dtype, shape) in told["controller"].items()}
    return checkpoint.load(file, like), told["about"]


def load(path: str | Path, optimizer: Optimizer) -> Optimizer:
    """The optimizer, starting from what another run learned.

    A controller may come from another model, memory or kind: it is brought into form when training starts
    (`control.transfer.fitted`).

    Args:
      path: what `save` was given.
      optimizer: of the same make as the one that learned, wrappers included.

    Raises:
      ConfigError: the optimizer has no place for what was learned.
    """
    leaves, _ = read(path)

    def fill(prefix: tuple[Any, ...], node: Any) -> Any:
        if not isinstance(node, MetaOpt):
            return node
        above = tree.leaf_name(prefix)
        head = ".".join(filter(None, [above, "coefficients"]))
        own = [name for name in leaves if name == head or name.startswith(f"{head}.")]
        if not own:
            # A dictionary's keys stand in names without the field that holds it; see `tree.leaf_name`.
            head, known = above, optimizer.hyperparameters
            own = [name for name in leaves if name.startswith(above) and name not in known]
        found = {name.removeprefix(head).removeprefix("."): leaves.pop(name) for name in own}
        return node.with_controller(by_name(found)) if found else node

    filled = jtu.tree_map_with_path(fill, optimizer, is_leaf=lambda node: isinstance(node, MetaOpt))
    for name in leaves:
        if name not in optimizer.hyperparameters:
            raise ConfigError(
                f"{_file(path)} holds {name}, for which {type(optimizer).__name__} has no place; "
                "give the optimizer that learned it."
            )
    return filled.replace({name: jnp.asarray(leaf) for name, leaf in leaves.items()})


def freeze(optimizer: Optimizer) -> Optimizer:
    """The optimizer as it is after learning: everything in it that tunes itself stands still.

    Raises:
      ConfigError: nothing in it tunes itself.
    """
    found = []

    def still(node: Any) -> Any:
        if not hasattr(node, "freeze"):
            return node
        found.append(node)
        return node.freeze()

    frozen = jax.tree.map(still, optimizer, is_leaf=lambda node: hasattr(node, "freeze"))
    if not found:
        raise ConfigError(f"{type(optimizer).__name__} does not tune itself, so there is nothing to freeze.")
    return frozen


def _file(path: str | Path) -> Path:
    path = Path(path)
    return path if path.suffix == ".safetensors" else path / FILE
