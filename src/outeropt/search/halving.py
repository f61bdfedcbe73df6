"""Searches that stop the worse settings early: successive halving and Hyperband."""

import dataclasses
import math

import numpy as np

from outeropt.errors import ConfigError
from outeropt.search.found import Found, Incumbent, Tried
from outeropt.search.method import Method
from outeropt.search.problem import Problem
from outeropt.search.rungs import Rungs
from outeropt.search.samplers.base import Sampler
from outeropt.search.samplers.random import Random
from outeropt.search.starts import starts


@dataclasses.dataclass(frozen=True)
class Halving(Method):
    """Successive halving: trains all settings for a while, and goes on with the best share of them.

    Jamieson and Talwalkar 2016, "Non-stochastic Best Arm Identification and Hyperparameter Optimization",
    arXiv 1502.07943. All settings are trained to the first rung; the best `1 / eta` by validation loss go on
    from their states to the next, `eta` times as many steps; and so on up to trials of full length. Learning
    rate schedules span the full length from the start, so whoever reaches it is an ordinary trial.

    Attributes:
      eta: settings are divided, and steps multiplied, by this from rung to rung; at least 2.
      rungs: how many, the full length among them; at least 2. Fewer if the evaluations are too far apart.
      sampler: chooses the settings, all before the first is trained.
    """

    eta: int = 4
    rungs: int = 3
    sampler: type[Sampler] = Random

    @property
    def note(self) -> str:
        return f"stops all but the best 1/{self.eta} of the settings early, again and again"

    def work(self, problem: Problem) -> float:
        return _work(problem, self, [_bracket(problem, self, 0, problem.trials)])

    def run(self, problem: Problem) -> Found:
        return _run(problem, self, [problem.trials])


@dataclasses.dataclass(frozen=True)
class Hyperband(Method):
    """Successive halving in brackets that begin with fewer settings on later rungs.

    Li et al. 2018, "Hyperband: A Novel Bandit-Based Approach to Hyperparameter Optimization", arXiv
    1603.06560. The first bracket stops as early as `Halving`, the last not at all, which insures against
    settings that are slow at first and good in the end. Brackets share the trials in the paper's proportions.

    Attributes:
      eta: as in `Halving`.
      rungs: of the first bracket, and the number of brackets.
      sampler: chooses the settings.
    """

    eta: int = 4
    rungs: int = 3
    sampler: type[Sampler] = Random

    @property
    def note(self) -> str:
        return "successive halving at several degrees of haste"

    def work(self, problem: Problem) -> float:
        sizes = self._sizes(problem)
        brackets = [_bracket(problem, self, first, size) for first, size in enumerate(sizes)]
        return _work(problem, self, brackets)

    def run(self, problem: Problem) -> Found:
        return _run(problem, self, self._sizes(problem))

    def _sizes(self, problem: Problem) -> list[int]:
        """Settings that each bracket begins with."""
        count = len(_windows(problem, self))
        # Bracket s of the paper begins with (s_max + 1) / (s + 1) * eta^s settings.
        shares = np.array([self.eta**s / (s + 1) for s in reversed(range(count))])
        ends = np.round(np.cumsum(shares) / shares.sum() * problem.trials).astype(int)
        sizes = np.diff(ends, prepend=0).tolist()
        if min(sizes) < 1:
            raise ConfigError(
                f"{problem.trials} trial(s) are too few for the {count} brackets of Hyperband; give more, "
                "or take halving."
            )
        return sizes


def _windows(problem: Problem, method: Halving | Hyperband) -> list[int]:
    """The windows (between two evaluations) after which each rung ends, rising."""
    if method.eta < 2 or method.rungs < 2:
        raise ConfigError(
            f"eta = {method.eta} and rungs = {method.rungs} stop nobody early; both are at least 2."
        )
    total = problem.protocol.steps // problem.protocol.eval_every
    if total < method.eta:
        raise ConfigError(
            f"Nobody can be stopped early with {total} evaluation(s) after the first; "
            f"evaluate at least {method.eta} times (eval_every = {problem.protocol.eval_every})."
        )
    found = {max(1, round(total / method.eta**k)) for k in range(method.rungs)}
    return sorted(found)


def _bracket(problem: Problem, method: Halving | Hyperband, first: int, size: int) -> list[tuple[int, int]]:
    """Number and settings of each rung of a bracket that begins with `size` settings on rung `first`."""
    rungs = range(first, len(_windows(problem, method)))
    return [(rung, max(1, math.floor(size / method.eta**k))) for k, rung in enumerate(rungs)]


def _work(problem: Problem, method: Halving | Hyperband, brackets: list[list[tuple[int, int]]]) -> float:
    windows = _windows(problem, method)
    done = 0
    for bracket in brackets:
        for k, (rung, count) in enumerate(bracket):
            done += count * (windows[rung] - (windows[rung - 1] if k else 0))
    return done / windows[-1]


def _run(problem: Problem, method: Halving | Hyperband, sizes: list[int]) -> Found:
    windows = _windows(problem, method)
    rungs = Rungs(problem, starts(problem, method.sampler), windows, method.eta)
    stopped = np.zeros(problem.trials, int)
    final = np.full(problem.trials, math.inf)
    spent = np.zeros(problem.trials)
    work, best = 0.0, math.inf
    rows: list[tuple[float, float, float]] = []
    begin = 0
    for first, size in enumerate(sizes):
        alive = np.arange(begin, begin + size)
        begin += size
        for k, (rung, count) in enumerate(_bracket(problem, method, first, size)):
            if k:
                # A stable sort, so that equal scores and divergence keep the order of the settings.
                alive, gone = np.split(alive[np.argsort(final[alive], kind="stable")], [count])
                alive = np.sort(alive)
                rungs.forget(gone.tolist())
            final[alive] = rungs.climb(alive.tolist(), rung, first)
            stopped[alive] = rung
            spent[alive] = rungs.archive(alive.tolist(), rung).seconds.sum(axis=1)
            work += len(alive) * (windows[rung] - (windows[rung - 1] if k else 0)) / windows[-1]
            # Scores of two rungs do not compare: what counts is the longest that anyone was trained.
            longest = stopped[:begin].max()
            best = final[:begin][stopped[:begin] == longest].min()
            rows.append((work, float(spent.sum()), float(best)))
        rungs.finish()
    last = len(windows) - 1
    archives = []
    for rung in range(last, -1, -1):
        if (at := np.flatnonzero(stopped == rung)).size:
            archives.append(rungs.archive(at.tolist(), rung))
    problem.keep(archives[0])
    described = [rungs.archive([i], int(stopped[i])).settings[0] for i in range(problem.trials)]
    full = np.flatnonzero(stopped == last)
    winner = int(full[np.argmin(final[full])])
    every = problem.protocol.eval_every
    return Found(
        optimizer=problem.optimizer.replace(rungs.points[winner]),
        setting=rungs.points[winner],
        score=float(final[winner]),
        trials=tuple(
            Tried(setting, float(score), windows[rung] * every, float(seconds))
            for setting, score, rung, seconds in zip(described, final, stopped, spent)
        ),
        incumbent=Incumbent(*np.array(rows).T),
        archives=tuple(archives),
    )
