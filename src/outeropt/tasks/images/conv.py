"""Small convolutional networks that classify images.

`Conv_Cifar10_*` are the tasks that learned_optimization published. There, batch statistics stay in use at
evaluation; here evaluation (no key) uses running statistics.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from outeropt.data.arrays import ArrayData
from outeropt.task import ModelState, Params
from outeropt.tasks.images.image_classifier import ImageClassifier, Images, Table, builders
from outeropt.tasks.layers import (
    activation,
    along_last,
    conv,
    fan_in_normal,
    linear,
    max_pool,
    mlp,
    mlp_init,
    part,
    positions_after_pooling,
    prefixed,
)
from outeropt.tasks.losses import Criterion
from outeropt.tasks.norms import Norm, norm_init, normalize


def _conv_init(key: PRNGKeyArray, features: int, channels: tuple[int, ...], kernel: int) -> dict[str, Array]:
    params = {}
    for i, layer_key in enumerate(jax.random.split(key, len(channels))):
        params[f"w{i}"] = fan_in_normal(layer_key, (kernel, kernel, features, channels[i]))
        params[f"b{i}"] = jnp.zeros(channels[i], jnp.float32)
        features = channels[i]
    return params


class ConvNet(ImageClassifier):
    """Convolutions of 3 x 3, each followed by activation, then norm; mean over space; a linear layer.

    The first convolution has stride 2, the others 1.

    Parameters: `w{i}`, `b{i}` (the last pair is the linear layer's), and `scale{i}`, `offset{i}` where there
    is a norm.

    Attributes:
      channels: output channels of each convolution.
      activation: name of the activation, one of `layers.ACTIVATIONS`.
      norm: `"layer_norm"` (over channels), `"batch_norm"` or None.
    """

    name: str = eqx.field(static=True)
    data: ArrayData
    channels: tuple[int, ...] = eqx.field(static=True)
    activation: str = eqx.field(static=True, default="relu")
    norm: Norm = eqx.field(static=True, default=None)
    criterion: Criterion = eqx.field(static=True, default="softmax")
    classes: int = eqx.field(static=True, default=10)

    def init(self, key: PRNGKeyArray) -> tuple[Params, ModelState]:
        conv_key, head_key = jax.random.split(key)
        depth = len(self.channels)
        norm_params, state = norm_init(self.norm, dict(enumerate(self.channels)))
        return {
            **_conv_init(conv_key, self.image_shape[-1], self.channels, 3),
            f"w{depth}": fan_in_normal(head_key, (self.channels[-1], self.classes)),
            f"b{depth}": jnp.zeros(self.classes, jnp.float32),
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
        depth = len(self.channels)
        x = images
        for i in range(depth):
            x = conv(x, params[f"w{i}"], stride=2 if i == 0 else 1)
            x = function(x + along_last(params[f"b{i}"], x))
            x, state = normalize(self.norm, x, params, state, i, training=key is not None)
        return linear(x.mean(axis=(1, 2)), params[f"w{depth}"], params[f"b{depth}"]), state


class LeNet(ImageClassifier):
    """Convolutions of 5 x 5, each followed by activation and max-pooling by 2, then linear layers.

    After LeNet-5 (LeCun et al. 1998, Proc. IEEE 86, 2278), with padding SAME, maxima for averages and a free
    choice of widths. Parameters: `w{i}`, `b{i}` of the convolutions, `dense_w{i}`, `dense_b{i}` of the linear
    layers.

    Attributes:
      channels: output channels of each convolution.
      dense: widths of the hidden linear layers.
      activation: name of the activation, one of `layers.ACTIVATIONS`.
    """

    name: str = eqx.field(static=True)
    data: ArrayData
    channels: tuple[int, ...] = eqx.field(static=True, default=(6, 16))
    dense: tuple[int, ...] = eqx.field(static=True, default=(120, 84))
    activation: str = eqx.field(static=True, default="relu")
    criterion: Criterion = eqx.field(static=True, default="softmax")
    classes: int = eqx.field(static=True, default=10)

    def init(self, key: PRNGKeyArray) -> tuple[Params, ModelState]:
        conv_key, dense_key = jax.random.split(key)
        height, width, features = self.image_shape
        flat = positions_after_pooling(height, width, len(self.channels)) * self.channels[-1]
        return {
            **_conv_init(conv_key, features, self.channels, 5),
            **prefixed(mlp_init(dense_key, (flat, *self.dense, self.classes)), "dense"),
        }, None

    def logits(
        self,
        params: Params,
        state: ModelState,
        images: Float[Array, "rows height width channels"],
        key: PRNGKeyArray | None,
    ) -> tuple[Float[Array, "rows classes"], ModelState]:
        del key
        function = activation(self.activation)
        x = images
        for i in range(len(self.channels)):
            x = conv(x, params[f"w{i}"])
            x = max_pool(function(x + along_last(params[f"b{i}"], x)), 2)
        return mlp(part(params, "dense"), x.reshape(x.shape[0], -1), function), state


_CONV: Table = {
    # Published names.
    "Conv_Cifar10_8_16x32": (Images("cifar10", 8), {"channels": (16, 32)}),
    "Conv_Cifar10_16_32x64x64": (Images("cifar10", 16), {"channels": (32, 64, 64)}),
    "Conv_Cifar10_32x64x64": (Images("cifar10"), {"channels": (32, 64, 64)}),
    "Conv_Cifar10_32x64x64_Tanh": (Images("cifar10"), {"channels": (32, 64, 64), "activation": "tanh"}),
    "Conv_Cifar10_32x64x64_batchnorm": (
        Images("cifar10"),
        {"channels": (32, 64, 64), "norm": "batch_norm"},
    ),
    "Conv_Cifar10_32x64x64_layernorm": (
        Images("cifar10"),
        {"channels": (32, 64, 64), "norm": "layer_norm"},
    ),
    # Ours.
    "Conv_Digits_16x32": (Images("digits"), {"channels": (16, 32)}),
    "Conv_Digits_16x32_Tanh": (Images("digits"), {"channels": (16, 32), "activation": "tanh"}),
    "Conv_Digits_16x32_batchnorm": (Images("digits"), {"channels": (16, 32), "norm": "batch_norm"}),
    "Conv_Mnist_16x32": (Images("mnist"), {"channels": (16, 32)}),
    "Conv_FashionMnist_16x32": (Images("fashion_mnist"), {"channels": (16, 32)}),
    "Conv_FashionMnist_32x64x64": (Images("fashion_mnist"), {"channels": (32, 64, 64)}),
}

_LENET: Table = {
    "LeNet_Digits": (Images("digits"), {"channels": (6, 16), "dense": (32,)}),
    "LeNet_Mnist": (Images("mnist"), {}),
    "LeNet_FashionMnist": (Images("fashion_mnist"), {}),
    "LeNet_Cifar10": (Images("cifar10"), {}),
    "MNIST_Conv": (Images("mnist", batch_size=512), {}),
}

TASKS = builders(ConvNet, _CONV) | builders(LeNet, _LENET)
