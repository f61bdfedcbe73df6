"""The executor that runs chunks on a Ray cluster."""

import os
import time
import warnings
from collections.abc import Hashable
from typing import Any

from outeropt._sweep.executors import shipping
from outeropt._sweep.executors.base import Executor, Site
from outeropt._sweep.executors.resources import Resources, memory_of
from outeropt._sweep.job import Job, Outcome, Work, perform
from outeropt._sweep.runner import Report
from outeropt.errors import ConfigError, OuteroptError, first_line


_AHEAD = 2  # chunks under way for each that can run
_LOOK_SECONDS = 10.0  # between looks at how large the cluster is


class Ray(Executor):
    """Runs chunks as tasks of Ray, which retries those whose worker or node dies.

    Args:
      address: a cluster's, such as `"ray://head:10001"` or `"auto"`; None for `RAY_ADDRESS` or, without it, a
        Ray of this machine alone that is started here and ended with the sweep.
      cores: cores for a chunk.
      gpus: GPUs for a chunk; a fraction shares one.
      memory: bytes for a chunk; None estimates them from the task.
      retries: how often a chunk is started again whose worker or node died.

    Raises:
      ConfigError: Ray is not installed, an option is not allowed, or there is no such cluster.
    """

    def __init__(
        self,
        address: str | None = None,
        cores: int = 1,
        gpus: float = 0,
        memory: int | None = None,
        retries: int = 3,
    ):
        self.resources = Resources(cores, gpus, memory)
        self._ray, cloudpickle = _ray()
        shipping.carry_own_code(cloudpickle)
        self._started = not self._ray.is_initialized()
        if self._started:
            self._connect(address or os.environ.get("RAY_ADDRESS"))
        self._perform = self._ray.remote(_perform)
        self._retries = retries
        self._works: dict[str, Any] = {}
        self._under_way: dict[Any, str] = {}
        self._looked, self._slots = -_LOOK_SECONDS, 1
        self.devices = [Site(self.resources.platform)] * self.resources.devices

    @property
    def width(self) -> int:
        """Some chunks for every one that the cluster can run now; nodes may come and go."""
        if time.monotonic() - self._looked > _LOOK_SECONDS:
            has = self._ray.cluster_resources()
            most = [int(has.get("CPU", 0) // self.resources.cores)]
            if self.resources.gpus:
                most.append(int(has.get("GPU", 0) / self.resources.gpus))
            self._looked, self._slots = time.monotonic(), max(1, min(most))
        return _AHEAD * self._slots

    def submit(self, job: Job, report: Report) -> Hashable:
        del report
        work = job.work
        if work.id not in self._works:
            # Sent once, and only to where it is needed.
            self._works = {work.id: (self._ray.put(work), self.resources.memory or memory_of(work))}
        sent, memory = self._works[work.id]
        task = self._perform.options(
            num_cpus=self.resources.cores,
            num_gpus=self.resources.gpus or None,
            memory=memory,
            max_retries=self._retries,
        )
        reference = task.remote(job._replace(work=None), work.id, [sent])
        self._under_way[reference] = job.id
        return reference

    def collect(self) -> tuple[Hashable, Outcome]:
        (reference,), _ = self._ray.wait(list(self._under_way), num_returns=1)
        name = self._under_way.pop(reference)
        try:
            return reference, self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, OuteroptError):
                raise cause from error
            raise OuteroptError(f"Chunk {name} failed on the Ray cluster: {first_line(cause)}.") from error
        except self._ray.exceptions.RayError as error:
            raise OuteroptError(
                f"Chunk {name} was lost on the Ray cluster {self._retries + 1} times: {first_line(error)}. "
                "Give it more memory, or look into the cluster's logs; then run the same command again."
            ) from error

    def close(self) -> None:
        for reference in self._under_way:
            self._ray.cancel(reference, force=True)
        self._under_way.clear()
        if self._started:
            self._ray.shutdown()

    def _connect(self, address: str | None) -> None:
        try:
            with warnings.catch_warnings():
                # A fork that becomes another program at once, which JAX cannot know.
                warnings.filterwarnings("ignore", ".*os.fork", RuntimeWarning)
                self._ray.init(
                    # Without an address Ray would join whatever else runs on this machine.
                    address=address or "local",
                    include_dashboard=None if address else False,
                    logging_level="ERROR",
                    log_to_driver=False,
                    runtime_env={"env_vars": shipping.environment()},
                )
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"No Ray cluster could be joined at {address or 'this machine'}: {first_line(error)}. "
                "Give --on ray for one of this machine alone, or --on ray://HEAD:10001."
            ) from error


# A worker keeps what it was sent last: the work's data and programs.
_WORKS: dict[str, Work] = {}


def _perform(job: Any, work: str, sent: list[Any]) -> Outcome:
    """Runs a chunk on a worker, which gets the work itself only if it does not have it."""
    if work not in _WORKS:
        _WORKS.clear()
        _WORKS[work] = _ray()[0].get(sent[0])
    return perform(job._replace(work=_WORKS[work]))


def _ray() -> tuple[Any, Any]:
    try:
        import ray
        from ray import cloudpickle
    except ImportError:
        raise ConfigError('Sweeps on Ray need it: pip install "outeropt[ray]".') from None
    return ray, cloudpickle
