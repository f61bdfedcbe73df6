"""Checkpoints: exact, atomic, and clear about what does not fit."""

import os
import signal
import subprocess
import sys
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from outeropt import checkpoint
from outeropt.errors import OuteroptError


class Model(eqx.Module):
    weight: jax.Array
    activation: Any
    width: int


def make_tree():
    return {
        "model": Model(jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3) / 3, jax.nn.relu, 3),
        "state": (jnp.int32(7), jnp.array([True, False]), [jnp.zeros((0, 4)), None]),
        "key": jax.random.key(5),
        "keys": jax.random.split(jax.random.key(1, impl="rbg"), 3),
        "raw": jax.random.PRNGKey(3),
        "half": jnp.float16(1 / 3),
        "complex": jnp.array([1 + 2j], jnp.complex64),
        "small": jnp.array([1.5, -2.0], jnp.float8_e4m3fn),
        "numpy": np.array([[1e300, np.nan], [-0.0, np.inf]]).T,
        "scalar": np.float64(1 / 3),
        "name": "adam",
        "rate": 0.1,
    }


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        assert type(one) is type(other)
        if isinstance(one, jax.Array | np.ndarray | np.generic):
            assert (one.dtype, one.shape) == (other.dtype, other.shape)
            if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
                assert jax.random.key_impl(one) == jax.random.key_impl(other)
                one, other = jax.random.key_data(one), jax.random.key_data(other)
            assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
        else:
            assert one is other or one == other


def blank(tree):
    """The same tree with zeros for all numbers."""

    def zero(leaf):
        if isinstance(leaf, np.ndarray | np.generic):
            return np.zeros_like(leaf)[()] if isinstance(leaf, np.generic) else np.zeros_like(leaf)
        if not isinstance(leaf, jax.Array) or jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return leaf
        return jnp.zeros_like(leaf)

    return jax.tree.map(zero, tree)


def test_every_kind_of_leaf_comes_back_exactly(tmp_path):
    tree = make_tree()
    like = blank(tree) | {"key": jax.random.key(0)}
    checkpoint.save(tmp_path / "new" / "a.safetensors", tree, {"step": 3, "note": "ü"})
    assert_same(tree, checkpoint.load(tmp_path / "new" / "a.safetensors", like))
    assert checkpoint.metadata(tmp_path / "new" / "a.safetensors") == {"step": 3, "note": "ü"}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.safetensors"]


def test_shapes_are_enough_to_load(tmp_path):
    tree = {"w": jnp.arange(3.0), "key": jax.random.key(2)}
    checkpoint.save(tmp_path / "a.safetensors", tree)
    like = jax.eval_shape(lambda: {"w": jnp.zeros(3), "key": jax.random.key(0)})
    assert_same(tree, checkpoint.load(tmp_path / "a.safetensors", like))


def test_a_bare_array_and_an_empty_tree(tmp_path):
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, jnp.arange(3))
    assert_same(jnp.arange(3), checkpoint.load(path, jnp.zeros(3, jnp.int32)))
    checkpoint.save(path, {})
    assert checkpoint.load(path, {}) == {}


def test_sharding_of_a_committed_like_is_kept(tmp_path):
    device = jax.devices()[0]
    like = jax.device_put(jnp.zeros(2), device)
    checkpoint.save(tmp_path / "a.safetensors", like)
    assert checkpoint.load(tmp_path / "a.safetensors", like).committed
    assert not checkpoint.load(tmp_path / "a.safetensors", jnp.zeros(2)).committed


def test_other_tools_read_the_weights(tmp_path):
    checkpoint.save(tmp_path / "a.safetensors", {"w": jnp.ones((2, 3))})
    (weights,) = safetensors.numpy.load_file(tmp_path / "a.safetensors").values()
    np.testing.assert_array_equal(weights, np.ones((2, 3), np.float32))


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"a": np.zeros(2)}, r"holds a leaf \['b'\]"),
        ({"a": np.zeros(2), "b": np.zeros(3), "c": np.zeros(1)}, r"has no leaf \['c'\]"),
        (
            {"a": np.zeros(2), "b": np.zeros((3, 1))},
            r"Leaf \['b'\] .* is float64\[3\]; here it is float64\[3, 1\]",
        ),
        (
            {"a": np.zeros(2, np.int32), "b": np.zeros(3)},
            r"Leaf \['a'\] .* is float64\[2\]; here it is int32",
        ),
        ({"a": 1.0, "b": np.zeros(3)}, r"Leaf \['a'\] .* is an array; here it is 1\.0"),
    ],
)
def test_a_tree_that_does_not_fit_is_named_by_its_leaf(tmp_path, like, message):
    checkpoint.save(tmp_path / "a.safetensors", {"a": np.zeros(2), "b": np.zeros(3)})
    with pytest.raises(OuteroptError, match=message):
        checkpoint.load(tmp_path / "a.safetensors", like)


