"""What tests/test_keras.py runs on one backend of Keras, in a process of its own: `keras_script.py FOLDER`.

The backend is KERAS_BACKEND. Each function is one check; its name is printed when it held.
"""

import os
import sys
import warnings
from pathlib import Path

import numpy as np


warnings.simplefilter("error")
# Libraries below Keras.
warnings.filterwarnings("ignore", category=DeprecationWarning)

if os.environ["KERAS_BACKEND"] == "torch":
    # PyTorch's backend needs no JAX; Keras itself imports it where it is.
    sys.modules["jax"] = None  # pyright: ignore[reportArgumentType]

import keras  # noqa: E402

import outeropt  # noqa: E402
import outeropt.keras  # noqa: E402
from outeropt.errors import OuteroptError  # noqa: E402


FOLDER = Path(sys.argv[1])
BACKEND = keras.config.backend()
RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(64, 5)).astype(np.float32)
TARGETS = np.tanh(INPUTS @ RNG.normal(size=(5, 2))).astype(np.float32)
# Of many kinds. The learning rate of the first is its own, that of the next two a factor on all they do.
OPTIMIZERS = {
    "prodigy": {},
    "learned:small_fc": {"num_steps": 100},
    "amalgam-choice-large-7": {"settings": {"warmup_steps": 3}},
    "self_tuning": {"num_steps": 100},
    "metaopt": {},
}


def model(optimizer, **compiled):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(2)]
    made = keras.Sequential([keras.Input((5,)), *layers])
    made.compile(optimizer=optimizer, loss="mse", **compiled)
    return made


def fit(made, epochs=1, **given):
    """Four steps an epoch on the same batches."""
    return made.fit(INPUTS, TARGETS, batch_size=16, epochs=epochs, shuffle=False, verbose=0, **given)


def weights(made):
    return np.concatenate([np.ravel(weight) for weight in made.get_weights()])


def raises(words, make):
    try:
        make()
    except OuteroptError as error:
        assert words in str(error), error
        assert "\n" not in str(error)
    else:
        raise AssertionError(f"no error with {words!r}")


def check_steps_are_those_of_the_library():
    """Twenty steps on given gradients."""
    start = [RNG.normal(size=shape).astype(np.float32) for shape in ((5, 4), (4,))]
    grads = [[RNG.normal(size=leaf.shape).astype(np.float32) for leaf in start] for _ in range(20)]
    for name, given in OPTIMIZERS.items():
        variables = [keras.Variable(leaf) for leaf in start]
        optimizer = outeropt.keras.load(name, **given)
        apply(optimizer, variables, grads)
        got = [keras.ops.convert_to_numpy(variable) for variable in variables]
        for one, two in zip(got, library(optimizer.engine.name, start, grads, **given)):
            np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6, err_msg=name)


def apply(optimizer, variables, grads):
    """Steps on given gradients; on JAX as Keras's compiled step makes them."""
    if BACKEND == "torch":
        for step in grads:
            optimizer.apply([keras.ops.convert_to_tensor(grad) for grad in step], variables)
        return
    import jax

    optimizer.build(variables)
    update = jax.jit(optimizer.stateless_apply)
    state, values = ([each.value for each in group] for group in (optimizer.variables, variables))
    for step in grads:
        values, state = update(state, [jax.numpy.asarray(grad) for grad in step], values)
    for variable, value in zip(variables, values):
        variable.assign(value)


def library(name, start, grads, num_steps=None, settings=None):
    """The same with the optimizer of the library for this backend."""
    if BACKEND == "torch":
        import torch

        import outeropt.torch

        params = [torch.nn.Parameter(torch.tensor(leaf)) for leaf in start]
        timed = {} if num_steps is None else {"num_steps": num_steps}
        optimizer = outeropt.torch.get(name, params, **timed, **(settings or {}))
        for step in grads:
            for param, grad in zip(params, step):
                param.grad = torch.tensor(grad)
            optimizer.step()
        return [param.detach().numpy() for param in params]
    import jax

    from outeropt import learned, optimizers

    if settings:
        optimizer = learned.load(name.removeprefix("learned:")).with_settings(**settings)
    else:
        optimizer = optimizers.get(name)
    params = [jax.numpy.asarray(leaf) for leaf in start]
    state, update = (
        optimizer.init(params, num_steps=num_steps),
        jax.jit(lambda *given: optimizer.update(*given)),
    )
    for step in grads:
        updates, state = update([jax.numpy.asarray(grad) for grad in step], state, params)
        params = [param + change for param, change in zip(params, updates)]
    return params


