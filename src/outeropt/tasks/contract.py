"""What a task must fulfil, checked by shapes alone."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from outeropt.errors import OuteroptError, first_line
from outeropt.task import SPLITS, Task


def check(task: Task) -> None:
    """Checks that a task fulfils its contract, by shapes only: nothing is computed or compiled.

    Raises:
      OuteroptError: one line that says what `init`, `batch` or `loss` gave and what is needed.
    """
    if not isinstance(task, Task):
        raise OuteroptError(
            f"A {type(task).__name__} is no task; give an outeropt.task.Task, or make one with "
            "outeropt.tasks.from_functions."
        )
    key = jax.random.key(0)
    started = _call(task, "init", task.init, key)
    if not (isinstance(started, tuple) and len(started) == 2):
        raise _broken(
            task, f"init gave {kind(started)}; it must give (params, state), with state None if unused"
        )
    params, state = started
    _check_params(task, params)
    _check_arrays(task, "init", "state", state)
    batches = []
    for split in SPLITS:
        batch = _call(task, f"batch({split!r})", functools.partial(task.batch, split), key)
        _check_arrays(task, f"batch({split!r})", "batch", batch)
        batches.append(batch)
        # Full batches have as many rows as their split.
        if _form(batch, rows=False) != _form(batches[0], rows=False):
            raise _broken(
                task,
                f"batch({split!r}) gave {_form(batch)} and batch('train') {_form(batches[0])}; "
                "all splits need the same form but for the number of rows",
            )
    _check_loss(task, params, state, batches[0], key)
    _check_loss(task, params, state, batches[0], None)


def _check_params(task: Task, params: Any) -> None:
    leaves = jax.tree.leaves(params)
    if not leaves:
        raise _broken(task, "init gave no parameters")
    for leaf in leaves:
        if not _is_array(leaf):
            raise _broken(
                task,
                f"init gave a parameter that is {kind(leaf)}; all must be floating arrays "
                "(of an equinox model pass eqx.filter(model, eqx.is_inexact_array))",
            )
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise _broken(task, f"init gave a parameter of dtype {leaf.dtype}; all must be floating")


def _check_arrays(task: Task, where: str, what: str, tree: Any) -> None:
    for leaf in jax.tree.leaves(tree):
        if not _is_array(leaf):
            raise _broken(task, f"{where} gave a {what} with {kind(leaf)} in it; all leaves must be arrays")


def _check_loss(task: Task, params: Any, state: Any, batch: Any, key: Any) -> None:
    where = "loss" if key is not None else "loss without a key (evaluation)"
    result = _call(task, where, task.loss, params, state, batch, key)
    try:
        value, (new_state, metrics) = result
    except (TypeError, ValueError):
        raise _broken(task, f"{where} gave {kind(result)}; it must give (loss, (state, metrics))") from None
    if not _is_array(value) or value.shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
        advice = "; return its mean" if _is_array(value) and value.shape != () else ""
        raise _broken(task, f"{where} gave {kind(value)}; it must be a floating scalar{advice}")
    if not isinstance(metrics, dict):
        raise _broken(
            task, f"{where} gave metrics that are {kind(metrics)}; give scalars by name in a dictionary"
        )
    for name, metric in metrics.items():
        if not _is_array(metric) or metric.shape != ():
            raise _broken(task, f"{where} gave the metric {name!r} as {kind(metric)}; it must be a scalar")
    old, new = _form(state), _form(new_state)
    if old != new:
        raise _broken(
            task, f"{where} changed the model state from {old} to {new}; keep its structure and shapes"
        )


def _call(task: Task, where: str, function: Callable[..., Any], *args: Any) -> Any:
    try:
        return eqx.filter_eval_shape(function, *args)
    except OuteroptError:
        raise
    except Exception as error:
        raise _broken(task, f"{where} raised {first_line(error)}") from error


def _form(tree: Any, rows: bool = True) -> Any:
    """The tree with a word for each leaf's dtype and shape, with its first axis or without."""

    def word(leaf: Any) -> str:
        return f"{leaf.dtype}{list(leaf.shape[0 if rows else 1 :])}" if _is_array(leaf) else kind(leaf)

    return jax.tree.map(word, tree)


def _broken(task: Task, what: str) -> OuteroptError:
    return OuteroptError(f"Task {task.name!r}: {what}.")


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def kind(value: Any) -> str:
    """A value in a few words, for messages."""
    if _is_array(value):
        return f"an array {value.dtype}{list(value.shape)}"
    return f"{type(value).__name__} {value!r:.60}"
