"""What many restarts of a training that tunes itself come to."""

import dataclasses

import numpy as np
from jaxtyping import Float

from outeropt.store import Archive


@dataclasses.dataclass(frozen=True)
class Restarts:
    """Final values of one setting over its seeds, of which each is a restart from other hyperparameters.

    Attributes:
      count: restarts.
      diverged: share of them that diverged or ended with a loss that is not finite, in [0, 1].
      median: of the final loss, where a diverged restart counts as infinite.
      quartiles: of the same.
      mean: of the restarts that did not diverge; NaN if there are none.
      error: standard error of the mean; NaN for fewer than two.
      best: the lowest final loss; infinite if all diverged.
      ended: first quartile, median and third quartile of where each hyperparameter ended, by name, of the
        restarts that did not diverge.
    """

    count: int
    diverged: float
    median: float
    quartiles: tuple[float, float]
    mean: float
    error: float
    best: float
    ended: dict[str, tuple[float, float, float]]


def restarts(archive: Archive, curve: str = "test/loss", prefix: str = "optimizer/") -> Restarts:
    """Sums up the first setting of an archive.

    Args:
      archive: curves of restarts, one for each seed.
      curve: the loss.
      prefix: curves whose name begins so are hyperparameters.
    """
    final = archive.final(curve)[0].astype(np.float64)
    good = np.isfinite(final) & (archive.diverged_at[0] < 0)
    kept = final[good]
    low, median, high = _quartiles(np.where(good, final, np.inf))
    return Restarts(
        count=len(final),
        diverged=1 - len(kept) / len(final),
        median=median,
        quartiles=(low, high),
        mean=float(kept.mean()) if len(kept) else np.nan,
        error=float(kept.std(ddof=1) / np.sqrt(len(kept))) if len(kept) > 1 else np.nan,
        best=float(kept.min()) if len(kept) else np.inf,
        ended={
            name.removeprefix(prefix): _quartiles(archive.final(name)[0][good].astype(np.float64))
            for name in archive.curves
            if name.startswith(prefix) and len(kept)
        },
    )


def _quartiles(values: Float[np.ndarray, " n"]) -> tuple[float, float, float]:
    # Infinite values cannot be interpolated between.
    return tuple(float(np.quantile(values, q, method="inverted_cdf")) for q in (0.25, 0.5, 0.75))  # pyright: ignore
