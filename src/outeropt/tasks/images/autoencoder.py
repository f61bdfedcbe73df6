"""Multilayer perceptrons that reproduce images: autoencoders and variational autoencoders.

The `ImageMLPAE_*` tasks of MNIST, Fashion-MNIST and CIFAR-10 are those that learned_optimization published.
"""

import math
from typing import Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from outeropt.data.arrays import ArrayData, as_float
from outeropt.errors import unknown_name
from outeropt.task import Batch, ModelState, Params, Split, Task
from outeropt.tasks.images.image_classifier import Images, Table, builders, image_shape
from outeropt.tasks.layers import activation, mlp, mlp_init, part, prefixed
from outeropt.tasks.losses import bernoulli_cost, quantized_normal_cost, standard_normal_divergence


Likelihood = Literal["bernoulli", "quantized_normal"]

_LIKELIHOODS: tuple[Likelihood, ...] = get_args(Likelihood)


def _pixels(batch: Batch) -> Float[Array, "rows pixels"]:
    images = as_float(batch["image"])
    return images.reshape(images.shape[0], -1)


class Autoencoder(Task):
    """Flattened pixels through linear layers and a sigmoid; the loss is the mean squared error to the input.

    Parameters: `w{i}`, `b{i}`.

    Attributes:
      hidden: widths of the hidden layers.
      activation: name of the activation between layers, one of `layers.ACTIVATIONS`.
    """

    name: str = eqx.field(static=True)
    data: ArrayData
    hidden: tuple[int, ...] = eqx.field(static=True)
    activation: str = eqx.field(static=True, default="relu")

    def init(self, key: PRNGKeyArray) -> tuple[Params, ModelState]:
        pixels = math.prod(image_shape(self.data))
        return mlp_init(key, (pixels, *self.hidden, pixels)), None

    def loss(
        self, params: Params, state: ModelState, batch: Batch, key: PRNGKeyArray | None
    ) -> tuple[Float[Array, ""], tuple[ModelState, dict[str, Array]]]:
        del key
        x = _pixels(batch)
        reconstruction = jax.nn.sigmoid(mlp(params, x, activation(self.activation)))
        return jnp.mean(jnp.square(x - reconstruction)), (state, {})

    def batch(self, split: Split, key: PRNGKeyArray) -> Batch:
        return self.data.batch(split, key)

    @property
    def minimum(self) -> float:
        return 0.0


class VariationalAutoencoder(Task):
    """A latent normal variable between an encoder and a decoder (Kingma and Welling 2014, arXiv 1312.6114).

    The loss is the negative evidence lower bound, divided by the number of pixel values so that it is of
    order one: `(KL(q(z|x) || N(0, 1)) - log p(x|z)) / pixels`, in nats, with one sample z in training and the
    mean of q(z|x) at evaluation. Likelihoods of a pixel value: `bernoulli`, whose success probability is the
    sigmoid of the decoder's output, and `quantized_normal` on the grid of `levels` values in [0, 1]; see
    `losses.quantized_normal_cost`. The metric is `mse`, the mean squared error of the reconstruction, for the
    first, and `bits` per pixel value for the second.

    Parameters: `encoder_w{i}`, `encoder_b{i}`, `decoder_w{i}`, `decoder_b{i}`. The encoder gives means and
    logarithms of standard deviations side by side, and so does the decoder of a `quantized_normal`.

    Attributes:
      hidden: widths of the encoder's hidden layers; the decoder has them in reverse.
      latents: number of latent variables.
      likelihood: `"bernoulli"` or `"quantized_normal"`.
      levels: distinct values a pixel can have.
      activation: name of the activation, one of `layers.ACTIVATIONS`.
    """

    name: str = eqx.field(static=True)
    data: ArrayData
    hidden: tuple[int, ...] = eqx.field(static=True)
    latents: int = eqx.field(static=True)
    likelihood: Likelihood = eqx.field(static=True, default="bernoulli")
    levels: int = eqx.field(static=True, default=256)
    activation: str = eqx.field(static=True, default="relu")

    def __check_init__(self):
        if self.likelihood not in _LIKELIHOODS:
            raise unknown_name("likelihood", self.likelihood, _LIKELIHOODS, ", ".join(_LIKELIHOODS))

    def init(self, key: PRNGKeyArray) -> tuple[Params, ModelState]:
        pixels = math.prod(image_shape(self.data))
        outputs = pixels if self.likelihood == "bernoulli" else 2 * pixels
        encoder_key, decoder_key = jax.random.split(key)
        return {
            **prefixed(mlp_init(encoder_key, (pixels, *self.hidden, 2 * self.latents)), "encoder"),
            **prefixed(mlp_init(decoder_key, (self.latents, *reversed(self.hidden), outputs)), "decoder"),
        }, None

    def loss(
        self, params: Params, state: ModelState, batch: Batch, key: PRNGKeyArray | None
    ) -> tuple[Float[Array, ""], tuple[ModelState, dict[str, Array]]]:
        x = _pixels(batch)
        function = activation(self.activation)
        mean, log_std = jnp.split(mlp(part(params, "encoder"), x, function), 2, axis=-1)
        latents = mean
        if key is not None:
            latents = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape, jnp.float32)
        output = mlp(part(params, "decoder"), latents, function)
        divergence = standard_normal_divergence(mean, log_std).sum(axis=-1).mean() / x.shape[-1]
        if self.likelihood == "bernoulli":
            loss = divergence + bernoulli_cost(output, x).mean()
            return loss, (state, {"mse": jnp.mean(jnp.square(x - jax.nn.sigmoid(output)))})
        pixel_mean, pixel_log_std = jnp.split(output, 2, axis=-1)
        width = 1 / (self.levels - 1)
        loss = divergence + quantized_normal_cost(pixel_mean, pixel_log_std, x, width).mean()
        return loss, (state, {"bits": loss / math.log(2)})

    def batch(self, split: Split, key: PRNGKeyArray) -> Batch:
        return self.data.batch(split, key)


