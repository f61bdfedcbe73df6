"""Files of other programs: their arrays, and our optimizers with them."""

import pickle
import sys
import zipfile
from typing import Any, NamedTuple

import flax.serialization
import flax.struct
import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
import safetensors.numpy

from learned_golden import below, load
from outeropt.errors import ConfigError, UnknownName
from outeropt.learned.learnable import LearnableAdam, LearnableSGDM
from outeropt.learned.mlps.adafac_mlp import AdafacMLP
from outeropt.learned.mlps.celo2 import GROUPS, Celo2
from outeropt.learned.per_tensor.hyper import HyperV2
from outeropt.learned.published import load_published, published_paths, read_arrays


class LSTMState(NamedTuple):
    hidden: Any
    cell: Any


@flax.struct.dataclass
class ParameterCheckpoint:
    params: Any
    gen_id: str
    step: int


@flax.struct.dataclass
class ThetaOptState:
    params: Any
    optax_opt_state: Any


@flax.struct.dataclass
class LearnerState:
    theta_opt_state: Any


@flax.struct.dataclass
class OptCheckpoint:
    gradient_learner_state: Any
    elapsed_time: float
    total_inner_steps: int


def _nested(arrays):
    """Dictionaries in dictionaries, a level for each slash."""
    tree = {}
    for path, array in arrays.items():
        *levels, leaf = path.split("/")
        node = tree
        for level in levels:
            node = node.setdefault(level, {})
        node[leaf] = array
    return tree


def _write(path, content):
    path.write_bytes(flax.serialization.to_bytes(content))
    return path


def _same(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second)):
        np.testing.assert_array_equal(a, b)


def _assert_equal_arrays(got, want):
    assert sorted(got) == sorted(want)
    for name, array in want.items():
        assert got[name].dtype == array.dtype and got[name].shape == array.shape
        np.testing.assert_array_equal(got[name].astype(np.float64), array.astype(np.float64))


# Formats.


def test_flax_msgpack(tmp_path):
    tree = {
        "mlp/~/linear_0": {
            "w": np.arange(6, dtype=np.float32).reshape(2, 3),
            "b": jnp.zeros(3, jnp.bfloat16),
        },
        "state": LSTMState(hidden=jnp.ones((1, 2)), cell=np.float64(2.5)),
        "list": [np.array(3, np.int32), (np.zeros((0, 4), np.float16),)],
        "count": 7,
        "name": "text",
        "nothing": None,
    }
    _assert_equal_arrays(
        read_arrays(_write(tmp_path / "params_0", tree)),
        {
            "mlp/~/linear_0/w": np.arange(6, dtype=np.float32).reshape(2, 3),
            "mlp/~/linear_0/b": np.zeros(3, jnp.bfloat16),
            "state/hidden": np.ones((1, 2), np.float32),
            "state/cell": np.array(2.5),
            "list/0": np.array(3, np.int32),
            "list/1/0": np.zeros((0, 4), np.float16),
            "count": np.array(7),
        },
    )


def test_flax_complex_numbers(tmp_path):
    assert read_arrays(_write(tmp_path / "f", {"z": 1 + 2j}))["z"] == 1 + 2j


def test_flax_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 64)
    big = np.random.default_rng(0).normal(size=(5, 3, 7)).astype(np.float32)
    path = _write(tmp_path / "f", {"a": {"big": big}, "small": big[0, 0]})
    assert path.read_bytes().count(b"__msgpack_chunked_array__") == 1
    _assert_equal_arrays(read_arrays(path), {"a/big": big, "small": big[0, 0]})


def test_flax_named_tuples_of_old_versions(tmp_path):
    old = {
        "name": "LSTMState",
        "fields": {"0": "hidden", "1": "cell"},
        "values": {"0": np.zeros(2), "1": np.ones(2)},
    }
    got = read_arrays(_write(tmp_path / "f", {"lstm_init_state": old}))
    _assert_equal_arrays(got, {"lstm_init_state/hidden": np.zeros(2), "lstm_init_state/cell": np.ones(2)})


