"""Datasets: their content, splits, resizing, and the two layouts of their files."""

import dataclasses
import gzip
import io
import struct
import tarfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import data_fixtures
from data_fixtures import REAL, forget, needs, sha256
from outeropt import data
from outeropt.data import draw, registry
from outeropt.data.formats import read_filtered_images, read_npz
from outeropt.data.images import resize
from outeropt.data.tables import gal_split
from outeropt.errors import OuteroptError


machine, elsewhere = data_fixtures.machine, data_fixtures.elsewhere
pytestmark = pytest.mark.usefixtures("machine")

UCI = [name for name in data.names() if name.startswith("uci_")]


def counts(labels) -> list[int]:
    return np.bincount(np.asarray(labels), minlength=10).tolist()


# Content and splits


def test_digits_are_bundled_balanced_and_complete(elsewhere):
    splits = data.images("digits")
    assert counts(splits["train"]["label"]) == [125, 128, 124, 129, 127, 128, 127, 126, 122, 126]
    assert counts(splits["valid"]["label"]) == [26, 27, 26, 27, 27, 27, 27, 26, 26, 27]
    assert counts(splits["test"]["label"]) == [27, 27, 27, 27, 27, 27, 27, 27, 26, 27]
    image = np.concatenate([np.asarray(rows["image"]) for rows in splits.values()])
    assert image.shape == (1797, 8, 8, 1) and image.dtype == np.float32
    assert image.min() == 0.0 and image.max() == 1.0


def test_digits_equal_scikit_learns_and_follow_the_documented_rule():
    datasets = pytest.importorskip("sklearn.datasets")
    original = datasets.load_digits()
    seen = dict.fromkeys(range(10), 0)
    rows = {"train": [], "valid": [], "test": []}
    for row, label in enumerate(original.target.tolist()):
        place = seen[label] % 20
        seen[label] += 1
        rows["valid" if place in (6, 13, 19) else "test" if place in (3, 10, 16) else "train"].append(row)
    for split, loaded in data.images("digits").items():
        expected = original.images[rows[split]].astype(np.float32)[..., None] / np.float32(16)
        np.testing.assert_array_equal(loaded["image"], expected)
        np.testing.assert_array_equal(loaded["label"], original.target[rows[split]])


@needs("mnist.npz")
def test_mnist_is_the_published_data_cut_by_position():
    splits = data.images("mnist")
    x_test, y_test = (np.asarray(splits["test"][key]) for key in ("image", "label"))
    # SHA-256 of the uncompressed originals t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte.
    images = struct.pack(">IIII", 2051, 10000, 28, 28) + x_test.tobytes()
    assert sha256(images) == "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
    labels = struct.pack(">II", 2049, 10000) + y_test.astype(np.uint8).tobytes()
    assert sha256(labels) == "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
    published = read_npz(REAL / "mnist.npz")
    np.testing.assert_array_equal(splits["train"]["image"], published["x_train"][:48000])
    np.testing.assert_array_equal(splits["valid"]["image"], published["x_train"][48000:])
    both = np.concatenate([splits["train"]["label"], splits["valid"]["label"]])
    assert counts(both) == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert splits["train"]["image"].dtype == jnp.uint8 and splits["train"]["label"].dtype == jnp.int32


@needs("fashion_mnist.npz")
def test_fashion_mnist_content_and_other_cuts():
    splits = data.images("fashion_mnist", train_rows=50000)
    assert {split: len(rows["label"]) for split, rows in splits.items()} == {
        "train": 50000,
        "valid": 10000,
        "test": 10000,
    }
    assert counts(splits["test"]["label"]) == [1000] * 10
    labels = struct.pack(">II", 2049, 10000) + np.asarray(splits["test"]["label"]).astype(np.uint8).tobytes()
    assert sha256(labels) == "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
    default = data.images("fashion_mnist")
    np.testing.assert_array_equal(default["valid"]["image"][2000:], splits["valid"]["image"])


