"""A stand-in for AlgoPerf's harness, by its documented interface (0.6), and a workload on digits.

`train_once` calls the functions of a submission in the order of `submission_runner.py`, hands over what it
hands over, and writes checkpoints as flax does, with an axis of copies on what is restored.
"""

import collections
import enum
import inspect
import sys
import types

import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax

from outeropt import data


class ForwardPassMode(enum.Enum):
    TRAIN = 0
    EVAL = 1


class TrainingCompleteError(Exception):
    pass


SPEC = types.ModuleType("algoperf.spec")
SPEC.ForwardPassMode = ForwardPassMode


def install(monkeypatch):
    """What the harness has loaded before it imports a submission."""
    monkeypatch.setitem(sys.modules, "algoperf.spec", SPEC)


class Net(nn.Module):
    """A convolution, batch normalization, dropout at a rate that may be traced, a linear layer."""

    @nn.compact
    def __call__(self, x, train, dropout_rate):
        x = nn.Conv(4, (3, 3), strides=2, use_bias=False)(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        x = nn.relu(x).reshape(x.shape[0], -1)
        if train:
            keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - dropout_rate, x.shape)
            x = jnp.where(keep, x / (1 - dropout_rate), 0.0)
        return nn.Dense(10)(x)


class Logger:
    def __init__(self):
        self.rows = []

    def append_scalar_metrics(self, metrics, global_step):
        self.rows.append((global_step, metrics))


class Digits:
    """Digits, with the attributes and methods of AlgoPerf's JAX workloads."""

    step_hint = 40
    loss_type = "softmax cross-entropy"
    model_params_types = None
    metrics_logger = None

    def __init__(self):
        self.splits = jax.device_get(data.images("digits"))
        self.net = Net()

    def init_model_fn(self, rng):
        sample = jnp.zeros((1, 8, 8, 1))
        variables = self.net.init({"params": rng, "dropout": rng}, sample, True, 0.1)
        return variables["params"], {"batch_stats": variables["batch_stats"]}

    def model_fn(self, params, batch, model_state, mode, rng, update_batch_norm, dropout_rate=0.1):
        train = mode == ForwardPassMode.TRAIN
        logits, state = self.net.apply(
            {"params": params, **model_state},
            batch["inputs"],
            train,
            dropout_rate,
            rngs={"dropout": rng},
            mutable=["batch_stats"],
        )
        return logits, state if update_batch_norm else model_state

    def loss_fn(self, label_batch, logits_batch, mask_batch=None, label_smoothing=0.0):
        targets = optax.smooth_labels(jax.nn.one_hot(label_batch, 10), label_smoothing)
        each = -jnp.sum(targets * jax.nn.log_softmax(logits_batch), axis=-1)
        count = len(each)
        if mask_batch is not None:
            each, count = each * mask_batch, mask_batch.sum()
        return {"summed": each.sum(), "n_valid_examples": count, "per_example": each}

    def _build_input_queue(self, data_rng, split, data_dir, global_batch_size):
        del data_dir
        rows = self.splits[split]
        generator = np.random.default_rng(np.asarray(data_rng))
        while True:
            chosen = generator.integers(0, len(rows["label"]), global_batch_size)
            # As in a last batch that was filled up, some examples do not count.
            weights = (np.arange(global_batch_size) % 8 != 7).astype(np.float32)
            yield {"inputs": rows["image"][chosen], "targets": rows["label"][chosen], "weights": weights}

    def eval_model(self, params, model_state):
        rows = self.splits["valid"]
        batch = {"inputs": rows["image"], "targets": rows["label"]}
        logits, _ = self.model_fn(
            params, batch, model_state, ForwardPassMode.EVAL, jax.random.PRNGKey(0), False
        )
        losses = self.loss_fn(batch["targets"], logits)
        return float(losses["summed"] / losses["n_valid_examples"])


def module(submission):
    """A submission's file, imported."""
    names = ("get_batch_size", "init_optimizer_state", "update_params", "prepare_for_eval", "data_selection")
    return types.SimpleNamespace(**{name: getattr(submission, name) for name in names})


def trial(**values):
    """One trial's hyperparameters, as the harness makes them from a search space."""
    return collections.namedtuple("Hyperparameters", values)(**values)


Ended = collections.namedtuple("Ended", "params model_state optimizer_state evals checkpoint points")


def train_once(workload, submitted, hyperparameters, steps, eval_every, batch_size, restored=None):
    """Trains, evaluating every `eval_every` steps; goes on from a checkpoint if there is one.

    Returns:
      What a run ends with: also the losses of its evaluations, its last checkpoint and the parameters after
      each step.
    """
    rng, _ = jax.random.split(jax.random.PRNGKey(3), 2)
    data_rng, opt_init_rng, model_init_rng, rng = jax.random.split(rng, 4)
    queue = workload._build_input_queue(data_rng, "train", data_dir=None, global_batch_size=batch_size)
    params, model_state = workload.init_model_fn(model_init_rng)
    optimizer_state = submitted.init_optimizer_state(
        workload, params, model_state, hyperparameters, opt_init_rng
    )
    needs_train_state = "train_state" in inspect.signature(submitted.update_params).parameters
    first, evals, checkpoint, points = 0, [], None, []
    if restored is not None:
        optimizer_state, params, model_state, first = restore(restored, optimizer_state, params, model_state)
        for _ in range(first):
            next(queue)
    for global_step in range(first, steps):
        keys = jax.random.split(jax.random.fold_in(rng, global_step), 4)
        data_select_rng, update_rng, prep_eval_rng, _ = keys
        batch = submitted.data_selection(
            workload,
            queue,
            optimizer_state,
            params,
            model_state,
            hyperparameters,
            global_step,
            data_select_rng,
        )
        optimizer_state, params, model_state = submitted.update_params(
            workload=workload,
            current_param_container=params,
            current_params_types=workload.model_params_types,
            model_state=model_state,
            hyperparameters=hyperparameters,
            batch=batch,
            loss_type=workload.loss_type,
            optimizer_state=optimizer_state,
            eval_results=evals,
            global_step=global_step,
            rng=update_rng,
            **({"train_state": types.MappingProxyType({})} if needs_train_state else {}),
        )
        points.append(jax.device_get(params))
        if (global_step + 1) % eval_every == 0:
            optimizer_state, params, model_state = submitted.prepare_for_eval(
                workload=workload,
                current_param_container=params,
                current_params_types=workload.model_params_types,
                model_state=model_state,
                hyperparameters=hyperparameters,
                loss_type=workload.loss_type,
                optimizer_state=optimizer_state,
                eval_results=evals,
                global_step=global_step + 1,
                rng=prep_eval_rng,
            )
            evals.append((global_step + 1, workload.eval_model(params, model_state)))
            checkpoint = flax.serialization.to_bytes(
                saved(optimizer_state[0], params, model_state, global_step + 1)
            )
    return Ended(params, model_state, optimizer_state, evals, checkpoint, points)


def saved(kept, params, model_state, global_step):
    return {
        "model_params": params,
        "optimizer_state": kept,
        "model_state": model_state,
        "global_step": global_step,
    }


def restore(checkpoint, optimizer_state, params, model_state):
    kept, update_fn = optimizer_state
    found = flax.serialization.from_bytes(saved(kept, params, model_state, -1), checkpoint)
    count = jax.device_count()
    copies = [
        jax.tree.map(lambda leaf: np.stack([leaf] * count), found[part])
        for part in ("optimizer_state", "model_params", "model_state")
    ]
    return (copies[0], update_fn), copies[1], copies[2], found["global_step"]
