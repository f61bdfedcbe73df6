"""The networks of image tasks against plain numpy, from given parameters."""

import jax
import numpy as np
import pytest

from image_fixtures import (
    as_numpy,
    drawn,
    np_conv,
    np_gelu,
    np_norm,
    np_pool,
    np_softmax,
    run,
    small_data,
    some_images,
    some_rows,
)
from outeropt.tasks import norms
from outeropt.tasks.images import autoencoder, conv, image_mlp, mixer, resnet, vgg, vit


@pytest.mark.parametrize("function", ["relu", "tanh"])
def test_mlp_against_numpy(function):
    task = image_mlp.ImageMLP(name="mine", data=small_data(), hidden=(7, 5), activation=function)
    params, state = drawn(task)
    batch = some_rows(task)
    loss, (new_state, metrics) = run(task.loss, params, state, batch, jax.random.key(2))

    p = as_numpy(params)
    f = {"relu": lambda x: np.maximum(x, 0), "tanh": np.tanh}[function]
    x = np.asarray(batch["image"]).reshape(4, -1) / 255
    logits = f(f(x @ p["w0"] + p["b0"]) @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"]
    labels = np.asarray(batch["label"])
    np.testing.assert_allclose(loss, -np.log(np_softmax(logits)[np.arange(4), labels]).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], (logits.argmax(1) == labels).mean())
    assert state is None and new_state is None


def test_norm_comes_before_the_activation_of_an_mlp():
    task = image_mlp.ImageMLP(name="mine", data=small_data(), hidden=(7,), norm="layer_norm")
    params, _ = drawn(task)
    images = some_images(task)
    logits, _ = run(task.logits, params, None, images, None)
    p = as_numpy(params)
    x = np.asarray(images, np.float64).reshape(4, -1) @ p["w0"] + p["b0"]
    x = np.maximum(np_norm(x, -1, p["scale0"], p["offset0"]), 0)
    np.testing.assert_allclose(logits, x @ p["w1"] + p["b1"], atol=1e-5)


def test_batch_norm_mlp_trains_on_the_batch_and_evaluates_on_running_statistics():
    task = image_mlp.ImageMLP(name="mine", data=small_data(), hidden=(7,), norm="batch_norm")
    params, _ = drawn(task)
    state = {"statistics0": norms.fresh_statistics(7)}
    images = some_images(task)
    trained, state1 = run(task.logits, params, state, images, jax.random.key(2))
    evaluated, state2 = run(task.logits, params, state1, images, None)
    p = as_numpy(params)
    x = np.asarray(images, np.float64).reshape(4, -1) @ p["w0"] + p["b0"]
    np.testing.assert_allclose(state1["statistics0"][:2], [x.mean(0), x.var(0)], rtol=1e-3, atol=1e-5)
    hidden = np.maximum(np_norm(x, 0, p["scale0"], p["offset0"]), 0)
    np.testing.assert_allclose(trained, hidden @ p["w1"] + p["b1"], atol=1e-3)
    # After one batch the bias-corrected averages are that batch's own.
    np.testing.assert_allclose(evaluated, trained, atol=1e-4)
    np.testing.assert_array_equal(state2["statistics0"], state1["statistics0"])
    untrained, _ = run(task.logits, params, state, images, None)
    assert np.abs(untrained - evaluated).max() > 1e-2


def test_dropout_mlp_is_random_in_training_only():
    task = image_mlp.ImageMLP(name="mine", data=small_data(), hidden=(50,), dropout=0.5)
    params, _ = drawn(task)
    batch = some_rows(task)

    def value(key):
        return float(run(task.loss, params, None, batch, key)[0])

    assert value(jax.random.key(0)) != value(jax.random.key(1))
    assert value(jax.random.key(0)) == value(jax.random.key(0))
    plain = image_mlp.ImageMLP(name="mine", data=task.data, hidden=(50,))
    np.testing.assert_allclose(value(None), run(plain.loss, params, None, batch, None)[0], rtol=1e-6)


def test_autoencoder_against_numpy():
    task = autoencoder.Autoencoder(name="mine", data=small_data(), hidden=(6, 3, 6))
    params, _ = drawn(task)
    batch = some_rows(task)
    loss, (_, metrics) = run(task.loss, params, None, batch, None)
    p = as_numpy(params)
    x = np.asarray(batch["image"]).reshape(4, -1) / 255
    y = x
    for i in range(4):
        y = y @ p[f"w{i}"] + p[f"b{i}"]
        y = np.maximum(y, 0) if i < 3 else 1 / (1 + np.exp(-y))
    np.testing.assert_allclose(loss, ((x - y) ** 2).mean(), rtol=1e-5)
    assert metrics == {} and task.minimum == 0.0


