"""Wrong input: one clear line, exit status 2, and the store as it was."""

import dataclasses
import hashlib
import os
import shlex
import sqlite3
import subprocess
import sys

import numpy as np
import pytest

from data_fixtures import forget
from outeropt import Store
from outeropt.cli.main import main
from outeropt.store import connection


FILES = {
    "raises.py": "import outeropt\n\nraise RuntimeError('no luck\\nsecond line')\n",
    "broken.py": "def f(:\n",
    "lacks.py": "import outeropt\nwrong = 1\nother = outeropt.tasks.get('Quadratic_10')\n",
    "makes.py": "def task():\n    return [][1]\n",
    "vector.py": (
        "import jax.numpy as jnp\nimport outeropt\n"
        "task = outeropt.tasks.from_functions(\n"
        "    init=lambda key: {'w': jnp.ones(3)}, loss=lambda p: p['w'] ** 2, name='vector')\n"
    ),
    "text.py": (
        "import outeropt\n"
        "def loss(params):\n    return 0.0\n"
        "task = outeropt.tasks.from_functions(init=lambda key: {'w': 'one'}, loss=loss, name='text')\n"
    ),
    "typed.yaml": "task: Quadratic_10\nsteps: many\n",
    "key.yaml": "task: Quadratic_10\nstepz: 3\n",
    "list.yaml": "- 1\n- 2\n",
    "word.yaml": "steps\n",
    "broken.yaml": "a: [1\n",
    "fast.yaml": "hyperparameters: {learning_rate: fast}\n",
    "nested.yaml": "hyperparameters: {learning_rate: [1, 2]}\n",
    "flat.yaml": "hyperparameters: 0.1\n",
    "grid.yaml": "grid: learning_rate=0.1\n",
    "truth.yaml": "steps: true\n",
    "sets.py": "raise RuntimeError('no luck\\nsecond line')\n",
    "set.yaml": "optimizer: adam\ngrid: {learning_rate: [1e9]}\n",
    "plain": "a file, not a folder\n",
    "corrupt.db": "this is no database " * 500,
}


STORES = ("runs", "damaged", "cut", "other")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A store with some trials."""
    folder = tmp_path_factory.mktemp("original")
    words = "train --task Quadratic_10 --optimizer sgd --steps 4 --eval-every 2 --store"
    assert main([*words.split(), str(folder / "runs.db")]) == 0
    return (folder / "runs.db").read_bytes()


@pytest.fixture(autouse=True)
def folder(original, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs.db").write_bytes(original)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def content(path="runs.db"):
    """A hash of all that a store holds."""
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as sql:
        dump = "\n".join(sql.iterdump())
    sql.close()
    return hashlib.sha256(dump.encode()).hexdigest()


def files(folder):
    """Names in a folder, without the logs that SQLite keeps beside an open database."""
    logs = {f"{name}.db-{log}" for name in STORES for log in ("shm", "wal")}
    return {path.name for path in folder.iterdir()} - logs


@pytest.fixture
def refused(capsys, folder):
    """Runs a command that must fail as a user's mistake does, and gives its one line."""

    def go(words):
        before, names = content(), files(folder)
        capsys.readouterr()
        status = main(shlex.split(words) if isinstance(words, str) else words)
        told = capsys.readouterr()
        assert (status, told.out) == (2, "")
        assert told.err.startswith("outeropt: ") and told.err.endswith("\n") and told.err.count("\n") == 1
        assert content() == before
        assert files(folder) == names
        return told.err.removeprefix("outeropt: ").strip()

    return go


T = "train --task Quadratic_10 --steps 4"
A = f"{T} --store runs.db --optimizer adam"
S = "sweep --task Quadratic_10 --steps 4"
G = f"{S} --optimizer adam --grid"
GOES = "--grid, --sample and --optimizer.* go with --optimizer; a set has its own grid."


