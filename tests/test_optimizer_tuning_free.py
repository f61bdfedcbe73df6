"""Tuning-free optimizers against their authors' packages and optax (see tests/golden/meta_opt/README.md)."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from outeropt import optimizers


FOLDER = pathlib.Path(__file__).parent / "golden" / "meta_opt"
TORCH = np.load(FOLDER / "baselines_torch.npz")
OPTAX = np.load(FOLDER / "baselines_optax.npz")
# These programs run once: compile them fast rather than well.
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}


def cases(file):
    """Names of the runs of a file."""
    return sorted({key.partition(".settings.")[0] for key in file.files if ".settings." in key})


def settings(file, case):
    """What a run's class was given, as Python values."""
    start = f"{case}.settings."
    return {key.removeprefix(start): file[key].tolist() for key in file.files if key.startswith(start)}


# In these runs the package keeps numbers in float32, though the parameters are float64: the first twenty
# steps are compared, to 1e-5.
HALF_WIDE = {
    "mechanic.adamw": "the scales",
    "mechanic.sgd": "the scales",
    "mechanic.sgd.s_init": "the scales",
    "momo.wd_bias": "the mean inner product of gradients and parameters",
    "momo_adam": "the mean inner product of gradients and parameters",
    "momo_adam.fstar_wd": "the mean inner product of gradients and parameters",
}
# Where optax differs from the authors, we follow the authors.
_MECHANIC = "optax starts, decays and clips otherwise, from the first step on"
_MOMO = "weight decay divides the old point in optax, the new one in the authors' package"
_WARM_UP = "the first step of a warm-up has length 0 in optax"
NOT_AS_OPTAX = {
    "mechanize_adam": _MECHANIC,
    "mechanize_sgd": _MECHANIC,
    "mechanize_sgd.s_init": _MECHANIC,
    "momo.adapt_lb_wd": _MOMO,
    "momo_adam.adapt_lb_wd": _MOMO,
    "schedule_free_adamw.warmup": _WARM_UP,
    "schedule_free_sgd.warmup": _WARM_UP,
}
NAMES = {
    "schedulefree_sgd": "schedule_free_sgd",
    "schedulefree_adamw": "schedule_free_adamw",
    "schedulefree_radam": "schedule_free_radam",
}
WORDS = {
    "lr": "learning_rate",
    "d0": "estim_lr0",
    "d_coef": "estim_lr_coef",
    "use_bias_correction": "bias_correction",
    "use_fstar": "adapt_lower_bound",
}


def from_authors(case):
    """Our optimizer with the settings of a run of the authors' package."""
    name, given = case.partition(".")[0], settings(TORCH, case)
    words = {WORDS.get(word, word): value for word, value in given.items()}
    if name == "mechanic":
        name = ":".join(case.split(".")[:2])
    if name == "prodigy":
        words = {"bias_correction": False, **words}
    elif "betas" in words:
        words["b1"], words["b2"] = words.pop("betas")
    if name == "schedulefree_sgd" and "momentum" in words:
        words["b1"] = words.pop("momentum")
    if name == "dog":
        words["init_step"] = ("heuristic", words.pop("reps_rel"))
    return optimizers.get(NAMES.get(name, name), **words)


def from_optax(case):
    """Our optimizer with the settings of a run of optax."""
    given = settings(OPTAX, case)
    if "init_step" in given:
        kind, size = given["init_step"].split()
        given["init_step"] = (kind, float(size))
    return optimizers.get(case.partition(".")[0], **given)


def exact(optimizer):
    """The optimizer with leaves of float64 that are the decimals that were meant: 0.9, not its float32."""
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf).astype(str).astype(np.float64)), optimizer)


def trajectory(optimizer, file):
    """Parameters, losses and evaluation points of a run, in the type of the file's problem."""
    inputs, targets = file["problem.X"], file["problem.Y"]

    def loss(params):
        weights, bias = params
        residuals = inputs @ weights + bias[None] - targets
        return 0.5 * jnp.mean(jnp.sum(jnp.square(residuals), axis=1))

    def flat(params):
        return jnp.concatenate([jnp.ravel(leaf) for leaf in params])

    def body(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state, params, value=value, grad=grads, value_fn=loss)
        params = jax.tree.map(jnp.add, params, updates)
        return (params, state), (flat(params), value, flat(optimizer.eval_params(state, params)))

    start = (jnp.asarray(file["problem.W0"]), jnp.asarray(file["problem.b0"]))

    def run():
        return jax.lax.scan(body, (start, optimizer.init(start)), length=30)[1]

    return jax.jit(run, compiler_options=QUICK)()


def compare(optimizer, file, prefix, rtol=1e-8, steps=30):
    with jax.enable_x64(True):
        params, losses, points = trajectory(exact(optimizer), file)
    found = {"params": params, "loss": losses, "eval_params": points}
    for key, value in found.items():
        if f"{prefix}.{key}" in file.files:
            expected = file[f"{prefix}.{key}"]
            assert np.ptp(expected) > 0
            np.testing.assert_allclose(
                value[:steps], expected[:steps], rtol=rtol, atol=rtol / 100, err_msg=key
            )


