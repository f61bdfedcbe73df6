"""The stored curves of one hyperparameter set on one task, in memory."""

import dataclasses
from typing import Any

import numpy as np

from outeropt.errors import OuteroptError


@dataclasses.dataclass(frozen=True)
class Archive:
    """Curves with named axes: setting, seed, step. A diverged trial's curve is NaN from the divergence on.

    Attributes:
      task: name of the task.
      set: name of the hyperparameter set.
      optimizer: name of the optimizer.
      settings: hyperparameter values by name, one dictionary per setting.
      seeds: one integer per seed.
      steps: inner steps at which curves were evaluated, shape (T,), first 0, last `num_steps`.
      curves: arrays (settings, seeds, T) float32 by name: `train/loss`, `valid/loss`, `test/loss` and metrics
        such as `test/accuracy` (evaluated on fresh batches of each split), and `inner/loss` (mean training
        loss over the inner steps since the previous evaluation; NaN at step 0).
      diverged_at: first inner step with a non-finite loss, shape (settings, seeds) int32; -1 if there was
        none.
      seconds: wall-clock seconds of the trial's share of its compiled program, shape (settings, seeds)
        float32.
      eval_every: inner steps between evaluations.
      eval_batches: batches per evaluation.
      last_eval_batches: batches of the evaluation after the last step.
      details: anything else worth keeping, JSON values only: `episodes`; `gradients` of a step, and `state`,
        the bytes of optimizer state for each byte of parameters.
      ids: content hashes of the trials, strings of shape (settings, seeds), `""` for a trial that is missing
        (its curves are NaN); None where trials have no hash, as in archives of other programs.

    Examples:
      >>> import outeropt
      >>> task, sgd = outeropt.tasks.get("Quadratic_10"), outeropt.optimizers.get("sgd")
      >>> settings = outeropt.grid(sgd, learning_rate=[1e-3, 1e-2])
      >>> archive = outeropt.sweep(task, settings, seeds=2, steps=20, eval_every=10)
      >>> archive.final("test/loss").shape  # settings, seeds
      (2, 2)
      >>> archive.best("valid/loss"), archive.diverged_at.tolist()
      (1, [[-1, -1], [-1, -1]])
    """

    task: str
    set: str
    optimizer: str
    settings: tuple[dict[str, float], ...]
    seeds: tuple[int, ...]
    steps: np.ndarray
    curves: dict[str, np.ndarray]
    diverged_at: np.ndarray
    seconds: np.ndarray
    eval_every: int
    eval_batches: int
    last_eval_batches: int
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    ids: np.ndarray | None = None

    def __post_init__(self):
        shape = (len(self.settings), len(self.seeds), len(self.steps))
        for name, curve in self.curves.items():
            if curve.shape != shape:
                raise OuteroptError(
                    f"Curve {name!r} has shape {curve.shape}; (settings, seeds, steps) is {shape}."
                )

    @property
    def num_steps(self) -> int:
        """Inner steps of every trial."""
        return int(self.steps[-1])

    @property
    def episodes(self) -> int:
        """How many times every trial trained from fresh initial values, one after the other."""
        return int(self.details.get("episodes", 1))

    def ends(self, curve: str = "train/loss") -> np.ndarray:
        """Values at the end of each episode, shape (settings, seeds, episodes); NaN where one diverged."""
        length = self.num_steps // self.episodes
        places = np.searchsorted(self.steps, length * np.arange(1, self.episodes + 1))
        return self.curves[curve][:, :, places]

    def final(self, curve: str = "train/loss") -> np.ndarray:
        """Last values, shape (settings, seeds); NaN where a trial diverged."""
        return self.curves[curve][:, :, -1]

    def best(self, curve: str = "train/loss") -> int:
        """Index of the setting whose final value, averaged over seeds, is lowest (highest for an accuracy).

        A setting with a diverged seed loses against every setting without one.
        """
        final = self.final(curve).astype(np.float64)
        cost = -final if curve.endswith("accuracy") else final
        means = np.where(np.isfinite(cost).all(axis=1), cost.mean(axis=1), np.inf)
        if np.isinf(means).all():  # every setting has a diverged seed: fewest divergences win
            return int(np.argmax(np.isfinite(cost).sum(axis=1)))
        return int(np.argmin(means))

    def select(self, settings: list[int]) -> "Archive":
        """The same archive with only some of its settings, by index."""
        return dataclasses.replace(
            self,
            settings=tuple(self.settings[i] for i in settings),
            curves={name: curve[settings] for name, curve in self.curves.items()},
            diverged_at=self.diverged_at[settings],
            seconds=self.seconds[settings],
            ids=None if self.ids is None else self.ids[settings],
        )
