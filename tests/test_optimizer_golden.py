"""Hand-designed optimizers against trajectories of learned_optimization (see tests/golden/hand/README.md)."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from outeropt import optimizers, tree
from outeropt.optimizers import (
    Accumulate,
    ClipByValue,
    Cosine,
    Exponential,
    Graft,
    InverseSqrt,
    NAdamW,
    PiecewiseLinear,
    WeightDecay,
    from_optax,
)


GOLDEN = np.load(pathlib.Path(__file__).parent / "golden" / "hand" / "trajectories.npz")
CASES = sorted({key.split("/")[0] for key in GOLDEN if "/" in key})
# These programs run once: compile them fast rather than well.
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
LEAVES = ("w1", "b1", "w2", "k", "s")


def adam(learning_rate, **hyperparameters):
    """The original's Adam has a second epsilon, inside the root, of 1e-8."""
    return optimizers.get("adam", learning_rate=learning_rate, **{"eps_root": 1e-8, **hyperparameters})


def plain(name, *arguments):
    """Inner optimizers as the originals' wrappers name them."""
    return {
        "Adam": adam,
        "SGD": lambda rate: optimizers.get("sgd", learning_rate=rate),
        "SGDM": lambda rate, momentum: optimizers.get("momentum", learning_rate=rate, momentum=momentum),
    }[name](*arguments)


def cosine(learning_rate, min_learning_rate_mult, constant_fraction, warmup_fraction):
    """The original ramps up during the whole constant phase whenever it has any warm-up at all."""
    warmup = max(warmup_fraction, constant_fraction) if warmup_fraction > 0 else 0.0
    return Cosine(learning_rate, min_learning_rate_mult, warmup, constant_fraction)


def nadamw(values):
    """The original subtracts its L2 term, so that weights grow: ours does so with the sign turned round."""
    rate = values.get("learning_rate")
    if values.get("schedule"):
        kind, arguments = values["schedule"]
        rate = {
            "CosineLearningRateSchedule": cosine,
            "ExponentialDecay": lambda base_lr, decay_amount: Exponential(base_lr, decay_amount),
            "LinearRampupSqrtDecay": lambda peak_lr, warmup_steps: InverseSqrt(peak_lr, warmup_steps),
            "PiecewiseLinear": lambda times, vals: PiecewiseLinear(times, vals),
        }[kind](**arguments)
    if "constant_fraction" in values:
        names = ("learning_rate", "min_learning_rate_mult", "constant_fraction", "warmup_fraction")
        rate = cosine(*(values[name] for name in names))
    return NAdamW(
        rate,
        values.get("beta1", 0.9),
        values.get("beta2", 0.999),
        values.get("epsilon", 1e-8),
        values.get("adamw_weight_decay", 0.0),
        -values.get("l2_weight_decay", 0.0),
        nesterov=values.get("use_nesterov", True),
    )


def renamed(values, **names):
    return {names.get(key, key): value for key, value in values.items() if key != "class"}


def by_name(name):
    return lambda values: optimizers.get(name, **renamed(values))


BUILDERS = {
    "AdaBelief": by_name("adabelief"),
    "Adafactor": by_name("adafactor"),
    "AdaGrad": by_name("adagrad"),
    "Adam": lambda values: adam(
        **renamed(values, beta1="b1", beta2="b2", epsilon="eps", epsilon_root="eps_root")
    ),
    "AdamExpDecayLR": lambda values: from_optax(
        optax.adam, learning_rate=Exponential(values["learning_rate"], 7e-5), eps_root=1e-8
    ),
    "AdamSqrtDecayLR": lambda values: from_optax(
        optax.adam, learning_rate=InverseSqrt(values["learning_rate"], 1000), eps_root=1e-8
    ),
    "AdamW": by_name("adamw"),
    "Fromage": by_name("fromage"),
    "GradientAccumulator": lambda values: Accumulate(plain(*values["opt"]), values["num_average"]),
    "GradientClipOptimizer": lambda values: ClipByValue(plain(*values["opt"]), values["grad_clip"]),
    "GraftedOptimizer": lambda values: Graft(plain(*values["magnitude"]), plain(*values["direction"])),
    "Lamb": by_name("lamb"),
    "Lars": by_name("lars"),
    "NAdamW": nadamw,
    "OptList": lambda values: nadamw(values["values"]),
    "PiecewiseLinearAdam": lambda values: from_optax(
        optax.adam, learning_rate=PiecewiseLinear(values["times"], values["lrs"]), eps_root=1e-8
    ),
    "RAdam": by_name("radam"),
    "RMSProp": by_name("rmsprop"),
    "SGD": by_name("sgd"),
    "SGDM": by_name("momentum"),
    "SM3": by_name("sm3"),
    "WeightDecayWrapper": lambda values: WeightDecay(plain(*values["opt"]), values["weight_decay"]),
    "Yogi": by_name("yogi"),
}


def arrays(case, kind):
    return {leaf: GOLDEN[f"{case}/{kind}/{leaf}"] for leaf in LEAVES if f"{case}/{kind}/{leaf}" in GOLDEN}


@functools.partial(jax.jit, compiler_options=QUICK)
def run(optimizer, params, grads, num_steps):
    def step(carry, grad):
        params, state = carry
        updates, state = optimizer.update(grad, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        return (params, state), (params, updates)

    return jax.lax.scan(step, (params, optimizer.init(params, num_steps=num_steps)), grads)[1]


@pytest.mark.parametrize("case", CASES)
def test_reproduces_the_original(case):
    settings = json.loads(str(GOLDEN[f"{case}/settings"]))
    optimizer = BUILDERS[settings.get("class", settings.get("fn"))](settings)
    params, updates = run(
        optimizer, arrays(case, "params0"), arrays(case, "grads"), GOLDEN[f"{case}/num_steps"]
    )
    kept = GOLDEN["steps"]
    if expected := arrays(case, "updates"):
        for leaf, golden in expected.items():
            error = np.abs(np.asarray(updates[leaf])[kept] - golden).max() / np.abs(golden).max()
            assert error < 1e-5, leaf
    else:
        # The list's configurations exist in float32 only: updates would be differences of rounded parameters.
        for leaf, golden in arrays(case, "params").items():
            np.testing.assert_allclose(np.asarray(params[leaf])[kept], golden, rtol=3e-7, atol=3e-7)
    assert tree.all_finite(params)
