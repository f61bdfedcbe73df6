"""The executor that runs chunks as jobs of SLURM, or as processes of this machine, by submitit."""

import logging
import subprocess
import time
from collections.abc import Hashable
from pathlib import Path
from typing import Any, Literal

from outeropt._sweep.executors import shipping
from outeropt._sweep.executors.base import Executor, Site
from outeropt._sweep.executors.resources import Resources, memory_of
from outeropt._sweep.job import Job, Outcome, Work, perform
from outeropt._sweep.runner import Report
from outeropt.errors import ConfigError, OuteroptError


_POLL_SECONDS = 0.2
_LOOK_SECONDS = 20.0  # between looks at the queue
_LOG_LINES = 5
# As many jobs as SLURM takes in one array by default.
_ARRAY = 1000


class Slurm(Executor):
    """Runs chunks as jobs, in arrays.

    A job that reaches its time limit, or is preempted, is queued again and goes on from the chunk's last
    checkpoint, beside the store. One that is lost (its node died) is submitted again.

    Args:
      folder: where jobs, logs and results are; all machines must see it.
      cluster: `"slurm"`, or `"local"` for processes of this machine.
      parallel: jobs under way at a time.
      cores: cores for a chunk.
      gpus: GPUs for a chunk.
      memory: bytes for a chunk; None estimates them from the task.
      minutes: the time limit of a job.
      retries: how often a chunk is submitted again that was lost.
      options: anything else that `sbatch` takes, by its name with underscores: `{"partition": "gpu"}`.

    Raises:
      ConfigError: submitit is not installed, there is no SLURM here, or an option is not allowed.
    """

    def __init__(
        self,
        folder: Path,
        cluster: Literal["slurm", "local"] = "slurm",
        parallel: int = _ARRAY,
        cores: int = 1,
        gpus: int = 0,
        memory: int | None = None,
        minutes: int = 60,
        retries: int = 3,
        options: dict[str, Any] | None = None,
    ):
        self.resources = Resources(cores, gpus, memory)
        self.devices = [Site(self.resources.platform)] * self.resources.devices
        self.width = parallel
        self._folder, self._minutes, self._retries = folder, minutes, retries
        self._submitit, cloudpickle = _submitit()
        shipping.carry_own_code(cloudpickle)
        self._cloudpickle = cloudpickle
        # It would tell of every look at a queue that did not succeed.
        logging.getLogger("submitit").setLevel(logging.ERROR)
        try:
            self._executor = self._submitit.AutoExecutor(folder, cluster=cluster)
        except RuntimeError as error:
            raise ConfigError(
                f"No SLURM here ({error}); give --on processes for this machine alone, or --on ray."
            ) from error
        self._options = {f"{cluster}_{name}": value for name, value in (options or {}).items()}
        self._pending: list[Job] = []
        self._under_way: dict[str, tuple[Any, Job]] = {}
        self._lost: dict[str, int] = {}
        self._cluster, self._look, self._missing = cluster, 0.0, set[str]()

    def submit(self, job: Job, report: Report) -> Hashable:
        del report
        self._pending.append(job)
        return job.id

    def collect(self) -> tuple[Hashable, Outcome]:
        self._send()
        while True:
            gone = self._gone()
            for name, (sent, job) in self._under_way.items():
                if sent.done() or name in gone:
                    del self._under_way[name]
                    found = self._outcome(sent, job, name in gone)
                    if found is not None:
                        return name, found
                    self._send()
                    break
            else:
                time.sleep(_POLL_SECONDS)

    def close(self) -> None:
        for sent, _ in self._under_way.values():
            sent.cancel(check=False)
        self._under_way.clear()

    def _gone(self) -> set[str]:
        """Chunks whose jobs the queue has not known for a while.

        submitit asks `sacct` which jobs ended without a result; SLURM without accounts does not say.
        """
        if self._cluster != "slurm" or time.monotonic() < self._look:
            return set()
        self._look = time.monotonic() + _LOOK_SECONDS
        told = subprocess.run(["squeue", "-h", "-r", "-o", "%i"], capture_output=True, text=True)
        if told.returncode:
            return set()
        missing = {
            name for name, (sent, _) in self._under_way.items() if sent.job_id not in told.stdout.split()
        }
        gone, self._missing = missing & self._missing, missing
        return gone

    def _send(self) -> None:
        """Submits what waits, as one array for each piece of work."""
        while self._pending:
            work = self._pending[0].work
            jobs = [job for job in self._pending if job.work is work]
            self._pending = [job for job in self._pending if job.work is not work]
            self._executor.update_parameters(
                name="outeropt",
                timeout_min=self._minutes,
                cpus_per_task=self.resources.cores,
                gpus_per_node=int(self.resources.gpus),
                mem_gb=max(1, round((self.resources.memory or memory_of(work)) / 2**30)),
                **self._options,
            )
            kept = self._keep(work)
            stripped = [job._replace(work=None) for job in jobs]
            sent = self._executor.map_array(_Performed(kept), stripped)
            self._under_way |= {job.id: pair for job, pair in zip(jobs, zip(sent, jobs))}

    def _keep(self, work: Work) -> Path:
        """Writes what jobs share to a file, once."""
        path = self._folder / f"{work.id}.work"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            partial.write_bytes(self._cloudpickle.dumps(work))
            partial.rename(path)
        return path

    def _outcome(self, sent: Any, job: Job, gone: bool) -> Outcome | None:
        """What came of a job; None if it was lost and is to be sent again."""
        if gone and not sent.paths.result_pickle.exists():
            return self._again(sent, job)
        try:
            found = sent.result()
        # The narrower of the two errors: the chunk itself failed, and would again.
        except self._submitit.core.utils.FailedJobError as error:
            raise OuteroptError(f"Chunk {job.id} failed as job {sent.job_id}. {_log(sent)}") from error
        except self._submitit.core.utils.UncompletedJobError:
            return self._again(sent, job)
        if isinstance(found, OuteroptError):
            raise found
        return found

    def _again(self, sent: Any, job: Job) -> None:
        """Lets a lost chunk wait for being sent once more."""
        self._lost[job.id] = self._lost.get(job.id, 0) + 1
        if self._lost[job.id] > self._retries:
            raise OuteroptError(
                f"Chunk {job.id} was lost {self._retries + 1} times, the last one as job {sent.job_id}. "
                f"{_log(sent)}"
            )
        self._pending.append(job)


class _Performed:
    """What a job does. submitit calls `checkpoint` when the job's time is up, and queues what it returns."""

    def __init__(self, work: Path):
        self.work = work

    def __call__(self, job: Any) -> Outcome | OuteroptError:
        try:
            return perform(job._replace(work=_submitit()[1].loads(self.work.read_bytes())))
        except OuteroptError as error:
            return error

    def checkpoint(self, job: Any) -> Any:
        return _submitit()[0].helpers.DelayedSubmission(self, job)


def _log(sent: Any) -> str:
    """Where a job's log is, and its last lines."""
    path = sent.paths.stderr
    lines = path.read_text("utf-8", "replace").strip().splitlines() if path.exists() else []
    told = " | ".join(line.strip() for line in lines[-_LOG_LINES:])
    return f"Log: {path}{': ' + told if told else ' (empty)'}"


def _submitit() -> tuple[Any, Any]:
    try:
        import cloudpickle
        import submitit
    except ImportError:
        raise ConfigError('Sweeps on SLURM need submitit: pip install "outeropt[slurm]".') from None
    return submitit, cloudpickle
