"""The executor that runs chunks in this process, one after the other."""

from collections.abc import Hashable, Sequence

from outeropt._sweep.executors.base import Executor
from outeropt._sweep.job import Job, Outcome, runner
from outeropt._sweep.lanes import Device
from outeropt._sweep.runner import Report, Runner


class InProcess(Executor):
    """Runs each chunk when it is asked for.

    Attributes:
      devices: devices that share the lanes.
    """

    width = 1

    def __init__(self, devices: Sequence[Device]):
        self.devices = devices
        self._waiting: list[tuple[Job, Report]] = []
        self._runner: Runner | None = None
        self._work = ""

    def submit(self, job: Job, report: Report) -> Hashable:
        self._waiting.append((job, report))
        return job.id

    def collect(self) -> tuple[Hashable, Outcome]:
        job, report = self._waiting.pop(0)
        if self._runner is None or self._work != job.work.id:
            self._runner, self._work = runner(job.work, self.devices), job.work.id
        self._runner.report = report
        return job.id, Outcome(*self._runner.run(job.chunk, job.partial))
