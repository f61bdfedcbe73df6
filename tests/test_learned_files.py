"""Learned optimizers by name, file and folder; what can be wrong with them is one clear line."""

import pickle

import jax
import numpy as np
import pytest
import safetensors.numpy

from outeropt import checkpoint, learned, optimizers, weight_files
from outeropt.errors import ConfigError, OuteroptError, UnknownName
from outeropt.weight_files import FILE


SMALL = {"hidden_size": 2, "hidden_layers": 1}
MADE = {"tasks": ["Linear_20"], "steps": 7}


@pytest.fixture
def optimizer():
    return learned.AdafacMLP(key=jax.random.key(3), **SMALL)


@pytest.fixture
def saved(optimizer, tmp_path):
    optimizer.save(tmp_path / "mine.safetensors", MADE)
    return tmp_path / "mine.safetensors"


def same(one, other):
    assert type(one) is type(other) and one.settings == other.settings
    jax.tree.map(np.testing.assert_array_equal, one, other)


def refused(error, call, *given, **settings):
    """The message of an error, which is one line."""
    with pytest.raises(error) as caught:
        call(*given, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file(saved, optimizer):
    same(learned.load(saved), optimizer)
    same(learned.load(str(saved)), optimizer)
    assert learned.about(saved) == MADE


def test_a_file_without_a_story(optimizer, tmp_path):
    optimizer.save(tmp_path / "mine")
    same(learned.load(tmp_path / "mine"), optimizer)
    assert learned.about(tmp_path / "mine") == {}


def test_a_folder_of_meta_training(optimizer, tmp_path):
    told = refused(OuteroptError, learned.load, tmp_path)
    assert told == f"{tmp_path} holds no {FILE}; metatrain writes it when it ends, amalgamate after a period."
    optimizer.save(tmp_path / FILE, MADE)
    same(learned.load(tmp_path), optimizer)
    assert learned.about(tmp_path) == MADE


def test_what_ships_has_names(optimizer, tmp_path, monkeypatch):
    optimizer.save(tmp_path / "second.safetensors", MADE)
    learned.LearnableAdam().save(tmp_path / "first.safetensors")
    (tmp_path / "README.md").write_text("not weights")
    monkeypatch.setattr(weight_files, "shipped", lambda: tmp_path)
    assert learned.names() == ["first", "second"]
    same(learned.load("second"), optimizer)
    assert learned.about("second") == MADE
    assert {"learned:first", "learned:second"} <= {*optimizers.names(tuning_free=True)}
    same(optimizers.get("learned:second"), optimizer)
    described = optimizers.describe("clip:learned:first")
    assert described.paper == learned.paper(learned.LearnableAdam()) and described.defaults == {
        "max_value": 3.0
    }


def test_everything_that_ships_can_be_read():
    for name in learned.names():
        assert isinstance(learned.load(name), learned.LearnedOptimizer)
        assert learned.about(name)["tasks"], f"{name} does not say what it was learned on"


def test_neither_a_name_nor_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(weight_files, "shipped", lambda: tmp_path)
    (tmp_path / "small_fc.safetensors").write_bytes(b"")
    told = refused(UnknownName, learned.load, "smal_fc")
    assert told == (
        "No learned optimizer or file is called 'smal_fc'. Did you mean small_fc? "
        "All names: outeropt list weights"
    )
    refused(OuteroptError, learned.about, tmp_path / "nothing")
    assert refused(UnknownName, learned.load, "").startswith("No learned optimizer or file is called ''.")


def test_damaged_files(saved):
    whole = saved.read_bytes()
    for data in (whole[: len(whole) // 2], whole[:5], b"", b"hello", whole[:-8] + bytes(8)):
        saved.write_bytes(data)
        for read in (learned.load, learned.about):
            assert "damaged" in refused(OuteroptError, read, saved)


class Bomb:
    def __reduce__(self):
        return exit, ("a pickle was opened",)


def test_a_pickle_is_not_opened(saved):
    for protocol in range(6):
        saved.write_bytes(pickle.dumps(Bomb(), protocol))
        refused(OuteroptError, learned.load, saved)


def test_files_of_other_things(saved, tmp_path):
    path = tmp_path / "other.safetensors"
    safetensors.numpy.save_file({"w": np.ones(3)}, path)
    assert "of another program" in refused(OuteroptError, learned.load, path)
    checkpoint.save(path, {"w": np.ones(3)})
    assert "but of no learned optimizer" in refused(ConfigError, learned.load, path)


def described(path, optimizer, **changes):
    """A file whose description is not that of what it holds."""
    about = {"architecture": "AdafacMLP", "settings": optimizer.settings, "about": {}, **changes}
    checkpoint.save(path, optimizer, about)
    return path


def test_files_that_no_version_wrote(optimizer, tmp_path):
    path = tmp_path / "mine.safetensors"
    told = refused(UnknownName, learned.load, described(path, optimizer, architecture="AdafacMPL"))
    assert told.startswith("No architecture is called 'AdafacMPL'. Did you mean AdafacMLP")
    told = refused(UnknownName, learned.load, described(path, optimizer, settings={"width": 3}))
    assert told.startswith("No setting of AdafacMLP is called 'width'.")
    told = refused(OuteroptError, learned.load, described(path, optimizer, settings={"hidden_size": 5}))
    assert "has no leaf .net.layers[2].weight" in told
    refused(OuteroptError, learned.load, described(path, optimizer, settings={**SMALL, "hidden_size": 3}))
    refused(UnknownName, learned.load, described(path, optimizer, architecture="LearnableSGD"))


def test_build():
    found = learned.build("MLPNominal", {**SMALL, "exp_mult": [0.1, 0.2, 0.3]}, jax.random.key(5))
    same(found, learned.MLPNominal(**SMALL, exp_mult=(0.1, 0.2, 0.3), key=jax.random.key(5)))
    same(learned.build("AdafacMLP", {}), learned.AdafacMLP())
    told = refused(UnknownName, learned.build, "AdafacMPL", {})
    assert told.startswith("No architecture is called 'AdafacMPL'. Did you mean AdafacMLP")
    told = refused(UnknownName, learned.build, "AdafacMLP", {"hiden_size": 3})
    assert told.startswith("No setting of AdafacMLP is called 'hiden_size'. Did you mean hidden_size")
    assert "harness must be one of" in refused(ConfigError, learned.build, "Celo2", {"harness": "muon"})


def test_a_learned_optimizer_takes_no_hyperparameters(saved):
    for name in (f"learned:{saved}", f"clip:learned:{saved}"):
        told = refused(ConfigError, optimizers.get, name, learning_rate=1.0)
        assert told.startswith(f"learned:{saved} takes no hyperparameter learning_rate: ")
    wrapped = optimizers.get(f"clip:learned:{saved}", max_value=0.5)
    assert float(wrapped.hyperparameters["max_value"]) == 0.5


def test_published_arrays_that_do_not_fit(optimizer):
    arrays = {path: optimizer.hyperparameters[name] for name, path in optimizer.published_names.items()}
    same(learned.AdafacMLP(**SMALL).from_published(arrays), optimizer)
    told = refused(ConfigError, optimizer.from_published, {})
    assert told.startswith("The weights have no array 'momentum_decays', which AdafacMLP needs")
    without = {path: array for path, array in arrays.items() if path != "nn/~/b1"}
    assert "no array 'nn/~/b1'" in refused(ConfigError, optimizer.from_published, without)
    wider = learned.AdafacMLP(hidden_size=3, hidden_layers=1)
    told = refused(ConfigError, wider.from_published, arrays)
    assert "'nn/~/w0' has shape (39, 2)" in told and "'hidden_size': 3" in told and "(39, 3)" in told


class OwnArchitecture(learned.LearnableSGD):
    """Published nowhere."""

    @property
    def published_names(self):
        return {}


def test_what_was_never_published_reads_no_weights():
    told = refused(ConfigError, OwnArchitecture().from_published, {"log_lr": 0.0})
    assert told == "OwnArchitecture has no published form to read weights from."


def test_a_file_that_cannot_be_written(optimizer, tmp_path):
    (tmp_path / "file").write_text("")
    refused(OuteroptError, optimizer.save, tmp_path / "file" / "mine.safetensors")
    assert "JSON" in refused(OuteroptError, optimizer.save, tmp_path / "mine", {"when": object()})
    assert not (tmp_path / "mine").exists()