@needs("cifar10_test.npz")
def test_cifar10_file_decodes():
    x, y = read_filtered_images(REAL / "cifar10_test.npz")
    assert x.shape == (10000, 32, 32, 3) and x.dtype == np.uint8 and counts(y) == [1000] * 10
    assert y[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    # First pixel of the first test image (a cat), and the mean of each channel of the test images.
    assert x[0, 0, 0].tolist() == [158, 112, 49]
    np.testing.assert_allclose(x.mean(axis=(0, 1, 2)), [126.0245, 123.7085, 114.8544], atol=1e-3)


@pytest.mark.slow
@needs("cifar10_train1.npz", "cifar10_train5.npz", "cifar10_test.npz")
def test_cifar10_whole():
    splits = data.images("cifar10")
    assert splits["train"]["image"].shape == (40000, 32, 32, 3)
    assert counts(splits["valid"]["label"]) == [1014, 1014, 952, 1016, 997, 1025, 980, 977, 1003, 1022]
    assert counts(np.concatenate([splits["train"]["label"], splits["valid"]["label"]])) == [5000] * 10
    grey = data.images("cifar10", size=16, grey=True)["test"]["image"]
    assert grey.shape == (10000, 16, 16, 1)


@needs("ptb.train.txt.gz", "ptb.valid.txt.gz", "ptb.test.txt.gz")
def test_penn_treebank_counts_and_ids():
    splits, size = data.tokens("ptb")
    assert size == 10000
    assert {split: ids.shape for split, ids in splits.items()} == {
        "train": (929589,),
        "valid": (73760,),
        "test": (82430,),
    }
    words = data.vocabulary("ptb")
    assert words[:3] == ("the", "<unk>", "<eos>")
    frequency = np.bincount(np.asarray(splits["train"]), minlength=size)
    assert np.all(np.diff(frequency) <= 0) and frequency[-1] > 0
    assert frequency[words.index("<eos>")] == 42068
    first = gzip.decompress((REAL / "ptb.test.txt.gz").read_bytes()).split(b"\n")[0].decode().split()
    assert [words[index] for index in splits["test"][: len(first) + 1].tolist()] == [*first, "<eos>"]


@needs("tinyshakespeare.txt.gz")
def test_tiny_shakespeare_characters_and_bytes():
    text = gzip.decompress((REAL / "tinyshakespeare.txt.gz").read_bytes()).decode()
    splits, size = data.tokens("tinyshakespeare")
    characters = data.vocabulary("tinyshakespeare")
    assert size == 65 and characters == tuple(sorted(set(text)))
    assert [len(splits[split]) for split in splits] == [1003854, 55770, 55770]
    assert "".join(characters[index] for index in splits["valid"].tolist()) == text[1003854:1059624]
    raw, size = data.tokens("tinyshakespeare_bytes")
    assert size == 256 and bytes(raw["test"].tolist()).decode() == text[1059624:]


@needs(*(f"{name}.npz" for name in UCI))
@pytest.mark.parametrize("name", UCI)
def test_tables_are_normalised_by_train_and_valid(name):
    splits = data.table(name)
    sizes = registry.get(name).splits
    assert {split: len(rows["x"]) for split, rows in splits.items()} == sizes
    raw = read_npz(REAL / f"{name}.npz")
    order = raw["permutation"]
    assert sorted(order.tolist()) == list(range(sum(sizes.values())))
    for key in ("x", "y"):
        seen = np.concatenate([splits[split][key] for split in ("train", "valid")]).astype(np.float64)
        constant = np.ptp(raw[key], axis=0) == 0
        np.testing.assert_allclose(seen.mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(seen.std(axis=0, ddof=1)[~constant], 1, rtol=1e-5)
        assert np.all(np.abs(seen[:, constant]) < 1e-9)
        # Undone on the test rows, which took no part in the statistics.
        rows = raw[key][order[: sizes["train"] + sizes["valid"]]]
        scale = np.where(constant, 1, rows.std(axis=0, ddof=1))
        back = np.asarray(splits["test"][key], np.float64) * scale + rows.mean(axis=0)
        np.testing.assert_allclose(back, raw[key][order[-sizes["test"] :]], rtol=1e-4, atol=1e-4)
    assert splits["train"]["x"].dtype == jnp.float32 and splits["train"]["y"].shape[1:] == (1,)


@needs("uci_naval.npz", "uci_yacht.npz")
def test_gal_splits_are_the_published_ones():
    for name in ("uci_naval", "uci_yacht"):
        raw = read_npz(REAL / f"{name}.npz")
        rows = len(raw["x"])
        for split in (0, 7, 19):
            train, valid, test = gal_split(rows, split)
            assert sorted(test.tolist()) == sorted(raw["gal_test_index"][split].tolist())
            assert sorted([*train, *valid, *test]) == list(range(rows))
    sizes = {split: len(rows["y"]) for split, rows in data.table("uci_yacht", split=3).items()}
    assert sizes == {"train": 221, "valid": 56, "test": 31}
    with pytest.raises(OuteroptError, match=r"split = 20 does not exist; give None or 0 to 19"):
        data.table("uci_yacht", split=20)


# Resizing


def tent_resize(image: np.ndarray, size: int) -> np.ndarray:
    """One (H, W) image by the definition: a sum over all pixels with weights max(0, 1 - distance)."""
    result = np.zeros((size, size))
    height, width = image.shape
    for i in range(size):
        for j in range(size):
            y = min(max((i + 0.5) * height / size - 0.5, 0), height - 1)
            x = min(max((j + 0.5) * width / size - 0.5, 0), width - 1)
            weights = np.outer(
                np.maximum(0, 1 - np.abs(np.arange(height) - y)),
                np.maximum(0, 1 - np.abs(np.arange(width) - x)),
            )
            result[i, j] = (weights * image).sum()
    return result


@pytest.mark.parametrize("size", [1, 3, 8, 14, 16, 32])
def test_resize_by_definition(size):
    image = np.random.default_rng(0).integers(0, 256, (1, 28, 28, 2), np.uint8)
    result = resize(image, size)
    assert result.shape == (1, size, size, 2) and result.dtype == np.float32
    for channel in range(2):
        np.testing.assert_allclose(
            result[0, :, :, channel], tent_resize(image[0, :, :, channel], size), atol=2e-3
        )
    peer = jax.image.resize(image.astype(np.float32), result.shape, "bilinear", antialias=False)
    np.testing.assert_allclose(result, peer, atol=2e-3)


def test_resized_images_are_fractions_and_shared():
    native = data.images("digits")["test"]["image"]
    small = data.images("digits", size=4)["test"]["image"]
    blocks = np.asarray(native).reshape(-1, 4, 2, 4, 2, 1).mean(axis=(2, 4))
    np.testing.assert_allclose(small, blocks, atol=1e-6)
    assert data.images("digits", size=4)["test"]["image"] is small
    assert data.images("digits", size=8, grey=True)["test"]["image"] is native


def test_grey_averages_channels(elsewhere, monkeypatch):
    pixels, _ = publish_cifar(monkeypatch, elsewhere, np.random.default_rng(1))
    grey = data.images("cifar10", grey=True, train_rows=10)["test"]["image"]
    np.testing.assert_allclose(grey[..., 0], pixels[-4:].mean(axis=-1) / 255, atol=1e-6)


def test_arrays_outlive_a_trace():
    forget()
    jax.eval_shape(lambda: data.images("digits")["train"]["image"] * jnp.float32(2))
    assert data.images("digits")["train"]["image"].sum() > 0
    forget()


# Two layouts, the same arrays


def publish(monkeypatch, name: str, directory: Path) -> None:
    """Makes the registry expect the published files as they are in a directory."""
    dataset = registry.get(name)
    files = []
    for file in dataset.published:
        content = (directory / file.name).read_bytes()
        files.append(dataclasses.replace(file, size=len(content), sha256=sha256(content)))
    monkeypatch.setitem(registry.DATASETS, name, dataclasses.replace(dataset, published=tuple(files)))


def publish_cifar(monkeypatch, directory: Path, random) -> tuple[np.ndarray, np.ndarray]:
    """Six binary batches of four random images; returns all images and labels."""
    pixels = random.integers(0, 256, (24, 32, 32, 3), np.uint8)
    labels = random.integers(0, 10, 24).astype(np.uint8)
    path = directory / "cifar10" / "cifar-10-binary.tar.gz"
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as archive:
        for batch, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
            rows = slice(4 * batch, 4 * batch + 4)
            records = np.concatenate(
                [labels[rows, None], pixels[rows].transpose(0, 3, 1, 2).reshape(4, -1)], axis=1
            )
            entry = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            entry.size = records.size
            archive.addfile(entry, io.BytesIO(records.tobytes()))
    publish(monkeypatch, "cifar10", directory)
    return pixels, labels


@needs("mnist.npz")
def test_idx_files_give_the_prepared_arrays(elsewhere, monkeypatch):
    prepared = read_npz(REAL / "mnist.npz")
    rows = {"train": 300, "test": 20}
    (elsewhere / "mnist").mkdir()
    for part, prefix in (("train", "train"), ("test", "t10k")):
        count = rows[part]
        x, y = prepared[f"x_{part}"][:count], prepared[f"y_{part}"][:count]
        images = struct.pack(">IIII", 2051, count, 28, 28) + x.tobytes()
        (elsewhere / "mnist" / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        labels = struct.pack(">II", 2049, count) + y.tobytes()
        (elsewhere / "mnist" / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    publish(monkeypatch, "mnist", elsewhere)
    splits = data.images("mnist", train_rows=200)
    np.testing.assert_array_equal(splits["train"]["image"], prepared["x_train"][:200])
    np.testing.assert_array_equal(splits["valid"]["label"], prepared["y_train"][200:300])
    np.testing.assert_array_equal(splits["test"]["image"], prepared["x_test"][:20])


def test_cifar_binary_gives_the_pixels(elsewhere, monkeypatch):
    pixels, labels = publish_cifar(monkeypatch, elsewhere, np.random.default_rng(0))
    splits = data.images("cifar10", train_rows=16)
    for split, rows in (("train", slice(0, 16)), ("valid", slice(16, 20)), ("test", slice(20, 24))):
        np.testing.assert_array_equal(splits[split]["image"], pixels[rows])
        np.testing.assert_array_equal(splits[split]["label"], labels[rows])


@needs("ptb.train.txt.gz", "ptb.valid.txt.gz", "ptb.test.txt.gz", "tinyshakespeare.txt.gz")
@pytest.mark.parametrize("name", ["ptb", "tinyshakespeare"])
def test_published_texts_give_the_prepared_tokens(name, elsewhere, monkeypatch):
    dataset = registry.get(name)
    (elsewhere / name).mkdir()
    for prepared, published in zip(dataset.prepared, dataset.published):
        content = gzip.decompress((REAL / prepared.name).read_bytes())
        (elsewhere / published.name).write_bytes(content)
        assert (len(content), sha256(content)) == (published.size, published.sha256)
    plain, _ = data.tokens(name)
    forget()
    monkeypatch.setenv("OUTEROPT_DATA_DIR", str(REAL))
    for split, ids in data.tokens(name)[0].items():
        np.testing.assert_array_equal(ids, plain[split])


@needs("uci_boston.npz", "uci_wine.npz")
@pytest.mark.parametrize("name", ["uci_boston", "uci_wine"])
def test_published_tables_give_the_prepared_rows(name, elsewhere, monkeypatch):
    raw = read_npz(REAL / f"{name}.npz")
    (elsewhere / name).mkdir()
    np.savetxt(elsewhere / name / "data.txt", np.hstack([raw["x"], raw["y"]]), fmt="%.17g")
    np.savetxt(elsewhere / name / "permutation_indices.txt", raw["permutation_source"], fmt="%d")
    publish(monkeypatch, name, elsewhere)
    plain = data.table(name), data.table(name, split=2)
    forget()
    monkeypatch.setenv("OUTEROPT_DATA_DIR", str(REAL))
    for expected, got in zip(plain, (data.table(name), data.table(name, split=2))):
        jax.tree.map(np.testing.assert_array_equal, got, expected)


@pytest.mark.parametrize("total", [1, 2, 7, 48_000, 65_536, 65_537, 1_000_003])
def test_random_rows_are_those_of_jax(total):
    for seed in range(3):
        key = jax.random.key(seed)
        want = jax.random.randint(key, (64,), 0, total)
        np.testing.assert_array_equal(draw.rows(key, 64, total), want)
