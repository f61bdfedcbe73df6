"""Archives in memory, as files to publish, and in the layout of learned_optimization."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from outeropt.errors import StoreError
from outeropt.store import Archive, Store, export, files, load, load_folder, load_published


GOLDEN = pathlib.Path(__file__).parent / "golden" / "baselines"
ARCHIVE = GOLDEN / "archive" / "FakeTask_A" / "AdamLR_1000_R5.npz"


def make_archive(task="ImageMLP_Digits", set="adam grid", ids=True, settings=None, **changes):
    """Three settings, two seeds, four evaluations; one trial diverged."""
    rng = np.random.default_rng(len(task))
    settings = settings or tuple({"learning_rate": rate, "b1": 0.9} for rate in (1e-3, 1 / 3, float("inf")))
    shape = (len(settings), 2)
    curves = {
        name: rng.normal(size=(*shape, 4)).astype(np.float32) for name in ("train/loss", "test/accuracy")
    }
    curves["train/loss"][-1, 1, 2:] = np.nan
    diverged_at = np.full(shape, -1, np.int32)
    diverged_at[-1, 1] = 7
    fields = {
        "task": task,
        "set": set,
        "optimizer": "adam",
        "settings": settings,
        "seeds": (0, 3),
        "steps": np.array([0, 5, 10, 12], np.int32),
        "curves": curves,
        "diverged_at": diverged_at,
        "seconds": rng.uniform(size=shape).astype(np.float32),
        "eval_every": 5,
        "eval_batches": 2,
        "last_eval_batches": 9,
        "details": {"machine": "ünïcode", "versions": {"jax": "1.2"}},
        "ids": np.array([[f"{task}{set}{i}{j}" for j in range(2)] for i in range(shape[0])]) if ids else None,
    }
    return Archive(**(fields | changes))


def assert_same(a: Archive, b: Archive):
    for name in ("task", "set", "optimizer", "settings", "seeds", "details"):
        assert getattr(a, name) == getattr(b, name), name
    for name in ("eval_every", "eval_batches", "last_eval_batches"):
        assert getattr(a, name) == getattr(b, name), name
    assert list(a.curves) == list(b.curves)
    arrays = [(a.curves[name], b.curves[name]) for name in a.curves]
    arrays += [(getattr(a, name), getattr(b, name)) for name in ("steps", "diverged_at", "seconds")]
    for one, other in arrays:
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    assert (a.ids is None) == (b.ids is None)
    if a.ids is not None:
        np.testing.assert_array_equal(a.ids, b.ids)


@pytest.mark.parametrize("ending", ["npz", "parquet"])
@pytest.mark.parametrize("ids", [True, False])
def test_export_and_load_give_the_same_archive(tmp_path, ending, ids):
    pytest.importorskip("pyarrow")
    archive = make_archive(ids=ids)
    export([archive], tmp_path)
    assert_same(archive, load(tmp_path / "ImageMLP_Digits" / f"adam grid.{ending}"))


def test_export_names_files_by_task_and_set_and_leaves_nothing_else(tmp_path):
    pytest.importorskip("pyarrow")
    odd = make_archive(task="../my_task.py:task", set="a/b")
    written = export([make_archive(), odd], tmp_path / "new" / "folder")
    assert all(path.is_relative_to(tmp_path / "new" / "folder") for path in written)
    found = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert sorted(written) == found
    assert len(found) == 4
    loaded = {archive.task: archive for archive in load_folder(tmp_path)}
    assert_same(odd, loaded[odd.task])


def test_npz_holds_plain_arrays_with_named_axes(tmp_path):
    archive = make_archive()
    export([archive], tmp_path)
    with np.load(tmp_path / archive.task / "adam grid.npz", allow_pickle=False) as file:
        assert list(file["axes"]) == ["setting", "seed", "step"]
        assert json.loads(str(file["settings"][1])) == {"learning_rate": 1 / 3, "b1": 0.9}
        np.testing.assert_array_equal(file["curves/train/loss"], archive.curves["train/loss"])


def test_duckdb_reads_the_parquet_as_it_is(tmp_path):
    duckdb = pytest.importorskip("duckdb")
    pytest.importorskip("pyarrow")
    archive = make_archive()
    export([archive], tmp_path)
    with duckdb.connect() as sql:
        rows = sql.execute(
            f"""SELECT "set", learning_rate, avg("train/loss") FROM '{tmp_path}/*/*.parquet'
                WHERE step = 12 AND seed = 0 AND learning_rate < 1 GROUP BY ALL ORDER BY learning_rate"""
        ).fetchall()
    assert [row[:2] for row in rows] == [("adam grid", 1e-3), ("adam grid", 1 / 3)]
    np.testing.assert_allclose([row[2] for row in rows], archive.curves["train/loss"][:2, 0, -1], rtol=1e-6)


def test_parquet_keeps_a_hyperparameter_called_like_a_column(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    export([make_archive(settings=({"seed": 0.5}, {"other": 1.0}))], tmp_path)
    table = pq.read_table(tmp_path / "ImageMLP_Digits" / "adam grid.parquet")
    assert table.column("hyperparameter.seed").to_pylist()[0] == 0.5
    assert table.column("other").to_pylist()[0] is None
    assert set(table.column("seed").to_pylist()) == {0, 3}


def test_without_pyarrow_the_npz_is_written_and_a_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(files.importlib.util, "find_spec", lambda name: None)
    with pytest.warns(UserWarning, match=r"pip install outeropt\[query\]"):
        written = export([make_archive()], tmp_path)
    assert [path.suffix for path in written] == [".npz"]
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(StoreError, match=r"pip install outeropt\[query\]"):
        load(tmp_path / "a.parquet")


def test_an_export_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match=r"cannot be written.*give another folder"):
        export([make_archive()], tmp_path / "file")


@pytest.mark.parametrize("ending", ["npz", "parquet"])
def test_files_that_are_no_archives_are_refused(tmp_path, ending):
    pytest.importorskip("pyarrow")
    path = tmp_path / f"a.{ending}"
    with pytest.raises(StoreError, match="There is no archive at"):
        load(path)
    path.write_bytes(b"something else")
    with pytest.raises(StoreError, match="damaged or was not written by outeropt"):
        load(path)
    export([make_archive()], tmp_path)
    whole = (tmp_path / "ImageMLP_Digits" / f"adam grid.{ending}").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StoreError, match="damaged or was not written by outeropt"):
        load(path)


def test_other_endings_formats_and_empty_folders_are_refused(tmp_path, monkeypatch):
    with pytest.raises(StoreError, match=r"archives end in \.npz or \.parquet"):
        load(tmp_path / "a.csv")
    with pytest.raises(StoreError, match="There are no archives"):
        load_folder(tmp_path)
    with pytest.raises(StoreError, match="load_published"):
        load(ARCHIVE)
    monkeypatch.setattr(files, "VERSION", 99)
    export([make_archive()], tmp_path)
    monkeypatch.undo()
    with pytest.raises(StoreError, match="upgrade outeropt"):
        load_folder(tmp_path)


def test_select_keeps_settings_and_ids():
    archive = make_archive()
    part = archive.select([2, 0])
    assert part.settings == (archive.settings[2], archive.settings[0])
    np.testing.assert_array_equal(part.ids, archive.ids[[2, 0]])
    np.testing.assert_array_equal(part.curves["train/loss"], archive.curves["train/loss"][[2, 0]])


def test_published_archive_gives_the_expected_curves():
    (archive,) = load_published(GOLDEN / "archive")
    with np.load(GOLDEN / "archive_expected.npz", allow_pickle=False) as expected:
        np.testing.assert_array_equal(archive.curves["train/loss"], expected["expected/eval/train/loss"])
        np.testing.assert_array_equal(archive.steps, expected["expected/eval/xs"][0, 0])
        means = archive.final("train/loss").astype(np.float64).mean(axis=1)
        np.testing.assert_allclose(means, expected["expected/mean_last_train_loss"], rtol=1e-6)
        assert archive.details["optimizer_names"] == expected["expected/opt_name"][:, 0].tolist()
        assert archive.num_steps == expected["expected/num_steps"][0, 0]
    assert (archive.task, archive.set, archive.optimizer) == ("FakeTask_A", "AdamLR_1000_R5", "Adam")
    assert (archive.eval_every, archive.eval_batches, archive.last_eval_batches) == (10, 5, 10)
    rates = [setting["learning_rate"] for setting in archive.settings]
    assert rates == [float(f"{a}e{b}") for b in range(-7, 0) for a in (1, 3)] + [1.0]
    assert {"train/loss", "valid/loss", "test/loss", "inner/loss"} < archive.curves.keys()


def test_published_inner_loss_is_the_mean_between_evaluations():
    (archive,) = load_published(ARCHIVE)
    with np.load(ARCHIVE, allow_pickle=False) as file:
        every_step = file["train/loss"].astype(np.float64)
        np.testing.assert_array_equal(archive.curves["valid/loss"], file["eval/outer_valid/loss"])
    inner = archive.curves["inner/loss"]
    assert np.isnan(inner[:, :, 0]).all()
    np.testing.assert_allclose(inner[3, 2, 7], every_step[3, 2, 60:70].mean(), rtol=1e-6)
    np.testing.assert_allclose(inner[:, :, -1], every_step[:, :, 990:1000].mean(axis=-1), rtol=1e-6)


def test_published_single_run():
    (archive,) = load_published(next((GOLDEN / "raw").glob("*.curves")))
    assert (archive.task, archive.set, archive.optimizer) == ("QuadraticTask", "Adam_200_R1", "Adam")
    adam = {"learning_rate": 0.01, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "eps_root": 1e-8}
    assert archive.settings == (adam,)
    assert archive.curves["train/loss"].shape == (1, 1, 21)
    np.testing.assert_allclose(archive.curves["train/loss"][0, 0, :2], [11.69025, 10.22262], rtol=1e-6)


def test_published_runs_become_settings_and_seeds(tmp_path):
    with np.load(next((GOLDEN / "raw").glob("*.curves"))) as file:
        run = dict(file)
    for rate, count in ((0.1, 2), (0.01, 3)):
        folder = tmp_path / "QuadraticTask" / f"Adam_lr{rate}" / "200_10_5_10"
        folder.mkdir(parents=True)
        for i in range(count):
            changed = run | {
                "opt_name": np.array(f"Adam_lr{rate}_b10.9"),
                "eval/train/loss": run["eval/train/loss"] + np.float32(i),
            }
            with (folder / f"2026010{i}_000000_aaaaaaaa-b.curves").open("wb") as out:
                np.savez(out, **changed)
    (archive,) = load_published(tmp_path)
    assert [setting["learning_rate"] for setting in archive.settings] == [0.01, 0.1]
    assert archive.seeds == (0, 1, 2)
    first = run["eval/train/loss"][0]
    np.testing.assert_allclose(
        archive.curves["train/loss"][:, :, 0], [[first, first + 1, first + 2], [first, first + 1, np.nan]]
    )
    with Store(tmp_path / "runs.db") as store:
        assert store.add_archive(archive) == 5
        assert_same(archive.select([0]), store.archives()[0])


def test_published_divergence_is_found(tmp_path):
    with np.load(ARCHIVE) as file:
        arrays = dict(file)
    arrays["eval/train/loss"][14, 1, 40] = np.inf
    arrays["eval/test/loss"][14, 1, 30:] = np.nan
    np.savez(tmp_path / "AdamLR.npz", **arrays)
    (archive,) = load_published(tmp_path)
    assert archive.diverged_at[14, 1] == 300
    assert (np.delete(archive.diverged_at.ravel(), 14 * 5 + 1) == -1).all()


def test_published_pickles_are_never_opened(tmp_path):
    with np.load(ARCHIVE) as file:
        arrays = dict(file)
    arrays["opt_name"] = arrays["opt_name"].astype(object)
    path = tmp_path / "AdamLR.npz"
    np.savez(path, **arrays)
    with pytest.raises(StoreError, match="never read here") as caught:
        load_published(path)
    # The advice in the message works.
    advice = str(caught.value).split("numpy: ")[1]
    code = f"import numpy as np; path = {str(path)!r}; {advice}"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert load_published(path)[0].settings[0] == {"learning_rate": 1e-7}


def test_published_reader_refuses_other_files(tmp_path):
    with pytest.raises(StoreError, match="There are no archives"):
        load_published(tmp_path)
    with pytest.raises(StoreError, match="There is no archive, run or folder"):
        load_published(tmp_path / "none.npz")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(StoreError, match="no file of learned_optimization"):
        load_published(tmp_path / "other.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(StoreError, match="damaged or no npz file"):
        load_published(tmp_path / "text.npz")
    with np.load(ARCHIVE) as file:
        arrays = dict(file)
    arrays["eval/xs"][3, 3] += 1
    np.savez(tmp_path / "uneven.npz", **arrays)
    with pytest.raises(StoreError, match="evaluated at different steps"):
        load_published(tmp_path / "uneven.npz")


def test_the_room_loads_no_jax():
    code = "import sys, outeropt.store; assert 'jax' not in sys.modules and 'pyarrow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