@pytest.mark.parametrize("likelihood", ["bernoulli", "quantized_normal"])
@pytest.mark.parametrize("training", [False, True])
def test_variational_bound_against_numpy(likelihood, training):
    task = autoencoder.VariationalAutoencoder(
        name="mine", data=small_data(), hidden=(6,), latents=2, likelihood=likelihood
    )
    params, _ = drawn(task)
    batch = some_rows(task)
    key = jax.random.key(2) if training else None
    loss, (_, metrics) = run(task.loss, params, None, batch, key)

    p = as_numpy(params)
    x = np.asarray(batch["image"]).reshape(4, -1) / 255
    code = np.maximum(x @ p["encoder_w0"] + p["encoder_b0"], 0) @ p["encoder_w1"] + p["encoder_b1"]
    mean, std = code[:, :2], np.exp(code[:, 2:])
    z = mean + std * np.asarray(jax.random.normal(key, (4, 2))) if training else mean
    out = np.maximum(z @ p["decoder_w0"] + p["decoder_b0"], 0) @ p["decoder_w1"] + p["decoder_b1"]
    divergence = 0.5 * (mean**2 + std**2 - 1 - 2 * np.log(std)).sum(1)
    if likelihood == "bernoulli":
        s = 1 / (1 + np.exp(-out))
        log_p = (x * np.log(s) + (1 - x) * np.log(1 - s)).sum(1)
        np.testing.assert_allclose(metrics["mse"], ((x - s) ** 2).mean(), rtol=1e-5)
    else:
        mu, sigma = out[:, :64], np.exp(out[:, 64:])
        width = 1 / 255
        squares = ((x - mu) ** 2 + width**2 / 12) / sigma**2
        log_p = (np.log(width) - 0.5 * squares - np.log(sigma * np.sqrt(2 * np.pi))).sum(1)
        np.testing.assert_allclose(metrics["bits"], float(loss) / np.log(2), rtol=1e-6)
    np.testing.assert_allclose(loss, (divergence - log_p).mean() / 64, rtol=1e-5)


@pytest.mark.parametrize("norm", [None, "layer_norm", "batch_norm"])
def test_conv_net_against_numpy(norm):
    data = small_data((6, 6, 3))
    task = conv.ConvNet(name="mine", data=data, channels=(4, 5), activation="tanh", norm=norm)
    params, state = drawn(task)
    images = some_images(task)
    logits, _ = run(task.logits, params, state, images, jax.random.key(2))
    p = as_numpy(params)
    x = np.asarray(images, np.float64)
    for i in range(2):
        x = np.tanh(np_conv(x, p[f"w{i}"], 2 if i == 0 else 1) + p[f"b{i}"])
        if norm:
            x = np_norm(x, -1 if norm == "layer_norm" else (0, 1, 2), p[f"scale{i}"], p[f"offset{i}"])
    np.testing.assert_allclose(logits, x.mean((1, 2)) @ p["w2"] + p["b2"], atol=1e-4)


def test_lenet_against_numpy():
    task = conv.LeNet(name="mine", data=small_data(), channels=(3, 4), dense=(6,))
    params, _ = drawn(task)
    images = some_images(task)
    logits, _ = run(task.logits, params, None, images, None)
    p = as_numpy(params)
    x = np.asarray(images, np.float64)
    for i in range(2):
        x = np_pool(np.maximum(np_conv(x, p[f"w{i}"]) + p[f"b{i}"], 0))
    x = np.maximum(x.reshape(4, -1) @ p["dense_w0"] + p["dense_b0"], 0)
    np.testing.assert_allclose(logits, x @ p["dense_w1"] + p["dense_b1"], atol=1e-4)


def test_vgg_against_numpy():
    task = vgg.VGG(name="mine", data=small_data(), widths=(3, 4), depths=(1, 3), norm="batch_norm")
    params, state = drawn(task)
    images = some_images(task)
    logits, new_state = run(task.logits, params, state, images, jax.random.key(2))
    p = as_numpy(params)

    def layer(x, part, index=...):
        w, b, scale, offset = (p[f"{part}_{leaf}"][index] for leaf in ("w", "b", "scale", "offset"))
        return np.maximum(np_norm(np_conv(x, w) + b, (0, 1, 2), scale, offset), 0)

    x = np_pool(layer(np.asarray(images, np.float64), "entry0"))
    x = layer(x, "entry1")
    for i in range(2):
        x = layer(x, "rest1", i)
    x = np_pool(x).reshape(4, -1)
    np.testing.assert_allclose(logits, x @ p["head_w"] + p["head_b"], rtol=1e-3, atol=1e-3)
    assert new_state["rest1_statistics"].shape == state["rest1_statistics"].shape == (2, 3, 4)


def test_vgg_drops_features_before_its_last_layer_in_training_only():
    data, shape = small_data(), {"widths": (3, 40), "depths": (1, 1)}
    task = vgg.VGG(name="mine", data=data, **shape, dropout=0.5)
    plain = vgg.VGG(name="mine", data=data, **shape)
    params, _ = drawn(task)
    images = some_images(task)

    def scores(task, key):
        return np.asarray(run(task.logits, params, None, images, key)[0])

    one, two = (scores(task, jax.random.key(seed)) for seed in (0, 1))
    assert not np.array_equal(one, two)
    np.testing.assert_allclose(scores(task, None), scores(plain, jax.random.key(0)), rtol=1e-5)


