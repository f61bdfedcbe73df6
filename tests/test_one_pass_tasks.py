"""The problems of one-pass tuning: rows, scaling and losses as in the released code of the paper."""

from pathlib import Path

import jax
import numpy as np
import pytest

from data_fixtures import needs
from outeropt import data, tasks
from outeropt.errors import ConfigError


GOLDEN = np.load(Path(__file__).parent / "golden" / "clarke" / "tasks.npz")
STARTS = sorted({tuple(key.split("/")[:2]) for key in GOLDEN})
KEY = jax.random.key(0)

# Rows of each split in the released code, and the target's deviation over all rows, test rows included.
TABLES = {
    "boston": (364, 91, 51, 9.20),
    "concrete": (742, 185, 103, 16.71),
    "energy": (614, 78, 76, 10.09),
    "kin8nm": (5898, 1475, 819, 0.264),
    "naval": (8593, 2148, 1193, 0.0147),
    "power": (6889, 1722, 957, 17.07),
    "wine": (1151, 288, 160, 0.808),
    "yacht": (222, 55, 31, 15.16),
}


def unflatten(vector, features):
    """The original's weight vector as our parameters."""
    hidden, bias, out, last = np.split(vector, np.cumsum([50 * features, 50, 50]))
    leaves = {"w0": hidden.reshape(50, features).T, "b0": bias, "w1": out[:, None], "b1": last}
    return {name: np.asarray(leaf, np.float32) for name, leaf in leaves.items()}


def loss(task, vector, split):
    batch = task.batch(split, KEY)
    return float(task.loss(unflatten(vector, batch["x"].shape[1]), None, batch, KEY)[0])


@pytest.mark.parametrize(("table", "start"), STARTS)
def test_losses_at_stored_weights(table, start):
    def at(field):
        return GOLDEN[f"{table}/{start}/{field}"]

    apart = tasks.get(f"UCI_{table.capitalize()}")
    together = tasks.get(f"UCI_{table.capitalize()}_TrainValid")
    variance = data.target_deviation(f"uci_{table}") ** 2
    for weights, train, test, error in zip(at("weights"), at("loss_train"), at("loss_test"), at("test_mse")):
        # Weights rounded to float32 and then float32 arithmetic: a millionth, relative.
        assert loss(together, weights, "train") == pytest.approx(train, rel=5e-6)
        assert loss(together, weights, "test") == pytest.approx(test, rel=5e-6)
        assert loss(together, weights, "test") * variance == pytest.approx(error, rel=5e-6)
    for split in ("train", "valid", "test"):
        wanted = at(f"split_loss_{split}")
        assert loss(apart, at("split_weights"), split) == pytest.approx(wanted, rel=5e-6)


@pytest.mark.parametrize("table", TABLES)
def test_rows_and_scaling(table):
    train, valid, test, deviation = TABLES[table]
    task, together = (tasks.get(f"UCI_{table.capitalize()}{more}") for more in ("", "_TrainValid"))
    counts = {split: len(task.batch(split, KEY)["y"]) for split in ("train", "valid", "test")}
    assert counts == {"train": train, "valid": valid, "test": test}
    both = together.batch("train", KEY)
    assert len(both["y"]) == train + valid
    np.testing.assert_array_equal(both["x"][train:], task.batch("valid", KEY)["x"])
    np.testing.assert_array_equal(together.batch("test", KEY)["y"], task.batch("test", KEY)["y"])
    assert data.target_deviation(f"uci_{table}") == pytest.approx(deviation, rel=0.03)
    # Scaled by training and validation rows together.
    np.testing.assert_allclose(np.std(both["y"], ddof=1), 1.0, rtol=1e-5)


