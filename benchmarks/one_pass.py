"""One-pass tuning beyond the paper: other optimizers and tasks, against random search, and how safe it is.

    python benchmarks/one_pass.py                        # the tables of image, language and safety
    python benchmarks/one_pass.py --part shakespeare     # a task that takes longer
    python benchmarks/one_pass.py --part image --optimizer adamw

*Random starts*: runs of `OnePass` from random learning rates, log-uniform over six decades, against the same
optimizer at the same random learning rates as they are, of which a search of k trials takes the one with the
lowest validation loss. `k` is in trials: a one-pass run takes more time than a trial, and both are printed.
*Safety*: `OnePass(base)` with nothing set but the base, from seven learning rates, six decades apart.

The learned optimizers are `LearnableAdam`, whose leaf is the logarithm of a learning rate, and the weights
`small_fc`, whose updates are multiplied by a leaf of a wrapper that is defined below.
"""

import argparse
import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float

from outeropt import Optimizer, Space, Task, optimizers, sweep, tasks, use_all_cores
from outeropt.best_of import chances
from outeropt.learned.learnable import LearnableAdam
from outeropt.optimizers.schedules import number
from outeropt.optimizers.wrappers.base import Wrapper
from outeropt.selftuning import OnePass, RandomStart


RESTARTS, DRAWS, KS, RESAMPLES = 20, 60, (1, 3, 10, 30), 2000
RATES = tuple(10.0**power for power in range(-6, 1))


class Scaled(Wrapper):
    """Multiplies the inner optimizer's updates by `learning_rate`."""

    inner: Optimizer
    learning_rate: Float[Array, ""] = eqx.field(converter=number, default=1.0)

    own_spaces: ClassVar[dict[str, Space]] = {"learning_rate": Space.log(1e-4, 1e2)}

    def init(self, params: Any, **given: Any) -> Any:
        return self.inner.init(params, **given)

    def update(self, grads: Any, state: Any, params: Any, **context: Any) -> tuple[Any, Any]:
        updates, state = self.inner.update(grads, state, params, **context)
        return jax.tree.map(lambda u: self.learning_rate.astype(u.dtype) * u, updates), state

    def inner_state(self, state: Any) -> Any:
        return state


@dataclasses.dataclass(frozen=True)
class Contestant:
    """An optimizer, where its one tuned leaf is drawn, and how it is tuned.

    Attributes:
      base: makes the optimizer.
      leaf: what is drawn and tuned.
      draw: from where.
      settings: of `OnePass`, where a leaf needs more than its name.
    """

    base: Callable[[], Optimizer]
    leaf: str
    draw: Space
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)

    def plain(self) -> Optimizer:
        """As it is, from a random start."""
        return RandomStart(self.base(), {self.leaf: self.draw})

    def tuned(self) -> Optimizer:
        """One-pass, from the same random start."""
        return RandomStart(OnePass(self.base(), self.leaf, **self.settings), {self.leaf: self.draw})


def contestants() -> dict[str, Contestant]:
    """Optimizers of the first table by name."""
    rate = Space.log(1e-6, 1.0)
    # The leaf is a natural logarithm without a space: its coordinate is itself, and the meta step is scaled
    # to be as many decades as it is elsewhere.
    logarithm = {
        "coordinates": "plain",
        "meta": optimizers.get("adam", learning_rate=0.05 * math.log(10)),
    }
    return {
        "adamw": Contestant(lambda: optimizers.get("adamw"), "learning_rate", rate),
        "lion": Contestant(lambda: optimizers.get("lion"), "learning_rate", rate),
        "LearnableAdam": Contestant(
            LearnableAdam, "log_learning_rate", Space.linear(math.log(1e-6), 0.0), logarithm
        ),
        # Its own steps are a hundredth of what its network says: the same six decades.
        "small_fc, scaled": Contestant(
            lambda: Scaled(optimizers.get("learned:small_fc")), "learning_rate", Space.log(1e-4, 1e2)
        ),
    }


PARTS = {
    "image": ("ImageMLP_FashionMnist8_Relu32", 2000, ("adamw", "lion", "LearnableAdam", "small_fc, scaled")),
    "language": ("RNNLM_Markov16_GRU32_seq16", 2000, ("adamw", "lion", "LearnableAdam")),
    "shakespeare": ("TransformerLM_TinyShakespeare_1layer_32width", 500, ("adamw",)),
}
"""Task, steps and optimizers of each part of the first table."""


@dataclasses.dataclass(frozen=True)
class Ends:
    """How runs ended, one number a run.

    Attributes:
      valid: validation loss; infinite where a run diverged.
      test: test loss; the worst finite one where a run diverged.
      seconds: of one run, their mean.
      diverged: how many did.
    """

    valid: np.ndarray
    test: np.ndarray
    seconds: float
    diverged: int


