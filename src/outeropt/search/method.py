"""The protocol of all methods of search."""

import abc

from outeropt.search.found import Found
from outeropt.search.problem import Problem


class Method(abc.ABC):
    """How to spend trials on a problem.

    Subclasses are frozen dataclasses of their options.
    """

    @property
    @abc.abstractmethod
    def note(self) -> str:
        """What it does, in half a sentence."""

    @abc.abstractmethod
    def work(self, problem: Problem) -> float:
        """How much it will train at the most, in settings of full length.

        Raises:
          ConfigError: the problem does not suit the method.
        """

    @abc.abstractmethod
    def run(self, problem: Problem) -> Found:
        """Searches."""
