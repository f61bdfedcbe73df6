"""Smoothing of curves along their steps."""

import numpy as np
from jaxtyping import Float, Int


def ema(values: Float[np.ndarray, "*batch T"], decay: float = 0.95) -> Float[np.ndarray, "*batch T"]:
    """Exponential moving average along the last axis, `e_0 = v_0`, `e_t = decay e_{t-1} + (1 - decay) v_t`.

    A NaN spreads to everything after it, so a diverged curve stays diverged. Keeps the dtype of `values`.
    """
    out = np.array(values)
    for t in range(1, out.shape[-1]):
        out[..., t] = decay * out[..., t - 1] + (1 - decay) * out[..., t]
    return out


def ema_holding(values: Float[np.ndarray, "*batch T"], decay: float = 0.95) -> Float[np.ndarray, "*batch T"]:
    """As `ema`, but a NaN leaves the average where it stands: for drawing curves with gaps."""
    out = np.array(values)
    for t in range(1, out.shape[-1]):
        before, now = out[..., t - 1], out[..., t]
        mixed = np.where(np.isnan(before), now, decay * before + (1 - decay) * now)
        out[..., t] = np.where(np.isnan(now), before, mixed)
    return out


def centred(
    values: Float[np.ndarray, "*batch T"], steps: Int[np.ndarray, " T"], width: float = 0.1
) -> Float[np.ndarray, "*batch T"]:
    """Mean of the evaluations within `width * t` steps of each step t, on both sides alike.

    Unlike `ema` it does not lag behind a falling curve. Towards the end the window shrinks, so that it stays
    centred; a window with a value that is not finite gives NaN.

    Args:
      values: curves.
      steps: evaluated steps, ascending.
      width: half the window as a share of the step it is centred on, in [0, 1).
    """
    half = np.minimum(width * steps, steps[-1] - steps)
    low = np.searchsorted(steps, steps - half, side="left")
    high = np.searchsorted(steps, steps + half, side="right")
    finite = np.isfinite(values)

    def window_sums(x):
        sums = np.cumsum(np.concatenate([np.zeros_like(x[..., :1]), x], axis=-1), axis=-1)
        return sums[..., high] - sums[..., low]

    total = window_sums(np.where(finite, values, 0).astype(np.float64))
    gaps = window_sums((~finite).astype(np.int64))
    return np.where(gaps == 0, total / (high - low), np.nan)
