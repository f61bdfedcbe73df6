"""Downloads with checksum, progress and resume."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pooch
import requests
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from outeropt.data.files import File
from outeropt.errors import MissingData


_TIMEOUT = (10, 60)  # seconds to connect, seconds without a byte
_CHUNK = 1 << 16


class ResumingDownloader:
    """A downloader for pooch that goes on where a broken download stopped.

    Bytes are kept in a `.part` file beside the target, and the rest is asked for with an HTTP range. A broken
    connection is tried again at once for as long as each attempt brings something; what was received stays
    for the next call, in this process or another.

    Attributes:
      size: bytes of the whole file.
      part: the file that keeps what has been received.
      received: called with the number of bytes on disk whenever it changes.
    """

    def __init__(self, size: int, part: Path, received: Callable[[int], object] = lambda count: None):
        self.size = size
        self.part = part
        self.received = received

    def __call__(self, url: str, output_file: str, pooch: object) -> None:
        """Brings the whole file to `output_file`; pooch then checks it.

        Raises:
          requests.RequestException: the connection failed and brought nothing new, or the server refused.
        """
        while (start := self._have()) < self.size:
            try:
                self._receive(url, start)
            except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError):
                if self._have() <= start:
                    raise
                continue
            if self._have() <= start:
                raise requests.ConnectionError(f"{url} ended after {self._have()} of {self.size} bytes")
        os.replace(self.part, output_file)

    def _have(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _receive(self, url: str, start: int) -> None:
        # A compressed transfer would make byte positions meaningless.
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
        with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
            if response.status_code == requests.codes.requested_range_not_satisfiable:
                self.part.unlink()  # what we have is not the beginning of this file
            response.raise_for_status()
            resumed = response.status_code == requests.codes.partial_content
            count = start if resumed else 0
            with self.part.open("ab" if resumed else "wb") as stream:
                for chunk in response.iter_content(_CHUNK):
                    stream.write(chunk)
                    count += len(chunk)
                    self.received(count)
                    if count > self.size:  # not our file: the checksum will say so
                        return


def download(files: list[File], directory: Path, show_progress: bool) -> None:
    """Brings files into a directory, from the first of their URLs that works.

    A file that is there and intact is left alone; a corrupt one is replaced. Processes that share the
    directory wait for each other.

    Args:
      files: what to bring.
      directory: where to; it is created.
      show_progress: whether to show a bar for each file on standard error.

    Raises:
      MissingData: a file could not be had from any of its URLs.
    """
    columns = (
        "{task.description}",
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    bars = Progress(*columns, console=Console(stderr=True), disable=not show_progress)
    with _alone(directory), _quiet_pooch(), bars:
        for file in files:
            bar = bars.add_task(file.name, total=file.size)
            _download_one(file, directory, lambda count, bar=bar: bars.update(bar, completed=count))
            bars.update(bar, completed=file.size)


def _download_one(file: File, directory: Path, received: Callable[[int], object]) -> None:
    target = directory / file.name
    target.parent.mkdir(parents=True, exist_ok=True)
    downloader = ResumingDownloader(file.size, target.with_name(target.name + ".part"), received)
    failures = []
    for url in file.urls:
        try:
            pooch.retrieve(
                url,
                known_hash=f"sha256:{file.sha256}",
                fname=target.name,
                path=target.parent,
                downloader=downloader,  # pyright: ignore[reportArgumentType]
            )
            return
        except (requests.RequestException, OSError, ValueError) as error:
            # What a failed connection says in the end is in the innermost reason.
            reason = getattr(error.args[0], "reason", error) if error.args else error
            failures.append(f"{url}: {' '.join(str(reason).split())}")
    raise MissingData(f"{file.name} could not be downloaded: {'; '.join(failures)}.")


@contextlib.contextmanager
def _quiet_pooch() -> Iterator[None]:
    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Holds a lock on the directory; where the system has none (Windows), processes do not wait."""
    directory.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:
        yield
        return
    with (directory / "downloads.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