@pytest.mark.parametrize("norm", [None, "batch_norm"])
def test_fashion_mnist(norm):
    name = "FashionMnist_MLP50" + ("_BatchNorm" if norm else "")
    task = tasks.get(name)
    assert tasks.family(name) == "scaled_mlp" and tasks.describe(name)["dataset"] == "fashion_mnist"
    rows = {split: part["label"].shape[0] for split, part in task.data.splits.items()}
    assert rows == {"train": 50_000, "valid": 10_000, "test": 10_000}
    params, state = task.init(KEY)
    count = sum(leaf.size for leaf in params.values())
    assert count == 784 * 50 + 50 + 50 * 10 + 10 + (50 if norm else 0)
    assert abs(params["w0"]).max() <= 1 / 28 and abs(params["w1"]).max() <= 50**-0.5
    batch = task.batch("train", KEY)
    assert batch["image"].shape == (50, 28, 28, 1)
    # By hand: every pixel with mean 0 and variance 1 over the 60 000 rows.
    pixels = np.concatenate([task.data.splits[split]["image"] for split in ("train", "valid")])
    pixels = pixels.reshape(60_000, 784).astype(np.float64)
    scaled = (np.asarray(batch["image"]).reshape(50, 784) - pixels.mean(0)) / pixels.std(0, ddof=1)
    x = scaled @ np.asarray(params["w0"], np.float64)
    x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) if norm else x + np.asarray(params["b0"])
    logits = np.maximum(x, 0) @ np.asarray(params["w1"]) + np.asarray(params["b1"])
    shifted = logits - logits.max(1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    wanted = -logs[np.arange(50), batch["label"]].mean()
    loss, (after, metrics) = task.loss(params, state, batch, KEY)
    assert float(loss) == pytest.approx(wanted, rel=1e-5) and "accuracy" in metrics
    assert (after is None) == (norm is None)


@needs("cifar10_train1.npz", "cifar10_train5.npz", "cifar10_test.npz")
def test_cifar10():
    task = tasks.get("ResNet18_Cifar10_ImageNet_BS100")
    rows = {split: part["label"].shape[0] for split, part in task.data.splits.items()}
    assert rows == {"train": 45_000, "valid": 5_000, "test": 10_000}
    default = data.images("cifar10")["valid"]["image"]  # the last 20 % of the published training rows
    np.testing.assert_array_equal(task.data.splits["valid"]["image"][-3:], default[-3:])
    assert task.batch("train", KEY)["image"].shape == (100, 32, 32, 3)
    pixels = np.asarray(task.data.splits["train"]["image"][::50], np.float64).reshape(-1, 3) / 255
    np.testing.assert_allclose(pixels.mean(0), task.mean, atol=0.01)
    np.testing.assert_allclose(pixels.std(0), task.deviation, atol=0.01)


@needs("ptb.train.txt.gz", "ptb.valid.txt.gz", "ptb.test.txt.gz")
def test_penn_treebank():
    """Rows and windows as the released code has them: 1 003 349 tokens in 40 streams of 25 083."""
    task = tasks.get("StreamLM_Ptb_LSTM650x2_seq70")
    text, _ = data.tokens("ptb")
    assert text["train"].shape[0] + text["valid"].shape[0] == 1_003_349
    streams = task.data
    shapes = {split: rows.shape for split, rows in streams.splits.items()}
    assert shapes == {"train": (23_239, 40), "valid": (1_845, 40), "test": (2_060, 40)}
    assert 23_239 + 1_845 - 1 == 25_083 and round(25_082 * 0.0735138) == 1_844
    assert [streams.windows(split) for split in ("train", "valid", "test")] == [332, 27, 30]
    np.testing.assert_array_equal(streams.splits["train"][:, 0], text["train"][:23_239])
    np.testing.assert_array_equal(streams.splits["valid"][1:, -1], text["valid"][-1_844 - 29 : -29])
    params, state = jax.eval_shape(task.init, KEY)
    assert sum(leaf.size for leaf in params.values()) == 19_780_400
    assert state["carries"].shape[1:] == (2, 2, 40, 650)
    assert task.batch("valid", KEY)["obs"].shape == (40, 70)


def test_any_task_of_rows_can_train_on_both():
    digits = tasks.get("ImageMLP_Digits_Relu32_TrainValid")
    alone = tasks.get("ImageMLP_Digits_Relu32")
    assert digits.name == "ImageMLP_Digits_Relu32_TrainValid"
    assert tasks.family(digits.name) == "train_valid"
    sizes = {split: len(rows["label"]) for split, rows in alone.data.splits.items()}
    assert len(digits.data.splits["train"]["label"]) == sizes["train"] + sizes["valid"]
    assert len(digits.data.splits["valid"]["label"]) == sizes["valid"]
    text = tasks.get("RNNLM_Markov16_GRU32_seq16_TrainValid")
    assert text.data.splits["train"].shape[0] == 2**19 + 2**16
    fixed = tasks.get("ImageMLP_Digits_Relu32_TrainValid_FixedBatch")
    assert fixed.batch("train", KEY)["label"].shape == (128,)
    with pytest.raises(ConfigError, match=r"Quadratic_10.*no training and validation rows"):
        tasks.get("Quadratic_10_TrainValid")
