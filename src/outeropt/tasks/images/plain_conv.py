"""Convolutional networks given as a list of layers, without padding or norms."""

from collections.abc import Sequence
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from outeropt.data.arrays import ArrayData
from outeropt.errors import ConfigError
from outeropt.task import ModelState, Params
from outeropt.tasks import rows_last
from outeropt.tasks.images.image_classifier import ImageClassifier
from outeropt.tasks.layers import glorot_uniform, linear
from outeropt.tasks.losses import Criterion


# A convolution (channels, kernel, stride), or the side of the squares that are max-pooled.
Layer = tuple[int, int, int] | int


class PlainConv(ImageClassifier):
    """Convolutions without padding, each with a bias and ReLU, and max-pooling, in any order; then a head.

    Parameters: `w{i}`, `b{i}` of the convolutions in order; the last pair is the head's. Weights start
    Glorot-uniform, biases at 0.

    Attributes:
      layers: a convolution as `(channels, kernel, stride)`, max-pooling as the side of its squares.
      head: `"dense"` flattens what is left of the image into a linear layer. `"average"` has a convolution of
        3 x 3 to the classes, and the probability of a class is its mean over the positions.

    Raises:
      ConfigError: nothing is left of the image after these layers.
    """

    name: str = eqx.field(static=True)
    data: ArrayData
    layers: tuple[Layer, ...] = eqx.field(static=True)
    head: Literal["dense", "average"] = eqx.field(static=True, default="dense")
    criterion: Criterion = eqx.field(static=True, default="softmax")
    classes: int = eqx.field(static=True, default=10)

    def init(self, key: PRNGKeyArray) -> tuple[Params, ModelState]:
        height, width, features = self.image_shape
        shapes: list[tuple[int, ...]] = []
        for layer in self._all_layers():
            if isinstance(layer, int):
                height, width = height // layer, width // layer
            else:
                channels, kernel, stride = layer
                shapes.append((kernel, kernel, features, channels))
                height, width = ((side - kernel) // stride + 1 for side in (height, width))
                features = channels
            if height < 1 or width < 1:
                raise ConfigError(
                    f"Task {self.name!r}: nothing is left of images of {self.image_shape[0]} x "
                    f"{self.image_shape[1]} after layer {layer}; use larger images or fewer layers."
                )
        if self.head == "dense":
            shapes.append((height * width * features, self.classes))
        return _params(key, shapes), None

    def logits(
        self,
        params: Params,
        state: ModelState,
        images: Float[Array, "rows height width channels"],
        key: PRNGKeyArray | None,
    ) -> tuple[Float[Array, "rows classes"], ModelState]:
        del key
        x, i, last = jnp.transpose(images, (3, 1, 2, 0)), 0, len(params) // 2 - 1
        for layer in self._all_layers():
            if isinstance(layer, int):
                x = rows_last.max_pool(x, layer)
                continue
            x = rows_last.conv(x, params[f"w{i}"], layer[2])
            x = x + params[f"b{i}"][:, None, None, None]
            x = x if i == last else jax.nn.relu(x)
            i += 1
        x = jnp.transpose(x, (3, 1, 2, 0))
        if self.head == "dense":
            return linear(x.reshape(x.shape[0], -1), params[f"w{last}"], params[f"b{last}"]), state
        # The logarithms of mean probabilities: as scores they are already normalised.
        positions = x.shape[1] * x.shape[2]
        spread = jax.nn.log_softmax(x, axis=-1).reshape(x.shape[0], positions, self.classes)
        return jax.nn.logsumexp(spread, axis=1) - jnp.log(jnp.float32(positions)), state

    def _all_layers(self) -> tuple[Layer, ...]:
        return self.layers if self.head == "dense" else (*self.layers, (self.classes, 3, 1))


def _params(key: PRNGKeyArray, shapes: Sequence[tuple[int, ...]]) -> dict[str, Array]:
    params = {}
    for i, (layer_key, shape) in enumerate(zip(jax.random.split(key, len(shapes)), shapes)):
        params[f"w{i}"] = glorot_uniform(layer_key, shape)
        params[f"b{i}"] = jnp.zeros(shape[-1], jnp.float32)
    return params
