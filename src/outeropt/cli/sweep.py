"""`outeropt sweep`: many settings and seeds of one optimizer on one task."""

import dataclasses
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from outeropt.cli.values import Plain, Rows
from outeropt.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Config:
    """Train a task with every setting and seed, as one compiled program.

    Give --set NAME, or --optimizer with --grid or --sample. Other hyperparameters are set by --optimizer.NAME
    VALUE; -c data.yaml algorithm.yaml fills any option, from pieces that must not contradict each other.
    """

    DOTTED: ClassVar[dict[str, str]] = {"optimizer": "hyperparameters"}

    task: str
    """A task's name, or path/to/file.py:attribute."""
    train_on: Rows = "train"
    """The rows to train on: train, or train+valid for a method that needs no validation rows."""
    set: str | None = None
    """A hyperparameter set or a collection of sets (outeropt list sets), .yaml file, or path.py:attribute."""
    optimizer: str | None = None
    """An optimizer's name, in place of a set."""
    hyperparameters: Annotated[dict[str, Plain], tyro.conf.Suppress] = dataclasses.field(default_factory=dict)
    grid: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """NAME=SCALE:LOW:HIGH:COUNT or NAME=V1,V2,...; repeat for more hyperparameters."""
    sample: int | None = None
    """That many random settings from the optimizer's spaces, in place of a grid."""
    seeds: int | None = None
    """Seeds per setting. Default: the set's, else 3."""
    steps: int | None = None
    """Inner steps, of each episode. Default: the set's, else 1000."""
    episodes: int | None = None
    """How often every trial trains from fresh initial values; what an optimizer learned stays. Default: the
    set's, else 1."""
    eval_every: int | None = None
    """Inner steps between evaluations; must divide steps. Default: the set's, else about a hundred."""
    eval_batches: int | None = None
    """Batches per split and evaluation. Default: the set's, else 5."""
    last_eval_batches: int | None = None
    """Batches per split of the evaluation after the last step. Default: the set's, else 10."""
    lanes: int | None = None
    """Trials that one device runs at a time. Default: chosen by the size of the training state."""
    store: Path = Path("runs.db")
    """Where finished trials are kept; those that are there already are not run again."""
    name: str | None = None
    """Name of the set in the store. Default: the set's own, or made from optimizer and grid."""

    def check(self) -> None:
        """Raises `ConfigError` where options contradict each other."""
        if (self.set is None) == (self.optimizer is None):
            raise ConfigError("Give either --set NAME or --optimizer NAME (with --grid or --sample).")
        if self.set is not None and (self.grid or self.sample is not None or self.hyperparameters):
            raise ConfigError(
                "--grid, --sample and --optimizer.* go with --optimizer; a set has its own grid."
            )
        if self.grid and self.sample is not None:
            raise ConfigError("--grid and --sample exclude each other; give one.")
        for name in ("sample", "seeds", "episodes", "lanes"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise ConfigError(f"--{name} {count} is not allowed; give at least 1.")


def run(config: Config) -> None:
    """Runs the command."""
    from outeropt.cli.running import plans_of, prepare, swept, task_of

    config.check()
    prepare()
    from outeropt.cli.show import show_archive, show_episodes

    task = task_of(config)
    archives = swept(task, plans_of(config), config)
    if len(archives) == 1:
        show_archive(archives[0])
    if len(archives) > 1 or archives[0].episodes > 1:
        show_episodes(archives)
    print(f"Trials: {config.store}   next: outeropt report {config.store}")