def test_plain_values_must_be_equal(tmp_path):
    checkpoint.save(tmp_path / "a.safetensors", {"width": 3, "on": True, "nan": float("nan")})
    checkpoint.load(tmp_path / "a.safetensors", {"width": 3, "on": True, "nan": float("nan")})
    with pytest.raises(OuteroptError, match=r"\['width'\] .* plain 3, and 4 here"):
        checkpoint.load(tmp_path / "a.safetensors", {"width": 4, "on": True, "nan": float("nan")})
    with pytest.raises(OuteroptError, match=r"\['width'\] .* is no array"):
        checkpoint.load(tmp_path / "a.safetensors", {"width": np.zeros(1), "on": True, "nan": float("nan")})


def test_what_cannot_be_saved_is_refused(tmp_path):
    with pytest.raises(OuteroptError, match=r"Leaf \['a'\] has dtype"):
        checkpoint.save(tmp_path / "a.safetensors", {"a": np.array(["text"])})
    with pytest.raises(OuteroptError, match="must be JSON"):
        checkpoint.save(tmp_path / "a.safetensors", {}, {"f": print})
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OuteroptError, match="cannot be written"):
        checkpoint.save(tmp_path / "file" / "a.safetensors", {})


def test_damage_is_noticed(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(OuteroptError, match="There is no checkpoint at"):
        checkpoint.load(path, {})
    like = {"w": np.zeros(100)}
    checkpoint.save(path, {"w": np.arange(100.0)})
    whole = path.read_bytes()
    for size in (0, 7, 100, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(OuteroptError, match="truncated or damaged"):
            checkpoint.load(path, like)
    flipped = bytearray(whole)
    flipped[-10] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(OuteroptError, match="checksum"):
        checkpoint.load(path, like)
    safetensors.numpy.save_file({"w": np.zeros(3)}, path)
    with pytest.raises(OuteroptError, match="another program"):
        checkpoint.load(path, like)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, {"w": np.zeros(3)})

    def full(*_, **__):
        (tmp_path / f"a.safetensors.{os.getpid()}.partial").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.numpy, "save_file", full)
    with pytest.raises(OuteroptError, match=r"No space left.*the one before it is untouched"):
        checkpoint.save(path, {"w": np.ones(3)})
    np.testing.assert_array_equal(checkpoint.load(path, {"w": np.ones(3)})["w"], np.zeros(3))
    assert [found.name for found in tmp_path.iterdir()] == ["a.safetensors"]


def test_latest_and_rotate(tmp_path):
    assert checkpoint.latest(tmp_path / "none") is None
    for step in (5, 40, 300, 2000):
        checkpoint.save(checkpoint.numbered(tmp_path, step), {"step": np.int64(step)})
    (tmp_path / "best.safetensors").write_bytes(b"kept")
    (tmp_path / "0000009999.safetensors.partial").write_bytes(b"half")
    assert checkpoint.latest(tmp_path) == checkpoint.numbered(tmp_path, 2000)
    checkpoint.rotate(tmp_path, keep=2)
    names = {checkpoint.numbered(tmp_path, step).name for step in (300, 2000)}
    assert {path.name for path in tmp_path.glob("*.safetensors")} == names | {"best.safetensors"}
    with pytest.raises(OuteroptError, match="At least one"):
        checkpoint.rotate(tmp_path, keep=0)


# Saves larger and larger steps into one file and reports each; the parent kills it at some moment.
SAVER = """
import sys
import numpy as np
from outeropt import checkpoint
for step in range(1, 100000):
    checkpoint.save(sys.argv[1], {"w": np.full(200000, step, np.int32)})
    print(step, flush=True)
"""


def test_kill_9_while_saving_leaves_a_whole_file(tmp_path):
    path = tmp_path / "a.safetensors"
    process = subprocess.Popen([sys.executable, "-c", SAVER, str(path)], stdout=subprocess.PIPE, text=True)
    steps = [int(process.stdout.readline()) for _ in range(20)]
    process.send_signal(signal.SIGKILL)
    steps += [int(line) for line in process.stdout]
    process.wait()
    process.stdout.close()
    saved = checkpoint.load(path, {"w": np.zeros(200000, np.int32)})["w"]
    assert (saved == saved[0]).all()
    assert saved[0] in (steps[-1], steps[-1] + 1)


# Kills itself at one line of the way from bytes to name.
DEADLY = """
import os, signal, sys
import numpy as np
from outeropt import checkpoint
path, where = sys.argv[1:]
checkpoint.save(path, {"w": np.zeros(1000)})
die = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
if where == "write":
    def half(tensors, name, metadata):
        open(name, "wb").write(b"half a file")
        die()
    checkpoint.safetensors.numpy.save_file = half
elif where == "flush":
    checkpoint._flush = die
else:
    checkpoint.os.replace = die
checkpoint.save(path, {"w": np.ones(1000)})
"""


@pytest.mark.parametrize("where", ["write", "flush", "rename"])
def test_kill_9_at_any_point_of_a_save(tmp_path, where):
    path = tmp_path / "0000000001.safetensors"
    process = subprocess.run([sys.executable, "-c", DEADLY, str(path), where])
    assert process.returncode == -signal.SIGKILL
    assert checkpoint.latest(tmp_path) == path
    np.testing.assert_array_equal(checkpoint.load(path, {"w": np.ones(1000)})["w"], np.zeros(1000))
    checkpoint.save(path, {"w": np.ones(1000)})
    assert [found.name for found in tmp_path.iterdir()] == [path.name]
