"""Archives with curves that look like training, made in a moment, for the tests of figures and report."""

import zlib

import numpy as np

from outeropt.store.archive import Archive


LOSSES = ("train/loss", "valid/loss", "test/loss", "inner/loss")


def archive(
    task: str = "task",
    optimizer: str = "adam",
    set: str | None = None,
    *,
    settings: int = 5,
    seeds: int = 3,
    points: int = 21,
    steps: int = 200,
    accuracy: bool = False,
    diverged: bool = True,
) -> Archive:
    """Power-law curves; the largest learning rate diverges in all seeds, the one before in the last seed."""
    rng = np.random.default_rng(zlib.crc32(f"{task} {optimizer} {set}".encode()))
    rates = np.geomspace(1e-4, 1e-1, settings) if settings > 1 else np.array([1e-3])
    grid = np.unique(np.linspace(0, steps, points).round().astype(np.int32))
    shape = (settings, seeds, len(grid))
    speed = np.exp(-np.abs(np.log10(rates) + 2.2))[:, None, None] * rng.uniform(0.5, 1.5)
    loss = 3.0 * (1 + grid[None, None, :] * speed) ** -0.6 * np.exp(0.03 * rng.normal(size=shape))
    lost = np.full((settings, seeds), -1, np.int32)
    if diverged and settings > 2:
        half = len(grid) // 2
        for setting, seed in [(-1, slice(None)), (-2, -1)]:
            loss[setting, seed, half:] = np.nan
            lost[setting, seed] = grid[half]
    curves = {name: loss.astype(np.float32) for name in LOSSES}
    curves["inner/loss"] = curves["inner/loss"].copy()
    curves["inner/loss"][..., 0] = np.nan
    if accuracy:
        curves["test/accuracy"] = (1 - loss / 4).astype(np.float32)
    return Archive(
        task=task,
        set=set or f"{optimizer}-lr",
        optimizer=optimizer,
        settings=tuple({"learning_rate": float(rate), "b1": 0.9} for rate in rates),
        seeds=tuple(range(seeds)),
        steps=grid,
        curves=curves,
        diverged_at=lost,
        seconds=np.full((settings, seeds), 0.5, np.float32),
        eval_every=10,
        eval_batches=2,
        last_eval_batches=4,
        details={"machine": "a test", "jax": "0.0"},
    )


def archives(optimizers: int = 3, tasks: int = 2, **options) -> list[Archive]:
    """Tuned and as-is archives of every optimizer on every task."""
    pairs = [(f"task_{t}", f"opt_{i}") for t in range(tasks) for i in range(optimizers)]
    tuned = [archive(task, name, **options) for task, name in pairs]
    return tuned + [
        archive(task, name, f"{name}-default", **{**options, "settings": 1}) for task, name in pairs
    ]