@pytest.mark.parametrize(
    ("words", "line"),
    [
        # names
        ("trian", "outeropt has no verb 'trian'; did you mean train or metatrain?"),
        ("zzz", "outeropt has no verb 'zzz'; verbs: leaderboard, list, describe, train, sweep,"),
        ("--frobnicate", "outeropt has no verb '--frobnicate'; verbs: leaderboard,"),
        ("train --task Quadratic_1O", "No task is called 'Quadratic_1O'. Did you mean Quadratic_10 or"),
        ("train --task zzz", "No task is called 'zzz'. All names: outeropt list tasks"),
        (f"{T} --optimizer adm", "No optimizer is called 'adm'. Did you mean adam or"),
        (f"{T} --optimizer clp:adam", "No wrapper is called 'clp'. Did you mean clip or"),
        (f"{T} --optimizer clip:adm", "No optimizer is called 'adm'. Did you mean adam or"),
        (
            f"{S} --set AdamLR_10000_R6",
            "No hyperparameter set is called 'AdamLR_10000_R6'. Did you mean AdamLR_1",
        ),
        (f"{S} --set adm-lr", "No hyperparameter set is called 'adm-lr'. Did you mean adam-lr or"),
        ("describe adamm", "No task, optimizer, set or dataset is called 'adamm'. Did you mean adam or"),
        ("data get fashion", "No dataset is called 'fashion'. Did you mean fashion_mnist?"),
        ("list tasks zzz*", "No tasks match 'zzz*'; outeropt list tasks shows all."),
        ("list taskz", "invalid choice 'taskz' for argument 'what'. Expected one of ('tasks', 'optimizers',"),
        ("data", "Missing from outeropt data: {get,list} get NAME ..., or list. See outeropt data --help"),
        ("data get", "Say which dataset to get: digits, mnist,"),
        # flags
        (f"{T} --optmizer adam", "Unrecognized options: --optmizer, adam. Did you mean --optimizer STR?"),
        (f"{T} extra", "Unrecognized options: extra. See outeropt train --help"),
        ("train", "Missing from outeropt train: --task STR A task's name (outeropt list tasks), or path"),
        (f"{T} --seed", "Missing value for argument '--seed'"),
        (
            "train --task Quadratic_10 --steps many",
            "--steps must be a whole number, not 'many'. See outeropt tr",
        ),
        ("train --task Quadratic_10 --steps 1.5", "--steps must be a whole number, not '1.5'"),
        (f"{T} --eval-every often", "--eval-every must be a whole number, not 'often'"),
        ("train --task Quadratic_10 --steps 0", "steps = 0 is not allowed; train for at least 1 step."),
        ("train --task Quadratic_10 --steps -5", "steps = -5 is not allowed"),
        (f"{T} --eval-every 3", "eval_every = 3 does not divide steps = 4; 2 would."),
        (f"{T} --eval-every 0", "eval_every = 0 does not divide steps = 4; 1 would."),
        (f"{T} --eval-batches 0", "eval_batches = 0 is not allowed; evaluate on at least 1 batch."),
        (f"{T} --last-eval-batches -1", "last_eval_batches = -1 is not allowed"),
        (f"{T} --seed -1", "--seed -1 is not allowed; give a number from 0 to 4294967295."),
        (f"{T} --seed 4294967296", "--seed 4294967296 is not allowed"),
        # hyperparameters
        (
            f"{A} --optimizer.learning-rat 0.1",
            "No hyperparameter is called 'learning_rat'. Did you mean learni",
        ),
        (
            f"{A} --optimizer.learning-rate 1e9",
            "learning_rate = 1e+09 is outside its space; allowed: 0 to 1000",
        ),
        (f"{A} --optimizer.learning-rate -1", "learning_rate = -1 is outside its space; allowed: 0 to 1000"),
        (f"{A} --optimizer.learning-rate nan", "learning_rate = nan is outside its space"),
        (f"{A} --optimizer.b1 1.5", "b1 = 1.5 is outside its space; allowed:"),
        (f"{A} --optimizer.learning-rate fast", "learning_rate of adam must be a number, not 'fast'."),
        (f"{A} --optimizer.learning-rate=[1,2]", "learning_rate of adam must be a number, not '[1,2]'."),
        (f"{A} --optimizer.learning-rate true", "learning_rate of adam must be a number, not True."),
        (f"{A} --optimizer.nesterov 3", "nesterov of adam must be true or false, not 3."),
        (
            f"{A} --optimizer.learning-rate",
            "--optimizer.learning-rate needs a value, as in --optimizer.learn",
        ),
        (
            "list tasks --optimizer.learning-rate 1",
            "outeropt list takes no --optimizer.* options; it has none.",
        ),
        (
            f"{T} --optimizer muon --optimizer.ns-steps 1.5",
            "ns_steps of muon must be a whole number, not 1.5.",
        ),
        # contradictions and counts of a sweep
        (f"{S}", "Give one of --set NAME, --sets NAME ..., and --optimizer NAME (with a grid)."),
        (
            f"{S} --set adam-lr --optimizer adam",
            "Give one of --set NAME, --sets NAME ..., and --optimizer NAME",
        ),
        (f"{S} --set adam-lr --grid b1=0.9", GOES),
        (f"{S} --set adam-lr --sample 0", GOES),
        (
            f"{S} --set adam-lr --optimizer.b1 1",
            GOES,
        ),
        (f"{G} b1=0.9 --sample 3", "--grid and --sample exclude each other; give one."),
        (f"{G} b1=0.9 --grid b1=0.8", "b1 has two grids, b1=0.9 and b1=0.8; give one."),
        (f"{G} b1=0.9 --optimizer.b1 0.8", "b1 has a grid and --optimizer.b1; give one of them."),
        (f"{S} --optimizer adam --sample 0", "--sample 0 is not allowed; give at least 1."),
        (
            f"{S} --optimizer sign_sgd --sample 2 --optimizer.learning-rate 0.1",
            "Nothing of sign_sgd is left to sample; it has no other spaces.",
        ),
        (f"{S} --optimizer adam --seeds 0", "--seeds 0 is not allowed; give at least 1."),
        (f"{S} --set adam-lr --seeds 0", "--seeds 0 is not allowed; give at least 1."),
        (f"{S} --optimizer adam --lanes -2", "--lanes -2 is not allowed; give at least 1."),
        ("sweep --task Quadratic_10 --set adam-lr --steps 0", "steps = 0 is not allowed"),
        (f"{S} --set adam-lr --eval-every 3", "eval_every = 3 does not divide steps = 4; 2 would."),
        # grids
        (f"{G} b1", "--grid b1 is not understood; write NAME=log:1e-5:1e-1:9 or NAME=0.1,0.3,1."),
        (f"{G} b1=", "Grid '' is not understood; write scale:low:high:count"),
        (f"{G} b1=log:1:2", "Grid 'log:1:2' is not understood"),
        (f"{G} b1=cubic:1:2:3", "Grid 'cubic:1:2:3' has the unknown scale 'cubic'; use linear, log, logit."),
        (f"{G} b1=log:0:1:3", "A log space must start above 0, not at 0."),
        (f"{G} b1=log:0.1:0.9:0", "A grid of 0 values is empty; give at least 1."),
        (f"{G} learning_rate=0.1,1e9", "learning_rate = 1e+09 is outside its space; allowed: 0 to 1000"),
        (f"{G} learning_rat=0.1", "No hyperparameter is called 'learning_rat'. Did you mean learning_rate?"),
        (f"{S} --set set.yaml", "learning_rate = 1e+09 is outside its space"),
        # files of configuration
        ("train -c", "-c needs a YAML file, as in outeropt train -c a.yaml b.yaml."),
        ("train -c --task x", "-c needs a YAML file"),
        (
            "train -c missing.yaml",
            "Configuration file missing.yaml cannot be read: No such file or directory.",
        ),
        ("train -c .", "Configuration file . cannot be read: Is a directory."),
        ("train -c typed.yaml", "steps in typed.yaml must be a whole number, not 'many'."),
        ("train -c truth.yaml", "steps in truth.yaml must be a whole number, not True."),
        ("train -c key.yaml", "Unknown key 'stepz' in key.yaml; did you mean steps or"),
        ("status -c key.yaml", "Unknown key 'task' in key.yaml; allowed: store."),
        ("train -c list.yaml", "Configuration file list.yaml must hold keys and values, not a list."),
        ("train -c word.yaml", "Configuration file word.yaml must hold keys and values, not a str."),
        ("train -c broken.yaml", "Configuration file broken.yaml is not YAML: while parsing a flow sequence"),
        (f"{A} -c fast.yaml", "learning_rate of adam must be a number, not 'fast'."),
        (
            f"{A} -c nested.yaml",
            "learning_rate of hyperparameters in nested.yaml must be a number, true or fa",
        ),
        (f"{A} -c flat.yaml", "hyperparameters in flat.yaml must be a mapping, not 0.1."),
        (f"{S} -c grid.yaml", "grid in grid.yaml must be a list, not 'learning_rate=0.1'."),
        (f"{S} --set missing.yaml", "Set file missing.yaml cannot be read"),
        (f"{S} --set sets.py:mine", "sets.py cannot be run: RuntimeError: no luck."),
        (f"{S} --set list.yaml", "Set file list.yaml must be a mapping"),
        # task files
        ("train --task raises.py:task", "Task file 'raises.py' raised RuntimeError: no luck (line 3)."),
        ("train --task broken.py:task", "Task file 'broken.py' raised SyntaxError: invalid syntax"),
        ("train --task lacks.py:task", "Task file 'lacks.py' has no attribute 'task'. Tasks in it: other."),
        ("train --task lacks.py:wrong", "Task file 'lacks.py': wrong is int 1, no task; make one with"),
        (
            "train --task makes.py:task",
            "Task file 'makes.py': task() raised IndexError: list index out of ra",
        ),
        ("train --task missing.py:task", "Task file 'missing.py' does not exist; give path/to/file.py:attr"),
        ("train --task lacks.py", "'lacks.py' names a file but no task in it; write lacks.py:attribute."),
        ("train --task text.py:task", "Task 'text': init "),
        ("describe vector.py:none", "Task file 'vector.py' has no attribute 'none'. Tasks in it: task."),
        *(
            (
                f"{verb} --task vector.py:task --steps 4 --optimizer adam --store runs.db",
                "Task 'vector': loss gave an array float32[3]; it must be a floating scalar; return its m",
            )
            for verb in ("train", "sweep")
        ),
        # stores and other files
        (f"{T} --store corrupt.db", "corrupt.db is not a store (no SQLite file); give another path, or"),
        *((f"{verb} corrupt.db", "corrupt.db is not a store") for verb in ("report", "export", "status")),
        *(
            (f"{verb} no.db", "There is no store at no.db; a sweep")
            for verb in ("report", "export", "status")
        ),
        (f"{T} --store .", "Store . cannot be opened: it is a folder"),
        (f"{T} --store plain/runs.db", "Store plain/runs.db cannot be opened: "),
        (f"{T} --log plain/log", "plain/log cannot be used: Not a directory"),
        ("export runs.db --out plain", "plain/Quadratic_10/sgd-train.npz cannot be written: "),
        (
            "export runs.db --sets zzz",
            "runs.db has nothing for tasks '*' and sets 'zzz'; it holds sgd-train on",
        ),
        (
            "report runs.db --curve zzz",
            "invalid choice 'zzz' for argument '--curve'. Expected one of ('train/",
        ),
        ("report runs.db --reference zzz", "No shipped normalizer is called 'zzz'."),
        ("leaderboard --suite zzz", "No suite is called 'zzz'."),
        ("leaderboard --optimizers adm", "Did you mean adam-default or"),
        ("report runs.db --reference no.npz", "There is no normalizer at no.npz."),
        ("load missing.npz --store new.db", "There is no archive at missing.npz."),
        ("load plain --store new.db", "plain is no archive file; archives end in .npz or .parquet."),
    ],
)
def test_a_mistake_is_told_in_one_line(words, line, refused):
    assert line in refused(words)


