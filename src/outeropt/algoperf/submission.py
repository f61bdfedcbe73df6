"""An optimizer as a submission: the functions that AlgoPerf's harness calls, by its names and arguments."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PyTree

from outeropt import optimizers
from outeropt.algoperf import program
from outeropt.algoperf.names import LOSS_NAMES, fill, values_of
from outeropt.algoperf.program import Layout
from outeropt.errors import ConfigError, OuteroptError, UnknownName
from outeropt.optimizer import Optimizer, Params


BATCH_SIZES: Mapping[str, int] = {
    "criteo1tb": 262_144,
    "fastmri": 32,
    "imagenet_resnet": 1024,
    "imagenet_resnet_gelu": 512,
    "imagenet_resnet_silu": 512,
    "imagenet_vit": 1024,
    "librispeech_conformer": 256,
    "librispeech_deepspeech": 256,
    "mnist": 16,
    "ogbg": 512,
    "wmt": 128,
}
"""Global batch sizes of AlgoPerf's own baselines (version 0.6), by workload."""

# Steps between two entries in the harness's log, as in the baselines.
_LOG_EVERY = 100

# Pairs, as the harness takes the first apart from the second for a checkpoint.
_State = tuple[dict[str, list[Array]], "Trial"]


class UnknownWorkload(UnknownName, ValueError):
    """A workload without a batch size. The harness then asks for the workload that it is a variant of."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """What stays the same in one run: the second part of the harness's optimizer state.

    Attributes:
      optimizer: with the trial's hyperparameters.
      layout: how its state is kept.
      settings: the trial's values of `LOSS_NAMES`.
      shapes: of the leaves of kept state, parameters and model state, in tree order.
    """

    optimizer: Optimizer
    layout: Layout
    settings: Mapping[str, float]
    shapes: tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class Submission:
    """The functions of a submission; made by `submission`.

    Their names and arguments are those of AlgoPerf 0.6 (`algoperf/spec.py`), for JAX workloads.

    Attributes:
      optimizer: what trains; a trial's hyperparameters replace leaves of it.
      length: length of a run in units of the workload's `step_hint`.
      batch_sizes: global batch sizes by workload.
    """

    optimizer: Optimizer
    length: float
    batch_sizes: Mapping[str, int]

    def get_batch_size(self, workload_name: str) -> int:
        """The global batch size.

        Raises:
          UnknownWorkload: there is none for this workload.
        """
        if workload_name not in self.batch_sizes:
            raise UnknownWorkload(
                f"There is no batch size for workload {workload_name!r}; give batch_sizes. "
                f"Known are {', '.join(self.batch_sizes)}."
            )
        return self.batch_sizes[workload_name]

    def init_optimizer_state(
        self, workload: Any, model_params: Params, model_state: PyTree, hyperparameters: Any, rng: Array
    ) -> _State:
        """The state before the first step, and what stays the same in this trial.

        Args:
          workload: a JAX workload.
          hyperparameters: a namedtuple of the external ruleset, whose values go to the optimizer's leaves
            (`fill`) and to the loss (`LOSS_NAMES`); None in the self-tuning ruleset.

        Raises:
          OuteroptError: the workload is one of PyTorch, or the hyperparameters do not fit.
        """
        for leaf in jax.tree.leaves(model_params):
            if not isinstance(leaf, jax.Array | np.ndarray):
                raise OuteroptError(
                    f"The model's parameters are a {type(leaf).__qualname__}, not JAX arrays; "
                    "run the workload with --framework=jax."
                )
        num_steps = max(1, round(self.length * workload.step_hint))
        optimizer = fill(self.optimizer, hyperparameters, num_steps)
        values = values_of(hyperparameters)
        settings = {name: values[name] for name in LOSS_NAMES if values.get(name) is not None}
        layout, kept = program.start(optimizer, model_params, num_steps, rng)
        whole = jax.tree.leaves((kept, model_params, model_state))
        shapes = tuple(np.shape(leaf) for leaf in whole)
        return kept, Trial(optimizer, layout, settings, shapes)

    def update_params(
        self,
        workload: Any,
        current_param_container: Params,
        current_params_types: Any,
        model_state: PyTree,
        hyperparameters: Any,
        batch: Mapping[str, Any],
        loss_type: Any,
        optimizer_state: _State,
        eval_results: list[tuple[int, Any]],
        global_step: int,
        rng: Array,
        train_state: Mapping[str, Any] | None = None,
    ) -> tuple[_State, Params, PyTree]:
        """One step: state, parameters and model state. Those of the step before are given up."""
        del current_params_types, hyperparameters, loss_type, eval_results, train_state
        kept, trial = optimizer_state
        kept, params, model_state = _one_copy((kept, current_param_container, model_state), trial.shapes)
        kept, params, model_state, scalars = program.step(
            workload,
            trial.layout,
            trial.optimizer,
            kept,
            params,
            model_state,
            batch,
            trial.settings,
            global_step,
            rng,
        )
        logger = getattr(workload, "metrics_logger", None)
        if logger is not None and global_step % _LOG_EVERY == 0:
            logger.append_scalar_metrics({name: float(each) for name, each in scalars.items()}, global_step)
        return (kept, trial), params, model_state

    def prepare_for_eval(
        self,
        workload: Any,
        current_param_container: Params,
        current_params_types: Any,
        model_state: PyTree,
        hyperparameters: Any,
        loss_type: Any,
        optimizer_state: _State,
        eval_results: list[tuple[int, Any]],
        global_step: int,
        rng: Array,
    ) -> tuple[_State, Params, PyTree]:
        """State, parameters to evaluate, and model state.

        The harness goes on with what it is given here. An optimizer that evaluates at another point than it
        trains at keeps its training point in the state, and continues from there.
        """
        del workload, current_params_types, hyperparameters, loss_type, eval_results, global_step, rng
        kept, trial = optimizer_state
        if not trial.layout.apart:
            return optimizer_state, current_param_container, model_state
        return optimizer_state, program.eval_params(trial.layout, trial.optimizer, kept), model_state

    def data_selection(
        self,
        workload: Any,
        input_queue: Iterator[dict[str, Any]],
        optimizer_state: _State,
        current_param_container: Params,
        model_state: PyTree,
        hyperparameters: Any,
        global_step: int,
        rng: Array,
    ) -> dict[str, Any]:
        """The next batch of the queue."""
        del workload, optimizer_state, current_param_container, model_state, hyperparameters, global_step, rng
        return next(input_queue)


def submission(
    optimizer: Optimizer | str, *, length: float = 1.0, batch_sizes: Mapping[str, int] | None = None
) -> Submission:
    """An optimizer as a submission to AlgoPerf, for JAX workloads.

    Args:
      optimizer: any optimizer, or its name, with a schedule in front if there shall be one
        (`"cosine:nadamw"`).
      length: length of a run in units of the workload's `step_hint`, for schedules; the self-tuning ruleset
        allows 1.5 times the time of the external one.
      batch_sizes: global batch sizes by workload, in addition to `BATCH_SIZES` or in place of them.

    Raises:
      UnknownName: there is no optimizer of this name.
      ConfigError: `length` is not above 0.

    Examples:
      >>> from outeropt import algoperf
      >>> mine = algoperf.submission("cosine:nadamw")  # a file for the harness, from here on
      >>> get_batch_size, data_selection = mine.get_batch_size, mine.data_selection
      >>> init_optimizer_state, update_params = mine.init_optimizer_state, mine.update_params
      >>> prepare_for_eval = mine.prepare_for_eval
    """
    if not length > 0:
        raise ConfigError(f"A length of {length:g} runs no step; give one above 0.")
    made = optimizers.get(optimizer) if isinstance(optimizer, str) else optimizer
    return Submission(made, length, {**BATCH_SIZES, **(batch_sizes or {})})


def _one_copy(tree: PyTree, shapes: tuple[tuple[int, ...], ...]) -> PyTree:
    """The tree without a leading axis of copies, one for each device.

    The harness adds such an axis to what it restores from a checkpoint (`flax.jax_utils.replicate`), also
    where arrays live on all devices without one.
    """
    leaves, structure = jax.tree.flatten(tree)
    plain = [
        leaf[0] if np.ndim(leaf) == len(shape) + 1 else leaf
        for leaf, shape in zip(leaves, shapes, strict=True)
    ]
    return jax.tree.unflatten(structure, plain)