_AUTOENCODERS: Table = {
    # Published names.
    "ImageMLPAE_Cifar10_32x32x32_bs128": (Images("cifar10"), {"hidden": (32, 32, 32)}),
    "ImageMLPAE_Cifar10_256x256x256_bs128": (Images("cifar10"), {"hidden": (256, 256, 256)}),
    "ImageMLPAE_Cifar10_256x256x256_bs1024": (
        Images("cifar10", batch_size=1024),
        {"hidden": (256, 256, 256)},
    ),
    "ImageMLPAE_Cifar10_128x32x128_bs256": (Images("cifar10", batch_size=256), {"hidden": (128, 32, 128)}),
    "ImageMLPAE_Mnist_128x32x128_bs128": (Images("mnist"), {"hidden": (128, 32, 128)}),
    "ImageMLPAE_FashionMnist_128x32x128_bs128": (Images("fashion_mnist"), {"hidden": (128, 32, 128)}),
    # Ours.
    "ImageMLPAE_Digits_32x8x32_bs128": (Images("digits"), {"hidden": (32, 8, 32)}),
    "ImageMLPAE_Digits_128x32x128_bs128": (Images("digits"), {"hidden": (128, 32, 128)}),
    "ImageMLPAE_Digits_Tanh_64x32x16x32x64_bs128": (
        Images("digits"),
        {"hidden": (64, 32, 16, 32, 64), "activation": "tanh"},
    ),
    "ImageMLPAE_FashionMnist8_32x8x32_bs128": (Images("fashion_mnist", 8), {"hidden": (32, 8, 32)}),
}

_VARIATIONAL: Table = {
    "ImageMLPVAE_Digits_64_z8": (Images("digits"), {"hidden": (64,), "latents": 8}),
    "ImageMLPVAE_Digits_64_z8_Normal": (
        Images("digits"),
        {"hidden": (64,), "latents": 8, "likelihood": "quantized_normal", "levels": 17},
    ),
    "ImageMLPVAE_Mnist_128x128_z16": (Images("mnist"), {"hidden": (128, 128), "latents": 16}),
    "ImageMLPVAE_FashionMnist_128x128_z16": (Images("fashion_mnist"), {"hidden": (128, 128), "latents": 16}),
    "ImageMLPVAE_FashionMnist_128x128_z16_Normal": (
        Images("fashion_mnist"),
        {"hidden": (128, 128), "latents": 16, "likelihood": "quantized_normal"},
    ),
    "ImageMLPVAE_Cifar10_256x256_z64_Normal": (
        Images("cifar10"),
        {"hidden": (256, 256), "latents": 64, "likelihood": "quantized_normal"},
    ),
}

TASKS = builders(Autoencoder, _AUTOENCODERS) | builders(VariationalAutoencoder, _VARIATIONAL)
