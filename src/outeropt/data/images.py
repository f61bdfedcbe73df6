"""Image datasets: arrays on the device, resized and made grey as asked."""

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from outeropt.data import registry
from outeropt.data.formats import read_cifar_binary, read_filtered_images, read_idx, read_npz
from outeropt.data.locate import locate
from outeropt.errors import OuteroptError


Split = dict[str, Array]
Pixels = tuple[np.ndarray, np.ndarray]  # images (N, H, W, C) uint8, labels (N,) uint8

# Places of each class' images in every twenty of them that digits gives to validation and test.
_DIGITS_VALID = (6, 13, 19)
_DIGITS_TEST = (3, 10, 16)


def images(
    name: str, size: int | None = None, grey: bool = False, train_rows: int | None = None
) -> dict[str, Split]:
    """An image dataset, split into train, valid and test.

    Args:
      name: `"digits"`, `"mnist"`, `"fashion_mnist"` or `"cifar10"`.
      size: height and width to resize to, bilinearly without antialiasing; None keeps the native size.
      grey: whether to average the channels.
      train_rows: how many of the published training images, from the front, to train on; the others are
        validation. By default the first 80 %. Digits, which have no published split, take none.

    Returns:
      For each split `"image"` (N, H, W, C) and `"label"` (N,) int32, shared by all callers. Images are uint8
      as published, or float32 in [0, 1] once resized or averaged (and always for digits);
      `outeropt.data.as_float` makes floats of both.

    Raises:
      UnknownName: no dataset has this name.
      OuteroptError: the dataset has no images, or `size` or `train_rows` is out of range.
      MissingData: a file is neither on this machine nor to be had.
      CorruptData: a file fails its checksum.
    """
    dataset = registry.get(name, "images")
    if size is not None and not 1 <= size <= 256:
        raise OuteroptError(f"size = {size} is not an image size; give 1 to 256.")
    if size in dataset.shape[:2]:
        size = None
    grey = grey and dataset.shape[-1] > 1
    cut = _cut(name, train_rows)
    # Concrete arrays even while a caller is being traced: they outlive the trace.
    with jax.ensure_compile_time_eval():
        return {split: dict(rows) for split, rows in _images(name, size, grey, cut).items()}


def resize(image: UInt8[np.ndarray, "n h w c"], size: int) -> Float[np.ndarray, "n size size c"]:
    """Resizes bilinearly between the nearest pixels, with pixel centres at halves and no antialiasing.

    Output pixel i looks at `(i + 1/2) * h / size - 1/2` of the input, clamped at the border: what
    `tf.image.resize` does by default. Values keep their range.
    """
    top, bottom, down = _neighbours(image.shape[1], size)
    left, right, along = _neighbours(image.shape[2], size)

    def row(index: np.ndarray) -> np.ndarray:
        rows = image[:, index]
        start, end = rows[:, :, left].astype(np.float32), rows[:, :, right].astype(np.float32)
        return start + (end - start) * along[None, None, :, None]

    upper, lower = row(top), row(bottom)
    return upper + (lower - upper) * down[None, :, None, None]


def _neighbours(length: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    centres = np.arange(size, dtype=np.float32) + np.float32(0.5)
    place = centres * np.float32(length / size) - np.float32(0.5)
    below = np.floor(place)
    low = np.maximum(below, 0).astype(np.int64)
    high = np.minimum(np.ceil(place), length - 1).astype(np.int64)
    return low, high, place - below


def _cut(name: str, train_rows: int | None) -> int:
    """How many of the published training images to train on; 0 for digits."""
    if name == "digits":
        if train_rows is not None:
            raise OuteroptError("train_rows does not apply to 'digits', which has no published split.")
        return 0
    splits = registry.get(name).splits
    published = splits["train"] + splits["valid"]
    if train_rows is None:
        return splits["train"]
    if not 0 < train_rows < published:
        raise OuteroptError(
            f"train_rows = {train_rows} leaves nothing to train or validate on; give 1 to {published - 1}."
        )
    return train_rows


@functools.lru_cache(maxsize=16)
def _images(name: str, size: int | None, grey: bool, cut: int) -> dict[str, Split]:
    splits = _split_digits(_pixels(name)[0]) if name == "digits" else _split_published(_pixels(name), cut)
    return {
        split: {"image": jnp.asarray(_convert(name, x, size, grey)), "label": jnp.asarray(y.astype(np.int32))}
        for split, (x, y) in splits.items()
    }


def _convert(name: str, image: np.ndarray, size: int | None, grey: bool) -> np.ndarray:
    if size is not None:
        image = resize(image, size)
    elif name != "digits" and not grey:
        return image
    image = image.astype(np.float32) / np.float32(16 if name == "digits" else 255)
    return image.mean(axis=-1, keepdims=True, dtype=np.float32) if grey else image


def _split_published(parts: list[Pixels], cut: int) -> dict[str, Pixels]:
    (x, y), test = parts
    return {"train": (x[:cut], y[:cut]), "valid": (x[cut:], y[cut:]), "test": test}


def _split_digits(pixels: Pixels) -> dict[str, Pixels]:
    """Deals each class' images, in their order, to the splits: 14, 3 and 3 of every twenty."""
    x, y = pixels
    place = np.zeros(len(y), np.int64)
    for label in range(10):
        of_class = y == label
        place[of_class] = np.arange(of_class.sum()) % 20
    valid, test = np.isin(place, _DIGITS_VALID), np.isin(place, _DIGITS_TEST)
    rows = {"train": ~valid & ~test, "valid": valid, "test": test}
    return {split: (x[chosen], y[chosen]) for split, chosen in rows.items()}


@functools.lru_cache(maxsize=2)
def _pixels(name: str) -> list[Pixels]:
    """The training and test images as published; one part for digits."""
    found = locate(registry.get(name))
    return _READERS[name, found.layout](found.paths)


def _digits(paths: tuple[Path, ...]) -> list[Pixels]:
    arrays = read_npz(paths[0])
    return [(arrays["image"][..., None], arrays["label"])]


def _npz(paths: tuple[Path, ...]) -> list[Pixels]:
    arrays = read_npz(paths[0])
    return [(arrays[f"x_{part}"], arrays[f"y_{part}"]) for part in ("train", "test")]


def _idx(paths: tuple[Path, ...]) -> list[Pixels]:
    x_train, y_train, x_test, y_test = (read_idx(path) for path in paths)
    return [(x_train[..., None], y_train), (x_test[..., None], y_test)]


def _filtered(paths: tuple[Path, ...]) -> list[Pixels]:
    return _train_and_test([read_filtered_images(path) for path in paths])


def _cifar_binary(paths: tuple[Path, ...]) -> list[Pixels]:
    members = (*(f"data_batch_{batch}.bin" for batch in range(1, 6)), "test_batch.bin")
    return _train_and_test(read_cifar_binary(paths[0], members))


def _train_and_test(batches: list[Pixels]) -> list[Pixels]:
    *train, test = batches
    return [(np.concatenate([x for x, _ in train]), np.concatenate([y for _, y in train])), test]


_READERS: dict[tuple[str, str], Callable[[tuple[Path, ...]], list[Pixels]]] = {
    ("digits", "prepared"): _digits,
    ("mnist", "prepared"): _npz,
    ("mnist", "published"): _idx,
    ("fashion_mnist", "prepared"): _npz,
    ("fashion_mnist", "published"): _idx,
    ("cifar10", "prepared"): _filtered,
    ("cifar10", "published"): _cifar_binary,
}
