"""The numbers behind figures and report sections of restarts: panels, final losses, limits of axes."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from outeropt.bench.pictures import series
from outeropt.bench.pictures.contestants import Contestant
from outeropt.store.archive import Archive


# What `tasks.wrappers.train_valid` puts behind a name; said again, because a report needs no JAX.
TRAIN_VALID = "_TrainValid"

# With fewer seeds than these, a set of one setting is a run repeated, and no study of its restarts.
MIN_RESTARTS = 8

Panels = dict[str, list[tuple[Contestant, Archive]]]


def has_restarts(archive: Archive) -> bool:
    """Whether it is one setting with many seeds."""
    return len(archive.settings) == 1 and len(archive.seeds) >= MIN_RESTARTS


def with_restarts(archives: Sequence[Archive]) -> list[Archive]:
    """The archives that are of one setting and many seeds."""
    return [archive for archive in archives if has_restarts(archive)]


def base_task(task: str) -> str:
    """The task whose test rows these are: its name without `_TrainValid`."""
    return task.removesuffix(TRAIN_VALID)


def panels(everyone: Sequence[Contestant], curve: str) -> Panels:
    """Who has restarts and the curve, by task; methods that also train on validation rows share one."""
    found: Panels = {}
    for entry in everyone:
        for task, archive in entry.archives.items():
            if has_restarts(archive) and curve in archive.curves:
                found.setdefault(base_task(task), []).append((entry, archive))
    return dict(sorted(found.items()))


def final(archive: Archive, curve: str) -> Float[np.ndarray, " runs"]:
    """Last values of the restarts; infinite where one diverged."""
    values = archive.final(curve)[0].astype(np.float64)
    return np.where(np.isfinite(values), values, np.inf)


def distribution(
    values: Float[np.ndarray, " runs"], low: float, top: float
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """The empirical distribution as stairs from `low` to `top`: places, and the share at or below each."""
    kept = np.sort(values[values <= top])
    share = np.arange(len(kept) + 1) / len(values)
    return np.concatenate([[low], kept, [top]]), np.append(share, share[-1])


def limits(
    archives: Sequence[Archive], curve: str, values: Float[np.ndarray, " n"] | None = None
) -> tuple[float, float]:
    """Smallest and largest loss to show: a little beyond the values, of those that did no harm.

    Args:
      archives: all of a panel.
      curve: the loss.
      values: what is drawn; by default the final losses.
    """
    values = np.concatenate([final(archive, curve) for archive in archives]) if values is None else values
    top = series.ceiling(archives, curve)
    kept = values[np.isfinite(values) & ~(values > top)]
    if not kept.size:
        return (0.0, 1.0) if np.isnan(top) else (0.0, top)
    low, high = float(kept.min()), float(kept.max())
    if low > 0:
        return low / 1.1, high * 1.1
    margin = 0.05 * (high - low or 1.0)
    return low - margin, high + margin
