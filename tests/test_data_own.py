"""A user's own arrays and `.npz` files as task data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from outeropt import data
from outeropt.errors import OuteroptError


def test_own_arrays_keep_given_splits():
    x, y = np.arange(12.0).reshape(6, 2), np.arange(6)
    own = data.from_arrays({"x": x, "y": y}, {"x": x[:2], "y": y[:2]}, {"x": x[:1], "y": y[:1]}, batch_size=4)
    assert own.batch_size == 4 and tuple(own.splits) == ("train", "valid", "test")
    np.testing.assert_array_equal(own.splits["train"]["x"], x)
    assert own.splits["train"]["x"].dtype == jnp.float32 and own.splits["valid"]["y"].dtype == jnp.int32
    batch = own.batch("test", jax.random.key(0))
    assert batch["x"].shape == (4, 2) and batch["y"].shape == (4,)


def test_own_arrays_are_split_without_overlap_and_always_alike():
    rows = np.arange(100, dtype=np.uint8)
    own, again = data.from_arrays(rows), data.from_arrays(rows.copy())
    sizes = {split: len(own.splits[split]) for split in own.splits}
    assert sizes == {"train": 80, "valid": 10, "test": 10}
    assert sorted(np.concatenate(list(own.splits.values())).tolist()) == list(range(100))
    jax.tree.map(np.testing.assert_array_equal, own.splits, again.splits)
    # The rows as they were first dealt: this must never change.
    assert own.splits["test"].tolist() == [87, 36, 21, 83, 9, 96, 67, 64, 47, 44]
    kept = data.from_arrays(rows, test=rows[:5])
    assert [len(kept.splits[split]) for split in kept.splits] == [90, 10, 5]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"train": {"x": np.zeros(3), "y": np.zeros(2)}},
            r"equally many rows; given: train\['x'\] 3, train\['y'\] 2",
        ),
        ({"train": np.array(["a", "b", "c"])}, "train has type <U1; give numbers"),
        ({"train": np.array([None, 1, 2])}, "train has type object"),
        ({"train": np.array([0, 2**40, 1])}, "beyond 32 bits"),
        ({"train": {}}, "train holds no arrays"),
        ({"train": np.float32(1)}, "single value"),
        ({"train": np.zeros((0, 2))}, "train has no rows"),
        ({"train": np.zeros(2)}, "2 rows are too few to cut valid and test from"),
        ({"train": np.zeros(9), "batch_size": 0}, "batch_size = 0"),
        ({"train": np.zeros((4, 2)), "valid": np.zeros((4, 3))}, r"A row of valid is \[\(\(3,\)"),
        ({"train": {"x": np.zeros(4)}, "test": {"z": np.zeros(4)}}, "test is structured"),
    ],
)
def test_own_arrays_errors(given, message):
    with pytest.raises(OuteroptError, match=message):
        data.from_arrays(**given)


def test_own_npz(tmp_path):
    path = tmp_path / "mine.npz"
    x, y = np.random.default_rng(0).normal(size=(40, 3)), np.arange(40)
    np.savez(path, x_train=x, y_train=y, x_test=x[:7], y_test=y[:7])
    own = data.from_npz(path, batch_size=8)
    assert [len(own.splits[split]["x"]) for split in own.splits] == [36, 4, 7]
    np.testing.assert_array_equal(own.splits["test"]["y"], y[:7])
    np.savez(path, x=x, y=y)
    whole = data.from_npz(str(path))
    assert [len(whole.splits[split]["x"]) for split in whole.splits] == [32, 4, 4]
    row = int(whole.splits["valid"]["y"][0])
    np.testing.assert_array_equal(whole.splits["valid"]["x"][0], x[row].astype(np.float32))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x_test": np.zeros(3)}, "has no training arrays; name them x_train"),
        ({"x_train": np.zeros(9), "y": np.zeros(9)}, r"others without \(y\)"),
        (
            {"x_train": np.zeros(9), "y_train": np.zeros(9), "x_test": np.zeros(3)},
            "has no array y_test; each split",
        ),
        ({"x": np.array([{}, {}], dtype=object)}, "array 'x' holds Python objects"),
        (
            {"x": np.zeros(9), "y": np.zeros(8)},
            r"mine.npz: Arrays of one split .* train\['x'\] 9, train\['y'\] 8",
        ),
    ],
)
def test_own_npz_errors(tmp_path, arrays, message):
    path = tmp_path / "mine.npz"
    np.savez(path, **arrays)
    with pytest.raises(OuteroptError, match=message):
        data.from_npz(path)


def test_own_npz_that_is_none(tmp_path):
    with pytest.raises(OuteroptError, match=r"cannot be opened \(No such file or directory\); give the path"):
        data.from_npz(tmp_path / "absent.npz")
    text = tmp_path / "text.npz"
    text.write_text("x,y\n1,2\n")
    with pytest.raises(OuteroptError, match=r"is not an intact .npz file"):
        data.from_npz(text)
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(OuteroptError, match="is a single array"):
        data.from_npz(tmp_path / "one.npy")
    cut = tmp_path / "cut.npz"
    np.savez(cut, x=np.zeros(1000))
    cut.write_bytes(cut.read_bytes()[:500])
    with pytest.raises(OuteroptError, match=r"is not an intact .npz file"):
        data.from_npz(cut)
