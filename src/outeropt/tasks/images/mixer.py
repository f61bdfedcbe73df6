"""MLP-Mixers that classify images (Tolstikhin et al. 2021, arXiv 2105.01601).

Patches are embedded linearly; blocks are pre-norm; tokens are averaged; the last layer starts at zero.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from outeropt.data.arrays import ArrayData
from outeropt.task import ModelState, Params
from outeropt.tasks.images.image_classifier import ImageClassifier, Images, Table, builders
from outeropt.tasks.layers import blocks_init, fan_in_normal, linear, part, patches, prefixed
from outeropt.tasks.losses import Criterion
from outeropt.tasks.norms import layer_norm


class MLPMixer(ImageClassifier):
    """Blocks that mix tokens, then features, each by a two-layer gelu network added to its input.

    Blocks are equal in shape: their parameters lie stacked along a leading axis, and one scan runs them.

    Parameters: `patch_w`, `patch_b`; for each of `depth` blocks `blocks_scale` and `blocks_offset` (2,
    width), `blocks_token_up_w`, `blocks_token_up_b`, `blocks_token_down_w`, `blocks_token_down_b`, and the
    same four with `feature`; `scale`, `offset`, `head_w`, `head_b`.

    Attributes:
      patch: side of a patch in pixels, a divisor of height and width.
      width: features of a token.
      depth: number of blocks.
      token_width: hidden units of the network over tokens.
      feature_width: hidden units of the network over features.
    """

    name: str = eqx.field(static=True)
    data: ArrayData
    patch: int = eqx.field(static=True)
    width: int = eqx.field(static=True)
    depth: int = eqx.field(static=True)
    token_width: int = eqx.field(static=True)
    feature_width: int = eqx.field(static=True)
    criterion: Criterion = eqx.field(static=True, default="softmax")
    classes: int = eqx.field(static=True, default=10)

    def init(self, key: PRNGKeyArray) -> tuple[Params, ModelState]:
        patch_key, block_key = jax.random.split(key)
        width = self.width
        height, image_width, channels = self.image_shape
        tokens = (height // self.patch) * (image_width // self.patch)
        layers = {
            "token_up": (tokens, self.token_width),
            "token_down": (self.token_width, tokens),
            "feature_up": (width, self.feature_width),
            "feature_down": (self.feature_width, width),
        }
        return {
            "patch_w": fan_in_normal(patch_key, (self.patch**2 * channels, width)),
            "patch_b": jnp.zeros(width, jnp.float32),
            **prefixed(blocks_init(block_key, self.depth, width, layers), "blocks"),
            "scale": jnp.ones(width, jnp.float32),
            "offset": jnp.zeros(width, jnp.float32),
            "head_w": jnp.zeros((width, self.classes), jnp.float32),
            "head_b": jnp.zeros(self.classes, jnp.float32),
        }, None

    def logits(
        self,
        params: Params,
        state: ModelState,
        images: Float[Array, "rows height width channels"],
        key: PRNGKeyArray | None,
    ) -> tuple[Float[Array, "rows classes"], ModelState]:
        del key

        def two_layers(x, block, kind):
            x = jax.nn.gelu(linear(x, block[f"{kind}_up_w"], block[f"{kind}_up_b"]))
            return linear(x, block[f"{kind}_down_w"], block[f"{kind}_down_b"])

        def mix(x, block):
            y = layer_norm(x, block["scale"][0], block["offset"][0]).swapaxes(1, 2)
            x = x + two_layers(y, block, "token").swapaxes(1, 2)
            y = layer_norm(x, block["scale"][1], block["offset"][1])
            return x + two_layers(y, block, "feature"), None

        x = linear(patches(images, self.patch), params["patch_w"], params["patch_b"])
        x, _ = jax.lax.scan(mix, x, part(params, "blocks"))
        x = layer_norm(x, params["scale"], params["offset"]).mean(axis=1)
        return linear(x, params["head_w"], params["head_b"]), state


_TINY = {"width": 32, "depth": 2, "token_width": 16, "feature_width": 64}
_SMALL = {"width": 64, "depth": 4, "token_width": 32, "feature_width": 128}

_TABLE: Table = {
    "MLPMixer_Digits_patch2_32x2": (Images("digits"), {"patch": 2, **_TINY}),
    "MLPMixer_Mnist_patch7_32x2": (Images("mnist"), {"patch": 7, **_TINY}),
    "MLPMixer_FashionMnist_patch4_64x4": (Images("fashion_mnist"), {"patch": 4, **_SMALL}),
    "MLPMixer_Cifar10_patch4_64x4": (Images("cifar10"), {"patch": 4, **_SMALL}),
    "MLPMixer_Cifar10_tiny4": (
        Images("cifar10"),
        {"patch": 4, "width": 512, "depth": 5, "token_width": 384, "feature_width": 2048},
    ),
    "MLPMixer_Cifar10_small4": (
        Images("cifar10"),
        {"patch": 4, "width": 768, "depth": 8, "token_width": 384, "feature_width": 3072},
    ),
}

TASKS = builders(MLPMixer, _TABLE)
