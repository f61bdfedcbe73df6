"""A small convolutional network whose paths branch and meet again, as architecture search finds them."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from outeropt.data.arrays import ArrayData
from outeropt.task import ModelState, Params
from outeropt.tasks.images.image_classifier import ImageClassifier
from outeropt.tasks.layers import along_last, conv, glorot_uniform, linear
from outeropt.tasks.losses import Criterion


_CONVOLUTIONS = 5


class BranchedConv(ImageClassifier):
    """One cell with a pooling path and a residual path, mean over space, a linear layer.

    With c0 ... c4 convolutions of 3 x 3 with padding, bias and ReLU, and `pool` the average over squares of
    2 x 2 that overlap: `n0 = c0(x)`, `n1 = c1(n0)`, `n2 = pool(n1) + c2(n0)`, `n3 = n0 + c4(c3(n1)) + n2`.

    Parameters: `stem_w`, `stem_b` of c0; `w`, `b` of the other four, stacked; `head_w`, `head_b`. Weights
    start Glorot-uniform, biases at 0.

    Attributes:
      channels: channels of every node.
    """

    name: str = eqx.field(static=True)
    data: ArrayData
    channels: int = eqx.field(static=True, default=16)
    criterion: Criterion = eqx.field(static=True, default="softmax")
    classes: int = eqx.field(static=True, default=10)

    def init(self, key: PRNGKeyArray) -> tuple[Params, ModelState]:
        stem_key, head_key, *keys = jax.random.split(key, 1 + _CONVOLUTIONS)
        n = self.channels
        return {
            "stem_w": glorot_uniform(stem_key, (3, 3, self.image_shape[-1], n)),
            "stem_b": jnp.zeros(n, jnp.float32),
            "w": jnp.stack([glorot_uniform(k, (3, 3, n, n)) for k in keys]),
            "b": jnp.zeros((len(keys), n), jnp.float32),
            "head_w": glorot_uniform(head_key, (n, self.classes)),
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

        def c(x, w, b):
            y = conv(x, w)
            return jax.nn.relu(y + along_last(b, y))

        w, b = params["w"], params["b"]
        n0 = c(images, params["stem_w"], params["stem_b"])
        n1 = c(n0, w[0], b[0])
        n2 = overlapping_average(n1) + c(n0, w[1], b[1])
        n3 = n0 + c(c(n1, w[2], b[2]), w[3], b[3]) + n2
        return linear(n3.mean(axis=(1, 2)), params["head_w"], params["head_b"]), state


def overlapping_average(
    x: Float[Array, "rows height width channels"],
) -> Float[Array, "rows height width channels"]:
    """Mean of each pixel, the next below, the next to the right and the one between; of those that exist."""
    # A copy of the last row in the place of a missing one leaves the mean of those that exist.
    x = (x + jnp.concatenate([x[:, 1:], x[:, -1:]], axis=1)) * 0.5
    return (x + jnp.concatenate([x[:, :, 1:], x[:, :, -1:]], axis=2)) * 0.5