def ends(task: Task, optimizer: Optimizer, seeds: Iterable[int], steps: int) -> Ends:
    """Trains seeds of one optimizer as lanes of one program."""
    archive = sweep(task, optimizer, seeds=seeds, steps=steps, eval_every=steps // 2, last_eval_batches=40)
    valid, test = (archive.final(f"{split}/loss")[0].astype(float) for split in ("valid", "test"))
    good = np.isfinite(valid) & np.isfinite(test)
    worst = test[good].max(initial=-np.inf)
    seconds = float(archive.seconds.mean())
    return Ends(np.where(good, valid, np.inf), np.where(good, test, worst), seconds, int((~good).sum()))


def best_of(found: Ends, rows: np.ndarray) -> np.ndarray:
    """Expected test loss of the trial with the lowest validation loss of k, for every k (rows, n).

    Args:
      found: trials of a random search.
      rows: indices of trials, (rows, n); each row is a search's trials.
    """
    order = np.argsort(found.valid[rows], axis=1, kind="stable")
    return np.take_along_axis(found.test[rows], order, axis=1) @ chances(rows.shape[1]).T


def matching(searches: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """The smallest number of trials whose expected loss is as low; one more than there are if none is."""
    reached = searches <= losses[:, None]
    return np.where(reached.any(axis=1), reached.argmax(axis=1) + 1, searches.shape[1] + 1)


def interval(values: np.ndarray) -> str:
    """The middle 95 % of resampled values."""
    low, high = np.quantile(values, [0.025, 0.975], method="nearest")
    return f"{low:.3g} to {high:.3g}"


def row(task: Task, name: str, steps: int) -> str:
    """One line of the first table."""
    contestant = contestants()[name]
    one = ends(task, contestant.tuned(), range(RESTARTS), steps)
    many = ends(task, contestant.plain(), range(DRAWS), steps)
    rng = np.random.default_rng(0)
    every = best_of(many, np.arange(DRAWS)[None])[0]
    searches = best_of(many, rng.integers(DRAWS, size=(RESAMPLES, DRAWS)))
    means = one.test[rng.integers(RESTARTS, size=(RESAMPLES, RESTARTS))].mean(axis=1)
    cells = [f"{one.test.mean():.3g} ({interval(means)})", f"{np.median(one.test):.3g}"]
    cells += [f"{every[k - 1]:.3g} ({interval(searches[:, k - 1])})" for k in KS]
    needed, spread = matching(every[None], one.test[None].mean(axis=1)), matching(searches, means)
    low, high = (int(k) for k in np.quantile(spread, [0.025, 0.975], method="nearest"))
    cells.append(f"{counted(int(needed[0]))} ({counted(low)} to {counted(high)})")
    cells.append(f"{needed[0] * many.seconds / one.seconds:.2g}" if needed[0] <= DRAWS else "")
    cells.append(f"{one.seconds:.2f} / {many.seconds:.2f}")
    cells.append(f"{one.diverged} of {RESTARTS} / {many.diverged} of {DRAWS}")
    return f"| {name} | {' | '.join(cells)} |"


def counted(k: int) -> str:
    """A number of trials; more than there are is said so."""
    return str(k) if k <= DRAWS else f"over {DRAWS}"


def starts(part: str, chosen: list[str] | None) -> None:
    """Prints one part of the first table."""
    task, steps, names = PARTS[part]
    best = " | ".join(f"random, best of {k}" for k in KS)
    print(f"\n{task}, {steps} steps\n")
    print(
        f"| optimizer | one-pass, mean | median | {best} | trials that match | their time / one-pass "
        "| seconds a run, one-pass / plain | diverged, one-pass / plain |"
    )
    print(f"|{'---|' * (len(KS) + 7)}")
    for name in names:
        if not chosen or name in chosen:
            print(row(tasks.get(task), name, steps), flush=True)


def safety(steps: int = 2000) -> None:
    """Prints the table of safety."""
    task = tasks.get("ImageMLP_FashionMnist8_Relu32")
    print(f"\n{task.name}, {steps} steps, 3 seeds\n")
    print(f"| optimizer | | {' | '.join(f'{rate:g}' for rate in RATES)} |")
    print(f"|{'---|' * (len(RATES) + 2)}")
    for name in ("sgd", "momentum", "adamw", "lion"):
        plain = [optimizers.get(name, learning_rate=rate) for rate in RATES]
        for kind, wrapped in (("one-pass", [OnePass(base) for base in plain]), ("as it is", plain)):
            found = sweep(task, wrapped, seeds=3, steps=steps, eval_every=steps // 2, last_eval_batches=40)
            test = found.final("test/loss")
            cells = [f"{loss:.3g}" if np.isfinite(loss) else "diverged" for loss in test.mean(axis=1)]
            if kind == "one-pass":
                times = found.curves["optimizer/rescued"][:, :, -1].mean(axis=1)
                cells = [f"{cell} [{n:.2g}]" if n else cell for cell, n in zip(cells, times)]
            print(f"| {name} | {kind} | {' | '.join(cells)} |", flush=True)
            if kind == "one-pass":
                last = np.exp(np.log(found.curves["optimizer/learning_rate"][:, :, -1]).mean(axis=1))
                print(
                    f"| {name} | its last rate | {' | '.join(f'{rate:.2g}' for rate in last)} |", flush=True
                )


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--part", choices=(*PARTS, "safety"), action="append", help="default: all but shakespeare"
    )
    parser.add_argument("--optimizer", choices=tuple(contestants()), action="append", help="of the starts")
    given = parser.parse_args()
    use_all_cores()
    for part in given.part or ("image", "language", "safety"):
        if part == "safety":
            safety()
        else:
            starts(part, given.optimizer)


if __name__ == "__main__":
    main()