def check_fit_and_saved_models_go_on_exactly():
    for name, given in [*OPTIMIZERS.items()][:3]:
        whole = model(outeropt.keras.load(name, **given))
        losses = fit(whole, epochs=4).history["loss"]
        assert losses[-1] < losses[0], (name, losses)
        half = model(outeropt.keras.load(name, **given))
        fit(half, epochs=2)
        half.save(FOLDER / "model.keras")
        again = keras.models.load_model(FOLDER / "model.keras")
        assert type(again.optimizer) is outeropt.keras.Optimizer
        assert again.optimizer.get_config() == half.optimizer.get_config()
        fit(again, epochs=2)
        np.testing.assert_array_equal(weights(again), weights(whole), err_msg=name)


def check_schedules_and_callbacks_drive_the_learning_rate():
    for name, given in [*OPTIMIZERS.items()][:3]:
        stop = keras.optimizers.schedules.PiecewiseConstantDecay([4], [1.0, 0.0])
        scheduled = model(outeropt.keras.load(name, stop, **given))
        fit(scheduled)
        before = weights(scheduled)
        fit(scheduled)  # its first step still has the rate of the boundary
        after = weights(scheduled)
        fit(scheduled)
        assert (before != after).any()
        np.testing.assert_array_equal(weights(scheduled), after, err_msg=name)
    driven = model(outeropt.keras.load("prodigy"))
    fit(driven, epochs=2, callbacks=[keras.callbacks.LearningRateScheduler(lambda epoch, lr: lr * 0.5)])
    assert float(driven.optimizer.learning_rate) == 0.25


def check_options_are_those_of_keras():
    start, grad = np.ones((3, 2), np.float32), np.full((3, 2), 2.0, np.float32)

    def moved(steps=1, **options):
        variable = keras.Variable(start)
        # SGD with a rate of 0.5: a warm-up that does not end.
        rate = {"settings": {"warmup_steps": 10**6, "warmup_rate": 0.5}}
        optimizer = outeropt.keras.load("amalgam-mean-1", **rate, **options)
        moves = []
        for _ in range(steps):
            before = keras.ops.convert_to_numpy(variable).copy()
            optimizer.apply([keras.ops.convert_to_tensor(grad)], [variable])
            moves.append((keras.ops.convert_to_numpy(variable) - before)[0, 0])
        return moves

    np.testing.assert_allclose(moved(), [-1.0], rtol=1e-6)
    np.testing.assert_allclose(moved(learning_rate=0.1), [-0.1], rtol=1e-6)
    np.testing.assert_allclose(moved(weight_decay=0.1), [-1.1], rtol=1e-6)
    np.testing.assert_allclose(moved(clipvalue=0.5), [-0.25], rtol=1e-6)
    np.testing.assert_allclose(moved(global_clipnorm=6**0.5), [-0.5], rtol=1e-6)
    np.testing.assert_allclose(moved(loss_scale_factor=4.0), [-0.25], rtol=1e-6)
    np.testing.assert_allclose(moved(4, gradient_accumulation_steps=2), [0, -1, 0, -1], rtol=1e-6)
    options = {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 2}
    assert moved(2, **options)[1] != moved(2)[1]


