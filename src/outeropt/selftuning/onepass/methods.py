"""The tuning methods by name, and those of the study that one-pass tuning comes from."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

from outeropt import optimizers
from outeropt.optimizer import Optimizer, resolve
from outeropt.selftuning.hypergradient import HypergradientDescent
from outeropt.selftuning.onepass.baydin import Baydin
from outeropt.selftuning.onepass.best_response import OnePass
from outeropt.selftuning.onepass.forward import ForwardMode
from outeropt.selftuning.onepass.random_start import RandomStart
from outeropt.selftuning.onepass.stepped import Stepped
from outeropt.selftuning.onepass.unrolled import Unrolled
from outeropt.space import Space


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to tune leaves of an optimizer while it trains.

    Attributes:
      build: `(optimizer, names of the leaves) -> the optimizer that tunes them`.
      note: what it does, in a few words.
    """

    build: Callable[[Optimizer, Sequence[str]], Optimizer]
    note: str


def _lorraine(base: Optimizer, tuned: Sequence[str]) -> Optimizer:
    del tuned
    return OnePass(base, ("weight_decay",))


def _baydin(base: Optimizer, tuned: Sequence[str]) -> Optimizer:
    del tuned
    return Baydin(base)


def _baydin_chain(base: Optimizer, tuned: Sequence[str]) -> Optimizer:
    meta = optimizers.get("sgd", learning_rate=0.001)
    return HypergradientDescent(base, meta, tuple(tuned), "decades", "gradient")


def tuning_methods() -> dict[str, Method]:
    """The methods that tune during a run, by the names that the command line gives them."""
    partial = functools.partial
    return {
        "one-pass": Method(OnePass, "best response to the last step, five terms"),
        "one-pass-state": Method(
            partial(OnePass, through="state"), "the same with the optimizer's state in the map"
        ),
        "hdlr": Method(partial(OnePass, per_parameter=True), "one-pass, a learning rate for each parameter"),
        "lorraine": Method(_lorraine, "one-pass on the weight decay alone"),
        "implicit-cg": Method(
            partial(OnePass, solver="conjugate_gradient", lookback=20), "best response by conjugate gradients"
        ),
        "unrolled": Method(Unrolled, "exact derivative through the last 5 steps"),
        "unrolled-block": Method(partial(Unrolled, window=10), "exact derivative through whole blocks of 10"),
        "forward": Method(ForwardMode, "derivatives carried along with the run"),
        "forward-fading": Method(
            partial(ForwardMode, decay=0.99), "the same, forgetting what is over a hundred steps old"
        ),
        "baydin": Method(_baydin, "products of successive gradients, as one-pass tuning was compared with"),
        "baydin-chain": Method(_baydin_chain, "hypergradient descent with the whole chain rule"),
    }


DRAWS = {
    "learning_rate": Space.log(1e-6, 1e-1),
    "weight_decay": Space.log(1e-7, 1e-2),
    "momentum": Space.linear(0.0, 1.0),
}
"""Where the study's runs start: uniform in log10, in log10, and in the momentum itself."""

RANGES = {
    "learning_rate": (1e-10, 1.0),
    "weight_decay": (1e-37, 1e37),
    "momentum": (1e-7, 1 - 1e-6),
}
"""Where the study keeps what it tunes; decay and momentum are bounded by float32 alone."""

_WD, _LR, _M = "weight_decay", "learning_rate", "momentum"


def study_methods(plain: Optimizer | None = None) -> dict[str, Optimizer]:
    """The methods of Clarke, Oldewage and Hernandez-Lobato 2022 by the names of their released
    configurations.

    Each starts from random learning rate, weight decay and momentum. `Random`, `Random_SteppedLR` and
    `Baydin` are meant for the training and validation rows together, the others for training rows.

    Args:
      plain: the optimizer that they train with; None for `heavy_ball`.
    """
    plain = optimizers.get("heavy_ball") if plain is None else plain

    def one_pass(*tuned: str, **settings):
        return OnePass(plain, tuned, ranges=_kept(tuned), rescue=math.inf, **settings)

    methods = {
        "Random": plain,
        "Random_SteppedLR": Stepped(plain),
        "Lorraine": one_pass(_WD),
        "Baydin": Baydin(plain, ranges=_kept((_LR,))),
        "Ours_LR": one_pass(_WD, _LR),
        "Ours_LR_Momentum": one_pass(_LR, _WD, _M),
        "Ours_HDLR_Momentum": one_pass(_LR, _WD, _M, per_parameter=True),
        "DiffThroughOpt": Unrolled(plain, (_LR, _WD, _M), ranges=_kept((_LR, _WD, _M)), rescue=math.inf),
    }
    factor = {"factor": Space.linear(0.95, 1.01)}
    return {
        name: RandomStart(inner, DRAWS | (factor if name == "Random_SteppedLR" else {}))
        for name, inner in methods.items()
    }


def _kept(names: Sequence[str]) -> dict[str, tuple[float, float]]:
    return {name: RANGES[name] for name in names}


def random_start(method: Method, base: Optimizer, tuned: Sequence[str]) -> RandomStart:
    """A method on an optimizer whose tuned leaves start anywhere in their spaces.

    Raises:
      UnknownName: the optimizer has no such leaf, or the leaf has no space to draw from.
    """
    names = [resolve(name, base.hyperparameters) for name in tuned]
    built = method.build(base, tuple(tuned))
    draws = {short: DRAWS.get(short, base.spaces[full]) for short, full in zip(tuned, names)}
    return RandomStart(built, draws)
