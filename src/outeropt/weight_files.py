"""Where the weights of learned optimizers are: those that ship, files, and folders. Needs no JAX."""

import contextlib
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from outeropt.errors import OuteroptError, unknown_name


FILE = "optimizer.safetensors"
"""What the file in a folder of `metatrain` or `amalgamate` is called."""


def names() -> list[str]:
    """Names of the weights that ship with the package, sorted."""
    return sorted(
        entry.name.removesuffix(".safetensors")
        for entry in shipped().iterdir()
        if entry.name.endswith(".safetensors")
    )


def shipped():
    """The folder of what ships. Found from the package: the room that it belongs to loads JAX."""
    return resources.files("outeropt") / "learned" / "weights"


@contextlib.contextmanager
def located(name: str | Path) -> Iterator[Path]:
    """The file that a name, a file or a folder of `metatrain` or `amalgamate` stands for.

    Raises:
      UnknownName: neither a name nor a file.
      OuteroptError: the folder has no weights.
    """
    if str(name) in names():
        with resources.as_file(shipped() / f"{name}.safetensors") as path:
            yield path
        return
    path = Path(name)
    if str(name) and path.is_dir():
        path = path / FILE
        if not path.exists():
            raise OuteroptError(
                f"{name} holds no {FILE}; metatrain writes it when it ends, amalgamate after a period."
            )
    if not str(name) or not path.is_file():
        raise unknown_name("learned optimizer or file", str(name), names(), see="outeropt list weights")
    yield path
