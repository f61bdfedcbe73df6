"""Image tasks: their architecture against published facts, a few steps of training, and their messages."""

import itertools
import json
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from image_fixtures import count, drawn, run, small_data, some_rows
from outeropt.data.arrays import ArrayData
from outeropt.errors import OuteroptError
from outeropt.tasks import layers
from outeropt.tasks.images import autoencoder, conv, image_mlp, imagenet_resnet, mixer, resnet, vgg, vit


GOLDEN = json.loads((Path(__file__).parent / "golden/tasks/published_image_tasks.json").read_text())
FAMILIES = (image_mlp, autoencoder, conv, resnet, imagenet_resnet, vgg, vit, mixer)
TASKS = {name: builder for family in FAMILIES for name, builder in family.TASKS.items()}
NATIVE = {"digits": (8, 8, 1), "mnist": (28, 28, 1), "fashion_mnist": (28, 28, 1), "cifar10": (32, 32, 3)}


@pytest.fixture
def blank_images(monkeypatch):
    """Datasets of the right shapes with nothing in them, so that every task can be built."""

    def images(name, size=None, grey=False, train_rows=None):
        height, width, channels = NATIVE[name]
        shape = (2, size or height, size or width, 1 if grey else channels)
        rows = {"image": jnp.zeros(shape, jnp.uint8), "label": jnp.zeros(2, jnp.int32)}
        return {"train": rows, "valid": rows, "test": rows}

    monkeypatch.setattr("outeropt.data.images", images)


# Architecture


def test_at_least_sixty_names_all_distinct():
    assert len(TASKS) == sum(len(family.TASKS) for family in FAMILIES)
    assert len(TASKS) >= 60


@pytest.mark.parametrize("name", GOLDEN)
def test_published_tasks_have_their_published_shape(name, blank_images):
    facts = GOLDEN[name]
    height, width = facts["image_size"]
    colours = 3 if facts["dataset"] == "cifar10" and not facts.get("convert_to_black_and_white") else 1
    hidden, classes = facts["hidden_sizes"], facts["num_classes"]
    pixels = height * width * colours
    if facts["family"] == "conv":
        inputs = [colours, *hidden[:-1]]
        expected = sum((9 * i + 1) * o for i, o in zip(inputs, hidden)) + (hidden[-1] + 1) * classes
    else:
        sizes = [pixels, *hidden, pixels if facts["family"] == "image_mlp_ae" else classes]
        expected = sum((i + 1) * o for i, o in itertools.pairwise(sizes))
    if facts.get("norm"):
        expected += 2 * sum(hidden)

    task = TASKS[name]()
    params, state = eqx.filter_eval_shape(task.init, jax.random.key(0))
    assert task.name == name
    assert count(params) == expected
    assert task.data.batch_size == facts["batch_size"]
    assert task.data.splits["train"]["image"].shape[1:] == (height, width, colours)
    assert task.activation == facts["activation"]
    assert getattr(task, "dropout", 0.0) == facts.get("dropout", 0.0)
    assert getattr(task, "norm", None) == facts.get("norm")
    assert (state is not None) == (facts.get("norm") == "batch_norm")
    criterion = "squared" if facts["loss"].startswith("mean squared error between logits") else "softmax"
    assert getattr(task, "criterion", "softmax") == criterion


_VGG16_CHANNELS = [3, 64, 64, 128, 128, *[256] * 3, *[512] * 6]
_VGG16 = sum((9 * i + 1) * o for i, o in itertools.pairwise(_VGG16_CHANNELS)) + 5130

# Each group: a block that changes width, with shortcut, and one that keeps it; two norms each.
_RESNET18 = (
    27 * 64
    + sum(
        (9 * i * o + 9 * o * o + i * o + 2 * i + 2 * o) + (18 * o * o + 4 * o)
        for i, o in [(64, 64), (64, 128), (128, 256), (256, 512)]
    )
    + (2 * 512 + 5130)
)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("ResNet_Cifar10_18", _RESNET18),
        ("ResNet18_Cifar10", _RESNET18),
        # torchvision's 11 689 512, with 10 classes for 1000.
        ("ResNet18_Cifar10_ImageNet_BS100", 11_689_512 - 513 * 990),
        # 13 convolutions with bias and one linear layer of 512 x 10.
        ("VGG16_Cifar10", _VGG16),
        # Two vectors a convolution: 2 * (2*64 + 2*128 + 3*256 + 6*512) = 8448 more.
        ("VGG16_Cifar10_batchnorm", _VGG16 + 8448),
        ("VGG16_Cifar10_batchnorm_Dropout05_BS512", _VGG16 + 8448),
        # The workloads of Meta-Optimization; LeNet-5 with padding SAME sees 7 x 7 positions after pooling.
        ("MNIST_MLP", 785 * 100 + 101 * 100 + 1010),
        ("MNIST_Conv", 26 * 6 + 151 * 16 + 785 * 120 + 121 * 84 + 850),
        # 6 * (12 * 384^2 + 13 * 384) in the blocks; patches, token, 65 positions, norm, head around them.
        ("VIT_Cifar10_wideshallow", 6 * (12 * 384**2 + 13 * 384) + 49 * 384 + 66 * 384 + 2 * 384 + 3850),
        # 5 blocks: 2 norms, tokens 64-384-64, features 512-2048-512.
        (
            "MLPMixer_Cifar10_tiny4",
            5 * (4 * 512 + 2 * 64 * 384 + 448 + 2 * 512 * 2048 + 2560) + 49 * 512 + 2 * 512 + 5130,
        ),
    ],
)
def test_large_architectures_have_the_right_size(name, parameters, blank_images):
    params, _ = eqx.filter_eval_shape(TASKS[name]().init, jax.random.key(0))
    assert count(params) == parameters


