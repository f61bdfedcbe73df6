"""Multilayer perceptrons that classify images.

Tasks of MNIST, Fashion-MNIST and CIFAR-10 bear the names of learned_optimization and are the same problems.
One thing differs: there, dropout stays on and batch statistics stay in use at evaluation; here evaluation (no
key) turns dropout off and uses running statistics, so evaluation curves of those five tasks differ, training
losses not.
"""

from typing import Literal

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from outeropt.data.arrays import ArrayData
from outeropt.task import ModelState, Params
from outeropt.tasks.images.image_classifier import ImageClassifier, Images, Table, builders
from outeropt.tasks.layers import INITIAL, activation, dropout, linear, mlp_init
from outeropt.tasks.losses import Criterion
from outeropt.tasks.norms import Norm, norm_init, normalize


class ImageMLP(ImageClassifier):
    """Flattened pixels through linear layers, each but the last followed by norm, dropout and activation.

    Parameters: `w{i}`, `b{i}`, and `scale{i}`, `offset{i}` where there is a norm.

    Attributes:
      hidden: widths of the hidden layers.
      activation: name of the activation, one of `layers.ACTIVATIONS`.
      norm: `"layer_norm"`, `"batch_norm"` or None.
      dropout: probability of dropping a hidden unit, in [0, 1).
      weights: distribution of the initial weights, one of `layers.INITIAL`.
    """

    name: str = eqx.field(static=True)
    data: ArrayData
    hidden: tuple[int, ...] = eqx.field(static=True)
    activation: str = eqx.field(static=True, default="relu")
    norm: Norm = eqx.field(static=True, default=None)
    dropout: float = eqx.field(static=True, default=0.0)
    criterion: Criterion = eqx.field(static=True, default="softmax")
    classes: int = eqx.field(static=True, default=10)
    weights: Literal["truncated_normal", "normal", "glorot_uniform"] = eqx.field(
        static=True, default="truncated_normal"
    )

    def init(self, key: PRNGKeyArray) -> tuple[Params, ModelState]:
        height, width, channels = self.image_shape
        norm_params, state = norm_init(self.norm, dict(enumerate(self.hidden)))
        sizes = (height * width * channels, *self.hidden, self.classes)
        return {
            **mlp_init(key, sizes, INITIAL[self.weights]),
            **norm_params,
        }, state

    def logits(
        self,
        params: Params,
        state: ModelState,
        images: Float[Array, "rows height width channels"],
        key: PRNGKeyArray | None,
    ) -> tuple[Float[Array, "rows classes"], ModelState]:
        function = activation(self.activation)
        depth = len(self.hidden)
        x = images.reshape(images.shape[0], -1)
        for i in range(depth):
            x = linear(x, params[f"w{i}"], params[f"b{i}"])
            x, state = normalize(self.norm, x, params, state, i, training=key is not None)
            x = dropout(x, self.dropout, None if key is None else jax.random.fold_in(key, i))
            x = function(x)
        return linear(x, params[f"w{depth}"], params[f"b{depth}"]), state


_DIGITS = Images("digits")
_MNIST = Images("mnist")
_FASHION = Images("fashion_mnist")
_CIFAR = Images("cifar10")

# The workloads of Meta-Optimization: two hidden layers of 100, large batches, weights N(0, 1 / fan_in).
_HUNDRED = {"hidden": (100, 100), "weights": "normal"}

