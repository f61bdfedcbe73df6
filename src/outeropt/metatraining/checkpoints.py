"""The checkpoints in a run's folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtyping import PyTree

from outeropt import checkpoint
from outeropt.errors import ConfigError


# Seconds between checkpoints, and how many are kept.
SECONDS = 60.0
_KEPT = 2


def latest(folder: Path, identity: str, recipe: str) -> tuple[str, dict[str, Any]] | None:
    """The path of the newest checkpoint in a folder and what it says about itself; None if there is none.

    Args:
      folder: of the run.
      identity: content hash of the run's recipe.
      recipe: what a recipe consists of, for the message.

    Raises:
      ConfigError: it is of a run of another recipe.
    """
    path = checkpoint.latest(folder / "checkpoints")
    if path is None:
        return None
    about = checkpoint.metadata(path)
    if about.get("identity") != identity:
        raise ConfigError(
            f"{folder} holds a run of another recipe (other {recipe}, steps or seed); "
            "give another folder, or delete this one to start afresh."
        )
    return str(path), about


def save(folder: Path, number: int, kept: PyTree, about: Mapping[str, Any]) -> None:
    """Writes a checkpoint, and deletes all but the last two."""
    checkpoint.save(checkpoint.numbered(folder / "checkpoints", number), kept, about)
    checkpoint.rotate(folder / "checkpoints", _KEPT)
