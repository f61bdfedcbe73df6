"""Where a dataset's files are on this machine: the user's directory, the cache, or a download.

Environment variables:
  OUTEROPT_DATA_DIR: a directory to look in first.
  OUTEROPT_CACHE_DIR: where downloads go, instead of the system's cache directory.
  OUTEROPT_OFFLINE: set to 1, nothing is downloaded.
"""

import dataclasses
import os
from pathlib import Path

import pooch

from outeropt.data.files import Dataset, File, Layout
from outeropt.data.verify import verify
from outeropt.errors import MissingData


_PACKAGE = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Found:
    """The files of a dataset on this machine.

    Attributes:
      layout: the layout that they are in.
      paths: their paths, in the order of the layout.
    """

    layout: Layout
    paths: tuple[Path, ...]


def data_dir() -> Path | None:
    """The user's own data directory, OUTEROPT_DATA_DIR, if it is set."""
    given = os.environ.get("OUTEROPT_DATA_DIR")
    return Path(given).expanduser().absolute() if given else None


def cache_dir() -> Path:
    """Where downloads go: OUTEROPT_CACHE_DIR, or the system's cache directory for outeropt."""
    given = os.environ.get("OUTEROPT_CACHE_DIR")
    return Path(given).expanduser().absolute() if given else Path(pooch.os_cache("outeropt"))


def offline() -> bool:
    """Whether OUTEROPT_OFFLINE forbids downloads."""
    return os.environ.get("OUTEROPT_OFFLINE", "").strip().lower() not in ("", "0", "false", "no")


def find(dataset: Dataset) -> Found | None:
    """The files of a dataset, without checking or downloading them; None when some are missing."""
    for layout, files in dataset.layouts.items():
        paths = [_find_file(file) for file in files]
        if all(paths):
            return Found(layout, tuple(path for path in paths if path))
    return None


def locate(dataset: Dataset, show_progress: bool = True) -> Found:
    """The files of a dataset, checked against their checksums; downloaded where they are missing.

    Args:
      dataset: an entry of the registry.
      show_progress: whether a download shows its progress on standard error.

    Raises:
      MissingData: a file is missing and could not be downloaded; the message says which, where it was looked
        for and how to get it.
      CorruptData: a file's content is not what its checksum says: path, expected and found.
    """
    found = find(dataset)
    if found is None:
        _download_missing(dataset, show_progress)
        found = find(dataset)
        if found is None:
            raise MissingData(f"{_absence(dataset)}.")
    for file, path in zip(dataset.layouts[found.layout], found.paths):
        verify(file, path, _remedy(dataset, file, path), cache_dir() / "verified.json")
    return found


def fetch(dataset: Dataset, show_progress: bool = True) -> Found:
    """Like `locate`, and replaces corrupt files in the cache by fresh downloads."""
    found = find(dataset)
    if found is not None and not offline():
        here = zip(dataset.layouts[found.layout], found.paths)
        _download([file for file, path in here if _downloadable(file, path)], show_progress)
    return locate(dataset, show_progress)


def _find_file(file: File) -> Path | None:
    for directory in (data_dir(), cache_dir(), _PACKAGE):
        if directory is not None and (directory / file.name).is_file():
            return directory / file.name
    return None


def _downloadable(file: File, path: Path) -> bool:
    return bool(file.urls) and cache_dir() in path.parents


def _download_missing(dataset: Dataset, show_progress: bool) -> None:
    if offline():
        raise MissingData(
            f"{_absence(dataset)}, and OUTEROPT_OFFLINE forbids a download. "
            f"Unset it and run: outeropt data get {dataset.name}"
        )
    try:
        _download([file for file in dataset.published if _find_file(file) is None], show_progress)
    except MissingData as error:
        again = f"Try again with: outeropt data get {dataset.name}"
        raise MissingData(f"{_absence(dataset)}. {error} {again}") from error


def _download(files: list[File], show_progress: bool) -> None:
    # Imported here because it loads an HTTP library that most runs never need.
    from outeropt.data.download import download

    download(files, cache_dir(), show_progress)


def _absence(dataset: Dataset) -> str:
    """Which files are missing, and where they were looked for."""
    wanted = " (or ".join(_missing(files) for files in dataset.layouts.values())
    wanted += ")" * (len(dataset.layouts) - 1)
    given = data_dir()
    if given is None:
        where = "OUTEROPT_DATA_DIR is not set"
    else:
        where = f"not in OUTEROPT_DATA_DIR={given}" + ("" if given.is_dir() else " (no such directory)")
    return f"Dataset {dataset.name!r} needs {wanted}: {where}, and not in the cache {cache_dir()}"


def _missing(files: tuple[File, ...]) -> str:
    missing = [file.name for file in files if _find_file(file) is None]
    return missing[0] if len(missing) == 1 else f"{missing[0]} and {len(missing) - 1} more"


def _remedy(dataset: Dataset, file: File, path: Path) -> str:
    if _downloadable(file, path):
        return f"Replace it with: outeropt data get {dataset.name}"
    return "Delete it, or put an intact copy in its place."