_TABLE: Table = {
    # Published names.
    "ImageMLP_Cifar10BW8_Relu32": (Images("cifar10", 8, grey=True), {"hidden": (32,)}),
    "ImageMLP_Cifar10_8_Relu32": (Images("cifar10", 8), {"hidden": (32,)}),
    "ImageMLP_FashionMnist8_Relu32": (Images("fashion_mnist", 8), {"hidden": (32,)}),
    "ImageMLP_FashionMnist16_Relu32": (Images("fashion_mnist", 16), {"hidden": (32,)}),
    "ImageMLP_FashionMnist32_Relu32": (Images("fashion_mnist", 32), {"hidden": (32,)}),
    "ImageMLP_FashionMnist_Relu128x128": (_FASHION, {"hidden": (128, 128)}),
    "ImageMLP_Mnist_128x128x128_Relu": (_MNIST, {"hidden": (128, 128, 128)}),
    "ImageMLP_Cifar10_128x128x128_Relu": (_CIFAR, {"hidden": (128, 128, 128)}),
    "ImageMLP_Cifar10_256x256_Relu": (_CIFAR, {"hidden": (256, 256)}),
    "ImageMLP_Cifar10_256x256_Relu_BS32": (Images("cifar10", batch_size=32), {"hidden": (256, 256)}),
    "ImageMLP_Cifar10_1024x1024_Relu": (_CIFAR, {"hidden": (1024, 1024)}),
    "ImageMLP_Cifar10_4096x4096_Relu": (_CIFAR, {"hidden": (4096, 4096)}),
    "ImageMLP_Cifar10_8192x8192_Relu": (_CIFAR, {"hidden": (8192, 8192)}),
    "ImageMLP_Cifar10_16384x16384_Relu": (_CIFAR, {"hidden": (16384, 16384)}),
    **{
        f"ImageMLP_Cifar10_128x128x128_Tanh_bs{size}": (
            Images("cifar10", batch_size=size),
            {"hidden": (128, 128, 128), "activation": "tanh"},
        )
        for size in (64, 128, 256)
    },
    "ImageMLP_Cifar10_128x128x128_Relu_MSE": (_CIFAR, {"hidden": (128, 128, 128), "criterion": "squared"}),
    **{
        f"ImageMLP_Cifar10_128x128_Dropout{percent}_Relu_MSE": (
            _CIFAR,
            {"hidden": (128, 128), "dropout": rate, "criterion": "squared"},
        )
        for percent, rate in {"02": 0.2, "05": 0.5, "08": 0.8}.items()
    },
    **{
        f"ImageMLP_Cifar10_128x128x128_{norm_name}_{function.capitalize()}": (
            _CIFAR,
            {"hidden": (128, 128, 128), "norm": norm, "activation": function},
        )
        for norm_name, norm in {"LayerNorm": "layer_norm", "BatchNorm": "batch_norm"}.items()
        for function in ("relu", "tanh")
    },
    # Ours.
    "ImageMLP_Digits_Relu32": (_DIGITS, {"hidden": (32,)}),
    "ImageMLP_Digits_Relu128x128": (_DIGITS, {"hidden": (128, 128)}),
    "ImageMLP_Digits_Relu32_BS32": (Images("digits", batch_size=32), {"hidden": (32,)}),
    "ImageMLP_Digits_Relu32_MSE": (_DIGITS, {"hidden": (32,), "criterion": "squared"}),
    "ImageMLP_Digits_Relu32_Sigmoid": (_DIGITS, {"hidden": (32,), "criterion": "sigmoid"}),
    "ImageMLP_Digits_Tanh32": (_DIGITS, {"hidden": (32,), "activation": "tanh"}),
    "ImageMLP_Digits_Gelu32": (_DIGITS, {"hidden": (32,), "activation": "gelu"}),
    "ImageMLP_Digits_Silu32": (_DIGITS, {"hidden": (32,), "activation": "silu"}),
    "ImageMLP_Digits_Tanh32x32x32x32": (_DIGITS, {"hidden": (32,) * 4, "activation": "tanh"}),
    "ImageMLP_Digits_64x64_LayerNorm_Relu": (_DIGITS, {"hidden": (64, 64), "norm": "layer_norm"}),
    "ImageMLP_Digits_64x64_BatchNorm_Relu": (_DIGITS, {"hidden": (64, 64), "norm": "batch_norm"}),
    "ImageMLP_Digits_128x128_Dropout05_Relu": (_DIGITS, {"hidden": (128, 128), "dropout": 0.5}),
    "ImageMLP_Mnist8_Relu32": (Images("mnist", 8), {"hidden": (32,)}),
    "ImageMLP_Mnist_128x128x128_Gelu": (_MNIST, {"hidden": (128, 128, 128), "activation": "gelu"}),
    "ImageMLP_FashionMnist_Silu128x128": (_FASHION, {"hidden": (128, 128), "activation": "silu"}),
    "ImageMLP_Cifar10_256x256_Gelu_LayerNorm": (
        _CIFAR,
        {"hidden": (256, 256), "activation": "gelu", "norm": "layer_norm"},
    ),
    "Digits_MLP": (Images("digits", batch_size=512), _HUNDRED),
    "MNIST_MLP": (Images("mnist", batch_size=512), _HUNDRED),
    "FashionMNIST_MLP": (Images("fashion_mnist", batch_size=512), _HUNDRED),
}

TASKS = builders(ImageMLP, _TABLE)
