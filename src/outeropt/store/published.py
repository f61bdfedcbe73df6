"""Reads the training curves that learned_optimization publishes, so that they stand beside our own.

Its archives are `<task>/<set>.npz` with arrays (settings, seeds, T); its single runs are
`<task>/<optimizer>/<steps>_<every>_<batches>_<last batches>/<time>.curves`, also in npz form. The keys of
both are those of its `baselines` package (google/learned_optimization, Apache-2.0).
"""

import dataclasses
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from outeropt.errors import StoreError
from outeropt.store import trial
from outeropt.store.archive import Archive
from outeropt.store.cadence import Cadence


Arrays = dict[str, np.ndarray]

_SPLITS = {"train": "train", "outer_valid": "valid", "test": "test"}
_METRICS = {"acc": "accuracy"}
_HYPERPARAMETERS = {"beta1": "b1", "beta2": "b2", "epsilon": "eps", "epsilon_root": "eps_root"}
_CADENCE = ("eval_every", "eval_batches", "last_eval_batches")
_NEEDED = ("eval/xs", "eval/train/loss", "opt_name", "task_name", *_CADENCE)
_NUMBER = r"[-+]?\d+\.?\d*(?:[eE][-+]?\d+)?"


def load_published(path: str | Path) -> list[Archive]:
    """Reads an archive (`.npz`), a single run (`.curves`), or every one of either below a folder.

    Single runs of one task, optimizer and cadence become one archive: a setting for each distinct set of
    hyperparameters, a seed for each run (numbered from 0 in the order of the file names; settings with fewer
    runs are padded with NaN). Seeds of the original carry no meaning.

    Names of curves become ours: `eval/outer_valid/loss` is `valid/loss`, and the loss at every inner step is
    averaged between evaluations into `inner/loss`. The numbers stay as they were published: a curve may hold
    infinities, or recover after them; `diverged_at` is the first evaluation with a loss that is not finite.
    Hyperparameters are read from the recorded configuration and the optimizer's name; a run's seconds are not
    recorded (NaN).

    Args:
      path: a file or folder.

    Returns:
      The archives, ordered by path, then those made of single runs by task and set.

    Raises:
      StoreError: nothing is there, or a file is damaged, holds pickled objects or has another layout.
    """
    path = Path(path)
    if path.is_dir():
        archives = [_archive(_read(file), file.stem) for file in sorted(path.rglob("*.npz"))]
        runs = [_read(file) for file in sorted(path.rglob("*.curves"))]
        if not archives and not runs:
            raise StoreError(f"There are no archives (.npz) or runs (.curves) below {path}.")
        return archives + _grouped(runs)
    if not path.is_file():
        raise StoreError(f"There is no archive, run or folder at {path}.")
    if path.suffix == ".curves":
        return _grouped([_read(path)])
    return [_archive(_read(path), path.stem)]


def _read(path: Path) -> Arrays:
    """All arrays of a file, never unpickling anything."""
    if not zipfile.is_zipfile(path):
        raise StoreError(f"{path} is damaged or no npz file; fetch it again.")
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            missing = [name for name in _NEEDED if name not in file.files]
            if missing:
                raise StoreError(f"{path} is no file of learned_optimization: it has no {missing[0]!r}.")
            return {name: file[name] for name in file.files}
    except ValueError as error:
        if "pickle" not in str(error):
            raise StoreError(f"{path} is damaged ({error}); fetch it again.") from error
        raise StoreError(
            f"{path} holds pickled Python objects, which can run code and are never read here. If you trust "
            "it, convert it once with numpy: a = dict(np.load(path, allow_pickle=True)); "
            "np.savez(path, **{k: v.astype(str) if v.dtype == object else v for k, v in a.items()})"
        ) from error
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise StoreError(f"{path} is damaged ({error}); fetch it again.") from error


def _archive(arrays: Arrays, set: str) -> Archive:
    """One archive from arrays whose leading axes are settings and seeds."""
    xs = arrays["eval/xs"]
    if xs.ndim != 3 or not (xs == xs[:1, :1]).all():
        raise StoreError(
            f"Trials of set {set} were evaluated at different steps; an archive needs equal ones."
        )
    names = [_text(row[0]) for row in arrays["opt_name"]]
    configs = arrays.get("gin_operative_config", np.full(xs.shape[:2], ""))
    found = [_hyperparameters(name, _text(row[0])) for name, row in zip(names, configs)]
    curves = _curves(arrays)
    evaluated = (f"{split}/loss" for split in _SPLITS.values())
    losses = np.stack([curves[name] for name in evaluated if name in curves])
    broken = ~np.isfinite(losses).all(axis=0)
    first = xs[0, 0][broken.argmax(axis=-1)]
    eval_every, eval_batches, last_eval_batches = (int(arrays[name].flat[0]) for name in _CADENCE)
    return Archive(
        task=_text(arrays["task_name"].flat[0]),
        set=set,
        optimizer=found[0][0],
        settings=tuple(setting for _, setting in found),
        seeds=tuple(range(xs.shape[1])),
        steps=xs[0, 0].astype(np.int32),
        curves=curves,
        diverged_at=np.where(broken.any(axis=-1), first, -1).astype(np.int32),
        seconds=np.full(xs.shape[:2], np.nan, np.float32),
        eval_every=eval_every,
        eval_batches=eval_batches,
        last_eval_batches=last_eval_batches,
        details={"source": "learned_optimization", "optimizer_names": names},
    )