def test_safetensors(tmp_path):
    floats = ["float16", "float32", "float64", jnp.bfloat16]
    integers = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
    arrays = {np.dtype(d).name: np.arange(6).reshape(2, 3).astype(d) for d in ["bool", *integers, *floats]}
    arrays["scalar"] = np.array(3.0, np.float32)
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(arrays, path, metadata={"format": "pt"})
    _assert_equal_arrays(read_arrays(path), arrays)


def test_safetensors_whose_header_begins_like_another_format(tmp_path):
    """The first bytes are the header's length, which can be anything."""
    path = tmp_path / "model.safetensors"
    for length in (0x80, 0x90, 0x280):
        for filler in range(length):
            data = safetensors.numpy.save({"a": np.ones(2)}, metadata={"x": "y" * filler})
            if int.from_bytes(data[:8], "little") >= length:
                break
        path.write_bytes(data)
        assert data[0] == length & 0xFF
        _assert_equal_arrays(read_arrays(path), {"a": np.ones(2)})


def test_npz(tmp_path):
    np.savez_compressed(tmp_path / "f.npz", **{"nn/~/w0": np.ones((2, 2))}, config=np.array("text"))
    _assert_equal_arrays(read_arrays(tmp_path / "f.npz"), {"nn/~/w0": np.ones((2, 2))})


# What cannot be read.


def test_no_file(tmp_path):
    with pytest.raises(ConfigError, match=r"There is no file .*/nothing"):
        read_arrays(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="is a folder; give a file in it"):
        read_arrays(tmp_path)


class _Bomb:
    def __reduce__(self):
        return (sys.exit, ("a pickle was opened",))


def test_pickles_are_refused(tmp_path):
    for protocol in range(2, 6):
        path = tmp_path / "theta.pickle"
        path.write_bytes(pickle.dumps(_Bomb(), protocol))
        with pytest.raises(ConfigError, match=r"is a pickle .* is not read. Convert it"):
            read_arrays(path)
    with zipfile.ZipFile(tmp_path / "weights.pt", "w") as file:  # as torch.save writes
        file.writestr("weights/data.pkl", pickle.dumps(_Bomb()))
    with pytest.raises(ConfigError, match=r"weights.pt is a pickle"):
        read_arrays(tmp_path / "weights.pt")
    np.savez(tmp_path / "objects.npz", a=np.array([{}, None], object))
    with pytest.raises(ConfigError, match=r"objects.npz is a pickle"):
        read_arrays(tmp_path / "objects.npz")


@pytest.mark.parametrize("content", [b"", b"hello", b"\x93NUMPY", b"(dp0\n.", b"\x89HDF\r\n"])
def test_unknown_formats(tmp_path, content):
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(ConfigError, match=r"in another format than flax's msgpack, safetensors and .npz"):
        read_arrays(tmp_path / "f")


def test_other_zip_files(tmp_path):
    with zipfile.ZipFile(tmp_path / "f.zip", "w") as file:
        file.writestr("readme.txt", "hello")
    with pytest.raises(ConfigError, match=r"no .npz of numpy: it holds readme.txt"):
        read_arrays(tmp_path / "f.zip")


def test_own_files_have_their_own_loader(tmp_path):
    LearnableAdam().save(tmp_path / "mine.safetensors")
    with pytest.raises(ConfigError, match=r"read it with outeropt.learned.load"):
        read_arrays(tmp_path / "mine.safetensors")