@pytest.mark.parametrize("case", cases(TORCH))
def test_equals_the_authors_packages(case):
    narrower = {"rtol": 1e-5, "steps": 20} if case in HALF_WIDE else {}
    compare(from_authors(case), TORCH, f"{case}.f64", **narrower)


@pytest.mark.parametrize("case", ["dadapt_adam", "prodigy", "momo", "schedulefree_adamw", "mechanic.adamw"])
def test_float32_stays_near(case):
    # The packages have 1 - b2 in float64, we from a float32 b2, which is 1e-5 away.
    narrow = {key: TORCH[key].astype(np.float32) for key in TORCH.files if key.startswith("problem.")}
    _, losses, _ = trajectory(from_authors(case), narrow)
    assert losses.dtype == np.float32
    np.testing.assert_allclose(losses[:20], TORCH[f"{case}.f32.loss"][:20], rtol=5e-4)


@pytest.mark.parametrize("case", [case for case in cases(OPTAX) if case not in NOT_AS_OPTAX])
def test_equals_optax(case):
    compare(from_optax(case), OPTAX, case)


def test_every_run_is_accounted_for():
    assert len(cases(TORCH)) == 42 and {*HALF_WIDE} < {*cases(TORCH)}
    assert len(cases(OPTAX)) == 29 and {*NOT_AS_OPTAX} < {*cases(OPTAX)}


@pytest.mark.parametrize("case", ["dadapt_adamw", "dadapt_adamw.lr0_wd"])
def test_dadapt_adam_covers_that_of_optax(case):
    optimizer = optimizers.get("dadapt_adam", decouple=True, bias_correction=True, **settings(OPTAX, case))
    compare(optimizer, OPTAX, case)


def residual_gradient(weights, bias):
    inputs, targets = TORCH["problem.X"], TORCH["problem.Y"]
    residuals = (inputs @ weights + bias - targets) / len(inputs)
    return np.concatenate([(inputs.T @ residuals).ravel(), residuals.sum(0)])


def gradient(point):
    """Of the loss of the files, at all parameters in one vector."""
    return residual_gradient(point[:16].reshape(4, 4), point[16:])


def follows(optimizer, points, averages=None):
    with jax.enable_x64(True):
        params, _, evaluated = trajectory(exact(optimizer), TORCH)
    np.testing.assert_allclose(params, points, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(evaluated, points if averages is None else averages, rtol=1e-8, atol=1e-10)


START = np.concatenate([TORCH["problem.W0"].ravel(), TORCH["problem.b0"]])


def test_adagrad_norm_by_its_equations():
    point, square, points = START.copy(), 0.1, []
    for _ in range(30):
        grad = gradient(point)
        square += grad @ grad
        point = point - 0.5 / np.sqrt(square) * grad
        points.append(point)
    follows(optimizers.get("adagrad_norm", learning_rate=0.5, initial_accumulator_value=0.1), points)


def test_schedule_free_prodigy_by_its_equations():
    lr, b1, b2, eps, decay, d, coefficient, r = 0.8, 0.9, 0.9955, 1e-8, 0.02, 1e-3, 1.5, 0.75
    x, z = START.copy(), START.copy()
    square, total, numerator, weights = np.zeros(20), np.zeros(20), 0.0, 0.0
    points, averages = [], []
    for t in range(1, 31):
        grad = gradient(b1 * x + (1 - b1) * z)
        step = d * lr
        numerator = np.sqrt(b2) * numerator + d * step * (grad @ (START - z))
        total = np.sqrt(b2) * total + d * step * grad
        square = b2 * square + (1 - b2) * (d * grad) ** 2
        d = max(d, coefficient * numerator / np.abs(total).sum())
        z = z - step * (d * grad / (np.sqrt(square) + d * eps) + decay * x)
        weights += t**r
        x = x + t**r / weights * (z - x)
        points.append(b1 * x + (1 - b1) * z)
        averages.append(x)
    optimizer = optimizers.get(
        "prodigy_schedule_free",
        learning_rate=lr,
        weight_decay=decay,
        estim_lr0=1e-3,
        estim_lr_coef=coefficient,
    )
    assert d > 2e-3
    follows(optimizer, points, averages)


def test_layers_of_ldog_keep_apart():
    # A tensor that stands still changes nothing about the others' steps.
    one = {"a": jnp.array([1.0, -2.0])}
    two = {**one, "b": jnp.array([3.0, 4.0])}
    ldog = optimizers.get("ldog", reps_rel=0.1)
    alone, _ = ldog.update(one, ldog.init(one), one)
    beside, _ = ldog.update(two, ldog.init(two), two)
    np.testing.assert_array_equal(alone["a"], beside["a"])


def test_slices_save_memory():
    params = {"w": jnp.ones((5, 7)), "s": jnp.float32(1.0)}
    state = optimizers.get("prodigy", slice_p=11).init(params)
    assert state.params0["w"].shape == state.grad_sum["w"].shape == (4,)
    assert state.exp_avg_sq["w"].shape == (5, 7)
