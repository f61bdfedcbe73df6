"""Small networks on images whose every pixel is standardised: the Fashion-MNIST of one-pass tuning.

Source: Clarke, Oldewage and Hernandez-Lobato 2022 (arXiv 2110.10461), whose released code has 50 ReLU units,
batches of 50, 50 000 rows to train on, 10 000 to validate and 10 000 to test.
"""

import functools
from collections.abc import Callable, Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from outeropt import data
from outeropt.data.arrays import ArrayData
from outeropt.task import ModelState, Params, Task
from outeropt.tasks.images.image_classifier import ImageClassifier
from outeropt.tasks.layers import linear, uniform_init
from outeropt.tasks.losses import Criterion
from outeropt.tasks.norms import Norm, norm_init, normalize


class ScaledImageMLP(ImageClassifier):
    """One hidden ReLU layer on standardised pixels, with a norm before its activation or without.

    Parameters `w0`, `b0` (not where there is a norm, which has an offset of its own), `w1`, `b1`, uniform in
    `+-1/sqrt(inputs of the layer)`, and `scale0`, `offset0` where there is a norm.

    Attributes:
      data: images and labels.
      mean: of each pixel over training and validation rows, in [0, 1].
      deviation: of each pixel (divisor N - 1), likewise; 1 where it is 0.
      hidden: units of the hidden layer.
      norm: `"layer_norm"`, `"batch_norm"` or None.
    """

    name: str = eqx.field(static=True)
    data: ArrayData
    mean: Float[Array, " pixels"]
    deviation: Float[Array, " pixels"]
    hidden: int = eqx.field(static=True)
    norm: Norm = eqx.field(static=True, default=None)
    criterion: Criterion = eqx.field(static=True, default="softmax")
    classes: int = eqx.field(static=True, default=10)

    def init(self, key: PRNGKeyArray) -> tuple[Params, ModelState]:
        params = uniform_init(key, (self.mean.shape[0], self.hidden, self.classes))
        norm_params, state = norm_init(self.norm, {0: self.hidden})
        if self.norm is not None:
            del params["b0"]
        return {**params, **norm_params}, state

    def logits(
        self,
        params: Params,
        state: ModelState,
        images: Float[Array, "rows height width channels"],
        key: PRNGKeyArray | None,
    ) -> tuple[Float[Array, "rows classes"], ModelState]:
        x = (images.reshape(images.shape[0], -1) - self.mean[None]) / self.deviation[None]
        x = x @ params["w0"] if self.norm else linear(x, params["w0"], params["b0"])
        x, state = normalize(self.norm, x, params, state, 0, training=key is not None)
        return linear(jax.nn.relu(x), params["w1"], params["b1"]), state


def _moments(splits: Mapping[str, Mapping[str, Array]]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each pixel over training and validation rows, in float64."""
    both = np.concatenate([np.asarray(splits[split]["image"]) for split in ("train", "valid")])
    pixels = both.reshape(len(both), -1)
    # Sums of bytes and of their squares are exact, and need no copy in float64.
    total = pixels.sum(axis=0, dtype=np.int64)
    squares = np.square(pixels, dtype=np.uint16).sum(axis=0, dtype=np.int64)
    variance = (squares - total / len(pixels) * total) / (len(pixels) - 1)
    return total / len(pixels) / 255, np.where(variance > 0, np.sqrt(variance), 255.0) / 255


def _build(name: str, dataset: str, norm: Norm) -> ScaledImageMLP:
    # Concrete arrays even while a caller is being traced: they outlive the trace.
    with jax.ensure_compile_time_eval():
        splits = data.images(dataset, train_rows=50_000)
        mean, deviation = (jnp.asarray(moment, jnp.float32) for moment in _moments(splits))
    return ScaledImageMLP(
        name=name, data=ArrayData(splits, 50), mean=mean, deviation=deviation, hidden=50, norm=norm
    )


TASKS: dict[str, Callable[[], Task]] = {
    f"FashionMnist_MLP50{more}": functools.partial(_build, f"FashionMnist_MLP50{more}", "fashion_mnist", norm)
    for more, norm in {"": None, "_BatchNorm": "batch_norm"}.items()
}
