"""What tests/test_keras.py runs in a process of each backend: `python keras_program.py START.npz OUT.npz`.

Every check of CHECKS runs, and its traceback, or nothing, is printed as JSON. OUT holds the weights after
training by each optimizer of EQUAL. On PyTorch nothing may import JAX.
"""

import json
import os
import sys
import tempfile
import traceback
import warnings

import numpy as np


warnings.simplefilter("error")
# Keras, of its own arrays.
warnings.filterwarnings("ignore", "__array__ implementation")
BACKEND = os.environ["KERAS_BACKEND"]
STEPS, ROWS = 20, 32
# 100 steps of it are a warm-up, of plain SGD: it shows what Keras does to a gradient.
WARMING, WARM_UP = "amalgam-choice-large-7", 100


class NoJax:
    """A finder that knows no JAX."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("jax", "jaxlib"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


if BACKEND == "torch":
    sys.meta_path.insert(0, NoJax())

import keras  # noqa: E402

import outeropt.keras  # noqa: E402
from outeropt.errors import OuteroptError  # noqa: E402


START = dict(np.load(sys.argv[1]))
EQUAL = ["prodigy", "learned:small_fc", WARMING, "schedule_free_adamw"]
if BACKEND == "jax":
    EQUAL.append("adamw")
# PRNG keys, counters and recurrent states are among their leaves.
SAVED = {"jax": ["noisy_sgd", "self_tuning"], "torch": ["self_tuning", "metaopt", "cocob"]}[BACKEND]


def model(optimizer):
    """A small network at the start that all share."""
    made = keras.Sequential(
        [keras.Input((5,)), keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(1)]
    )
    made.set_weights([START[f"p{index}"] for index in range(4)])
    made.compile(optimizer=optimizer, loss="mse")
    return made


def fit(made, steps, **settings):
    """Steps on the same rows, in one epoch."""
    x, y = (np.tile(START[name], (steps, 1)) for name in ("x", "y"))
    made.fit(x, y, batch_size=ROWS, verbose=0, shuffle=False, **settings)
    return made


def fit_epochs(made, epochs, **settings):
    """Steps on the same rows, each an epoch of its own."""
    made.fit(
        START["x"],
        START["y"],
        **{"batch_size": ROWS, "epochs": epochs, "verbose": 0, "shuffle": False, **settings},
    )
    return made


def load(name, **settings):
    return outeropt.keras.load(name, num_steps=STEPS, **settings)


def weights(made):
    return [variable.numpy() for variable in made.trainable_variables]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(weights(a), weights(b), strict=True))


def close(a, b):
    return all(np.allclose(x, y, rtol=1e-4, atol=1e-6) for x, y in zip(weights(a), weights(b), strict=True))


def saved(made):
    with tempfile.TemporaryDirectory() as folder:
        made.save(f"{folder}/model.keras")
        return keras.saving.load_model(f"{folder}/model.keras")


def error(make):
    try:
        make()
    except OuteroptError as found:
        assert "\n" not in str(found)
        return str(found)
    raise AssertionError("no error")


def check_equal():
    found = {}
    for name in EQUAL:
        made = fit(model(load(name)), STEPS + WARM_UP if name == WARMING else STEPS)
        found |= {f"{name}/{index}": value for index, value in enumerate(weights(made))}
        check_goes_on(made)
    np.savez(sys.argv[2], **found)


def check_goes_on(made):
    again = saved(made)
    assert type(again.optimizer) is type(made.optimizer) and same(again, made)
    assert again.optimizer.get_config() == made.optimizer.get_config()
    fit(made, 3), fit(again, 3)
    assert same(made, again)


def check_saved_state():
    for name in SAVED:
        check_goes_on(fit(model(load(name)), 3))


def check_saved_before_it_began():
    # The state starts from the weights of the file, not from those that the model had when it was made.
    made = model(load("prodigy"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = saved(made)
    fit(made, 3), fit(again, 3)
    assert close(made, again)


def check_learning_rate():
    # One has a learning rate of its own, the other takes a factor.
    drop = keras.optimizers.schedules.PiecewiseConstantDecay([2], [0.5, 0.0])
    scheduled = fit(model(load("prodigy", learning_rate=drop)), 6)
    assert same(scheduled, fit(model(load("prodigy", learning_rate=0.5)), 3))
    stop = keras.callbacks.LearningRateScheduler(lambda epoch, now: 0.5 if epoch < 3 else 0.0)
    called = fit_epochs(model(load(WARMING)), 6, callbacks=[stop])
    assert same(called, fit(model(load(WARMING, learning_rate=0.5)), 3))
    assert float(called.optimizer.learning_rate) == 0.0
    assert not close(called, fit(model(load(WARMING)), 3))
    plateau = keras.callbacks.ReduceLROnPlateau(monitor="loss", factor=0.5, patience=1, min_delta=1e9)
    reduced = fit_epochs(model(load("schedule_free_adamw")), 4, callbacks=[plateau])
    assert np.isclose(float(reduced.optimizer.learning_rate), 0.0025 / 8)
    again = saved(reduced)
    assert np.isclose(float(again.optimizer.learning_rate), 0.0025 / 8)


def check_clipping():
    for settings in ({"clipvalue": 1.0}, {"global_clipnorm": 1.0}):
        ends = []
        for scale in (10.0, 20.0):
            made = model(load(WARMING, **settings))
            rng = np.random.default_rng(0)
            shapes = [variable.shape for variable in made.trainable_variables]
            signs = [keras.ops.sign(rng.normal(size=shape).astype("float32")) for shape in shapes]
            made.optimizer.apply([scale * sign for sign in signs], made.trainable_variables)
            ends.append(made)
        assert close(*ends) and not close(ends[0], model(load(WARMING)))


def check_accumulation():
    whole = fit(model(load("prodigy", learning_rate=0.5)), 4)
    halves = model(load("prodigy", learning_rate=0.5, gradient_accumulation_steps=2))
    fit_epochs(halves, 4, batch_size=ROWS // 2)
    assert close(whole, halves) and int(halves.optimizer.iterations) == 4


def check_weight_decay():
    own = load("prodigy", weight_decay=0.1)
    assert own.hyperparameters == {"weight_decay": 0.1} and own.weight_decay is None
    assert "for all variables" in error(lambda: own.exclude_from_weight_decay(var_names=["bias"]))
    keras_own = load(WARMING, weight_decay=0.1)
    assert keras_own.weight_decay == 0.1 and not keras_own.hyperparameters
    keras_own.exclude_from_weight_decay(var_names=["bias"])
    made, without = model(keras_own), model(load(WARMING))
    for each in (made, without):
        # Of which the optimizer makes no step of its own.
        each.optimizer.build(each.trainable_variables)
        gradients = [keras.ops.zeros(variable.shape) for variable in each.trainable_variables]
        each.optimizer.apply(gradients)
    shrunk = [0.9, 1.0, 0.9, 1.0]
    for value, start, factor in zip(weights(made), weights(without), shrunk, strict=True):
        assert np.allclose(value, factor * start, rtol=1e-5, atol=1e-6)


def check_averages_of_keras():
    made = fit(model(load("prodigy_schedule_free" if BACKEND == "torch" else "prodigy", use_ema=True)), 4)
    averages = [value.numpy() for value in made.optimizer._model_variables_moving_average]
    assert all(np.array_equal(a, b) for a, b in zip(weights(made), averages, strict=True))


def check_scaled_loss():
    plain = fit(model(load("schedule_free_adamw", learning_rate=0.05)), 4)
    scaled = fit(model(load("schedule_free_adamw", learning_rate=0.05, loss_scale_factor=128.0)), 4)
    wrapped = fit(
        model(keras.optimizers.LossScaleOptimizer(load("schedule_free_adamw", learning_rate=0.05))), 4
    )
    assert close(plain, scaled) and close(plain, wrapped)
    again = saved(wrapped)
    fit(wrapped, 2), fit(again, 2)
    assert same(wrapped, again)


def check_evaluation_point():
    points = [outeropt.keras.EvaluationPoint()]
    validation = {"validation_data": (START["x"], START["y"])}
    whole = fit_epochs(
        model(load("schedule_free_adamw", learning_rate=0.05)), 6, callbacks=points, **validation
    )
    losses = whole.history.history["val_loss"]
    assert np.isclose(losses[-1], whole.evaluate(START["x"], START["y"], verbose=0), rtol=1e-5)
    parts = fit(model(load("schedule_free_adamw", learning_rate=0.05)), 3)
    at_end = weights(parts)
    parts.optimizer.train()
    trained = weights(parts)
    parts.optimizer.eval()
    assert all(np.array_equal(a, b) for a, b in zip(at_end, weights(parts), strict=True))
    assert not all(np.allclose(a, b) for a, b in zip(at_end, trained, strict=True))
    assert same(whole, fit(parts, 3, callbacks=points))
    # Without the callback only the first gradient is another one.
    again = fit(fit(model(load("schedule_free_adamw", learning_rate=0.05)), 3), 3)
    assert all(np.allclose(a, b, atol=0.1) for a, b in zip(weights(again), weights(whole), strict=True))
    adam = model("adam")
    assert "Adam" in error(lambda: fit(adam, 1, callbacks=points))


def check_missing_gradients():
    for name in ("prodigy", WARMING, "schedule_free_adamw"):
        made = model(load(name))
        made.optimizer.build(made.trainable_variables)
        before = weights(made)
        gradients = [keras.ops.ones(variable.shape) for variable in made.trainable_variables]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made.optimizer.apply([gradients[0], None, gradients[2], gradients[3]], made.trainable_variables)
        after = weights(made)
        assert [np.array_equal(a, b) for a, b in zip(before, after, strict=True)] == [
            False,
            True,
            False,
            False,
        ]


def check_errors():
    unknown = error(lambda: load("prodigi"))
    assert "prodigy" in unknown
    if BACKEND == "torch":
        assert "All names: " in unknown and "self_tuning" in unknown
        assert "nesterov" in error(lambda: load("prodigy", nesterov=True))
    for name in ("momo", "one_pass:adamw"):
        assert f"{name} needs more than gradients" in error(lambda name=name: load(name))
    assert "num_steps" in error(lambda: outeropt.keras.load("small_fc"))
    assert "learning_rate" in error(lambda: load("prodigy", learning_rate=-1.0)).replace(
        "lr", "learning_rate"
    )
    assert "weight_decay" in error(lambda: load("prodigy", weight_decay=-1.0))


CHECKS = {
    name.removeprefix("check_"): value for name, value in dict(globals()).items() if name[:6] == "check_"
}
del CHECKS["goes_on"]

if __name__ == "__main__":
    results = {}
    for name, check in CHECKS.items():
        try:
            check()
            results[name] = ""
        except Exception:
            results[name] = traceback.format_exc()
    print(json.dumps(results))