def test_cut_files(tmp_path):
    arrays = {"a": np.arange(100.0), "b": np.ones(3)}
    _write(tmp_path / "flax", arrays)
    safetensors.numpy.save_file(arrays, tmp_path / "model.safetensors")
    np.savez(tmp_path / "f.npz", **arrays)
    for name in ("flax", "model.safetensors", "f.npz"):
        path = tmp_path / name
        whole = path.read_bytes()
        for length in (len(whole) - 1, len(whole) // 2, 20):
            path.write_bytes(whole[:length])
            with pytest.raises(ConfigError, match="is truncated or damaged"):
                read_arrays(path)


@pytest.mark.parametrize(
    "array",
    [
        msgpack.ExtType(1, msgpack.packb(((2,), "float32", b"123"))),
        msgpack.ExtType(1, msgpack.packb(((2,), "nonsense", b"12345678"))),
        msgpack.ExtType(1, msgpack.packb(((1,), "object", b"12345678"))),
        msgpack.ExtType(9, b""),
    ],
)
def test_damaged_flax_arrays(tmp_path, array):
    (tmp_path / "f").write_bytes(msgpack.packb({"a": array}))
    with pytest.raises(ConfigError, match="is truncated or damaged"):
        read_arrays(tmp_path / "f")


def test_without_the_package_msgpack(tmp_path, monkeypatch):
    path = _write(tmp_path / "params_0", {"a": np.ones(2)})
    monkeypatch.setitem(sys.modules, "msgpack", None)
    with pytest.raises(ConfigError, match="to read it: pip install msgpack"):
        read_arrays(path)


# Optimizers with published weights.


def test_files_of_learned_optimization(tmp_path):
    """The four files in which it keeps weights, for an optimizer whose weights it made."""
    arrays, _ = load("learned/adafac_h4")
    theta = below(arrays, "theta")
    want = AdafacMLP(step_mult=0.1).from_published(theta)
    nested = _nested(theta)
    learner = LearnerState(ThetaOptState(nested, {"mu": jax.tree.map(np.zeros_like, nested)}))
    files = {
        "params_3": ParameterCheckpoint(nested, "generation", 12),
        "checkpoint_3": OptCheckpoint(learner, 1.5, 0),
        "theta.state": nested,
        "old": (nested, None, "", 0),
    }
    for name, content in files.items():
        _same(load_published(_write(tmp_path / name, content), AdafacMLP, step_mult=0.1), want)
    np.savez(tmp_path / "theta.npz", **{f"theta/{name}": array for name, array in theta.items()})
    _same(load_published(tmp_path / "theta.npz", AdafacMLP, step_mult=0.1), want)


def test_scalar_weights(tmp_path):
    theta = {"log_lr": jnp.float32(-3.0), "one_minus_momentum": jnp.float32(-1.0)}
    got = load_published(_write(tmp_path / "params_0", {"params": theta}), LearnableSGDM)
    assert got.hyperparameters == {"log_learning_rate": -3.0, "log_one_minus_momentum": -1.0}


def _celo2_arrays(optimizer):
    arrays = {p: np.asarray(optimizer.hyperparameters[n]) for n, p in optimizer.published_names.items()}
    parts = np.split(arrays.pop("ff_mod_stack/~/w0"), np.cumsum(GROUPS)[:-1])
    return arrays | {f"ff_mod_stack/~/w0__{i}": part for i, part in enumerate(parts)}


def test_celo2_files(tmp_path):
    trained = Celo2(key=jax.random.key(7), harness="none")
    arrays = _celo2_arrays(trained)
    _same(load_published(_write(tmp_path / "theta.state", _nested(arrays)), Celo2, harness="none"), trained)
    # PyLO's names for the same layout.
    short = {name.removeprefix("ff_mod_stack/~/"): array for name, array in arrays.items()}
    torch = {name.replace("w0__", "w0."): array for name, array in short.items() if name[:2] == "w0"}
    torch |= {"b0": short["b0"]}
    torch |= {f"dense_{kind}.{i - 1}": short[f"{kind}{i}"] for kind in "wb" for i in (1, 2)}
    safetensors.numpy.save_file(torch, tmp_path / "model.safetensors")
    _same(load_published(tmp_path / "model.safetensors", Celo2, harness="none"), trained)


def _torch(weight):
    """A torch layer keeps the outputs first."""
    return np.ascontiguousarray(np.swapaxes(weight, -2, -1))


def test_small_fc_of_pylo(tmp_path):
    trained = AdafacMLP(key=jax.random.key(1), hidden_size=8, hidden_layers=3)
    decays = {"momentum_decays": (0.1, 0.2, 0.3), "rms_decays": (0.4,), "adafactor_decays": [0.0, 0.5, -0.1]}
    trained = trained.replace(
        {"decays.momentum": (0.1, 0.2, 0.3), "decays.rms": (0.4,), "decays.factored": (0.0, 0.5, -0.1)}
    )
    torch = {}
    for name, layer in zip(("input", "linear_0", "linear_1", "output"), trained.net.layers):
        torch |= {
            f"network.{name}.weight": _torch(layer.weight),
            f"network.{name}.bias": np.asarray(layer.bias),
        }
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(torch, path)
    settings = {"hidden_size": 8, "hidden_layers": 3}
    _same(load_published(path, AdafacMLP, also=decays, **settings), trained)
    with pytest.raises(ConfigError, match=r"momentum_decays.* can be given by `also`"):
        load_published(path, AdafacMLP, **settings)


def test_velo_of_pylo(tmp_path):
    """Two files, with the bank of networks beside the mixture that was used last."""
    settings = {"lstm_hidden_size": 6, "param_inits": 5}
    trained = HyperV2(key=jax.random.key(2), **settings)
    random = np.random.default_rng(0)
    shapes = {name: leaf.shape for name, leaf in trained.hyperparameters.items()}
    leaves = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    trained = trained.replace(leaves)
    ours = {path: leaves[name] for name, path in trained.published_names.items()}
    stack = "ff_mod_stack/~"
    bank = {
        "input_weights_": _torch(ours[f"{stack}/w0"]),
        "input_bias_": ours[f"{stack}/b0"],
        "hidden_weights_.0": _torch(ours[f"{stack}/w1"]),
        "hidden_bias_.0": ours[f"{stack}/b1"],
        "output_weights_": _torch(ours[f"{stack}/w2"]),
        "output_bias_": ours[f"{stack}/b2"],
        "input_weights": np.zeros((4, 30), np.float32),
        "hidden_weights.0": np.zeros((4, 4), np.float32),
    }
    rnn = {
        "lstm_init_state.0": ours["lstm_init_state/hidden"].reshape(1, -1),
        "lstm_init_state.1": ours["lstm_init_state/cell"].reshape(1, -1),
    }
    names = {
        "mix_layer1": "linear",
        "mix_layer2": "linear_1",
        "final_mix_layer": "linear_2",
        "lstm.linear": "rnn/linear",
        "rnn_to_controls": "rnn_to_controls",
        "step_size": "step_size",
    }
    for theirs, original in names.items():
        rnn[f"{theirs}.weight"] = _torch(ours[f"rnn_params/{original}/w"])
        rnn[f"{theirs}.bias"] = ours[f"rnn_params/{original}/b"]
    files = [tmp_path / "mlp.safetensors", tmp_path / "rnn.safetensors"]
    for path, arrays in zip(files, (bank, rnn)):
        safetensors.numpy.save_file(arrays, path)
    _same(load_published(files, HyperV2, **settings), trained)
    with pytest.raises(ConfigError, match=r"mlp.safetensors does not fit: .*(lstm_init_state|rnn_params)"):
        load_published(files[0], HyperV2, **settings)


def test_paths_that_are_known_already_stay():
    arrays = {"nn/~/w0": np.ones((2, 2)), "momentum_decays": np.zeros(3)}
    assert published_paths(arrays) == arrays


def test_wrong_settings(tmp_path):
    path = _write(tmp_path / "f", {"nn": {"~": {"w0": np.ones((39, 4))}}})
    with pytest.raises(UnknownName, match="No setting of AdafacMLP is called 'hiden_size'"):
        load_published(path, AdafacMLP, hiden_size=4)
    zeros = {"momentum_decays": np.zeros(3), "rms_decays": np.zeros(1), "adafactor_decays": np.zeros(3)}
    with pytest.raises(ConfigError, match=r"'nn/~/w0' has shape \(39, 4\).*needs \(39, 8\)"):
        load_published(path, AdafacMLP, also=zeros, hidden_size=8)
