"""Every task by name."""

import fnmatch
import functools
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import equinox as eqx
import jax

from outeropt import data
from outeropt.errors import OuteroptError, UnknownName, unknown_name
from outeropt.task import SPLITS, Task
from outeropt.tasks import amalgamation, quadratic, regression
from outeropt.tasks.file import from_file
from outeropt.tasks.functions import named as functions
from outeropt.tasks.images import (
    autoencoder,
    conv,
    image_mlp,
    imagenet_resnet,
    mixer,
    resnet,
    scaled_mlp,
    vgg,
    vit,
)
from outeropt.tasks.published import META_TRAINING, MISSING_DATA
from outeropt.tasks.sequences import rnn, seq2seq, stream, transformer
from outeropt.tasks.wrappers import fixed_batch, gradients, train_valid, whole_splits


_FAMILIES: dict[str, ModuleType] = {
    "functions": functions,
    "quadratic": quadratic,
    "regression": regression,
    "image_mlp": image_mlp,
    "scaled_mlp": scaled_mlp,
    "autoencoder": autoencoder,
    "conv": conv,
    "resnet": resnet,
    "imagenet_resnet": imagenet_resnet,
    "vgg": vgg,
    "vit": vit,
    "mixer": mixer,
    "rnn": rnn,
    "stream": stream,
    "transformer": transformer,
    "seq2seq": seq2seq,
    "gradients": gradients,
    "fixed_batch": fixed_batch,
    "train_valid": train_valid,
    "amalgamation": amalgamation,
}

# Families whose suffix makes a task of any other.
_SUFFIXED = {"fixed_batch": fixed_batch, "train_valid": train_valid, "whole_splits": whole_splits}

# A task's name says its data; the first of these that it contains counts.
_DATASETS: dict[str, str] = {
    "FashionMnist": "fashion_mnist",
    "FashionMNIST": "fashion_mnist",
    "Mnist": "mnist",
    "MNIST": "mnist",
    "Cifar10": "cifar10",
    "Digits": "digits",
    "TinyShakespeareBytes": "tinyshakespeare_bytes",
    "TinyShakespeare": "tinyshakespeare",
    "PtbBytes": "ptb_bytes",
    "Ptb": "ptb",
    **{
        f"UCI_{table.capitalize()}": f"uci_{table}"
        for table in ("boston", "concrete", "energy", "kin8nm", "naval", "power", "wine", "yacht")
    },
}


def _find(name: str) -> tuple[str, Callable[[], Task]] | None:
    """Family and builder of a name, listed or formed by a rule; None if no task is called so."""
    for title, module in _FAMILIES.items():
        if name in module.TASKS:
            return title, module.TASKS[name]
    if builder := functions.by_rule(name):
        return "functions", builder
    for title, wrapper in _SUFFIXED.items():
        inside = name.removesuffix(wrapper.SUFFIX)
        if inside != name and (found := _find(inside)):
            return title, functools.partial(wrapper.build, found[1])
    written_out = _written_out(name)
    return None if written_out == name else _find(written_out)


def _tasks() -> dict[str, Callable[[], Task]]:
    return {name: builder for family in _FAMILIES.values() for name, builder in family.TASKS.items()}


def names(pattern: str | None = None) -> list[str]:
    """Registered names, family by family.

    Args:
      pattern: keep the names that match it, with `*`, `?` and `[...]` as in a shell; None for all.

    Examples:
      >>> from outeropt import tasks
      >>> tasks.names("ImageMLPAE_Digits_*x32_bs128")
      ['ImageMLPAE_Digits_32x8x32_bs128']
    """
    return [name for name in _tasks() if pattern is None or fnmatch.fnmatchcase(name, pattern)]


def known(name: str) -> bool:
    """Whether `get` knows a task of this name: listed, or formed by one of its rules."""
    return _find(name) is not None


def family(name: str) -> str:
    """The family of a name that `get` takes, such as `"image_mlp"`."""
    found = _find(name)
    if found is None:
        raise _unknown(name)
    return found[0]


def dataset(name: str) -> str | None:
    """The dataset that a registered name needs, as `outeropt.data` calls it; None if it needs none."""
    endings = "|".join(wrapper.SUFFIX for wrapper in _SUFFIXED.values())
    inside = re.sub(f"({endings})+$", "", name)
    own = amalgamation.DATASETS.get(inside)
    return own or next((data for part, data in _DATASETS.items() if part in name), None)


def not_provided(name: str) -> str | None:
    """The dataset that a published task of this name needs and outeropt does not provide, or None."""
    return (MISSING_DATA | amalgamation.MISSING_DATA).get(name)


