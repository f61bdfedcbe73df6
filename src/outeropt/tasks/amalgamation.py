"""The problems on which optimizer amalgamation was trained and evaluated, under their published names.

Source: Huang et al. 2022, "Optimizer Amalgamation", arXiv 2203.06474, and its code. Images are fractions of
255, the loss is the mean cross entropy in nats, weights start Glorot-uniform and biases at 0. Validation is a
fifth of the published training images; there it was the published test images, which here are the test rows.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from outeropt.data.arrays import ArrayData
from outeropt.errors import unknown_name
from outeropt.task import Task
from outeropt.tasks.functions.random_squares import RandomSquares
from outeropt.tasks.images.branched_conv import BranchedConv
from outeropt.tasks.images.image_classifier import Images
from outeropt.tasks.images.image_mlp import ImageMLP
from outeropt.tasks.images.plain_conv import PlainConv
from outeropt.tasks.images.pooled_resnet import PooledResNet
from outeropt.tasks.wrappers.private import PrivateGradient


class _Problem(NamedTuple):
    dataset: str
    kind: Callable[..., Task]
    architecture: dict[str, Any]
    batch_size: int = 128


# A convolution is (channels, kernel, stride); a number alone is max-pooling.
_TRAIN = {"layers": ((16, 3, 1), 2, (32, 5, 1), 2)}
_WIDER = {"layers": ((32, 3, 1), 2, (64, 5, 1), 2)}
_DEEPER = {"layers": ((16, 3, 1), (32, 3, 2), (32, 3, 1), (64, 3, 2), (64, 3, 1))}
_DEEPER_POOL = {"layers": ((16, 3, 1), (32, 3, 1), (32, 3, 1), 2, (64, 3, 1), (64, 3, 1), 2)}

_IMAGES: dict[str, _Problem] = {
    "mlp_train": _Problem(
        "mnist", ImageMLP, {"hidden": (20,), "activation": "sigmoid", "weights": "glorot_uniform"}
    ),
    "conv_train": _Problem("mnist", PlainConv, _TRAIN),
    "conv_avg": _Problem("mnist", PlainConv, {**_TRAIN, "head": "average"}),
    "conv_fmnist": _Problem("fashion_mnist", PlainConv, _TRAIN),
    # The published code trains on MNIST under this name.
    "conv_kmnist": _Problem("kmnist", PlainConv, _TRAIN),
    "conv_svhn": _Problem("svhn_cropped", PlainConv, _TRAIN),
    "conv_train_cifar10": _Problem("cifar10", PlainConv, _TRAIN),
    "conv_smallbatch": _Problem("mnist", PlainConv, _TRAIN, 32),
    "conv_wider": _Problem("mnist", PlainConv, _WIDER),
    "conv_cifar10_wider": _Problem("cifar10", PlainConv, _WIDER),
    "conv_deeper": _Problem("mnist", PlainConv, _DEEPER),
    "conv_deeper_pool": _Problem("mnist", PlainConv, _DEEPER_POOL),
    "conv_cifar10": _Problem("cifar10", PlainConv, _DEEPER),
    "conv_cifar10_pool": _Problem("cifar10", PlainConv, _DEEPER_POOL),
    "conv_nas": _Problem("mnist", BranchedConv, {}),
    "conv_nas_cifar": _Problem("cifar10", BranchedConv, {}),
    "resnet": _Problem("cifar10", PooledResNet, {"depth": 28}),
    "resnet_52": _Problem("cifar10", PooledResNet, {"depth": 52}),
    "resnet_52_100": _Problem("cifar100", PooledResNet, {"depth": 52, "classes": 100}),
    "resnet_100_100": _Problem("cifar100", PooledResNet, {"depth": 100, "classes": 100}),
    "wide_resnet": _Problem("cifar10", PooledResNet, {"depth": 28, "width": 4}),
}

# Clipped row by row to norm 1, with noise of 1.1 times that (`wrappers.private`).
_PRIVATE = {"conv_train_dp": "conv_train", "conv_kmnist_dp": "conv_kmnist"}

_IMAGES |= {name: _IMAGES[inside] for name, inside in _PRIVATE.items()}

_NOT_PROVIDED = ("kmnist", "svhn_cropped", "cifar100")

MISSING_DATA: dict[str, str] = {
    name: problem.dataset for name, problem in _IMAGES.items() if problem.dataset in _NOT_PROVIDED
}
"""Dataset by name, for problems whose data outeropt does not provide; `on_own_data` builds them on a copy."""

DATASETS: dict[str, str] = {
    name: problem.dataset for name, problem in _IMAGES.items() if name not in MISSING_DATA
}
"""Dataset by name, for the problems that have one: their names do not say it."""


def on_own_data(name: str, data: ArrayData) -> Task:
    """A problem of images on data of one's own, such as a copy of SVHN for `conv_svhn`.

    Args:
      name: one of the published names.
      data: rows of `image` (height, width, channels), bytes or floats in [0, 1], and `label`, as
        `outeropt.data.from_npz` gives them. The batch size is the problem's.

    Raises:
      UnknownName: no problem of images is called so.
    """
    if name not in _IMAGES:
        raise unknown_name("image problem", name, _IMAGES, ", ".join(_IMAGES))
    return _built(name, ArrayData(data.splits, _IMAGES[name].batch_size))


def _built(name: str, data: ArrayData) -> Task:
    if name in _PRIVATE:
        return PrivateGradient(_built(_PRIVATE[name], data))
    return _IMAGES[name].kind(name=name, data=data, **_IMAGES[name].architecture)


def _provided(name: str) -> Task:
    problem = _IMAGES[name]
    return _built(name, Images(problem.dataset, batch_size=problem.batch_size).load())


TASKS: dict[str, Callable[[], Task]] = {
    **{name: functools.partial(_provided, name) for name in DATASETS},
    **{
        f"rastrigin{dim}": functools.partial(RandomSquares, f"rastrigin{dim}", dim, 10.0)
        for dim in (2, 10, 20)
    },
    **{f"quadratic{dim}": functools.partial(RandomSquares, f"quadratic{dim}", dim) for dim in (10, 20, 100)},
}