def test_a_file_that_is_no_text(refused, folder):
    (folder / "bytes.yaml").write_bytes(b"\xff\xfe\x00\x80")
    assert refused("train -c bytes.yaml").startswith("Configuration file bytes.yaml is not YAML: ")


def test_an_optimizer_that_cannot_train_the_task(refused):
    line = refused(f"{A} --optimizer galore --optimizer.rank 0")
    assert line.startswith("The optimizer cannot train Quadratic_10: ") or "rank" in line


def test_a_store_that_is_damaged_inside(refused, folder, original):
    whole = bytearray(original)
    size = int.from_bytes(whole[16:18], "big")
    whole[size:] = b"\x5a" * (len(whole) - size)
    (folder / "damaged.db").write_bytes(whole)
    for words in ("status damaged.db", f"{A} --store damaged.db", "export damaged.db"):
        assert "Store damaged.db is damaged" in refused(words)
    (folder / "cut.db").write_bytes(original[: 2 * size])
    assert "cut.db" in refused("status cut.db")


def test_a_store_of_another_program(refused, folder):
    with sqlite3.connect(folder / "other.db") as sql:
        sql.execute("CREATE TABLE things (x)")
    sql.close()
    for words in ("status other.db", f"{A} --store other.db"):
        assert "other.db is a SQLite file of another program, not a store" in refused(words)


