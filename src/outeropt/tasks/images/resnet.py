"""Residual networks that classify images: norm, relu, convolution (He et al. 2016, arXiv 1603.05027).

Sizes are those for small images (He et al. 2015, arXiv 1512.03385, section 4.2): a first convolution of 3 x 3
with stride 1, no max-pooling, and groups that halve the image. Convolutions have no bias; the last layer
starts at zero.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from outeropt import tree
from outeropt.data.arrays import ArrayData
from outeropt.task import ModelState, Params
from outeropt.tasks.images.image_classifier import ImageClassifier, Images, Table, builders
from outeropt.tasks.layers import conv, fan_in_normal, linear, part, prefixed
from outeropt.tasks.losses import Criterion
from outeropt.tasks.norms import norm_init, normalize


class ResNet(ImageClassifier):
    """A convolution, groups of residual blocks with batch norm, mean over space, and a linear layer.

    A block is `x + conv(relu(norm(conv(relu(norm(x))))))`. The first block of a group changes width, has
    stride 2 (1 in the first group), and a 1 x 1 convolution of its first `relu(norm(x))` in place of x as its
    shortcut. The others of a group are equal in shape: their parameters lie stacked, and one scan runs them.

    Parameters (g counts groups): `stem`; `entry{g}_w0`, `entry{g}_w1`, `entry{g}_scale0`, `entry{g}_offset0`,
    `entry{g}_scale1`, `entry{g}_offset1`, `entry{g}_shortcut`; the same but the last with `rest` for `entry`
    and a leading axis of blocks; `scale`, `offset`, `head_w`, `head_b`.

    Attributes:
      widths: channels of each group.
      blocks: number of blocks of every group.
    """

    name: str = eqx.field(static=True)
    data: ArrayData
    widths: tuple[int, ...] = eqx.field(static=True)
    blocks: int = eqx.field(static=True)
    criterion: Criterion = eqx.field(static=True, default="softmax")
    classes: int = eqx.field(static=True, default=10)

    def init(self, key: PRNGKeyArray) -> tuple[Params, ModelState]:
        stem_key, *group_keys = jax.random.split(key, 1 + len(self.widths))
        features = self.widths[0]
        params = {"stem": fan_in_normal(stem_key, (3, 3, self.image_shape[-1], features))}
        state: dict[str, Array] = {}
        for g, (group_key, width) in enumerate(zip(group_keys, self.widths)):
            entry_key, shortcut_key, rest_key = jax.random.split(group_key, 3)
            block_params, block_state = _block_init(entry_key, features, width)
            block_params["shortcut"] = fan_in_normal(shortcut_key, (1, 1, features, width))
            params |= prefixed(block_params, f"entry{g}")
            state |= prefixed(block_state, f"entry{g}")
            if self.blocks > 1:
                keys = jax.random.split(rest_key, self.blocks - 1)
                rest_params, rest_state = tree.stack([_block_init(k, width, width) for k in keys])
                params |= prefixed(rest_params, f"rest{g}")
                state |= prefixed(rest_state, f"rest{g}")
            features = width
        last_params, last_state = norm_init("batch_norm", {"": features})
        head = {
            "head_w": jnp.zeros((features, self.classes), jnp.float32),
            "head_b": jnp.zeros(self.classes, jnp.float32),
        }
        return {**params, **last_params, **head}, {**state, **(last_state or {})}

    def logits(
        self,
        params: Params,
        state: ModelState,
        images: Float[Array, "rows height width channels"],
        key: PRNGKeyArray | None,
    ) -> tuple[Float[Array, "rows classes"], ModelState]:
        training = key is not None

        def block(x, leaves, stride=1):
            p, s = leaves
            y, s = normalize("batch_norm", x, p, s, 0, training)
            y = jax.nn.relu(y)
            shortcut = conv(y, p["shortcut"], stride) if "shortcut" in p else x
            y, s = normalize("batch_norm", conv(y, p["w0"], stride), p, s, 1, training)
            return shortcut + conv(jax.nn.relu(y), p["w1"]), s or {}

        new: dict[str, Array] = {}
        x = conv(images, params["stem"])
        for g in range(len(self.widths)):
            leaves = part(params, f"entry{g}"), part(state, f"entry{g}")
            x, group_state = block(x, leaves, stride=1 if g == 0 else 2)
            new |= prefixed(group_state, f"entry{g}")
            if self.blocks > 1:
                leaves = part(params, f"rest{g}"), part(state, f"rest{g}")
                x, group_state = jax.lax.scan(block, x, leaves)
                new |= prefixed(group_state, f"rest{g}")
        x, state = normalize("batch_norm", x, params, state, "", training)
        x = jax.nn.relu(x).mean(axis=(1, 2))
        return linear(x, params["head_w"], params["head_b"]), {**state, **new}


def _block_init(key: PRNGKeyArray, features: int, width: int) -> tuple[dict[str, Array], dict[str, Array]]:
    keys = jax.random.split(key)
    norm_params, state = norm_init("batch_norm", {0: features, 1: width})
    weights = {
        "w0": fan_in_normal(keys[0], (3, 3, features, width)),
        "w1": fan_in_normal(keys[1], (3, 3, width, width)),
    }
    return {**weights, **norm_params}, state or {}


# A network of g groups of n blocks has 2 g n + 2 layers, which the names count.
_TABLE: Table = {
    "ResNet_Digits_6": (Images("digits"), {"widths": (16, 32), "blocks": 1}),
    "ResNet_Digits_10": (Images("digits"), {"widths": (16, 32), "blocks": 2}),
    "ResNet_Mnist_8": (Images("mnist"), {"widths": (16, 32, 64), "blocks": 1}),
    "ResNet_FashionMnist_8": (Images("fashion_mnist"), {"widths": (16, 32, 64), "blocks": 1}),
    "ResNet_Cifar10_8": (Images("cifar10"), {"widths": (16, 32, 64), "blocks": 1}),
    "ResNet_Cifar10_14": (Images("cifar10"), {"widths": (16, 32, 64), "blocks": 2}),
    "ResNet_Cifar10_20": (Images("cifar10"), {"widths": (16, 32, 64), "blocks": 3}),
    "ResNet_Cifar10_18": (Images("cifar10"), {"widths": (64, 128, 256, 512), "blocks": 2}),
    "ResNet18_Cifar10": (
        Images("cifar10", batch_size=512),
        {"widths": (64, 128, 256, 512), "blocks": 2},
    ),
}

TASKS = builders(ResNet, _TABLE)
