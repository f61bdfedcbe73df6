"""Vision transformers that classify images (Dosovitskiy et al. 2020, arXiv 2010.11929).

Patches are embedded linearly; blocks are pre-norm; the last layer starts at zero. Published sizes used
patches of 16 x 16 pixels on images of 32 and 64; for the images here they are 2, 4 or 7.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from outeropt.data.arrays import ArrayData
from outeropt.errors import ConfigError
from outeropt.task import ModelState, Params
from outeropt.tasks.attention import self_attend
from outeropt.tasks.images.image_classifier import ImageClassifier, Images, Table, builders
from outeropt.tasks.layers import blocks_init, dropout, fan_in_normal, linear, part, patches, prefixed
from outeropt.tasks.losses import Criterion
from outeropt.tasks.norms import layer_norm


_POSITION_STD = 0.02


class ViT(ImageClassifier):
    """Patches plus positions through blocks of self-attention and a gelu layer; a class token is read out.

    Every block is `x += attention(norm(x)); x += mlp(norm(x))`. Blocks are equal in shape: their parameters
    lie stacked along a leading axis, and one scan runs them.

    Parameters: `patch_w`, `patch_b`, `position` (tokens, width), `token` (width,); for each of `depth` blocks
    `blocks_scale` and `blocks_offset` (2, width), `blocks_qkv_w`, `blocks_qkv_b`, `blocks_out_w`,
    `blocks_out_b`, `blocks_up_w`, `blocks_up_b`, `blocks_down_w`, `blocks_down_b`; `scale`, `offset`,
    `head_w`, `head_b`.

    Attributes:
      patch: side of a patch in pixels, a divisor of height and width.
      width: features of a token.
      depth: number of blocks.
      heads: attention heads, a divisor of the width.
      mlp_width: hidden units of each block's two-layer network.
      dropout: probability of dropping an entry of the embedding and of each branch's output, in [0, 1).

    Raises:
      ConfigError: the heads do not divide the width.
    """

    name: str = eqx.field(static=True)
    data: ArrayData
    patch: int = eqx.field(static=True)
    width: int = eqx.field(static=True)
    depth: int = eqx.field(static=True)
    heads: int = eqx.field(static=True)
    mlp_width: int = eqx.field(static=True)
    dropout: float = eqx.field(static=True, default=0.0)
    criterion: Criterion = eqx.field(static=True, default="softmax")
    classes: int = eqx.field(static=True, default=10)

    def __check_init__(self):
        if self.width % self.heads:
            raise ConfigError(
                f"A width of {self.width} cannot be shared by {self.heads} heads; use a divisor."
            )

    def init(self, key: PRNGKeyArray) -> tuple[Params, ModelState]:
        patch_key, position_key, block_key = jax.random.split(key, 3)
        width, wide = self.width, self.mlp_width
        height, image_width, channels = self.image_shape
        tokens = 1 + (height // self.patch) * (image_width // self.patch)
        layers = {
            "qkv": (width, 3 * width),
            "out": (width, width),
            "up": (width, wide),
            "down": (wide, width),
        }
        return {
            "patch_w": fan_in_normal(patch_key, (self.patch**2 * channels, width)),
            "patch_b": jnp.zeros(width, jnp.float32),
            "position": _POSITION_STD * jax.random.normal(position_key, (tokens, width), jnp.float32),
            "token": jnp.zeros(width, jnp.float32),
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
        embedding_key, blocks_key = (None, None) if key is None else jax.random.split(key)
        x = linear(patches(images, self.patch), params["patch_w"], params["patch_b"])
        token = jnp.broadcast_to(params["token"][None, None], (x.shape[0], 1, self.width))
        x = jnp.concatenate([token, x], axis=1) + params["position"][None]
        x = dropout(x, self.dropout, embedding_key)

        def block(x, leaves):
            block_params, block_keys = leaves
            first, second = (None, None) if block_keys is None else block_keys
            y = layer_norm(x, block_params["scale"][0], block_params["offset"][0])
            y = self_attend(linear(y, block_params["qkv_w"], block_params["qkv_b"]), self.heads)
            y = linear(y, block_params["out_w"], block_params["out_b"])
            x = x + dropout(y, self.dropout, first)
            y = layer_norm(x, block_params["scale"][1], block_params["offset"][1])
            y = linear(
                jax.nn.gelu(linear(y, block_params["up_w"], block_params["up_b"])),
                block_params["down_w"],
                block_params["down_b"],
            )
            return x + dropout(y, self.dropout, second), None

        block_keys = None if blocks_key is None else jax.random.split(blocks_key, (self.depth, 2))
        x, _ = jax.lax.scan(block, x, (part(params, "blocks"), block_keys))
        x = layer_norm(x[:, 0], params["scale"], params["offset"])
        return linear(x, params["head_w"], params["head_b"]), state


_TINY = {"width": 32, "depth": 2, "heads": 4, "mlp_width": 64}
_SMALL = {"width": 64, "depth": 4, "heads": 4, "mlp_width": 128}
_WIDE_SHALLOW = {"width": 384, "depth": 6, "heads": 6, "mlp_width": 1536}
_SKINNY_DEEP = {"width": 128, "depth": 10, "heads": 4, "mlp_width": 512}

_TABLE: Table = {
    "VIT_Digits_patch2_32x2": (Images("digits"), {"patch": 2, **_TINY}),
    "VIT_Digits_patch2_32x2_Dropout01": (Images("digits"), {"patch": 2, **_TINY, "dropout": 0.1}),
    "VIT_Mnist_patch7_32x2": (Images("mnist"), {"patch": 7, **_TINY}),
    "VIT_FashionMnist_patch4_64x4": (Images("fashion_mnist"), {"patch": 4, **_SMALL}),
    "VIT_Cifar10_patch4_64x4": (Images("cifar10"), {"patch": 4, **_SMALL}),
    "VIT_Cifar10_wideshallow": (Images("cifar10"), {"patch": 4, **_WIDE_SHALLOW}),
    "VIT_Cifar10_skinnydeep": (Images("cifar10"), {"patch": 4, **_SKINNY_DEEP}),
}

TASKS = builders(ViT, _TABLE)