def _curves(arrays: Arrays) -> Arrays:
    """The evaluated curves under our names, and the training loss averaged between evaluations."""
    xs = arrays["eval/xs"]
    curves = {}
    for name, values in arrays.items():
        match = re.fullmatch(r"eval/(train|outer_valid|test)/(.+)", name)
        if match and values.shape == xs.shape:
            metric = _METRICS.get(match[2], match[2])
            curves[f"{_SPLITS[match[1]]}/{metric}"] = values.astype(np.float32)
    steps = xs[0, 0]
    if {"train/loss", "train/xs"} <= arrays.keys() and np.array_equal(
        arrays["train/xs"][0, 0, : steps[-1]], np.arange(steps[-1])
    ):
        # The loss at x is that before step x, so an interval ends just before its evaluation.
        sums = np.add.reduceat(arrays["train/loss"][..., : steps[-1]].astype(np.float64), steps[:-1], axis=-1)
        inner = np.full(xs.shape, np.nan, np.float32)
        inner[..., 1:] = sums / np.diff(steps)
        curves["inner/loss"] = inner
    return curves


def _hyperparameters(name: str, config: str) -> tuple[str, dict[str, float]]:
    """An optimizer's short name and its numbers, from its long name and the recorded configuration.

    The configuration has lines such as `Adam.beta1 = 0.9`; the long name starts with the same word and holds
    the learning rate: `Adam_lr0.01_b10.9`.
    """
    short = re.split(rf"_lr(?={_NUMBER})", name)[0]
    setting = {}
    line = rf"^(?:[\w./]*[./])?(\w+)\.(\w+) = ({_NUMBER})$"
    for scope, key, value in re.findall(line, config, re.MULTILINE):
        if name.startswith(scope):
            short = scope
            setting[_HYPERPARAMETERS.get(key, key)] = float(value)
    rate = re.search(rf"_lr({_NUMBER})", name)
    if rate and "learning_rate" not in setting:
        setting = {"learning_rate": float(rate[1]), **setting}
    return short, setting


def _text(value: Any) -> str:
    return str(np.asarray(value)[()])


def _grouped(runs: list[Arrays]) -> list[Archive]:
    """Single runs as archives, by task, optimizer and cadence."""
    groups: dict[tuple[str, str, Cadence], dict[str, list[Archive]]] = {}
    for run in runs:
        one = _archive({name: values[None, None] for name, values in run.items()}, "run")
        # Optimizers whose hyperparameters are not told differ by their long names.
        setting = trial.setting_json(one.settings[0]) + one.details["optimizer_names"][0]
        groups.setdefault((one.task, one.optimizer, Cadence.of(one)), {}).setdefault(setting, []).append(one)
    merged = [_merged(list(group.values())) for group in groups.values()]
    return sorted(merged, key=lambda archive: (archive.task, archive.set))


def _merged(rows: list[list[Archive]]) -> Archive:
    """One archive from single runs, `rows[setting][seed]`; rows may differ in length."""
    rows = sorted(rows, key=lambda row: list(row[0].settings[0].values()))
    first = rows[0][0]
    shape = (len(rows), max(map(len, rows)))
    curves = {name: np.full((*shape, len(first.steps)), np.nan, np.float32) for name in first.curves}
    diverged_at = np.full(shape, -1, np.int32)
    ids = np.full(shape, "", "<U32")
    for i, row in enumerate(rows):
        for j, run in enumerate(row):
            for name in curves.keys() & run.curves.keys():
                curves[name][i, j] = run.curves[name][0, 0]
            diverged_at[i, j] = run.diverged_at[0, 0]
            ids[i, j] = next(trial.from_archive(run))[1].id
    return dataclasses.replace(
        first,
        set=f"{first.optimizer}_{first.num_steps}_R{shape[1]}",
        settings=tuple(row[0].settings[0] for row in rows),
        seeds=tuple(range(shape[1])),
        curves=curves,
        diverged_at=diverged_at,
        seconds=np.full(shape, np.nan, np.float32),
        details={**first.details, "optimizer_names": [row[0].details["optimizer_names"][0] for row in rows]},
        ids=ids,
    )
