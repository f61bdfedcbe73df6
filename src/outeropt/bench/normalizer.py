"""Loss normalizers: how many steps a frozen, tuned reference needs to reach a loss."""

import dataclasses
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Float32, Int

from outeropt.bench.smoothing import centred
from outeropt.errors import OuteroptError, StoreError, unknown_name


if TYPE_CHECKING:
    from outeropt.store.archive import Archive

Loss = Float[np.ndarray, "*shape"] | float
Smooth = Callable[[np.ndarray, np.ndarray], np.ndarray]
Grid = Callable[[np.ndarray], np.ndarray]

FORMAT = 1


def linear_grid(steps: Int[np.ndarray, " T"], count: int = 512) -> Float[np.ndarray, " count"]:
    """`count` evenly spaced steps from the first to the last."""
    return np.linspace(steps[0], steps[-1], count)


def log_grid(steps: Int[np.ndarray, " T"], count: int = 1024) -> Float[np.ndarray, " K"]:
    """Step 0 and `count` log-spaced steps, so that short runs are resolved as finely as long ones."""
    positive = steps[steps > 0]
    return np.concatenate([[0.0], np.geomspace(positive[0], positive[-1], count)])


@dataclasses.dataclass(frozen=True)
class Envelope:
    """The best loss that any setting of the reference has reached by each step.

    Attributes:
      steps: grid of inner steps, ascending, shape (K,).
      losses: best loss so far at these steps, never rising, shape (K,).
    """

    steps: Float[np.ndarray, " K"]
    losses: Float[np.ndarray, " K"]

    @property
    def horizon(self) -> float:
        """Steps of the reference's runs: the largest answer that `steps_to` can give."""
        return float(self.steps[-1])

    def steps_to(self, loss: Loss) -> Float32[np.ndarray, "*shape"]:
        """Steps that the reference needs to reach `loss`; see `Normalizer.__call__`."""
        # float32 throughout, and the last of equal losses wins: where the envelope is flat the answer is the
        # first step that reached it, and shipped normalizers give the same bits on every machine.
        at = np.asarray(loss, np.float32)
        xp = self.losses[::-1].astype(np.float32)
        fp = self.steps[::-1].astype(np.float32)
        i = np.clip(np.searchsorted(xp, at, side="right"), 1, len(xp) - 1)
        rise, width = fp[i] - fp[i - 1], xp[i] - xp[i - 1]
        flat = np.abs(width) <= np.spacing(np.finfo(np.float32).eps)
        with np.errstate(invalid="ignore", over="ignore"):
            inside = fp[i - 1] + (at - xp[i - 1]) / np.where(flat, np.float32(1), width) * rise
        steps = np.where(flat, fp[i - 1], inside)
        steps = np.where(at < xp[0], fp[0], steps)
        steps = np.where(at > xp[-1], fp[-1], steps)
        return np.where(np.isfinite(steps), steps, np.float32(0))


def envelope(
    curves: Sequence[Float[np.ndarray, "settings T"]], steps: Int[np.ndarray, " T"], grid: Grid = log_grid
) -> Envelope:
    """Lower envelope of curves, interpolated onto a grid, then its running minimum.

    Args:
      curves: smoothed curves of each set; NaN where a setting has diverged, which the minimum ignores.
      steps: the evaluated steps that all curves share.
      grid: makes the envelope's steps from the evaluated ones.
    """
    lowest = np.fmin.reduce(np.concatenate(curves, axis=0), axis=0)
    points = grid(steps)
    return Envelope(points, np.minimum.accumulate(np.interp(points, steps, lowest)))