def check_losses_are_scaled():
    name, given = "amalgam-choice-large-7", {"settings": {"warmup_steps": 3}}
    plain = model(outeropt.keras.load(name, **given))
    scaled = model(
        keras.optimizers.LossScaleOptimizer(outeropt.keras.load(name, **given), initial_scale=64.0)
    )
    fit(plain, epochs=2)
    fit(scaled, epochs=2)
    np.testing.assert_allclose(weights(scaled), weights(plain), rtol=1e-4, atol=1e-6)
    before, spoiled = weights(scaled), INPUTS.copy()
    spoiled[3] = np.inf
    scaled.fit(spoiled[:16], TARGETS[:16], batch_size=16, verbose=0)
    np.testing.assert_array_equal(weights(scaled), before)


def check_weights_that_do_not_learn_stay():
    made = model(outeropt.keras.load("prodigy"))
    made.layers[0].trainable = False
    made.compile(optimizer=outeropt.keras.load("prodigy"), loss="mse")
    before = made.layers[0].get_weights()[0].copy()
    fit(made)
    np.testing.assert_array_equal(made.layers[0].get_weights()[0], before)


def check_randomness_is_part_of_the_state():
    if "noisy_sgd" in outeropt.keras.names():
        made = model(outeropt.keras.load("noisy_sgd"))
        fit(made)
        made.save(FOLDER / "model.keras")
        again = keras.models.load_model(FOLDER / "model.keras")
        fit(made)
        fit(again)
        np.testing.assert_array_equal(weights(again), weights(made))


def check_averages():
    name = "schedule_free_adamw"
    if name not in outeropt.keras.names():
        return
    made = model(outeropt.keras.load(name, 0.05))
    fit(made, epochs=5)
    before = weights(made)
    trained = made.evaluate(INPUTS, TARGETS, verbose=0)
    with outeropt.keras.averaged(made):
        assert (weights(made) != before).any()
        better = made.evaluate(INPUTS, TARGETS, verbose=0)
    np.testing.assert_allclose(weights(made), before, rtol=1e-5, atol=1e-6)
    seen = made.evaluate(INPUTS, TARGETS, verbose=0, callbacks=[outeropt.keras.EvaluateAverages()])
    np.testing.assert_allclose(seen, better, rtol=1e-5)
    assert abs(seen - trained) > 1e-4 * trained
    rows = {"validation_data": (INPUTS, TARGETS), "callbacks": [outeropt.keras.EvaluateAverages()]}
    logged = fit(made, **rows).history["val_loss"][0]
    with outeropt.keras.averaged(made):
        np.testing.assert_allclose(made.evaluate(INPUTS, TARGETS, verbose=0), logged, rtol=1e-5)
    raises("keeps no averages", lambda: outeropt.keras.averaged(model("sgd")).__enter__())


def check_files_are_names():
    shipped = Path(outeropt.__file__).parent / "learned" / "weights"
    made = outeropt.keras.load(shipped / "amalgam-mean-1.safetensors", settings={"warmup_steps": 7})
    assert made.engine.name == f"learned:{shipped}/amalgam-mean-1.safetensors"
    again = keras.optimizers.deserialize(keras.optimizers.serialize(made))
    assert again.get_config() == made.get_config()


def check_errors():
    raises("'prodigi'", lambda: outeropt.keras.load("prodigi"))
    raises("needs the length of the run", lambda: fit(model(outeropt.keras.load("learned:small_fc"))))
    needing = {"one_pass:adamw": {}, "metaopt": {"settings": {"estimator": "fake"}}, "momo": {}}
    if BACKEND == "jax":
        needing |= {"sam:sgd": {}}
    for name, given in needing.items():
        if name in outeropt.keras.names() or ":" in name:
            raises("looks at the loss", lambda n=name, g=given: fit(model(outeropt.keras.load(n, **g))))
    made = model(outeropt.keras.load("prodigy"))
    fit(made)
    made.save(FOLDER / "model.keras")
    store = {"0": np.zeros(()), "1": np.zeros(())}
    if BACKEND == "jax":
        raises("does not fit", lambda: made.optimizer.load_own_variables(store))
    else:
        raises("No PyTorch optimizer", lambda: outeropt.keras.load("lion"))


for check in [value for name, value in list(globals().items()) if name.startswith("check_")]:
    check()
    print(check.__name__, flush=True)
