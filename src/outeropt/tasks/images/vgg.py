"""Plain deep convolutional networks that classify images (Simonyan and Zisserman 2014, arXiv 1409.1556).

The form for small images: stages of 3 x 3 convolutions of one width, each stage ended by max-pooling, then a
single linear layer.
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
    dropout,
    fan_in_normal,
    linear,
    max_pool,
    part,
    positions_after_pooling,
    prefixed,
)
from outeropt.tasks.losses import Criterion
from outeropt.tasks.norms import Norm, norm_init, normalize


# He et al. 2015 (arXiv 1502.01852): variance 2 / fan_in, without which a deep stack of relus fades out. The
# division makes up for the cut of the normal at two standard deviations.
_HE_GAIN = 2**0.5 / 0.8796256610342398


class VGG(ImageClassifier):
    """Stages of convolution, norm and relu, each stage ended by max-pooling by 2, then a linear layer.

    The first convolution of a stage changes width; the others are equal in shape: their parameters lie
    stacked, and one scan runs them. Parameters (s counts stages): `entry{s}_w`, `entry{s}_b` of the first,
    `rest{s}_w` (convolutions, 3, 3, width, width) and `rest{s}_b` (convolutions, width) of the others, with
    `_scale` and `_offset` beside them where there is a norm; `head_w`, `head_b`.

    Attributes:
      widths: channels of each stage.
      depths: convolutions of each stage.
      norm: `"batch_norm"`, `"layer_norm"` (over channels) or None.
      dropout: probability of dropping a feature before the linear layer, in [0, 1).

    Raises:
      ConfigError: there are not as many widths as depths.
    """

    name: str = eqx.field(static=True)
    data: ArrayData
    widths: tuple[int, ...] = eqx.field(static=True)
    depths: tuple[int, ...] = eqx.field(static=True)
    norm: Norm = eqx.field(static=True, default=None)
    dropout: float = eqx.field(static=True, default=0.0)
    criterion: Criterion = eqx.field(static=True, default="softmax")
    classes: int = eqx.field(static=True, default=10)

    def __check_init__(self):
        if len(self.widths) != len(self.depths):
            raise ConfigError(
                f"A VGG of {len(self.widths)} widths and {len(self.depths)} depths was asked for; "
                "give one of each for every stage."
            )

    def init(self, key: PRNGKeyArray) -> tuple[Params, ModelState]:
        head_key, *stage_keys = jax.random.split(key, 1 + len(self.widths))
        height, width, features = self.image_shape
        params: dict[str, Array] = {}
        state: dict[str, Array] = {}
        for s, (stage_key, channels, depth) in enumerate(zip(stage_keys, self.widths, self.depths)):
            entry_key, rest_key = jax.random.split(stage_key)
            layer_params, layer_state = self._layer_init(entry_key, features, channels)
            params |= prefixed(layer_params, f"entry{s}")
            state |= prefixed(layer_state, f"entry{s}")
            if depth > 1:
                layers = [
                    self._layer_init(k, channels, channels) for k in jax.random.split(rest_key, depth - 1)
                ]
                rest_params, rest_state = tree.stack(layers)
                params |= prefixed(rest_params, f"rest{s}")
                state |= prefixed(rest_state, f"rest{s}")
            features = channels
        flat = positions_after_pooling(height, width, len(self.widths)) * features
        params["head_w"] = fan_in_normal(head_key, (flat, self.classes))
        params["head_b"] = jnp.zeros(self.classes, jnp.float32)
        return params, state or None

    def _layer_init(
        self, key: PRNGKeyArray, features: int, channels: int
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        norm_params, state = norm_init(self.norm, {"": channels})
        w = fan_in_normal(key, (3, 3, features, channels), _HE_GAIN)
        return {"w": w, "b": jnp.zeros(channels, jnp.float32), **norm_params}, state or {}

    def logits(
        self,
        params: Params,
        state: ModelState,
        images: Float[Array, "rows height width channels"],
        key: PRNGKeyArray | None,
    ) -> tuple[Float[Array, "rows classes"], ModelState]:
        training = key is not None

        def layer(x, leaves):
            layer_params, layer_state = leaves
            x = conv(x, layer_params["w"])
            x = x + along_last(layer_params["b"], x)
            x, layer_state = normalize(self.norm, x, layer_params, layer_state, "", training)
            return jax.nn.relu(x), layer_state or {}

        x = images
        old = state or {}
        new: dict[str, Array] = {}
        for s, depth in enumerate(self.depths):
            x, layer_state = layer(x, (part(params, f"entry{s}"), part(old, f"entry{s}")))
            new |= prefixed(layer_state, f"entry{s}")
            if depth > 1:
                leaves = part(params, f"rest{s}"), part(old, f"rest{s}")
                x, layer_state = jax.lax.scan(layer, x, leaves)
                new |= prefixed(layer_state, f"rest{s}")
            x = max_pool(x, 2)
        x = dropout(x.reshape(x.shape[0], -1), self.dropout, key)
        return linear(x, params["head_w"], params["head_b"]), new or None


_VGG16 = {"widths": (64, 128, 256, 512, 512), "depths": (2, 2, 3, 3, 3)}
_SLIM = {"widths": (16, 32, 64), "depths": (1, 1, 2)}

_TABLE: Table = {
    "VGG16_Cifar10": (Images("cifar10"), _VGG16),
    "VGG16_Cifar10_batchnorm": (Images("cifar10"), {**_VGG16, "norm": "batch_norm"}),
    "VGG16_Cifar10_batchnorm_Dropout05_BS512": (
        Images("cifar10", batch_size=512),
        {**_VGG16, "norm": "batch_norm", "dropout": 0.5},
    ),
    "VGG11_Cifar10_batchnorm": (
        Images("cifar10"),
        {"widths": (64, 128, 256, 512, 512), "depths": (1, 1, 2, 2, 2), "norm": "batch_norm"},
    ),
    "VGGSlim_Cifar10": (Images("cifar10"), _SLIM),
    "VGGSlim_Cifar10_batchnorm": (Images("cifar10"), {**_SLIM, "norm": "batch_norm"}),
    "VGGSlim_FashionMnist": (Images("fashion_mnist"), _SLIM),
    "VGGSlim_Digits": (Images("digits"), _SLIM),
    "VGGSlim_Digits_batchnorm": (Images("digits"), {**_SLIM, "norm": "batch_norm"}),
}

TASKS = builders(VGG, _TABLE)
