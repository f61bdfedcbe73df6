"""A small problem for optimizers of PyTorch, and the same one for those of JAX."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from outeropt import learned, optimizers
from outeropt.learned import LearnedOptimizer
from outeropt.optimizer import Optimizer
from outeropt.torch.selftuning.wrapping import Wrapping


# Tensors as small as these gain nothing from a second thread, and much time is lost in waiting for one.
torch.set_num_threads(1)

STEPS = 25
# These programs run once: compile them fast rather than well.
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
_RNG = np.random.default_rng(7)
INPUTS, TARGETS = _RNG.normal(size=(32, 5)), _RNG.normal(size=(32, 3))
START = (_RNG.normal(size=(5, 6)) / 2, np.zeros(6), _RNG.normal(size=(6, 3)) / 2, np.zeros(3))
VALID = _RNG.normal(size=(16, 5)), _RNG.normal(size=(16, 3))


def parameters(dtype: torch.dtype = torch.float64) -> list[torch.nn.Parameter]:
    """Fresh parameters of a network with one hidden layer."""
    return [torch.nn.Parameter(torch.tensor(leaf, dtype=dtype)) for leaf in START]


def loss(params: list[torch.nn.Parameter], rows: tuple = (INPUTS, TARGETS)) -> torch.Tensor:
    """Half the mean squared error of the network."""
    first, bias, second, last = params
    inputs, targets = (torch.tensor(each, dtype=first.dtype) for each in rows)
    return 0.5 * ((torch.tanh(inputs @ first + bias) @ second + last - targets) ** 2).sum(1).mean()


def offered(optimizer: torch.optim.Optimizer, params: list[torch.nn.Parameter]) -> dict[str, Callable]:
    """The losses that a step of some optimizers is given as functions."""
    if not isinstance(optimizer, Wrapping):
        return {}
    return {"train_loss": lambda: loss(params), "valid_loss": lambda: loss(params, VALID)}


def train(
    optimizer: torch.optim.Optimizer, params: list[torch.nn.Parameter], steps: int = STEPS
) -> list[float]:
    """The losses of some steps, each with a closure, which every optimizer takes."""

    def closure():
        optimizer.zero_grad()
        value = loss(params)
        value.backward()
        return value

    return [optimizer.step(closure, **offered(optimizer, params)).item() for _ in range(steps)]


def flat(params: list[torch.nn.Parameter]) -> np.ndarray:
    return torch.cat([param.detach().double().reshape(-1) for param in params]).numpy()


def in_jax(optimizer: Optimizer, num_steps: int | None = None, steps: int = STEPS) -> Iterator[np.ndarray]:
    """Parameters after each step, in float64 and with hyperparameters to all their digits.

    `num_steps` is what the optimizer is told of the length of the run.
    """
    return (point for point, _ in evaluated_in_jax(optimizer, num_steps, steps))


def evaluated_in_jax(
    optimizer: Optimizer, num_steps: int | None = None, steps: int = STEPS
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """As `in_jax`, with the evaluation points."""
    # The decimals that were meant: 0.9, not its float32. What was learned was meant as it is.
    exact = (
        optimizer
        if isinstance(optimizer, LearnedOptimizer)
        else jax.tree.map(
            lambda leaf: jnp.asarray(np.asarray(leaf).astype(str).astype(np.float64)), optimizer
        )
    )

    def value_fn(params, given=(INPUTS, TARGETS)):
        first, bias, second, last = params
        rows = jnp.tanh(given[0] @ first + bias) @ second + last - given[1]
        return 0.5 * jnp.mean(jnp.sum(rows**2, axis=1))

    @functools.partial(jax.jit, compiler_options=QUICK)
    def step(params, state, number):
        value, grads = jax.value_and_grad(value_fn)(params)
        context = {"value": value, "grad": grads, "value_fn": value_fn, "step": number}
        context["valid_fn"] = lambda params: value_fn(params, VALID)
        updates, state = exact.update(grads, state, params, **context)
        return [p + u for p, u in zip(params, updates)], state

    params = [jnp.asarray(leaf) for leaf in START]
    state = exact.init(params, num_steps=num_steps)
    for number in range(steps):
        params, state = step(params, state, number)
        points = params, exact.eval_params(state, params)
        point, evaluated = (np.concatenate([np.ravel(leaf) for leaf in each]) for each in points)
        yield point, evaluated


# What `torch.optim` calls the hyperparameters.
_WORDS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "lr": lambda value: {"learning_rate": value},
    "d0": lambda value: {"estim_lr0": value},
    "tune": lambda names: {"tune": [{"lr": "learning_rate", "beta1": "b1"}.get(n, n) for n in names]},
    "num_steps": lambda value: {},
    "d_coef": lambda value: {"estim_lr_coef": value},
    "max_lr": lambda value: {"max_learning_rate": value},
    "betas": lambda value: {f"b{index}": beta for index, beta in enumerate(value, 1)},
}
_OWN_WORDS: dict[tuple[str, str], Callable[[Any], dict[str, Any]]] = {
    ("dadapt_adamw", "betas"): lambda value: {"betas": value},
    ("dog", "reps_rel"): lambda value: {"init_step": ("heuristic", value)},
    ("polyak_sgd", "lr"): lambda value: {"scaling": value},
    ("prodigy", "betas"): lambda value: {"betas": value},
    ("schedule_free_sgd", "momentum"): lambda value: {"b1": value},
}


def jax_optimizer(name: str, settings: dict[str, Any]) -> Optimizer:
    """The optimizer of JAX with the settings of one of PyTorch."""
    if name.startswith("learned:"):
        plain = {word: value for word, value in settings.items() if word != "num_steps"}
        return learned.load(name.removeprefix("learned:")).with_settings(**plain)
    words: dict[str, Any] = {}
    for word, value in settings.items():
        translated = _OWN_WORDS.get((name, word), _WORDS.get(word))
        words |= translated(value) if translated else {word: value}
    return optimizers.get(name, **words)