@dataclasses.dataclass(frozen=True)
class Normalizer:
    """Turns losses into steps of a frozen, tuned reference, task by task.

    The reference is frozen: what it says about one optimizer never depends on which others are compared.

    Attributes:
      version: its name.
      envelopes: by (task, curve).
      made_from: names of the hyperparameter sets that it was computed from.
    """

    version: str
    envelopes: Mapping[tuple[str, str], Envelope]
    made_from: tuple[str, ...] = ()

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks that it knows, sorted."""
        return tuple(sorted({task for task, _ in self.envelopes}))

    def knows(self, task: str, curve: str = "train/loss") -> bool:
        """Whether there is a reference for this curve of this task."""
        return (task, curve) in self.envelopes

    def envelope(self, task: str, curve: str = "train/loss") -> Envelope:
        """The reference's envelope.

        Raises:
          UnknownName: the normalizer has no such task, or no such curve of it.
        """
        if self.knows(task, curve):
            return self.envelopes[task, curve]
        curves = [name for known, name in self.envelopes if known == task]
        if curves:
            raise unknown_name(f"curve of {task} in normalizer {self.version}", curve, curves)
        raise unknown_name(f"task in normalizer {self.version}", task, self.tasks)

    def __call__(self, task: str, loss: Loss, curve: str = "train/loss") -> Float32[np.ndarray, "*shape"]:
        """Steps that the reference needs to reach `loss`, linear between the envelope's points.

        Below the lowest loss of the reference the answer is its horizon, above its first loss 0: see
        `clipped`. NaN gives 0.

        Raises:
          UnknownName: no such task or curve.
        """
        return self.envelope(task, curve).steps_to(loss)

    def clipped(self, task: str, loss: Loss, curve: str = "train/loss") -> Int[np.ndarray, "*shape"]:
        """Where `__call__` had to clip: 1 below the reference's lowest loss (it would need more than its
        horizon), -1 above its first loss or NaN (it starts better than that), 0 elsewhere.
        """
        losses = self.envelope(task, curve).losses.astype(np.float32)
        at = np.asarray(loss, np.float32)
        return np.where(at < losses[-1], 1, np.where(at <= losses[0], 0, -1))

    def loss_at(self, task: str, step: float, curve: str = "train/loss") -> float:
        """The loss that the reference has reached by `step`."""
        found = self.envelope(task, curve)
        return float(np.interp(step, found.steps, found.losses))

    @classmethod
    def from_archives(
        cls,
        archives: Sequence["Archive"],
        version: str = "mine",
        curves: Sequence[str] = ("train/loss", "valid/loss", "test/loss"),
        smooth: Smooth = centred,
        grid: Grid = log_grid,
    ) -> "Normalizer":
        """Computes a normalizer from the archives of the reference's sets.

        For each task and curve: mean over seeds, smoothed, minimum over all settings of all sets,
        interpolated, running minimum. The published normalizers of learned_optimization are
        `smooth=lambda values, steps: ema(values)`, `grid=linear_grid`.

        Args:
          archives: reference runs; those of one task must share their evaluated steps.
          version: a name for it.
          curves: curves to cover; one that a task's archives lack is left out.
          smooth: smooths seed means (settings, T) at steps (T,).
          grid: makes the envelope's steps from the evaluated ones.

        Raises:
          OuteroptError: no archives, archives of one task with different steps, or of several episodes.
        """
        if not archives:
            raise OuteroptError("A normalizer needs at least one archive of its reference.")
        envelopes = {}
        for task in sorted({archive.task for archive in archives}):
            group = [archive for archive in archives if archive.task == task]
            steps = group[0].steps
            for archive in group:
                if archive.episodes > 1:
                    raise OuteroptError(
                        f"{archive.set} on {task} has {archive.episodes} episodes; a normalizer is made from "
                        "single ones."
                    )
                if not np.array_equal(archive.steps, steps):
                    raise OuteroptError(
                        f"{group[0].set} and {archive.set} were evaluated at different steps of {task}; "
                        "a normalizer needs sets of one length and cadence."
                    )
            for curve in curves:
                found = [archive.curves[curve] for archive in group if curve in archive.curves]
                means = [smooth(values.mean(axis=1), steps) for values in found]
                if means and np.isfinite(np.concatenate(means)[:, 0]).any():
                    envelopes[task, curve] = envelope(means, steps, grid)
        return cls(version, envelopes, tuple(sorted({archive.set for archive in archives})))

    def save(self, path: str | Path) -> None:
        """Writes a `.npz` without pickled objects."""
        names = sorted(self.envelopes)
        header = {
            "format": FORMAT,
            "version": self.version,
            "made_from": list(self.made_from),
            "envelopes": [list(name) for name in names],
        }
        arrays = {}
        for i, name in enumerate(names):
            arrays[f"{i}/steps"] = self.envelopes[name].steps
            arrays[f"{i}/losses"] = self.envelopes[name].losses
        with open(path, "wb") as file:
            np.savez_compressed(file, header=np.array(json.dumps(header)), **arrays)

    @classmethod
    def load(cls, path: str | Path) -> "Normalizer":
        """Reads what `save` wrote.

        Raises:
          StoreError: the file is missing, or is not a normalizer of this format.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                header = json.loads(str(file["header"]))
                if header["format"] != FORMAT:
                    raise StoreError(
                        f"{path} is a normalizer of format {header['format']}; this reads {FORMAT}."
                    )
                envelopes = {
                    (task, curve): Envelope(file[f"{i}/steps"], file[f"{i}/losses"])
                    for i, (task, curve) in enumerate(header["envelopes"])
                }
        except FileNotFoundError:
            raise StoreError(f"There is no normalizer at {path}.") from None
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise StoreError(f"{path} is not a normalizer file: {error}.") from None
        return cls(header["version"], envelopes, tuple(header["made_from"]))

    @classmethod
    def shipped(cls, version: str | None = None) -> "Normalizer":
        """A normalizer that comes with the package; the latest if no version is named.

        Raises:
          UnknownName: no such version.
        """
        folder = resources.files("outeropt.bench") / "normalizers"
        found = {}
        if folder.is_dir():
            found = {
                item.name.removesuffix(".npz"): item
                for item in folder.iterdir()
                if item.name.endswith(".npz")
            }
        name = version or max(found, default="", key=lambda item: (len(item), item))
        if name not in found:
            raise unknown_name("shipped normalizer", name, found, see=", ".join(found))
        with resources.as_file(found[name]) as path:
            return cls.load(path)
