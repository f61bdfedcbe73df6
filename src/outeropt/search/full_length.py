"""Searches that train every setting to the end: a sampler asks, a sweep answers."""

import dataclasses

import numpy as np

from outeropt.errors import ConfigError
from outeropt.search.found import Found, Incumbent, Tried, joined, scores
from outeropt.search.method import Method
from outeropt.search.problem import Problem
from outeropt.search.samplers.base import Sampler


@dataclasses.dataclass(frozen=True)
class FullLength(Method):
    """Asks a sampler for points, trains them as lanes of one compiled program, and tells it their scores.

    Every trial is one of `outeropt.sweep`: a store keeps it by its content, and it never runs twice. Samplers
    are seeded, so a search that was interrupted asks the same questions again and takes the answers of
    finished trials from the store.

    Attributes:
      sampler: chooses the points.
      about: what it does, in half a sentence.
    """

    sampler: type[Sampler]
    about: str

    @property
    def note(self) -> str:
        return self.about

    def work(self, problem: Problem) -> float:
        few = self.sampler.fewest
        if len(problem.domain) < few:
            raise ConfigError(
                f"{self.sampler.__name__} needs at least {few} hyperparameters, and only "
                f"{', '.join(problem.domain.spaces)} is tuned; name more, or take another method."
            )
        self._sampler(problem)  # a package that is missing shows here
        return problem.trials

    def _sampler(self, problem: Problem) -> Sampler:
        options = {"trials": problem.trials, "parallel": problem.parallel, "seed": problem.seed}
        return self.sampler(problem.domain, **options)

    def run(self, problem: Problem) -> Found:
        sampler = self._sampler(problem)
        if problem.warm:
            sampler.tell([point for point, _ in problem.warm], [score for _, score in problem.warm])
        archives, points = [], []
        while len(points) < problem.trials:
            asked = sampler.ask(min(problem.parallel, problem.trials - len(points)))
            if not asked:
                break
            archives.append(problem.swept(asked))
            sampler.tell(asked, scores(archives[-1]))
            points += asked
            problem.keep(joined(archives))
        whole = joined(archives)
        final = scores(whole)
        best = int(np.argmin(final))
        spent = whole.seconds.sum(axis=1, dtype=np.float64)
        ends = np.cumsum([len(archive.settings) for archive in archives])
        return Found(
            optimizer=problem.optimizer.replace(points[best]),
            setting=points[best],
            score=float(final[best]),
            trials=tuple(
                Tried(setting, float(score), whole.num_steps, float(seconds))
                for setting, score, seconds in zip(whole.settings, final, spent)
            ),
            incumbent=Incumbent(
                ends.astype(np.float64),
                np.cumsum(spent)[ends - 1],
                np.minimum.accumulate(final)[ends - 1],
            ),
            archives=(whole,),
        )
