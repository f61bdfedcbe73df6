"""Checksums of files, remembered so that a file is hashed once and not at every start."""

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path

from outeropt.data.files import File
from outeropt.errors import OuteroptError


class CorruptData(OuteroptError):
    """A dataset file whose content is not what its checksum says."""


def verify(file: File, path: Path, remedy: str, memory: Path) -> None:
    """Checks a file against its known checksum, unless this very file was checked before.

    Args:
      file: what is expected.
      path: the file on this machine.
      remedy: what to do about a corrupt file; the error message ends with it.
      memory: a JSON file that remembers path, size, time of change and checksum of files found intact.

    Raises:
      CorruptData: the content differs, with path, expected and found.
    """
    status = path.stat()
    seen = [status.st_size, status.st_mtime_ns, file.sha256]
    known = _recall(memory)
    if known.get(str(path)) == seen:
        return
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != file.sha256:
        raise CorruptData(
            f"{path} is corrupt: expected sha256 {file.sha256} ({file.size} bytes), "
            f"found {found} ({status.st_size} bytes). {remedy}"
        )
    _remember(memory, {**known, str(path): seen})


def _recall(memory: Path) -> dict[str, list]:
    try:
        known = json.loads(memory.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _remember(memory: Path, known: dict[str, list]) -> None:
    # A cache that cannot be written, or another process writing it, only means that a file is hashed again.
    with contextlib.suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=memory.parent, prefix=memory.name)
        with os.fdopen(handle, "w") as stream:
            json.dump(known, stream, indent=0)
        os.replace(temporary, memory)