def test_equal_layers_are_stacked_so_that_leaves_are_few(blank_images):
    for name in ("VGG16_Cifar10", "VIT_Cifar10_skinnydeep", "MLPMixer_Cifar10_small4"):
        params, _ = eqx.filter_eval_shape(TASKS[name]().init, jax.random.key(0))
        assert len(jax.tree.leaves(params)) <= 22


def test_equal_tasks_share_a_compiled_program():
    data = small_data()
    traces = []

    @eqx.filter_jit
    def loss(task, key):
        traces.append(None)
        params, state = task.init(key)
        return task.loss(params, state, task.batch("train", key), key)[0]

    for seed in range(2):
        other = ArrayData(small_data(seed=seed).splits, data.batch_size)
        loss(image_mlp.ImageMLP(name="mine", data=other, hidden=(3,)), jax.random.key(seed))
    assert len(traces) == 1


# Training on the bundled digits


@pytest.mark.parametrize(
    "name",
    [
        "ImageMLP_Digits_64x64_BatchNorm_Relu",
        "ImageMLP_Digits_128x128_Dropout05_Relu",
        "ImageMLPVAE_Digits_64_z8",
        "ImageMLPVAE_Digits_64_z8_Normal",
        "Conv_Digits_16x32_batchnorm",
        "LeNet_Digits",
        "ResNet_Digits_6",
        "VGGSlim_Digits",
        "VIT_Digits_patch2_32x2_Dropout01",
        "MLPMixer_Digits_patch2_32x2",
    ],
)
def test_gradient_steps_lower_the_loss(name):
    task = TASKS[name]()
    params, state = drawn(task)
    batch = some_rows(task, 8)

    @jax.jit
    def step(params, state, key):
        (loss, (state, _)), grads = jax.value_and_grad(task.loss, has_aux=True)(params, state, batch, key)
        size = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)))
        return jax.tree.map(lambda p, g: p - 0.1 * g / (1 + size), params, grads), state, loss, size

    curve, sizes = [], []
    for i in range(30):
        params, state, loss, size = step(params, state, jax.random.key(i))
        curve.append(loss)
        sizes.append(size)
    assert np.all(np.isfinite(curve)) and np.all(np.isfinite(sizes)) and np.all(np.asarray(sizes) > 0)
    assert np.mean(curve[-5:]) < np.mean(curve[:5])


@pytest.mark.parametrize("name", ["ResNet_Digits_6", "VIT_Digits_patch2_32x2", "MLPMixer_Digits_patch2_32x2"])
def test_the_last_layer_of_deep_networks_starts_at_zero(name):
    params = run(lambda task: layers.part(task.init(jax.random.key(0))[0], "head"), TASKS[name]())
    assert params.keys() == {"w", "b"}
    assert not np.any(params["w"]) and not np.any(params["b"])


# Messages


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda d: image_mlp.ImageMLP(name="m", data=d, hidden=(3,), activation="rellu"), "relu"),
        (lambda d: image_mlp.ImageMLP(name="m", data=d, hidden=(3,), criterion="softmacs"), "softmax"),
        (lambda d: image_mlp.ImageMLP(name="m", data=d, hidden=(3,), norm="batchnorm"), "batch_norm"),
        (lambda d: image_mlp.ImageMLP(name="m", data=d, hidden=(3,), dropout=1.0), "below 1"),
        (lambda d: vit.ViT(name="m", data=d, patch=3, width=4, depth=1, heads=2, mlp_width=4), "divisor"),
        (lambda d: vit.ViT(name="m", data=d, patch=4, width=5, depth=1, heads=2, mlp_width=4), "heads"),
        (lambda d: vgg.VGG(name="m", data=d, widths=(2,) * 4, depths=(1,) * 4), "16 x 16"),
        (lambda d: vgg.VGG(name="m", data=d, widths=(2, 2), depths=(1,)), "one of each"),
        (lambda d: conv.LeNet(name="m", data=d, channels=(2,) * 4), "16 x 16"),
        (
            lambda d: autoencoder.VariationalAutoencoder(
                name="m", data=d, hidden=(2,), latents=1, likelihood="bernouli"
            ),
            "bernoulli",
        ),
    ],
)
def test_what_cannot_be_built_says_what_can(build, message):
    def use(data):
        task = build(data)
        params, state = task.init(jax.random.key(0))
        return task.loss(params, state, task.batch("train", jax.random.key(1)), jax.random.key(2))[0]

    with pytest.raises(OuteroptError, match=message) as error:
        eqx.filter_eval_shape(use, small_data())
    assert "\n" not in str(error.value)