def test_a_full_disk_while_trials_are_stored(refused, folder, monkeypatch):
    real = connection.connect

    def small(path, mode):
        sql = real(path, mode)
        (pages,) = sql.execute("PRAGMA page_count").fetchone()
        sql.execute(f"PRAGMA max_page_count = {pages}")
        return sql

    monkeypatch.setattr(connection, "connect", small)
    # A set that the store knows already, so that the trials themselves are what does not fit.
    line = refused("train --task Quadratic_10 --optimizer sgd --steps 400 --eval-every 1 --store runs.db")
    assert line.startswith("No room left on the disk of store runs.db; ")
    assert line.endswith("Free some space and run the same command again.")


def test_a_full_disk_while_files_are_exported(folder):
    with Store("runs.db") as store:
        (archive,) = store.archives()
        noise = np.random.default_rng(0).normal(size=(1, 1, 40_000)).astype(np.float32)
        steps = np.arange(40_000)
        big = dataclasses.replace(archive, set="big", steps=steps, curves={"noise": noise}, ids=None)
        store.add_archive(big)
    # As on a full disk: no file can grow beyond 60 kB (SQLite's lock file has 32 kB).
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)); "
    code = limit + "from outeropt.cli.main import main; raise SystemExit(main(['export', 'runs.db']))"
    before = content()
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == (
        "outeropt: archive/Quadratic_10/big.npz cannot be written: File too large; "
        "give another folder or free space.\n"
    )
    assert content() == before
    assert not [path for path in (folder / "archive").rglob("*") if path.is_file()]


def test_no_data(refused, folder, monkeypatch):
    (folder / "empty").mkdir()
    for name in ("OUTEROPT_DATA_DIR", "OUTEROPT_CACHE_DIR"):
        monkeypatch.setenv(name, str(folder / "empty"))
    monkeypatch.setenv("OUTEROPT_OFFLINE", "1")
    forget()
    for words in ("data get uci_naval", "sweep --task UCI_Naval --set adam-lr"):
        line = refused(words)
        assert line.startswith("Dataset 'uci_naval' needs ")
        assert str(folder / "empty") in line and "OUTEROPT_OFFLINE" in line
        assert line.endswith("outeropt data get uci_naval")


def test_the_process_says_the_same():
    words = [sys.executable, "-m", "outeropt.cli.main", "train", "--task", "Quadratic_1O"]
    ended = subprocess.run(
        words, capture_output=True, text=True, timeout=120, env={**os.environ, "COLUMNS": "40"}
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(
        "outeropt: No task is called 'Quadratic_1O'. Did you mean Quadratic_10 or "
    )
    assert ended.stderr.count("\n") == 1