def get(name: str) -> Task:
    """A task by name or by file.

    Args:
      name: a listed name, in which `128x3` may stand for `128x128x128`; a test function with its number of
        parameters behind it, such as `Function_Ackley_7`; any of these with `_FixedBatch`, `_TrainValid`
        or `_WholeSplits` behind it; or `path/to/file.py:attribute` where the attribute is a `Task` or a
        function without arguments that gives one, which may have `_WholeSplits` behind it, too.

    Raises:
      UnknownName: no task is called so; the message says what is close, or which data the published task
        would need.
      ConfigError: a test function makes no sense with so few parameters, or a task without batches was to
        have a fixed one, or one without rows to train on its validation rows or to be evaluated on all.
      MissingData: the task's data are not on this machine and could not be fetched.
      OuteroptError: the file is missing, raises, lacks the attribute, or gives something that is no task.

    Examples:
      >>> import jax
      >>> from outeropt import tasks
      >>> task = tasks.get("ImageMLP_Digits_Relu32")
      >>> task.batch("train", jax.random.key(0))["image"].shape
      (128, 8, 8, 1)
    """
    path, colon, attribute = name.rpartition(":")
    if colon and path.endswith(".py"):
        if attribute.endswith(whole_splits.SUFFIX):
            return whole_splits.build(functools.partial(get, name.removesuffix(whole_splits.SUFFIX)))
        return from_file(Path(path), attribute)
    if name.endswith(".py"):
        raise OuteroptError(f"{name!r} names a file but no task in it; write {name}:attribute.")
    found = _find(name)
    if found is None:
        raise _unknown(name)
    return found[1]()


def describe(name: str) -> dict[str, Any]:
    """Facts about a task, all of them printable.

    Returns:
      `name`, `family`, `dataset`, `parameters` (count), `tensors` (number of parameter arrays), `batch`
      (shapes and dtypes by leaf), `splits`, `metrics`, `minimum`, and `notes` (what the task is, in a
      sentence). Facts that need data which are not here are None, and `notes` says why.

    Raises:
      As `get`.

    Examples:
      >>> from outeropt import tasks
      >>> facts = tasks.describe("ImageMLP_Digits_Relu32")
      >>> facts["parameters"], facts["dataset"]
      (2410, 'digits')
    """
    registered = known(name)
    facts: dict[str, Any] = {
        "name": name,
        "family": family(name) if registered else "own",
        "dataset": dataset(name) if registered else None,
        **dict.fromkeys(("parameters", "tensors", "batch", "splits", "metrics", "minimum")),
    }
    needed = facts["dataset"]
    if needed and not data.describe(needed).paths:
        return {**facts, "notes": f"its data are not here: outeropt data get {needed}"}
    task = get(name)
    params, batch, metrics = _shapes(task)
    leaves = jax.tree.leaves(params)
    return {
        **facts,
        "parameters": sum(leaf.size for leaf in leaves),
        "tensors": len(leaves),
        "batch": {
            jax.tree_util.keystr(path, simple=True, separator=".")
            or "rows": f"{leaf.dtype}{list(leaf.shape)}"
            for path, leaf in jax.tree_util.tree_leaves_with_path(batch)
        },
        "splits": list(SPLITS),
        "metrics": sorted(metrics),
        "minimum": task.minimum,
        "notes": task.notes,
    }


def _shapes(task: Task) -> tuple[Any, Any, dict[str, Any]]:
    def run(key):
        params, state = task.init(key)
        batch = task.batch("train", key)
        return params, batch, task.loss(params, state, batch, key)[1][1]

    return eqx.filter_eval_shape(run, jax.random.key(0))


def _written_out(name: str) -> str:
    """The name with layers of one width written one by one: `..._128x128x128_Relu` for `..._128x3_Relu`."""
    return re.sub(
        r"(?<![\dx])(\d+)x([2-9])(?![\dx])", lambda found: "x".join([found[1]] * int(found[2])), name
    )


def _unknown(name: str) -> UnknownName:
    if needed := not_provided(name):
        own = "amalgamation.on_own_data" if name in amalgamation.MISSING_DATA else "from_functions"
        return UnknownName(
            f"Task {name!r} needs the dataset {needed}, which outeropt does not provide. "
            f"Build one on your own copy with outeropt.tasks.{own}, or see outeropt list tasks."
        )
    if name in META_TRAINING:
        return UnknownName(
            f"Task {name!r} trains a learned optimizer: that is meta-training here, and no task. "
            "See outeropt list tasks."
        )
    return unknown_name("task", name, _tasks(), see="outeropt list tasks")
