"""Residual networks whose groups are separated by max-pooling, without augmentation.

The blocks end in norm and ReLU before the sum, as no published residual network has them but that of the
optimizer amalgamation study (Huang et al. 2022, arXiv 2203.06474): its `resnet` and `wide_resnet`.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from outeropt import tree
from outeropt.data.arrays import ArrayData
from outeropt.errors import ConfigError
from outeropt.task import ModelState, Params
from outeropt.tasks.images.image_classifier import ImageClassifier
from outeropt.tasks.layers import along_last, conv, glorot_uniform, linear, max_pool, part, prefixed
from outeropt.tasks.losses import Criterion
from outeropt.tasks.norms import norm_init, normalize


_STEM = 16
_GROUPS = 3


class PooledResNet(ImageClassifier):
    """A convolution, three groups of residual blocks with max-pooling by 2 between, mean over space, a head.

    A block is `x + f(f(x))` with `f(x) = relu(norm(conv(x)))` and batch norm; where it changes width, x is
    replaced by a 1 x 1 convolution of it. Every convolution has a bias (which those before a norm do not
    need). Blocks of a group that are equal in shape lie stacked, and one scan runs them.

    Parameters (g counts groups): `stem_w0`, `stem_b0`, `stem_scale0`, `stem_offset0`; `entry{g}_w0`,
    `entry{g}_b0`, `entry{g}_scale0`, `entry{g}_offset0`, the same with 1 for the second convolution, and
    `entry{g}_shortcut_w`, `entry{g}_shortcut_b` where the width changes; the same with `rest{g}` and a
    leading axis of blocks; `head_w`, `head_b`. Weights start Glorot-uniform, biases at 0.

    Attributes:
      depth: layers as the names count them, 6 n + 4 for groups of n blocks; others are rounded down.
      width: factor of the channels of the groups, 16, 32 and 64.

    Raises:
      ConfigError: a depth below 10 or a width below 1.
    """

    name: str = eqx.field(static=True)
    data: ArrayData
    depth: int = eqx.field(static=True, default=28)
    width: int = eqx.field(static=True, default=1)
    criterion: Criterion = eqx.field(static=True, default="softmax")
    classes: int = eqx.field(static=True, default=10)

    def __check_init__(self):
        if self.depth < 10 or self.width < 1:
            raise ConfigError(
                f"depth = {self.depth} and width = {self.width} are not allowed; "
                "give a depth of at least 10 and a width of at least 1."
            )

    @property
    def blocks(self) -> int:
        """Blocks of each group."""
        return (self.depth - 4) // 6

    def init(self, key: PRNGKeyArray) -> tuple[Params, ModelState]:
        stem_key, head_key, *group_keys = jax.random.split(key, 2 + _GROUPS)
        stem, stem_state = _layers_init(stem_key, (self.image_shape[-1], _STEM))
        params, state = prefixed(stem, "stem"), prefixed(stem_state, "stem")
        features = _STEM
        for g, group_key in enumerate(group_keys):
            width = _STEM * self.width * 2**g
            shortcut_key, *keys = jax.random.split(group_key, 1 + self.blocks)
            entry, entry_state = _layers_init(keys[0], (features, width, width))
            if features != width:
                entry["shortcut_w"] = glorot_uniform(shortcut_key, (1, 1, features, width))
                entry["shortcut_b"] = jnp.zeros(width, jnp.float32)
            params |= prefixed(entry, f"entry{g}")
            state |= prefixed(entry_state, f"entry{g}")
            if self.blocks > 1:
                rest, rest_state = tree.stack([_layers_init(k, (width,) * 3) for k in keys[1:]])
                params |= prefixed(rest, f"rest{g}")
                state |= prefixed(rest_state, f"rest{g}")
            features = width
        head = {
            "head_w": glorot_uniform(head_key, (features, self.classes)),
            "head_b": jnp.zeros(self.classes, jnp.float32),
        }
        return {**params, **head}, state

    def logits(
        self,
        params: Params,
        state: ModelState,
        images: Float[Array, "rows height width channels"],
        key: PRNGKeyArray | None,
    ) -> tuple[Float[Array, "rows classes"], ModelState]:
        training = key is not None

        def block(x, leaves):
            p, s = leaves
            y = x
            for i in range(2):
                y, s = _layer(y, p, s, i, training)
            shortcut = _biased(x, p["shortcut_w"], p["shortcut_b"]) if "shortcut_w" in p else x
            return shortcut + y, s

        x, new = _layer(images, part(params, "stem"), part(state, "stem"), 0, training)
        after = prefixed(new, "stem")
        for g in range(_GROUPS):
            x = max_pool(x, 2) if g else x
            x, new = block(x, (part(params, f"entry{g}"), part(state, f"entry{g}")))
            after |= prefixed(new, f"entry{g}")
            if self.blocks > 1:
                x, new = jax.lax.scan(block, x, (part(params, f"rest{g}"), part(state, f"rest{g}")))
                after |= prefixed(new, f"rest{g}")
        return linear(x.mean(axis=(1, 2)), params["head_w"], params["head_b"]), after


def _layers_init(key: PRNGKeyArray, widths: tuple[int, ...]) -> tuple[dict[str, Array], dict[str, Array]]:
    """Parameters and state of a chain of 3 x 3 convolutions with norms: widths of the input and of each."""
    params, state = norm_init("batch_norm", dict(enumerate(widths[1:])))
    for i, layer_key in enumerate(jax.random.split(key, len(widths) - 1)):
        params[f"w{i}"] = glorot_uniform(layer_key, (3, 3, widths[i], widths[i + 1]))
        params[f"b{i}"] = jnp.zeros(widths[i + 1], jnp.float32)
    return params, state or {}


def _layer(
    x: Array, p: dict[str, Array], s: dict[str, Array], i: int, training: bool
) -> tuple[Array, dict[str, Array]]:
    y, s_new = normalize("batch_norm", _biased(x, p[f"w{i}"], p[f"b{i}"]), p, s, i, training)
    return jax.nn.relu(y), s_new or {}


def _biased(x: Array, w: Array, b: Array) -> Array:
    y = conv(x, w)
    return y + along_last(b, y)
