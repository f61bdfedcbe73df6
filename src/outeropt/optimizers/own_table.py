"""The table's last part: our own optimizers, wrappers that names can begin with, names for combinations."""

import dataclasses
import functools
import inspect
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from outeropt.optimizer import Optimizer
from outeropt.optimizers import schedules, wrappers
from outeropt.optimizers.entry import Entry, Paper, with_leaves
from outeropt.optimizers.nesterov_adamw import NAdamW
from outeropt.optimizers.schedules import Schedule
from outeropt.optimizers.teachers.table import AMALGAMATION


_METZ = Paper(
    "Using a thousand optimization tasks to learn hyperparameter search strategies",
    "Metz and others",
    2020,
    "2002.11887",
)

_MECHANIC = Paper("Mechanic: A Learning Rate Tuner", "Cutkosky, Defazio and Mehta", 2023, "2306.00144")

OWN: dict[str, Entry] = {"nadamw_constant": Entry(NAdamW, _METZ)}


@dataclasses.dataclass(frozen=True)
class Prefix:
    """A wrapper that a name may begin with, as in `clip:adam`.

    Attributes:
      factory: a `Wrapper`, or a `Schedule` for the learning rate of the inner optimizer.
      summary: what it does, in a few words.
      defaults: values that differ from the factory's own.
    """

    factory: Callable[..., Any]
    summary: str
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def arguments(self) -> tuple[str, ...]:
        """Names of the hyperparameters that it adds."""
        names = list(inspect.signature(self.factory).parameters)
        return tuple(name for name in names if name != "peak") if self._is_schedule else tuple(names[1:])

    def takes(self, name: str) -> bool:
        """Whether a hyperparameter is its own; `meta.learning_rate` is part of an argument `meta`."""
        return name.partition(".")[0] in self.arguments

    def wrap(self, inner: Optimizer, hyperparameters: Mapping[str, Any]) -> Optimizer:
        """The wrapper around `inner`."""
        given = {**self.defaults, **hyperparameters}
        if self._is_schedule:
            return wrappers.Scheduled(inner, self.factory(**given))
        return with_leaves(self.factory, given, inner)

    @property
    def _is_schedule(self) -> bool:
        return inspect.isclass(self.factory) and issubclass(self.factory, Schedule)


PREFIXES: dict[str, Prefix] = {
    "accumulate": Prefix(wrappers.Accumulate, "one update from the mean of several gradients"),
    "averaged": Prefix(wrappers.Averaged, "evaluated at an average of the parameters"),
    "cautious": Prefix(wrappers.Cautious, "only the entries of the update that agree with the gradient"),
    "clip": Prefix(wrappers.ClipByValue, "gradients clipped entry by entry"),
    "clip_adaptive": Prefix(
        wrappers.ClipAdaptive, "gradients of each tensor clipped to a share of the tensor's own norm"
    ),
    "clip_norm": Prefix(wrappers.ClipByGlobalNorm, "gradients clipped by their norm"),
    "cosine": Prefix(
        schedules.Cosine, "warm-up and cosine decay of the learning rate", {"warmup_fraction": 0.05}
    ),
    "decoupled_weight_decay": Prefix(wrappers.DecoupledWeightDecay, "parameters shrunk at each step"),
    "exponential": Prefix(schedules.Exponential, "exponential decay of the learning rate"),
    "inverse_sqrt": Prefix(
        schedules.InverseSqrt, "warm-up and inverse square root decay of the learning rate"
    ),
    "linear": Prefix(
        schedules.Linear, "warm-up and linear decay of the learning rate", {"warmup_fraction": 0.05}
    ),
    "lookahead": Prefix(wrappers.Lookahead, "slow weights that the parameters return to"),
    "mars": Prefix(wrappers.Mars, "gradients corrected by their change, to reduce their variance"),
    "mechanic": Prefix(wrappers.Mechanic, "the scale of the updates found on the way"),
    "sam": Prefix(wrappers.SharpnessAware, "gradients at the worst point nearby"),
    "schedule_free": Prefix(wrappers.ScheduleFree, "gradients between the iterate and its average"),
    "tail": Prefix(schedules.Tail, "a constant learning rate, and a linear decay at the end of the run"),
    "weight_decay": Prefix(wrappers.WeightDecay, "a penalty on the squared parameters in the loss"),
}


@dataclasses.dataclass(frozen=True)
class Alias:
    """A name for a combination.

    Attributes:
      name: the combination, such as `"cosine:nadamw_constant"`.
      paper: where it comes from.
      defaults: hyperparameters that it fixes beforehand.
      tuning_free: whether it is meant to work at its defaults on any task.
    """

    name: str
    paper: Paper
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tuning_free: bool = False


ALIASES: dict[str, Alias] = {
    "heavy_ball": Alias(
        "weight_decay:momentum",
        Paper("Some methods of speeding up the convergence of iteration methods", "Polyak", 1964),
        {"weight_decay": 0.0},
    ),
    "lookahead": Alias(
        "lookahead:adam",
        Paper("Lookahead Optimizer: k steps forward, 1 step back", "Zhang and others", 2019, "1907.08610"),
    ),
    "mechanic_adamw": Alias(
        "mechanic:adamw", _MECHANIC, {"learning_rate": 1.0, "weight_decay": 0.0}, tuning_free=True
    ),
    "mechanic_sgd": Alias("mechanic:sgd", _MECHANIC, {"learning_rate": 1.0}, tuning_free=True),
    "nadamw_cosine": Alias("cosine:nadamw_constant", _METZ),
    "nadamw_inverse_sqrt": Alias("inverse_sqrt:nadamw_constant", _METZ),
    "nadamw_linear": Alias("linear:nadamw_constant", _METZ),
    "root_rmsprop": Alias(
        "rmsprop", AMALGAMATION, {"learning_rate": 5e-3, "decay": 0.9, "eps": 1e-10, "eps_in_sqrt": True}
    ),
    "sam": Alias(
        "sam:momentum",
        Paper(
            "Sharpness-Aware Minimization for Efficiently Improving Generalization",
            "Foret and others",
            2020,
            "2010.01412",
        ),
    ),
}


OPT_LIST = pathlib.Path(__file__).with_name("opt_list.json")


@functools.cache
def configurations() -> tuple[dict[str, float], ...]:
    """The tuned list's hyperparameters of `nadamw_cosine`, best first; empty before a list has been made."""
    if not OPT_LIST.exists():
        return ()
    return tuple(json.loads(OPT_LIST.read_text())["configurations"])


@functools.cache
def aliases() -> dict[str, Alias]:
    """`ALIASES` and the tuned list's `opt_list_0`, `opt_list_1`, ..."""
    tuned = {
        f"opt_list_{index}": Alias("nadamw_cosine", _METZ, configuration)
        for index, configuration in enumerate(configurations())
    }
    return {**ALIASES, **tuned}
