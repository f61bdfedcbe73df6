"""Residual networks for ImageNet, on images of any size (He et al. 2015, arXiv 1512.03385, table 1).

A first convolution of 7 x 7 with stride 2, max-pooling, and blocks that end in ReLU after the sum. Layers,
initial values and running statistics are those of torchvision's ResNet-18, which Clarke, Oldewage and
Hernandez-Lobato 2022 (arXiv 2110.10461) train on the small images of CIFAR-10 as it is.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from outeropt import tree
from outeropt.data.arrays import ArrayData
from outeropt.errors import ConfigError
from outeropt.task import ModelState, Params
from outeropt.tasks.images.image_classifier import ImageClassifier, Images, Table, builders
from outeropt.tasks.layers import (
    along_last,
    conv,
    he_normal,
    linear,
    overlapping_max_pool,
    part,
    prefixed,
    uniform_init,
)
from outeropt.tasks.losses import Criterion
from outeropt.tasks.norms import norm_init, normalize


_NORM = "torch_batch_norm"


class ImageNetResNet(ImageClassifier):
    """A 7 x 7 convolution, max-pooling, groups of post-activation blocks, mean over space, a linear layer.

    A block is `relu(x + norm(conv(relu(norm(conv(x))))))` with 3 x 3 convolutions. The first block of every
    group but the first has stride 2; where a block changes shape, x goes through a 1 x 1 convolution of that
    stride and a norm. The others of a group are equal in shape: their parameters lie stacked, and one scan
    runs them. Convolutions have no bias; norms are PyTorch's batch norm.

    Parameters (g counts groups): `stem_w0`, `stem_scale0`, `stem_offset0`; `entry{g}_w0`, `entry{g}_w1`,
    `entry{g}_scale0`, `entry{g}_offset0`, `entry{g}_scale1`, `entry{g}_offset1`, and where the shape changes
    the same with `_shortcut` for the number; the first six with `rest` for `entry` and a leading axis of
    blocks; `head_w0`, `head_b0`. Weights are normal with variance 2 / fan-out, those of the linear layer and
    its bias uniform in `+-1/sqrt(inputs)`.

    Attributes:
      widths: channels of each group.
      blocks: number of blocks of every group.
      mean: of each channel of the data, in [0, 1]; taken off before the first layer.
      deviation: of each channel, likewise; divided by.

    Raises:
      ConfigError: not one mean and one deviation for each channel.
    """

    name: str = eqx.field(static=True)
    data: ArrayData
    widths: tuple[int, ...] = eqx.field(static=True)
    blocks: int = eqx.field(static=True)
    mean: tuple[float, ...] = eqx.field(static=True)
    deviation: tuple[float, ...] = eqx.field(static=True)
    criterion: Criterion = eqx.field(static=True, default="softmax")
    classes: int = eqx.field(static=True, default=10)

    def __check_init__(self):
        channels = self.image_shape[-1]
        if not len(self.mean) == len(self.deviation) == channels:
            raise ConfigError(
                f"{len(self.mean)} means and {len(self.deviation)} deviations were given for images of "
                f"{channels} channels; give one of each for every channel."
            )

    def init(self, key: PRNGKeyArray) -> tuple[Params, ModelState]:
        stem_key, head_key, *group_keys = jax.random.split(key, 2 + len(self.widths))
        features = self.widths[0]
        stem, stem_state = _layers_init(stem_key, {0: (7, 7, self.image_shape[-1], features)})
        params, state = prefixed(stem, "stem"), prefixed(stem_state, "stem")
        for g, (group_key, width) in enumerate(zip(group_keys, self.widths)):
            entry_key, *keys = jax.random.split(group_key, self.blocks)
            entry = _block(features, width)
            if g or features != width:
                entry["_shortcut"] = (1, 1, features, width)
            entry_params, entry_state = _layers_init(entry_key, entry)
            params |= prefixed(entry_params, f"entry{g}")
            state |= prefixed(entry_state, f"entry{g}")
            if keys:
                rest, rest_state = tree.stack([_layers_init(k, _block(width, width)) for k in keys])
                params |= prefixed(rest, f"rest{g}")
                state |= prefixed(rest_state, f"rest{g}")
            features = width
        return {**params, **prefixed(uniform_init(head_key, (features, self.classes)), "head")}, state

    def logits(
        self,
        params: Params,
        state: ModelState,
        images: Float[Array, "rows height width channels"],
        key: PRNGKeyArray | None,
    ) -> tuple[Float[Array, "rows classes"], ModelState]:
        training = key is not None

        def layer(x, p, s, name, stride=1):
            w = p[f"w{name}"]
            x = conv(x, w, stride, padding=w.shape[0] // 2)
            x, s = normalize(_NORM, x, p, s, name, training)
            return x, s or {}

        def block(x, leaves, stride=1):
            p, s = leaves
            y, s = layer(x, p, s, 0, stride)
            y, s = layer(jax.nn.relu(y), p, s, 1)
            if "w_shortcut" in p:
                x, s = layer(x, p, s, "_shortcut", stride)
            return jax.nn.relu(x + y), s

        mean, deviation = (along_last(jnp.float32(moment), images) for moment in (self.mean, self.deviation))
        x = (images - mean) / deviation
        x, new = layer(x, part(params, "stem"), part(state, "stem"), 0, 2)
        after = prefixed(new, "stem")
        x = overlapping_max_pool(jax.nn.relu(x))
        for g in range(len(self.widths)):
            leaves = part(params, f"entry{g}"), part(state, f"entry{g}")
            x, new = block(x, leaves, stride=2 if g else 1)
            after |= prefixed(new, f"entry{g}")
            if self.blocks > 1:
                x, new = jax.lax.scan(block, x, (part(params, f"rest{g}"), part(state, f"rest{g}")))
                after |= prefixed(new, f"rest{g}")
        return linear(x.mean(axis=(1, 2)), params["head_w0"], params["head_b0"]), after


def _block(features: int, width: int) -> dict[int | str, tuple[int, ...]]:
    """Shapes of the convolutions of a block that keeps its shape, by layer."""
    return {0: (3, 3, features, width), 1: (3, 3, width, width)}


def _layers_init(
    key: PRNGKeyArray, shapes: dict[int | str, tuple[int, ...]]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Parameters and state of convolutions and the norm behind each."""
    params, state = norm_init(_NORM, {layer: shape[-1] for layer, shape in shapes.items()})
    for layer_key, (layer, shape) in zip(jax.random.split(key, len(shapes)), shapes.items()):
        params[f"w{layer}"] = he_normal(layer_key, shape)
    return params, state or {}


# A network of g groups of n blocks has 2 g n + 2 layers, which the names count.
_TABLE: Table = {
    # Clarke, Oldewage and Hernandez-Lobato 2022: their rows and batches, and the moments by which they
    # standardise.
    "ResNet18_Cifar10_ImageNet_BS100": (
        Images("cifar10", batch_size=100, train_rows=45_000),
        {
            "widths": (64, 128, 256, 512),
            "blocks": 2,
            "mean": (0.4914, 0.4822, 0.4465),
            "deviation": (0.247, 0.243, 0.261),
        },
    ),
}

TASKS = builders(ImageNetResNet, _TABLE)
