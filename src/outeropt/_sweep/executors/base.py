"""Where chunks run: the one boundary between a sweep and machines."""

import abc
import dataclasses
from collections.abc import Hashable, Sequence
from typing import Any

from outeropt._sweep.job import Job, Outcome
from outeropt._sweep.runner import Report


@dataclasses.dataclass(frozen=True)
class Site:
    """A device of a worker, as far as planning must know it.

    Attributes:
      platform: `"cpu"` or `"gpu"`.
    """

    platform: str = "cpu"


class Executor(abc.ABC):
    """Runs chunks of lanes. The driver plans them, and alone writes the store.

    A new kind of executor is a class of two methods, `submit` and `collect`. What is submitted is independent
    of everything else, and may run anywhere, in any order.

    Attributes:
      devices: the devices that each chunk gets, as JAX devices or as a `Site` for each.
      width: how many chunks to have under way. More than workers there are, so that none waits for the
        driver; not all, so that the driver holds few.
    """

    devices: Sequence[Any]
    width: int

    @abc.abstractmethod
    def submit(self, job: Job, report: Report) -> Hashable:
        """Takes a chunk, and gives a name for it at once.

        Args:
          job: the chunk.
          report: may be told of parts of it while it runs, in trials; the driver tells of the rest.
        """

    @abc.abstractmethod
    def collect(self) -> tuple[Hashable, Outcome]:
        """Waits until a chunk is done, and gives its name and what came of it.

        Raises:
          OuteroptError: a chunk failed for good.
        """

    def close(self) -> None:  # noqa: B027 - most executors have nothing to give back
        """Cancels what is under way, and gives its workers back."""

    def __enter__(self) -> "Executor":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
