"""How far long work has come: a bar in a terminal, lines elsewhere, and scalars for TensorBoard."""

import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import SupportsFloat

import rich.progress
from rich.console import Console
from rich.text import Text

from outeropt.errors import OuteroptError


SHOW_AFTER = 2.0
LINE_EVERY = 10.0


class Progress:
    """Shows tasks of work with rate, elapsed time and time left, on standard error.

    Nothing appears in the first two seconds, so short work stays silent. A terminal gets a live bar, a file
    or a pipe a line every ten seconds (when work is counted).

        with Progress(unit="trials") as progress:
            bar = progress.task("Conv_Cifar10_32x64x64", total=75)
            bar.advance(25)

    Args:
      unit: what is counted, in the plural: `"trials"`, `"steps"`.
      quiet: show nothing at all.
      console: where to write; standard error by default.
    """

    def __init__(self, unit: str = "steps", quiet: bool = False, console: Console | None = None):
        self.unit = unit
        self._quiet = quiet
        self._console = console or Console(stderr=True)
        self._live = self._console.is_terminal and not quiet
        self._bars = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}", markup=False),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            _Rate(unit),
            rich.progress.TextColumn("{task.fields[note]}", markup=False),
            console=self._console,
            disable=not self._live,
            get_time=_now,
            # Chunks can take minutes each; the rate needs at least two of them.
            speed_estimate_period=1800.0,
            # What the program prints must reach its standard output, even while the bar is on the terminal.
            redirect_stdout=sys.stdout.isatty(),
        )
        self._timer = threading.Timer(SHOW_AFTER, self._bars.start)
        self._timer.daemon = True
        self._begun = self._lined = _now()

    def __enter__(self) -> "Progress":
        self._begun = self._lined = _now()
        if self._live:
            self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        if self._timer.is_alive():
            self._timer.join()
        if self._bars.live.is_started:
            self._bars.stop()
        if not self._live and self._lined > self._begun:
            for bar in self._bars.tasks:
                self._line(bar)

    def task(self, description: str, total: float | None, done: int = 0, compiles: bool = False) -> "Bar":
        """Adds a task of work.

        Args:
          description: what it is, in a few words.
          total: how much there is to do, in the unit; None if unknown.
          done: how much was done before, by an earlier process; it does not count for the rate.
          compiles: whether the first count has compiled a program, and so tells nothing of the rate.
        """
        fields = {"note": "", "before": done, "after": 0.0, "compiles": compiles}
        number = self._bars.add_task(description, total=total, completed=done, **fields)
        return Bar(self, number)

    def _advance(self, number: rich.progress.TaskID, amount: float, note: str) -> None:
        # Shares of a trial add up to whole ones.
        task = self._bars.tasks[number]
        completed = round(task.completed + amount, 6)
        self._bars.update(number, completed=completed, note=note)
        if task.fields["compiles"]:
            self._bars.update(number, before=completed, after=task.elapsed, compiles=False)
        now = _now()
        if not self._live and not self._quiet and now - self._lined >= LINE_EVERY:
            self._lined = now
            self._line(self._bars.tasks[number])

    def _line(self, task: rich.progress.Task) -> None:
        total = "" if task.total is None else f"/{int(task.total)}"
        parts = [
            f"{task.description}: {int(task.completed)}{total}",
            _pace(task, self.unit),
            task.fields["note"],
        ]
        self._console.print(Text(", ".join(part for part in parts if part)), soft_wrap=True)


class Bar:
    """One task of work inside a `Progress`."""

    def __init__(self, progress: Progress, number: rich.progress.TaskID):
        self._progress = progress
        self._number = number

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Counts work as done, whole units or shares; `note` is a few words for the end of the line."""
        self._progress._advance(self._number, amount, note)


class Scalars:
    """Scalars by step in TensorBoard's format; `scalars` makes one."""

    def __init__(self, folder: Path, since: int | None = None):
        import tensorboardX

        self._writer = tensorboardX.SummaryWriter(str(folder), purge_step=since)

    def __enter__(self) -> "Scalars":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def log(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Writes values by name (`"meta/loss"`) at one step."""
        for name, value in values.items():
            self._writer.add_scalar(name, float(value), int(step))

    def flush(self) -> None:
        """Puts what was logged on the disk."""
        self._writer.flush()

    def close(self) -> None:
        """Flushes and closes the files."""
        self._writer.close()


def scalars(path: str | Path, since: int | None = None) -> Scalars:
    """Opens a folder of TensorBoard logs, to be closed after use (it is a context manager).

    Args:
      path: the folder; created if it does not exist. `tensorboard --logdir path` shows it.
      since: the step from which this process logs anew. TensorBoard then shows nothing that a killed process
        had logged from there on. None keeps everything.
    """
    return Scalars(Path(path), since)


def read_scalars(path: str | Path) -> dict[str, tuple[list[int], list[float]]]:
    """Reads back what `scalars` wrote: steps and values by name.

    Args:
      path: the folder; of several files in it the ones begun later come later.

    Raises:
      OuteroptError: there are no TensorBoard logs in it.
    """
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore (made by protobuf as it is loaded)

    files = sorted(Path(path).glob("events.out.tfevents.*"))
    if not files:
        raise OuteroptError(f"{path} holds no TensorBoard logs (files called events.out.tfevents.*).")
    found: dict[str, tuple[list[int], list[float]]] = {}
    for file in files:
        data = file.read_bytes()
        # A record: its length in 8 bytes and a checksum of them in 4, the event, its checksum in 4.
        place = 0
        while place + 12 <= len(data):
            end = place + 12 + int.from_bytes(data[place : place + 8], "little")
            if end + 4 > len(data):  # the writer was killed in the middle of a record
                break
            event = Event.FromString(data[place + 12 : end])
            for value in event.summary.value:
                steps, values = found.setdefault(value.tag, ([], []))
                steps.append(event.step)
                values.append(value.simple_value)
            place = end + 4
    return found


def _now() -> float:
    return time.monotonic()


class _Rate(rich.progress.ProgressColumn):
    """Rate, elapsed time and time left."""

    def __init__(self, unit: str):
        super().__init__()
        self._unit = unit

    def render(self, task: rich.progress.Task) -> Text:
        return Text(_pace(task, self._unit), style="progress.remaining")


def _pace(task: rich.progress.Task, unit: str) -> str:
    """Rate, elapsed time and time left in words."""
    elapsed = task.finished_time if task.finished_time is not None else task.elapsed
    if not elapsed:
        return ""
    # The recent rate, or the mean one where there are too few counts to tell.
    recent = None if task.finished else task.speed
    rate = recent or _mean_rate(task, elapsed)
    parts = [f"{_duration(elapsed)} so far"]
    if rate:
        singular = unit.removesuffix("s")
        parts.insert(0, f"{_figures(rate)} {unit}/s" if rate >= 1 else f"{_figures(1 / rate)} s/{singular}")
    if task.total is not None and rate and not task.finished:
        parts.append(f"{_duration((task.total - task.completed) / rate)} left")
    return ", ".join(parts)


def _mean_rate(task: rich.progress.Task, elapsed: float) -> float | None:
    """What was counted a second, without what an earlier process did and what compiled; None if unknown."""
    spent = elapsed - task.fields["after"]
    return (task.completed - task.fields["before"]) / spent if spent > 0 else None


def _figures(number: float) -> str:
    """Three figures, and whole numbers from a hundred on."""
    return f"{number:.3g}" if number < 100 else f"{number:.0f}"


def _duration(seconds: float) -> str:
    """`42 s`, `3 min 20 s` or `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