def test_resnet_against_numpy():
    task = resnet.ResNet(name="mine", data=small_data(), widths=(3, 4), blocks=2)
    params, state = drawn(task)
    images = some_images(task)
    logits, new_state = run(task.logits, params, state, images, jax.random.key(2))
    p = as_numpy(params)

    def norm_relu(x, scale, offset):
        return np.maximum(np_norm(x, (0, 1, 2), scale, offset), 0)

    x = np_conv(np.asarray(images, np.float64), p["stem"])
    for g in range(2):
        stride = g + 1
        y = norm_relu(x, p[f"entry{g}_scale0"], p[f"entry{g}_offset0"])
        shortcut = np_conv(y, p[f"entry{g}_shortcut"], stride)
        y = np_conv(y, p[f"entry{g}_w0"], stride)
        y = norm_relu(y, p[f"entry{g}_scale1"], p[f"entry{g}_offset1"])
        x = shortcut + np_conv(y, p[f"entry{g}_w1"])
        y = norm_relu(x, p[f"rest{g}_scale0"][0], p[f"rest{g}_offset0"][0])
        y = np_conv(y, p[f"rest{g}_w0"][0])
        y = norm_relu(y, p[f"rest{g}_scale1"][0], p[f"rest{g}_offset1"][0])
        x = x + np_conv(y, p[f"rest{g}_w1"][0])
    x = norm_relu(x, p["scale"], p["offset"]).mean((1, 2))
    np.testing.assert_allclose(logits, x @ p["head_w"] + p["head_b"], rtol=1e-3, atol=1e-3)
    assert jax.tree.structure(new_state) == jax.tree.structure(state)


def test_vit_against_numpy():
    task = vit.ViT(name="mine", data=small_data(), patch=4, width=6, depth=2, heads=2, mlp_width=5)
    params, _ = drawn(task)
    images = some_images(task)
    logits, _ = run(task.logits, params, None, images, None)
    p = as_numpy(params)
    x = np.asarray(images, np.float64)
    x = np.stack([x[:, i : i + 4, j : j + 4].reshape(4, -1) for i in (0, 4) for j in (0, 4)], axis=1)
    x = x @ p["patch_w"] + p["patch_b"]
    x = np.concatenate([np.broadcast_to(p["token"], (4, 1, 6)), x], axis=1) + p["position"]
    for i in range(2):
        b = {name.removeprefix("blocks_"): leaf[i] for name, leaf in p.items() if name.startswith("blocks_")}
        y = np_norm(x, -1, b["scale"][0], b["offset"][0])
        q, k, v = np.split(y @ b["qkv_w"] + b["qkv_b"], 3, axis=-1)
        heads = []
        for h in (slice(0, 3), slice(3, 6)):
            scores = q[..., h] @ k[..., h].transpose(0, 2, 1) / np.sqrt(3)
            heads.append(np_softmax(scores) @ v[..., h])
        x = x + np.concatenate(heads, axis=-1) @ b["out_w"] + b["out_b"]
        y = np_norm(x, -1, b["scale"][1], b["offset"][1])
        x = x + np_gelu(y @ b["up_w"] + b["up_b"]) @ b["down_w"] + b["down_b"]
    x = np_norm(x[:, 0], -1, p["scale"], p["offset"])
    np.testing.assert_allclose(logits, x @ p["head_w"] + p["head_b"], atol=1e-4)


def test_mixer_against_numpy():
    task = mixer.MLPMixer(
        name="mine", data=small_data(), patch=4, width=6, depth=2, token_width=3, feature_width=5
    )
    params, _ = drawn(task)
    images = some_images(task)
    logits, _ = run(task.logits, params, None, images, None)
    p = as_numpy(params)
    x = np.asarray(images, np.float64)
    x = np.stack([x[:, i : i + 4, j : j + 4].reshape(4, -1) for i in (0, 4) for j in (0, 4)], axis=1)
    x = x @ p["patch_w"] + p["patch_b"]
    for i in range(2):
        b = {name.removeprefix("blocks_"): leaf[i] for name, leaf in p.items() if name.startswith("blocks_")}
        y = np_norm(x, -1, b["scale"][0], b["offset"][0]).transpose(0, 2, 1)
        y = np_gelu(y @ b["token_up_w"] + b["token_up_b"]) @ b["token_down_w"] + b["token_down_b"]
        x = x + y.transpose(0, 2, 1)
        y = np_norm(x, -1, b["scale"][1], b["offset"][1])
        x = x + np_gelu(y @ b["feature_up_w"] + b["feature_up_b"]) @ b["feature_down_w"] + b["feature_down_b"]
    x = np_norm(x, -1, p["scale"], p["offset"]).mean(1)
    np.testing.assert_allclose(logits, x @ p["head_w"] + p["head_b"], atol=1e-4)
