"""The SQLite store: exact, idempotent, safe against kills, full disks and other writers."""

import dataclasses
import math
import os
import pathlib
import signal
import sqlite3
import subprocess
import sys
import threading

import numpy as np
import pytest

from outeropt.errors import StoreError
from outeropt.store import Store, Trial, connection


STEPS = np.array([0, 10, 20, 25], np.int32)


def make_trial(i=0, **changes):
    rng = np.random.default_rng(i)
    fields = {
        "id": f"id{i}",
        "task": "ImageMLP_Digits",
        "optimizer": "adam",
        "setting": {"learning_rate": 10.0 ** -(i // 2), "b1": 0.9},
        "seed": i % 2,
        "steps": STEPS,
        "curves": {name: rng.normal(size=4).astype(np.float32) for name in ("train/loss", "test/loss")},
        "eval_every": 10,
        "eval_batches": 5,
        "last_eval_batches": 7,
        "diverged_at": -1,
        "seconds": i / 3,
        "details": {"machine": "here"},
    }
    return Trial(**(fields | changes))


def assert_same(a: Trial, b: Trial):
    for name in ("id", "task", "optimizer", "seed", "eval_every", "eval_batches", "last_eval_batches"):
        assert getattr(a, name) == getattr(b, name)
    assert (a.diverged_at, a.details) == (b.diverged_at, b.details)
    np.testing.assert_equal(a.setting, b.setting)
    np.testing.assert_equal(a.seconds, b.seconds)
    np.testing.assert_array_equal(a.steps, b.steps)
    assert list(a.curves) == list(b.curves)
    for name, curve in a.curves.items():
        assert np.asarray(curve).tobytes() == np.asarray(b.curves[name]).tobytes()


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "runs.db") as opened:
        yield opened


def test_trials_come_back_exactly(store):
    odd = make_trial(
        1,
        setting={"growth_rate": math.inf, "low": -math.inf, "none": math.nan, "third": 1 / 3, "count": 3},
        curves={"train/loss": np.array([1e-45, np.nan, np.inf, -0.0], np.float32)},
        seconds=math.nan,
        diverged_at=12,
        details={"ü": [1, None, "x"]},
    )
    assert store.add([make_trial(0), odd]) == 2
    found = store.get(["id1", "id0", "unknown"])
    assert set(found) == {"id0", "id1"}
    assert_same(found["id0"], make_trial(0))
    assert_same(found["id1"], odd)


def test_adding_again_changes_nothing(store):
    store.add([make_trial(0), make_trial(1)], set="grid")
    before = store.get(["id0"])["id0"]
    other = make_trial(0, seconds=99.0)
    assert store.add([other, make_trial(2)], set="grid") == 1
    assert_same(store.get(["id0"])["id0"], before)
    assert store.finished(["id0", "id2", "id7"]) == {"id0", "id2"}
    assert store.status()[0].finished == 3


def test_many_ids_at_once(store):
    ids = [f"id{i}" for i in range(40_000)]
    store.add([make_trial(3)])
    assert store.finished(ids) == {"id3"}


def test_a_set_becomes_an_archive(store):
    store.add([make_trial(i) for i in (3, 2, 1, 0)], set="grid")
    (archive,) = store.archives()
    assert (archive.task, archive.set, archive.optimizer) == ("ImageMLP_Digits", "grid", "adam")
    assert archive.settings == ({"learning_rate": 0.1, "b1": 0.9}, {"learning_rate": 1.0, "b1": 0.9})
    assert archive.seeds == (0, 1)
    assert (archive.eval_every, archive.eval_batches, archive.last_eval_batches) == (10, 5, 7)
    assert archive.details == {"machine": "here"}
    assert archive.ids.tolist() == [["id2", "id3"], ["id0", "id1"]]
    for (i, j), name in np.ndenumerate(archive.ids):
        original = make_trial(int(name.removeprefix("id")))
        np.testing.assert_array_equal(archive.curves["test/loss"][i, j], original.curves["test/loss"])
        assert archive.seconds[i, j] == np.float32(original.seconds)


def test_archives_of_one_task_or_set(store):
    store.add([make_trial(0), make_trial(1, task="B")], set="one")
    store.add([make_trial(0)], set="two")
    assert [(a.task, a.set) for a in store.archives()] == [
        ("B", "one"),
        ("ImageMLP_Digits", "one"),
        ("ImageMLP_Digits", "two"),
    ]
    assert [a.set for a in store.archives(task="B")] == ["one"]
    assert [a.task for a in store.archives(set="two")] == ["ImageMLP_Digits"]
    assert store.archives(task="C") == []
    assert store.tasks() == ["B", "ImageMLP_Digits"]
    assert store.sets() == ["one", "two"]
    assert store.sets("B") == ["one"]


def declare(store, settings=3, seeds=(0, 1), ids=None, steps=STEPS):
    rows = [[ids(i, j) if ids else f"id{2 * i + j}" for j in seeds] for i in range(settings)]
    values = [make_trial(2 * i).setting for i in range(settings)]
    store.declare("grid", "ImageMLP_Digits", "adam", values, seeds, rows, steps, 10, 5, 7)


def test_status_and_unfinished_sets(store):
    declare(store)
    (status,) = store.status()
    assert (status.expected, status.finished, status.diverged) == (6, 0, 0)
    assert store.archives() == []
    store.add([make_trial(i) for i in range(4)] + [make_trial(5, diverged_at=3)])
    (status,) = store.status()
    assert (status.expected, status.finished, status.diverged) == (6, 5, 1)
    (dropped,) = store.archives()
    assert len(dropped.settings) == 2
    (whole,) = store.archives(missing="nan")
    assert whole.ids.tolist() == [["id0", "id1"], ["id2", "id3"], ["", "id5"]]
    assert np.isnan(whole.curves["train/loss"][2, 0]).all()
    assert np.isnan(whole.seconds[2, 0])
    assert not np.isnan(whole.curves["train/loss"][2, 1]).any()
    assert whole.diverged_at.tolist() == [[-1, -1], [-1, -1], [-1, 3]]


def test_a_set_declared_again_grows_or_is_replaced(store):
    declare(store, settings=2)
    declare(store, settings=2, seeds=(5,))
    declare(store, settings=3)
    assert store.status()[0].expected == 2 * 2 + 2 + 2  # two more seeds, then one more setting
    declare(store, settings=3, ids=lambda i, j: f"new{i}{j}")
    assert store.status()[0].expected == 6
    declare(store, settings=1, ids=lambda i, j: f"new{i}{j}")
    assert store.status()[0].expected == 2
    declare(store, settings=1, seeds=(7,), steps=[0, 10])
    assert store.status()[0].expected == 1
    store.add([make_trial(0)])
    assert store.archives(missing="nan")[0].ids.tolist() == [[""]]


def test_one_set_holds_one_optimizer(store):
    with pytest.raises(StoreError, match="several optimizers or cadences"):
        store.add([make_trial(0), make_trial(1, optimizer="sgd")], set="grid")
    assert store.tasks() == []  # nothing of the chunk was written


def test_trials_with_different_curves_share_an_archive(store):
    plain = make_trial(0)
    more = make_trial(1, curves=make_trial(1).curves | {"test/accuracy": np.ones(4, np.float32)})
    store.add([plain, more], set="grid")
    accuracy = store.archives()[0].curves["test/accuracy"]
    assert np.isnan(accuracy[0, 0]).all()
    assert (accuracy[0, 1] == 1).all()


@pytest.mark.parametrize("ids", [True, False])
def test_archives_move_between_stores(store, tmp_path, ids):
    declare(store)
    store.add([make_trial(i) for i in range(5)])
    (archive,) = store.archives(missing="nan")
    if not ids:
        archive = dataclasses.replace(archive.select([0, 1]), ids=None)
    with Store(tmp_path / "other.db") as other:
        assert other.add_archive(archive) == (5 if ids else 4)
        assert other.add_archive(archive) == 0
        (back,) = other.archives(missing="nan")
    assert back.settings == archive.settings
    for name, curve in archive.curves.items():
        np.testing.assert_array_equal(back.curves[name], curve)
    np.testing.assert_array_equal(back.seconds, archive.seconds)
    if ids:
        np.testing.assert_array_equal(back.ids, archive.ids)


def test_plain_sql_reads_results(store):
    store.add([make_trial(i) for i in range(4)], set="grid")
    with sqlite3.connect(store.path) as sql:
        rows = sql.execute(
            """SELECT json_extract(setting, '$.learning_rate'), avg(json_extract(final, '$."train/loss"'))
               FROM results WHERE set_name = 'grid' GROUP BY setting_index ORDER BY setting_index"""
        ).fetchall()
    sql.close()
    want = np.mean([make_trial(i).curves["train/loss"][-1] for i in (0, 1)])
    assert rows[0][0] == 1.0
    np.testing.assert_allclose(rows[0][1], want, rtol=1e-6)


# Writers in processes of their own: chunk after chunk of four trials, its number printed once it is stored.
WRITER = """
import os, signal, sys
import numpy as np
from outeropt.store import Store, Trial, trial

path, first, last, dies = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
pack, calls = trial.pack, 0

def deadly(curves):
    global calls
    calls += 1
    if dies == "row" and calls == 4 * 3 + 3:  # in the fourth chunk, two rows written
        os.kill(os.getpid(), signal.SIGKILL)
    return pack(curves)

trial.pack = deadly
store = Store(path)
if dies == "commit":
    store._connection.set_trace_callback(
        lambda text: os.kill(os.getpid(), signal.SIGKILL) if text == "COMMIT" and calls == 4 * 4 else None
    )
curve = np.arange(5001, dtype=np.float32)
for chunk in range(first, last):
    store.add([
        Trial(f"{chunk}/{i}", "T", "adam", {"learning_rate": 0.1}, 4 * chunk + i, curve.astype(int),
              {"train/loss": curve + 4 * chunk + i}, 1, 1, 1)
        for i in range(4)
    ], set="grid")
    print(chunk, flush=True)
"""


def writer(path, first, last, dies="never"):
    command = [sys.executable, "-c", WRITER, str(path), str(first), str(last), dies]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def ids_of(chunks):
    return {f"{chunk}/{i}" for chunk in chunks for i in range(4)}


@pytest.mark.parametrize("dies", ["row", "commit", "outside"])
def test_kill_9_loses_nothing_that_was_stored(tmp_path, dies):
    path = tmp_path / "runs.db"
    process = writer(path, 0, 10_000, dies)
    if dies == "outside":
        printed = [int(process.stdout.readline()) for _ in range(5)]
        process.send_signal(signal.SIGKILL)
        printed += [int(line) for line in process.stdout]
    else:
        printed = [int(line) for line in process.stdout]
        assert printed == [0, 1, 2]
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    with Store(path) as store:
        store.check()
        stored = store.finished(ids_of(range(10_000)))
        assert stored >= ids_of(printed)
        assert len(stored) % 4 == 0  # no half-written chunk
        if dies != "outside":
            assert stored == ids_of(printed)
        (archive,) = store.archives()
        assert archive.ids.size == len(stored)
        np.testing.assert_array_equal(archive.curves["train/loss"][0, :, 0], archive.seeds)
    # Started again, it goes on where it was.
    again = writer(path, 0, len(stored) // 4 + 2)
    assert len(again.communicate()[0].split()) == len(stored) // 4 + 2
    assert again.returncode == 0
    with Store(path, "read") as store:
        assert store.finished(ids_of(range(10_000))) == ids_of(range(len(stored) // 4 + 2))


def test_two_processes_create_and_write_one_store(tmp_path):
    path = tmp_path / "deep" / "runs.db"
    writers = [writer(path, 0, 40), writer(path, 20, 60)]
    for process in writers:
        process.communicate()
        assert process.returncode == 0
    with Store(path, "read") as store:
        store.check()
        (status,) = store.status()
        assert (status.expected, status.finished) == (240, 240)
        (archive,) = store.archives()
        np.testing.assert_array_equal(archive.curves["train/loss"][0, :, 0], np.arange(240))


def test_processes_may_create_a_store_at_the_same_moment(tmp_path):
    code = (
        "import sys; from outeropt.store import Store; print(flush=True); input(); Store(sys.argv[1]).close()"
    )
    for name in ("a.db", "b.db", "c.db"):
        command = [sys.executable, "-c", code, str(tmp_path / name)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        processes = [subprocess.Popen(command, text=True, **pipes) for _ in range(3)]
        for process in processes:
            process.stdout.readline()
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
        for process in processes:
            _, errors = process.communicate()
            assert process.returncode == 0, errors
        with Store(tmp_path / name, "read") as store:
            store.check()


def test_threads_share_a_store(store):
    errors = []

    def work(start):
        try:
            for i in range(start, start + 40, 4):
                store.add([make_trial(j, setting={}, seed=j) for j in range(i, i + 4)], set="grid")
                assert store.finished([f"id{i}"])
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(20 * k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert store.archives()[0].seeds == tuple(range(100))


def test_a_full_disk_leaves_the_store_intact(store):
    store.add([make_trial(0), make_trial(1)], set="grid")
    (pages,) = store._connection.execute("PRAGMA page_count").fetchone()
    store._connection.execute(f"PRAGMA max_page_count = {pages + 2}")
    steps = np.arange(10_000)
    big = make_trial(4, steps=steps, curves={"train/loss": np.ones(10_000, np.float32)})
    with pytest.raises(StoreError, match=r"No room left on the disk of store .* run the same command again"):
        store.add([make_trial(3), big], set="grid")
    store.check()
    assert store.finished(["id0", "id1", "id3", "id4"]) == {"id0", "id1"}
    store._connection.execute("PRAGMA max_page_count = 100000")
    assert store.add([make_trial(3), big]) == 2


def test_reading_changes_nothing(tmp_path):
    path = tmp_path / "runs.db"
    with pytest.raises(StoreError, match="There is no store at"):
        Store(path, "read")
    assert not path.exists()
    with Store(path) as store:
        store.add([make_trial(0)], set="grid")
    before = path.read_bytes()
    with Store(path, "read") as store:
        assert len(store.archives()) == 1
        with pytest.raises(StoreError, match="read-only here"):
            store.add([make_trial(1)])
    assert path.read_bytes() == before
    path.write_bytes(b"")
    with pytest.raises(StoreError, match="is empty, not a store"):
        Store(path, "read")


def test_a_reader_sees_what_a_writer_has_stored(store):
    store.add([make_trial(0)], set="grid")
    with Store(store.path, "read") as reader:
        store.add([make_trial(1)], set="grid")
        assert reader.status()[0].finished == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_store_in_a_read_only_folder_can_be_read(tmp_path):
    with Store(tmp_path / "runs.db") as store:
        store.add([make_trial(0)], set="grid")
    os.chmod(tmp_path, 0o555)
    try:
        with Store(tmp_path / "runs.db", "read") as store:
            assert store.status()[0].finished == 1
        with pytest.raises(StoreError, match="write"):
            Store(tmp_path / "new.db")
    finally:
        os.chmod(tmp_path, 0o755)


@pytest.mark.skipif(not pathlib.Path("/proc/self").exists(), reason="needs a folder that nobody can write")
def test_a_store_where_nothing_can_be_created():
    for path in ("/proc/runs.db", "/proc/new/runs.db"):
        with pytest.raises(StoreError, match=r"cannot be opened.*can be written"):
            Store(path)


def test_files_that_are_no_stores_are_left_alone(tmp_path):
    text = tmp_path / "text.db"
    text.write_text("hello, " * 200)
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as sql:
        sql.execute("CREATE TABLE a (b)")
    sql.close()
    newer = tmp_path / "newer.db"
    Store(newer).close()
    with sqlite3.connect(newer) as sql:
        sql.execute(f"PRAGMA user_version = {connection.VERSION + 1}")
    sql.close()
    for path, message in (
        (text, "no SQLite file"),
        (other, "SQLite file of another program"),
        (newer, "upgrade outeropt"),
    ):
        before = path.read_bytes()
        for mode in ("write", "read"):
            with pytest.raises(StoreError, match=message):
                Store(path, mode)
        assert path.read_bytes() == before
    with pytest.raises(StoreError, match="it is a folder"):
        Store(tmp_path)


def test_damage_is_named(store, tmp_path):
    store.add([make_trial(i, details={"text": "x" * 500}) for i in range(300)], set="grid")
    store._connection.execute("UPDATE trials SET curves = x'00' WHERE id = 'id7'")
    with pytest.raises(StoreError, match="curves of trial id7 are damaged"):
        store.get(["id7"])
    with pytest.raises(StoreError, match="curves of trial id7 are damaged"):
        store.archives()
    store.close()
    data = bytearray(store.path.read_bytes())
    data[8 * 4096 : 40 * 4096] = b"\xff" * (32 * 4096)
    store.path.write_bytes(data)
    with Store(store.path) as broken:
        with pytest.raises(StoreError, match="is damaged"):
            broken.archives()
        with pytest.raises(StoreError, match="is damaged"):
            broken.check()


def test_a_closed_store_says_so(store):
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.finished(["id0"])


def test_wrong_values_are_refused_before_anything_is_written(store):
    with pytest.raises(StoreError, match=r"shape \(3,\); its steps have shape \(4,\)"):
        make_trial(0, curves={"train/loss": np.zeros(3, np.float32)})
    with pytest.raises(StoreError, match="Details must be JSON"):
        store.add([make_trial(0), make_trial(1, details={"x": object()})])
    assert store.finished(["id0"]) == set()
