"""What `train` does for optimizers that tune themselves: controllers read, frozen and written."""

from pathlib import Path
from typing import TYPE_CHECKING

from outeropt.errors import ConfigError


if TYPE_CHECKING:
    from outeropt import Archive, Optimizer
    from outeropt.cli.train import Config


def prepared(optimizer: "Optimizer", config: "Config") -> "Optimizer":
    """The optimizer with the controller of another run, frozen if that is asked for.

    Raises:
      ConfigError: it does not tune itself, or has no place for the controller.
      OuteroptError: the controller cannot be read.
    """
    from outeropt import selftuning

    if config.load_controller:
        optimizer = selftuning.load(config.load_controller, optimizer)
    return selftuning.freeze(optimizer) if config.freeze else optimizer


def make_room(optimizer: "Optimizer", config: "Config") -> None:
    """Creates the folders that the run will write to.

    Raises:
      ConfigError: there will be nothing to write.
    """
    from outeropt import selftuning

    if config.out and (config.freeze or not selftuning.tunes_itself(optimizer)):
        why = "a frozen optimizer" if config.freeze else config.optimizer
        raise ConfigError(
            f"--out keeps what an optimizer learns while it trains, and {why} learns nothing; leave it out "
            "(--store keeps curves), or give an optimizer that does, such as metaopt or hypergradient:adam."
        )
    for folder in (config.log, config.out):
        if folder:
            folder.mkdir(parents=True, exist_ok=True)


def write(
    optimizer: "Optimizer", after: "Optimizer", archive: "Archive", config: "Config", out: Path
) -> None:
    """Writes what was learned, and its picture."""
    from outeropt import selftuning
    from outeropt.bench.pictures.controllers import controller_figure

    about = {
        "task": archive.task,
        "optimizer": config.optimizer,
        "steps": config.steps,
        "episodes": config.episodes,
        "seed": config.seed,
    }
    file = selftuning.save(out, optimizer, after, about)
    picture = out / "controller.png"
    controller_figure(archive).savefig(picture)
    print(f"Controller: {file}   its picture: {picture}")
